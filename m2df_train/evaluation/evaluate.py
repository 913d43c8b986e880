"""Episode accuracy of a checkpoint or a bundle: every clip encoded once, then episodes from the features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.progress import unseen
from m2df_train.cache.features import Encoding, FeatureCache
from m2df_train.data.augment import DeployedLoader
from m2df_train.data.clips import LabelledClip
from m2df_train.evaluation.episode_run import Answers
from m2df_train.evaluation.scorer import Scorer

Float = NDArray[np.float32]

# Clips per call of the visual graph: ORT on 2 cores gains nothing beyond 4, and pixels stay below 10 MB.
_ENCODE_BATCH = 4
_NO_CACHE = FeatureCache(None, 0)


@dataclass(frozen=True)
class Features:
    """Encoded clips.

    Attributes:
        values: float32 [n, T, D].
        labels: Class of every clip.
        names: `class/clip` of every clip.
        skipped: Clips that could not be read.
        seconds: Wall time of decoding and encoding, next to none for features that were kept.
    """

    values: Float
    labels: tuple[str, ...]
    names: tuple[str, ...]
    skipped: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Accuracy:
    """Accuracy over episodes, in percent.

    Attributes:
        accuracy: Mean over episodes.
        ci95: Half width of its 95 % confidence interval, 1.96 times the standard error.
        per_class: Share of each class's queries that were right, for classes that were drawn.
        confusion: Class to class to number: how often a query of the first was taken for the second.
        way: Classes per episode.
        shot: Support clips per class.
        query: Query clips per class.
        episodes: Number of episodes.
        seconds: Wall time of the episodes.
    """

    accuracy: float
    ci95: float
    per_class: dict[str, float]
    confusion: dict[str, dict[str, int]]
    way: int
    shot: int
    query: int
    episodes: int
    seconds: float


def encode(
    scorer: Scorer,
    clips: Sequence[LabelledClip],
    spec: ClipSpec,
    *,
    cache: FeatureCache = _NO_CACHE,
    identity: str = "",
    workers: int = 0,
    advance: Callable[[int], None] = unseen,
) -> Features:
    """Read, preprocess and encode every clip once; clips that cannot be read are reported and left out.

    Args:
        scorer: The model.
        clips: What to encode.
        spec: The model's preprocessing.
        cache: Where features are found and kept.
        identity: Stands in the cache for all that the features of a clip depend on.
        workers: Processes that read clips; 0 for none but this one.
        advance: Called with the number of clips done.

    Raises:
        InputError: No clip can be read.
    """
    way = Encoding(scorer.encode_clips, identity, DeployedLoader(spec), batch=_ENCODE_BATCH)
    encoded = cache.encode(way, clips, workers=workers, advance=advance)
    kept = set(encoded.kept)
    return Features(
        values=encoded.values[:, 0],  # the one view
        labels=tuple(clips[place].label for place in encoded.kept),
        names=tuple(clips[place].name for place in encoded.kept),
        skipped=tuple(clip.name for place, clip in enumerate(clips) if place not in kept),
        seconds=encoded.seconds,
    )


def summary(answers: Answers) -> Accuracy:
    """Accuracy, per class and confusion of answers."""
    episodes, way, query = answers.predicted.shape
    per_episode = answers.right.mean(axis=(1, 2)).tolist()
    mean = math.fsum(per_episode) / episodes
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in per_episode) / episodes)
    confusion = _confusion(answers)
    return Accuracy(
        accuracy=100 * mean,
        ci95=100 * 1.96 * deviation / math.sqrt(episodes),
        per_class={name: 100 * row[name] / sum(row.values()) for name, row in confusion.items()},
        confusion=confusion,
        way=way,
        shot=answers.shot,
        query=query,
        episodes=episodes,
        seconds=answers.seconds,
    )


def _confusion(answers: Answers) -> dict[str, dict[str, int]]:
    """Counts of class and answer over all queries, between the classes that were drawn."""
    episodes, way, query = answers.predicted.shape
    truth = np.broadcast_to(answers.classes[:, :, None], answers.predicted.shape)
    taken = np.take_along_axis(answers.classes, answers.predicted.reshape(episodes, way * query), axis=1)
    size = len(answers.names)
    counts = np.bincount(truth.ravel() * size + taken.ravel(), minlength=size * size).reshape(size, size)
    drawn = [position for position in range(size) if counts[position].any()]
    return {answers.names[true]: {answers.names[other]: int(counts[true, other]) for other in drawn} for true in drawn}
