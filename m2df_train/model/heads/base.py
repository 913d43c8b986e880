"""What every head is: prototypes from support clips, matching of queries, and a whole episode for training.

``prototypes`` and ``match`` are the two exported graphs; ``forward`` runs both sides of an episode at once
and computes the losses. Trainer, evaluation and export see nothing else of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2df_train.model.alignment import mean_distance, view_distances, widen
from m2df_train.model.options import ClipFsarLossOptions, HeadName, M2dfLossOptions, MatchOptions


@dataclass(frozen=True)
class Episode:
    """One episode as features; supports and queries in any order, shots per class may differ.

    Attributes:
        support_features: Frame features, not normalised [S, T, D].
        support_labels: Episode class of each support clip, int64 [S] in 0..W-1; every class has at least one.
        query_features: [Q, T, D].
        class_prompts: Text embedding of each episode class [W, D], not normalised.
        query_labels: Episode class of each query [Q]; needed for losses.
        text_table: Text embeddings of all classes of the split [C, D]; gives class logits.
        support_classes: Row of ``text_table`` of each support clip [S]; needed for the text loss.
        query_classes: The same for the queries [Q].
        uniforms: Numbers in [0, 1) that decide sampled prompts [Q]; drawn when None.
    """

    support_features: Tensor
    support_labels: Tensor
    query_features: Tensor
    class_prompts: Tensor
    query_labels: Tensor | None = None
    text_table: Tensor | None = None
    support_classes: Tensor | None = None
    query_classes: Tensor | None = None
    uniforms: Tensor | None = None


@dataclass(frozen=True)
class Match:
    """Queries against classes.

    Attributes:
        logits: [Q, C]; their softmax is the probability.
        distances: Per view [Q, V, C].
        selected: Probability of each class's prompt for the query, from text and frames alone [Q, C].
        tokens: The queries' frames as they are aligned with the prototypes [Q, V, T, D].
    """

    logits: Tensor
    distances: Tensor
    selected: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Losses:
    """Scalar losses: ``total`` is the weighted sum, the parts are unweighted; a part that is off is 0."""

    total: Tensor
    match: Tensor
    text: Tensor
    distillation: Tensor


@dataclass(frozen=True)
class EpisodeOutput:
    """Result of a whole episode.

    Attributes:
        logits: [Q, W].
        distances: [Q, V, W].
        selected: As in ``Match`` [Q, W].
        prototypes: [W, V, T, D].
        losses: None without query labels.
        class_logits: Support clips then queries against the text table [S+Q, C]; None without a table.
        visual_confidence: Largest class probability of each view [V, Q]; None for one-view heads.
        text_confidence: The same for the text-part tokens [V, Q].
    """

    logits: Tensor
    distances: Tensor
    selected: Tensor
    prototypes: Tensor
    losses: Losses | None = None
    class_logits: Tensor | None = None
    visual_confidence: Tensor | None = None
    text_confidence: Tensor | None = None


class Head(nn.Module, ABC):
    """A few-shot head on top of frame features.

    Attributes:
        name: Registry name.
        views: Views V per clip.
        parts: Arrays [T, D] of a query clip that do not depend on the classes, its features among them.
        dim: Feature size D.
        frames: Frames T per clip.
        options: The head's options.
        text_dim: How many of the D features are aligned with text (M); the rest is appearance.
    """

    name: HeadName
    views: int = 1
    parts: int = 1

    def __init__(self, dim: int, frames: int, options: MatchOptions) -> None:
        super().__init__()
        self.dim = dim
        self.frames = frames
        self.options = options
        self.text_dim = dim - options.appearance.dim
        if self.text_dim < 1:
            raise ValueError(f"appearance.dim {options.appearance.dim} leaves nothing of {dim} features")

    @property
    @abstractmethod
    def merges_after(self) -> bool:
        """Whether ``prototypes`` of several clips are the mean of those of each clip alone, in evaluation mode."""

    @abstractmethod
    def prototypes(self, features: Tensor, prompt: Tensor) -> Tensor:
        """Prototypes of one class, independent of queries and other classes: [K, T, D], [1, D] -> [V, T, D]."""

    @abstractmethod
    def clip_parts(self, features: Tensor) -> Tensor:
        """What of query clips depends on each of them alone: [B, T, D] -> [B, parts, T, D], the features first."""

    @abstractmethod
    def match_parts(self, parts: Tensor, prompts: Tensor, prototypes: Tensor) -> Match:
        """``match`` of queries whose ``clip_parts`` [Q, parts, T, D] are known."""

    def match(self, features: Tensor, prompts: Tensor, prototypes: Tensor) -> Match:
        """Match queries [Q, T, D] with classes of prompts [C, D] and prototypes [C, V, T, D]."""
        return self.match_parts(self.clip_parts(features), prompts, prototypes)

    def text_part(self, features: Tensor) -> Tensor:
        """What text is aligned with, of features, prompts or tokens: [..., D] -> [..., M]."""
        return features[..., : self.text_dim] if self.options.appearance.dim else features

    def with_looks(self, tokens: Tensor, features: Tensor) -> Tensor:
        """Tokens [..., M] with the appearance of the features [..., D] that they were made of: [..., D]."""
        if not self.options.appearance.dim:
            return tokens
        return torch.cat([tokens, features[..., self.text_dim :]], dim=-1)

    def text_cosines(self, features: Tensor, prompts: Tensor) -> Tensor:
        """Cosine of time-averaged frames [Q, T, D] with texts [C, D], both L2-normalised, no epsilon -> [Q, C]."""
        pooled = F.normalize(widen(self.text_part(features)).mean(dim=1), dim=-1)
        return pooled @ F.normalize(widen(self.text_part(prompts)), dim=-1).T

    @abstractmethod
    def forward(self, episode: Episode) -> EpisodeOutput:
        """Run a whole episode; losses need ``episode.query_labels``."""

    def distances(self, query: Tensor, prototypes: Tensor) -> Tensor:
        """Distances [Q, V, C] of encoded queries [Q, V, T, D] to prototypes [C, V, T, D], appearance included."""
        o: MatchOptions = self.options
        distances = view_distances(
            self.text_part(query),
            self.text_part(prototypes),
            lam=o.otam.lam,
            bidirectional=o.otam.bidirectional,
            eps=o.cos_eps,
            otam_weight=o.otam_weight,
            mean_weight=o.mean_weight,
        )
        if not o.appearance.dim:
            return distances
        looks = mean_distance(query[..., self.text_dim :], prototypes[..., self.text_dim :], o.cos_eps)
        return distances + o.appearance.weight / self.views * looks


def class_means(values: Tensor, labels: Tensor, way: int) -> Tensor:
    """Mean over the clips of each class: [S, ...], int64 [S] -> [W, ...]; a class without clips gives NaN."""
    member = F.one_hot(labels, way).to(values.dtype).T  # [W, S]
    means = (member @ values.flatten(1)) / member.sum(dim=1, keepdim=True)
    return means.unflatten(1, values.shape[1:])


def episode_losses(
    episode: Episode,
    logits: Tensor,
    class_logits: Tensor | None,
    options: M2dfLossOptions | ClipFsarLossOptions,
    distillation: Tensor | None = None,
    *,
    training: bool = False,
) -> Losses | None:
    """Weighted sum of few-shot cross entropy, video-text cross entropy and distillation (method 2.9, 3.3).

    Args:
        episode: Labels and global class ids.
        logits: [Q, W].
        class_logits: [S+Q, C].
        options: Weights and reduction.
        distillation: Scalar, M2DF alone.
        training: Whether the video-text loss must not be missing when ``lambda_text`` is not 0.

    Returns:
        The losses, or None when the episode has no query labels.

    Raises:
        ValueError: Training with ``lambda_text`` but without what it needs.
    """
    if episode.query_labels is None:
        return None
    match = F.cross_entropy(logits, episode.query_labels, reduction=options.reduction)
    total = options.lambda_ce * match
    text = match.new_zeros(())
    if class_logits is not None and episode.support_classes is not None and episode.query_classes is not None:
        classes = torch.cat([episode.support_classes, episode.query_classes])
        text = F.cross_entropy(class_logits, classes, reduction=options.reduction)
        total = total + options.lambda_text * text
    elif training and options.lambda_text:
        raise ValueError("lambda_text is on: the episode needs text_table, support_classes and query_classes")
    if distillation is None:
        distillation = match.new_zeros(())
    elif isinstance(options, M2dfLossOptions):
        total = total + options.lambda_distil * distillation
    return Losses(total, match, text, distillation)
