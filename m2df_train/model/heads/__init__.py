"""The heads by name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from m2df_train.model.heads.base import Episode, EpisodeOutput, Head, Losses, Match
from m2df_train.model.heads.clip_fsar import ClipFsarHead
from m2df_train.model.heads.m2df import M2dfHead
from m2df_train.model.heads.training_free import TrainingFreeHead
from m2df_train.model.options import (
    ClipFsarOptions,
    HeadName,
    HeadOptions,
    M2dfOptions,
    TrainingFreeOptions,
    head_options,
)

__all__ = [
    "ClipFsarHead",
    "ClipFsarOptions",
    "Episode",
    "EpisodeOutput",
    "Head",
    "HeadName",
    "HeadOptions",
    "Losses",
    "M2dfHead",
    "M2dfOptions",
    "Match",
    "TrainingFreeHead",
    "TrainingFreeOptions",
    "build_head",
    "deterministic_head",
]


def build_head(name: HeadName, dim: int, frames: int, options: HeadOptions | Mapping[str, Any] | None = None) -> Head:
    """Build a head with freshly initialised weights.

    Args:
        name: ``m2df``, ``clip-fsar`` or ``training-free``.
        dim: Feature size D of the backbone.
        frames: Frames T per clip.
        options: The head's option model, or plain values for it; defaults when None.

    Raises:
        ValueError: Unknown head, options of another head, or heads that do not divide ``dim``.
    """
    if options is None or isinstance(options, Mapping):
        options = head_options(name, options)
    if name == "m2df" and isinstance(options, M2dfOptions):
        return M2dfHead(dim, frames, options)
    if name == "clip-fsar" and isinstance(options, ClipFsarOptions):
        return ClipFsarHead(dim, frames, options)
    if name == "training-free" and isinstance(options, TrainingFreeOptions):
        return TrainingFreeHead(dim, frames, options)
    raise ValueError(f"{type(options).__name__} are not the options of a head called {name!r}")


def deterministic_head(head: Head) -> Head:
    """The head without randomness: a prompt selector that samples takes the most probable prompt instead.

    Returns:
        The head itself, or one that shares its modules and differs in that option alone.
    """
    options = head.options
    if not isinstance(options, M2dfOptions) or options.pps.eval != "sample":
        return head
    fixed = copy.copy(head)
    fixed.options = options.model_copy(update={"pps": options.pps.model_copy(update={"eval": "argmax"})})
    return fixed
