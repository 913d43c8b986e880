"""CLIP-FSAR: support frames attend to the text of their class, queries to themselves, matched by OTAM.

One encoder serves both sides; at test time the text may also enter the logits directly (method section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m2df_train.model.alignment import cosine
from m2df_train.model.fusion import FusionEncoder
from m2df_train.model.heads.base import Episode, EpisodeOutput, Head, Match, class_means, episode_losses
from m2df_train.model.options import ClipFsarOptions

VISUAL_TEMPERATURE = 8.0  # of p_visual = softmax(-d / 8) under text-visual fusion; a constant of the code, not T


class ClipFsarHead(Head):
    """CLIP-FSAR.

    Args:
        dim: Feature size D.
        frames: Frames T per clip.
        options: Variants; the defaults are the paper's 1-shot setting.
    """

    name = "clip-fsar"
    parts = 2
    options: ClipFsarOptions

    def __init__(self, dim: int, frames: int, options: ClipFsarOptions | None = None) -> None:
        o = options or ClipFsarOptions()
        super().__init__(dim, frames, o)
        self.text_scale = nn.Parameter(torch.ones(1))
        self.fusion = FusionEncoder(
            self.text_dim,
            heads=o.heads,
            depth=o.depth,
            ffn_dim=o.ffn_dim,
            attention_dropout=o.dropout.attention,
            ffn_dropout=o.dropout.ffn,
        )

    def encode_support(self, frames: Tensor, prompts: Tensor) -> Tensor:
        """Frames [B, T, D] beside their text [B, D] -> frame tokens [B, T, D]; appearance goes past the fusion."""
        tokens = self.fusion(torch.cat([self.text_part(frames), self.text_part(prompts).unsqueeze(1)], dim=1))
        return self.with_looks(tokens[:, :-1], frames)

    @property
    def merges_after(self) -> bool:
        """As ``prototype.merge`` says."""
        return self.options.prototype.merge == "after"

    def prototypes(self, features: Tensor, prompt: Tensor) -> Tensor:
        """Shots averaged before or after the encoder: [K, T, D], [1, D] -> [1, T, D]."""
        if self.merges_after:
            return self.encode_support(features, prompt.expand(features.shape[0], -1)).mean(dim=0, keepdim=True)
        return self.encode_support(features.mean(dim=0, keepdim=True), prompt)

    def clip_parts(self, features: Tensor) -> Tensor:
        """Frames and what the encoder makes of them: [B, T, D] -> [B, 2, T, D]."""
        return torch.stack([features, self._encode_query(features)], dim=1)

    def _encode_query(self, features: Tensor) -> Tensor:
        return self.with_looks(self.fusion(self.text_part(features)), features)

    def match_parts(self, parts: Tensor, prompts: Tensor, prototypes: Tensor) -> Match:
        """Match queries with classes; the text enters the logits as ``text_visual_fusion`` says."""
        features, fused = parts.unbind(1)
        tokens = fused.unsqueeze(1)  # [Q, 1, T, D]
        distances = self.distances(tokens, prototypes)  # [Q, 1, C]
        text_logits = self.text_scale * self.text_cosines(features, prompts)
        return Match(self.fuse(distances, text_logits), distances, torch.softmax(text_logits, dim=-1), tokens)

    def fuse(self, distances: Tensor, text_logits: Tensor) -> Tensor:
        """Logits out of distances [Q, 1, C] and text logits [Q, C]: beta log p_text + (1-beta) log p_visual."""
        fusion = self.options.text_visual_fusion
        visual = -distances[:, 0]
        if not fusion.enabled:
            return visual
        log_text = torch.log_softmax(text_logits, dim=-1)
        if fusion.mode == "text":
            return log_text
        return fusion.beta * log_text + (1.0 - fusion.beta) * torch.log_softmax(visual / VISUAL_TEMPERATURE, dim=-1)

    def forward(self, episode: Episode) -> EpisodeOutput:
        """Run a whole episode; training never mixes the text into the logits."""
        o, prompts, labels = self.options, episode.class_prompts, episode.support_labels
        way = prompts.shape[0]
        if o.prototype.merge == "before":
            classes = self.encode_support(class_means(episode.support_features, labels, way), prompts)
        else:
            classes = class_means(self.encode_support(episode.support_features, prompts[labels]), labels, way)
        classes = classes.unsqueeze(1)  # [W, 1, T, D]
        distances = self.distances(self._encode_query(episode.query_features).unsqueeze(1), classes)  # [Q, 1, W]
        text_logits = self.text_scale * self.text_cosines(episode.query_features, prompts)
        logits = -distances[:, 0] if self.training else self.fuse(distances, text_logits)
        class_logits = None
        if episode.text_table is not None:
            pooled = torch.cat([episode.support_features, episode.query_features]).mean(dim=1)  # [S+Q, D]
            table = self.text_part(episode.text_table)
            class_logits = self.text_scale * cosine(self.text_part(pooled), table, o.cos_eps)
        return EpisodeOutput(
            logits=logits,
            distances=distances,
            selected=torch.softmax(text_logits, dim=-1),
            prototypes=classes,
            losses=episode_losses(episode, logits, class_logits, o.loss, training=self.training),
            class_logits=class_logits,
        )
