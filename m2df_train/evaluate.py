"""Episode accuracy of a checkpoint or a bundle: every clip encoded once, then episodes from the features.

What runs the model is behind `Scorer`; `m2df_runtime.session.Session` is one, `torch_scorer.py` holds
the other.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.errors import CheckFailed, InputError
from m2df_runtime.preprocess import ClipSpec, load_clip
from m2df_train.data.clips import LabelledClip
from m2df_train.data.episodes import EpisodeIndices, EpisodeSampler

Float = NDArray[np.float32]

_log = logging.getLogger(__name__)

# Clips per call of the visual graph: ORT on 2 cores gains nothing beyond 4, and pixels stay below 10 MB.
_ENCODE_BATCH = 4
_CHUNK = 32  # episodes handed to a worker at once
# With 5 shots nearly every support set is new; unbounded, 10,000 episodes at 512 features would keep 1.6 GB.
_CACHE_BYTES = 256 << 20


class Scores(Protocol):
    """Result of matching: logits [Q, C]."""

    @property
    def logits(self) -> Float: ...


class Scorer(Protocol):
    """A model as evaluation sees it; shapes as in the four exported graphs."""

    def encode_clips(self, clips: NDArray[np.uint8]) -> Float:
        """Uint8 [B, T, S, S, 3] to features [B, T, D]."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Float:
        """Prompts to embeddings [P, D]."""
        ...

    def prototypes(self, features: Float, prompt: Float) -> Float:
        """Features [K, T, D] and prompt [1, D] of one class to prototypes [V, T, D]."""
        ...

    def match(self, features: Float, prompts: Float, prototypes: Float) -> Scores:
        """Queries [Q, T, D] against prompts [C, D] and prototypes [C, V, T, D]."""
        ...


@dataclass(frozen=True)
class Features:
    """Encoded clips.

    Attributes:
        values: float32 [n, T, D].
        labels: Class of every clip.
        names: `class/clip` of every clip.
        skipped: Clips that could not be read.
        seconds: Wall time of decoding and encoding.
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
        way: Classes per episode.
        shot: Support clips per class.
        episodes: Number of episodes.
        seconds: Wall time of the episodes.
    """

    accuracy: float
    ci95: float
    per_class: dict[str, float]
    way: int
    shot: int
    episodes: int
    seconds: float


def encode(
    scorer: Scorer,
    clips: Sequence[LabelledClip],
    spec: ClipSpec,
    *,
    workers: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> Features:
    """Read, preprocess and encode every clip once; clips that cannot be read are reported and left out.

    Args:
        scorer: The model.
        clips: What to encode.
        spec: The model's preprocessing.
        workers: Threads that read clips.
        advance: Called with the number of clips done.

    Raises:
        InputError: No clip can be read.
    """
    start = time.perf_counter()
    values: list[Float] = []
    kept: list[LabelledClip] = []
    skipped: list[str] = []

    def load(clip: LabelledClip) -> NDArray[np.uint8] | InputError:
        try:
            return load_clip(clip.open(), spec)
        except InputError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(clips), _ENCODE_BATCH):
            batch = clips[first : first + _ENCODE_BATCH]
            pixels: list[NDArray[np.uint8]] = []
            for clip, loaded in zip(batch, pool.map(load, batch), strict=True):
                if isinstance(loaded, InputError):
                    _log.warning("clip skipped: %s", loaded)
                    skipped.append(clip.name)
                else:
                    pixels.append(loaded)
                    kept.append(clip)
            if pixels:
                values.append(scorer.encode_clips(np.stack(pixels)))
            advance(len(batch))
    if not values:
        raise InputError(f"none of the {len(clips)} clips can be read", "the lines above name the reasons")
    seconds = time.perf_counter() - start
    labels, names = tuple(c.label for c in kept), tuple(c.name for c in kept)
    return Features(np.concatenate(values), labels, names, tuple(skipped), seconds)


def episode_accuracy(
    scorer: Scorer,
    features: Float,
    labels: Sequence[str],
    prompts: Float,
    *,
    way: int,
    shot: int,
    query: int = 1,
    episodes: int = 10_000,
    seed: int = 0,
    groups: Sequence[str] | None = None,
    workers: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> Accuracy:
    """Accuracy over episodes drawn from encoded clips.

    The result does not depend on `workers`: an episode depends on the seed and its number alone.

    Args:
        scorer: The model; must be safe to call from several threads when `workers` is above 1.
        features: Encoded clips, float32 [n, T, D].
        labels: Class of every clip.
        prompts: Prompt embedding of every class in order of first appearance in `labels`, float32 [C, D].
        way: Classes per episode.
        shot: Support clips per class.
        query: Query clips per class.
        episodes: How many.
        seed: Seed of the episodes.
        groups: Group of every clip that must not be support and query of one episode, or None.
        workers: Threads.
        advance: Called with the number of episodes done.

    Raises:
        InputError: Options or data from which no episode can be drawn.
        CheckFailed: The model gives scores that are not finite.
    """
    if episodes < 1:
        raise InputError(f"episodes must be at least 1, not {episodes}")
    sampler = EpisodeSampler(labels, groups=groups, way=way, shot=shot, query=query, seed=seed)
    start = time.perf_counter()
    run = _EpisodeRun(scorer, features, prompts, sampler)
    per_episode: list[float] = []
    hits = np.zeros(len(sampler.classes))
    seen = np.zeros(len(sampler.classes))
    chunks = [range(first, min(first + _CHUNK, episodes)) for first in range(0, episodes, _CHUNK)]
    for outcomes in _ordered_map(run.chunk, chunks, workers):
        for classes, right in outcomes:  # right: bool [W, Q]
            per_episode.append(float(right.mean()))
            hits[classes] += right.sum(axis=1)
            seen[classes] += right.shape[1]
        advance(len(outcomes))
    mean = math.fsum(per_episode) / episodes
    deviation = math.sqrt(math.fsum((a - mean) ** 2 for a in per_episode) / episodes)
    return Accuracy(
        accuracy=100 * mean,
        ci95=100 * 1.96 * deviation / math.sqrt(episodes),
        per_class={n: 100 * h / s for n, h, s in zip(sampler.classes, hits.tolist(), seen.tolist(), strict=True) if s},
        way=way,
        shot=shot,
        episodes=episodes,
        seconds=time.perf_counter() - start,
    )


_Outcome = tuple[NDArray[np.int64], NDArray[np.bool_]]


class _EpisodeRun:
    """Runs episodes and keeps the prototypes of support sets that may come again."""

    def __init__(self, scorer: Scorer, features: Float, prompts: Float, sampler: EpisodeSampler) -> None:
        self._scorer = scorer
        self._features = features
        self._prompts = prompts
        self._sampler = sampler
        self._cache: dict[tuple[int, ...], Float] = {}
        self._cached_bytes = 0

    def chunk(self, indices: range) -> list[_Outcome]:
        """Classes [W] and right answers [W, Q] of some episodes."""
        return [self._one(self._sampler.episode(index)) for index in indices]

    def _one(self, episode: EpisodeIndices) -> _Outcome:
        way, queries = episode.query.shape
        prototypes = np.stack(
            [self._prototypes(int(c), s) for c, s in zip(episode.classes, episode.support, strict=True)]
        )  # (W, V, T, D)
        features = self._features[episode.query.ravel()]  # (W * Q, T, D)
        logits = self._scorer.match(features, self._prompts[episode.classes], prototypes).logits
        if not np.isfinite(logits).all():
            raise CheckFailed("the model gives scores that are not finite", "try --precision fp32, or export it again")
        right = logits.argmax(axis=1).reshape(way, queries) == np.arange(way)[:, None]
        return episode.classes, right

    def _prototypes(self, position: int, support: NDArray[np.int64]) -> Float:
        # Clips of a class merge by their mean: sorted, one set of clips has one key and one sum.
        clips = np.sort(support)
        key = tuple(clips.tolist())
        found = self._cache.get(key)
        if found is None:
            found = self._scorer.prototypes(self._features[clips], self._prompts[position : position + 1])
            if self._cached_bytes + found.nbytes <= _CACHE_BYTES:
                self._cache[key] = found
                self._cached_bytes += found.nbytes
        return found


def _ordered_map(
    run: Callable[[range], list[_Outcome]], chunks: Iterable[range], workers: int
) -> Iterator[list[_Outcome]]:
    """`map` on threads; what has not begun is dropped when the consumer stops, so Ctrl-C ends at once."""
    if workers <= 1:
        yield from map(run, chunks)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(run, chunks)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
