"""CLIP-M2DF: a local and a global temporal view, each fused with a text prompt and matched by OTAM.

Support clips carry the text of their class, queries the text the prompt selector gives them; the logits
are the negative weighted sum of both views' distances (method section 2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m2df_train.model.alignment import cosine
from m2df_train.model.distillation import mutual_distillation
from m2df_train.model.fusion import FusionEncoder
from m2df_train.model.heads.base import Episode, EpisodeOutput, Head, Match, class_means, episode_losses
from m2df_train.model.options import M2dfOptions, PromptMode
from m2df_train.model.prompt_selection import (
    PromptSelection,
    frame_cosines,
    select_prompts,
    topk_frames,
    topk_score,
)
from m2df_train.model.temporal import GlobalContext, LocalContext


class TemporalView(nn.Module):
    """One view: a temporal context, then fusion of [prompt; context] with [prompt; frames].

    Args:
        context: Context extractor, [B, T, D] -> [B, T, D].
        fusion: Fusion encoder.
    """

    def __init__(self, context: nn.Module, fusion: FusionEncoder) -> None:
        super().__init__()
        self.context = context
        self.fusion = fusion

    def forward(self, frames: Tensor, context: Tensor, prompts: Tensor, *, skip: int = 0) -> Tensor:
        """Frames and their context [B, T, D], prompts [B, D] -> tokens [B, 1+T, D], the prompt first.

        ``skip=1`` gives the frame tokens alone.
        """
        prompt = prompts.unsqueeze(1)
        queries = torch.cat([prompt, context], dim=1)
        memory = torch.cat([prompt, frames], dim=1)
        return self.fusion(queries, memory, skip=skip)


class M2dfHead(Head):
    """CLIP-M2DF.

    Args:
        dim: Feature size D.
        frames: Frames T per clip.
        options: Every published and ablated variant; the defaults are the paper's.
    """

    name = "m2df"
    views = 2
    parts = 3
    options: M2dfOptions

    def __init__(self, dim: int, frames: int, options: M2dfOptions | None = None) -> None:
        options = options or M2dfOptions()
        super().__init__(dim, frames, options)
        self.text_scale = nn.Parameter(torch.ones(1))
        self.local_view = TemporalView(LocalContext(self.text_dim), self._fusion())
        self.global_view = TemporalView(GlobalContext(self.text_dim, options.dropout.context), self._fusion())

    def _fusion(self) -> FusionEncoder:
        o = self.options
        return FusionEncoder(
            self.text_dim,
            heads=o.heads,
            depth=o.depth,
            ffn_dim=o.ffn_dim,
            attention_dropout=o.dropout.attention,
            ffn_dropout=o.dropout.ffn,
        )

    def tokens(self, frames: Tensor, prompts: Tensor) -> Tensor:
        """Fused tokens of both views, the prompt's first: [B, T, D], [B, D] -> [B, 2, 1+T, D]."""
        return self._fused(self.clip_parts(frames), prompts)

    def clip_parts(self, features: Tensor) -> Tensor:
        """Frames, local and global context, none of which depends on a prompt: [B, T, D] -> [B, 3, T, D]."""
        text = self.text_part(features)
        contexts = self.local_view.context(text), self.global_view.context(text)
        return torch.stack([features, *(self.with_looks(context, features) for context in contexts)], dim=1)

    def _fused(self, parts: Tensor, prompts: Tensor, *, skip: int = 0) -> Tensor:
        """Tokens of both views but the first ``skip``: [B, 3, T, D], [B, D] -> [B, 2, 1+T-skip, D].

        Appearance goes past the fusion.
        """
        frames, local, whole = self.text_part(parts).unbind(1)
        prompts = self.text_part(prompts)
        views = self.local_view(frames, local, prompts, skip=skip), self.global_view(frames, whole, prompts, skip=skip)
        made_of = parts[:, 0] if skip else torch.cat([0.0 * parts[:, 0, :1], parts[:, 0]], dim=1)  # [B, 1+T-skip, D]
        return torch.stack([self.with_looks(view, made_of) for view in views], dim=1)

    def select(
        self, features: Tensor, prompts: Tensor, mode: PromptMode, uniforms: Tensor | None = None
    ) -> PromptSelection:
        """Prompt of each query [Q, T, D] out of the class texts [W, D]."""
        cosines = frame_cosines(self.text_part(prompts), self.text_part(features), self.options.cos_eps)
        scores = topk_score(cosines, self.options.topk_frames)
        pps = self.options.pps
        return select_prompts(
            scores, prompts, mode, temperature=pps.temperature, detach_probs=pps.detach_probs, uniforms=uniforms
        )

    @property
    def merges_after(self) -> bool:
        """Shots are merged after fusion (method 2.7)."""
        return True

    def prototypes(self, features: Tensor, prompt: Tensor) -> Tensor:
        """Mean over the shots of the fused frame tokens: [K, T, D], [1, D] -> [2, T, D]."""
        prompts = prompt.expand(features.shape[0], -1)
        return self._fused(self.clip_parts(features), prompts, skip=1).mean(dim=0)

    def match_parts(self, parts: Tensor, prompts: Tensor, prototypes: Tensor) -> Match:
        """Match queries with classes, prompts by ``pps.eval``.

        Raises:
            ValueError: ``pps.eval`` is ``sample``; matching is deterministic.
        """
        mode = self.options.pps.eval
        if mode == "sample":
            raise ValueError("pps.eval is 'sample': matching is deterministic, use argmax, expectation or none")
        selection = self.select(parts[:, 0], prompts, mode)
        query = self._fused(parts, selection.prompts, skip=1)  # [Q, 2, T, D]
        distances = self.distances(query, prototypes)
        return Match(self.logits(distances), distances, selection.probabilities, query)

    def logits(self, distances: Tensor) -> Tensor:
        """Negative weighted sum of the views' distances: [Q, 2, C] -> [Q, C]."""
        local, other = self.options.view_weights
        return -(local * distances[:, 0] + other * distances[:, 1])

    def class_logits(self, episode: Episode, selection: PromptSelection, table: Tensor) -> Tensor:
        """Cosine of the frames closest to a clip's text with all texts of the split (method 2.9) -> [S+Q, C]."""
        features = self.text_part(torch.cat([episode.support_features, episode.query_features]))  # [B, T, M]
        texts = episode.class_prompts[torch.cat([episode.support_labels, selection.best])]  # [B, D]
        texts, table = self.text_part(texts), self.text_part(table)
        cosines = cosine(texts.unsqueeze(1), features, self.options.cos_eps).squeeze(1)  # [B, T]
        kept, _ = topk_frames(features, cosines, self.options.topk_frames)
        return self.text_scale * cosine(kept.mean(dim=1), table, self.options.cos_eps)

    def forward(self, episode: Episode) -> EpisodeOutput:
        """Run a whole episode, supports and queries through the encoders together."""
        o, prompts = self.options, episode.class_prompts
        shots, way = episode.support_features.shape[0], prompts.shape[0]
        mode = o.pps.train if self.training else o.pps.eval
        selection = self.select(episode.query_features, prompts, mode, episode.uniforms)
        tokens = self.tokens(
            torch.cat([episode.support_features, episode.query_features]),
            torch.cat([prompts[episode.support_labels], selection.prompts]),
        )  # [S+Q, 2, 1+T, D]
        query = tokens[shots:]
        classes = class_means(tokens[:shots], episode.support_labels, way)  # [W, 2, 1+T, D]
        distances = self.distances(query[:, :, 1:], classes[:, :, 1:])  # [Q, 2, W]
        logits = self.logits(distances)

        token = 0 if o.distil.text_token == "prompt" else 1
        text_cosines = cosine(query[:, :, token].transpose(0, 1), classes[:, :, token].transpose(0, 1), o.cos_eps)
        distillation = mutual_distillation(distances.transpose(0, 1), text_cosines, o.distil)
        class_logits = None
        if episode.text_table is not None:
            class_logits = self.class_logits(episode, selection, episode.text_table)
        return EpisodeOutput(
            logits=logits,
            distances=distances,
            selected=selection.probabilities,
            prototypes=classes[:, :, 1:],
            losses=episode_losses(episode, logits, class_logits, o.loss, distillation.loss, training=self.training),
            class_logits=class_logits,
            visual_confidence=distillation.visual,
            text_confidence=distillation.text,
        )
