"""A head without weights: frames of a pretrained CLIP matched by OTAM as they are, text beside them.

It lets any CLIP be used at once, and is the baseline a trained head has to beat.
"""

from __future__ import annotations

import torch
from torch import Tensor

from m2df_train.model.heads.base import Episode, EpisodeOutput, Head, Match, class_means, episode_losses
from m2df_train.model.options import ClipFsarLossOptions, TrainingFreeOptions


class TrainingFreeHead(Head):
    """Matching of raw frame features, with zero-shot text scores mixed in.

    Args:
        dim: Feature size D.
        frames: Frames T per clip.
        options: Alignment, temperature and share of the text.
    """

    name = "training-free"
    options: TrainingFreeOptions

    def __init__(self, dim: int, frames: int, options: TrainingFreeOptions | None = None) -> None:
        super().__init__(dim, frames, options or TrainingFreeOptions())

    @property
    def merges_after(self) -> bool:
        """There is nothing that encodes prototypes: their mean is all."""
        return True

    def prototypes(self, features: Tensor, prompt: Tensor) -> Tensor:
        """Mean over the shots: [K, T, D] -> [1, T, D]; the text ``prompt`` [1, D] changes nothing.

        It is read all the same: engines drop an input that nothing reads, and then refuse it.
        """
        return features.mean(dim=0, keepdim=True) + 0.0 * prompt.unsqueeze(1)

    def clip_parts(self, features: Tensor) -> Tensor:
        """The frames as they are: [B, T, D] -> [B, 1, T, D]."""
        return features.unsqueeze(1)

    def match_parts(self, parts: Tensor, prompts: Tensor, prototypes: Tensor) -> Match:
        """Mix visual and text logits, both at CLIP's own temperature; softmax(logits) is the fused probability.

        A distance divided by the length of its path is a mean frame distance 1 - cos, so
        ``-logit_scale * d`` is on the scale of CLIP's ``logit_scale * cos``.
        """
        o = self.options
        distances = self.distances(parts, prototypes)  # [Q, 1, C]
        directions = 2 if o.otam.bidirectional else 1
        visual = distances[:, 0] / (parts.shape[2] * directions * (o.otam_weight + o.mean_weight))
        text_logits = o.logit_scale * self.text_cosines(parts[:, 0], prompts)
        logits = o.beta * text_logits - (1.0 - o.beta) * o.logit_scale * visual
        return Match(logits, distances, torch.softmax(text_logits, dim=-1), parts)

    def forward(self, episode: Episode) -> EpisodeOutput:
        """Run a whole episode; the loss is for monitoring, there is nothing to train."""
        way = episode.class_prompts.shape[0]
        classes = class_means(episode.support_features, episode.support_labels, way).unsqueeze(1)
        match = self.match(episode.query_features, episode.class_prompts, classes)
        losses = episode_losses(episode, match.logits, None, ClipFsarLossOptions(lambda_text=0.0))
        return EpisodeOutput(match.logits, match.distances, match.selected, classes, losses)
