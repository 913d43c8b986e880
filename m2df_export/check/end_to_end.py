"""The whole chain on episodes: clips to features to prototypes to top-1, by any way of running the graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.bundle.labels import LabelRules
from m2df_runtime.bundle.manifest import GraphName
from m2df_runtime.bundle.tokenizer import Tokenizer
from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.data.clips import LabelledClip, folder_clips, generated_clips
from m2df_train.data.episodes import EpisodeIndices, EpisodeSampler

Batch = Mapping[str, NDArray[Any]]
Outputs = Mapping[str, NDArray[Any]]
# Runs one graph on a list of batches.
Runner = Callable[[GraphName, Sequence[Batch]], Sequence[Outputs]]

WAY, SHOT, EPISODES, SEED = 5, 1, 200, 0
# 40 clips: a ViT-B/16 encodes them in about two minutes on two cores, for each precision and for PyTorch.
GENERATED_CLASSES, GENERATED_CLIPS = 10, 4
DATA_CLASSES, DATA_CLIPS = 25, 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpisodeSet:
    """Clips and episodes to compare precisions on.

    Attributes:
        source: Where the clips come from, for the report.
        clips: uint8 [M, T, S, S, 3].
        labels: Position in `classes` of each clip [M].
        classes: Class names.
        tokens: Prompts of the classes, int32 [C, 77].
        episodes: The drawn episodes.
    """

    source: str
    clips: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    tokens: NDArray[np.int32]
    episodes: tuple[EpisodeIndices, ...]


def episode_set(spec: ClipSpec, rules: LabelRules, tokenizer: Tokenizer, data: Path | None = None) -> EpisodeSet:
    """200 seeded 5-way 1-shot episodes of generated clips, or of a folder with one sub-folder per class.

    Args:
        spec: Preprocessing of the model.
        rules: How class names become prompts.
        tokenizer: The bundle's tokenizer.
        data: The folder; at most 25 classes and 8 clips of each are used.

    Raises:
        InputError: The folder has fewer than two classes with two readable clips.
    """
    candidates = _generated() if data is None else folder_selection(data)
    used, pixels = [], []
    for clip in candidates:
        try:
            pixels.append(load_clip(clip.open(), spec))
        except ClipError as error:
            logger.warning("left out of the parity episodes: %s", error)
            continue
        used.append(clip)
    names = [clip.label for clip in used]
    usable = sum(names.count(name) > SHOT for name in set(names))
    if usable < 2:
        raise InputError(f"{data}: episodes need two classes with {SHOT + 1} readable clips each, {usable} found")
    sampler = EpisodeSampler(names, way=min(WAY, usable), shot=SHOT, seed=SEED)
    place = {name: index for index, name in enumerate(sampler.classes)}
    return EpisodeSet(
        source="generated actions" if data is None else data.resolve().name,
        clips=np.stack(pixels),
        labels=np.array([place[name] for name in names], dtype=np.int64),
        classes=sampler.classes,
        tokens=tokenizer.encode([rules.prompt(name) for name in sampler.classes]),
        episodes=tuple(sampler.episodes(EPISODES)),
    )


def _generated() -> list[LabelledClip]:
    clips = generated_clips(GENERATED_CLIPS)
    classes = list(dict.fromkeys(clip.label for clip in clips))[:GENERATED_CLASSES]
    return [clip for clip in clips if clip.label in classes]


def folder_selection(data: Path) -> list[LabelledClip]:
    """Clips of a folder with one sub-folder per class: at most 25 classes with 8 clips each.

    Raises:
        InputError: No such folder, or no class with a clip.
    """
    clips, warnings = folder_clips(data)
    for warning in warnings:
        logger.warning("%s", warning)
    chosen: list[LabelledClip] = []
    for name in list(dict.fromkeys(clip.label for clip in clips))[:DATA_CLASSES]:
        chosen += [clip for clip in clips if clip.label == name][:DATA_CLIPS]
    return chosen


def visual_batches(episodes: EpisodeSet) -> list[Batch]:
    """One batch of T frames per clip."""
    return [{"frames": clip} for clip in episodes.clips]


def text_batches(episodes: EpisodeSet) -> list[Batch]:
    """All class prompts at once."""
    return [{"tokens": episodes.tokens}]


def support_batches(episodes: EpisodeSet, features: NDArray[Any], prompts: NDArray[Any]) -> list[Batch]:
    """Every clip as the only support clip of its class: features [M, T, D], prompts [C, D]."""
    return [
        {"features": clip[None], "prompt": prompts[label][None]}
        for clip, label in zip(features, episodes.labels, strict=True)
    ]


def query_batches(
    episodes: EpisodeSet, features: NDArray[Any], prompts: NDArray[Any], prototypes: NDArray[Any]
) -> list[Batch]:
    """One batch per episode: features [M, T, D], prompts [C, D], prototypes [M, V, T, D] by support clip."""
    return [
        {
            "features": features[episode.query.ravel()],
            "prompts": prompts[episode.classes],
            "prototypes": prototypes[episode.support[:, 0]],
        }
        for episode in episodes.episodes
    ]


def predictions(outputs: Sequence[Outputs]) -> NDArray[np.int64]:
    """Predicted class of every query of every episode [E, Q]."""
    return np.stack([output["logits"].argmax(axis=1) for output in outputs])


def accuracy(episodes: EpisodeSet, predicted: NDArray[np.int64]) -> float:
    """Share of queries [E, Q] whose predicted class is theirs."""
    truth = np.stack([np.arange(len(e.classes)).repeat(e.query.shape[1]) for e in episodes.episodes])
    return float((predicted == truth).mean())
