"""Episodes on encoded clips: many per call of the model, prototypes computed once where that is the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.errors import CheckFailed, InputError
from m2df_runtime.progress import unseen
from m2df_train.data.episodes import EpisodeIndices, EpisodeSampler
from m2df_train.evaluation.scorer import EpisodeHead

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Item = TypeVar("Item")
Result = TypeVar("Result")
# `map` on some number of threads.
Map = Callable[[Callable[[Item], Result], Iterable[Item]], Iterable[Result]]

# Episodes per call: PyTorch gains nothing beyond 32 ...
_EPISODES = 32
# ... and queries per call, so that calls with 20 queries per class stay below 1 GB.
_QUERIES = 256
_CLIPS = 32  # clips per call where each is a support set of its own
_PARTS_BYTES = 1 << 30  # what may be kept of all clips for their use as queries


@dataclass(frozen=True)
class EncodedClips:
    """What episodes are drawn from.

    Attributes:
        features: float32 [n, T, D].
        labels: Class of every clip.
        prompts: Prompt embedding of every class in order of first appearance in `labels`, float32 [C, D].
        groups: Group of every clip that must not be support and query of one episode, or None.
    """

    features: Float
    labels: Sequence[str]
    prompts: Float
    groups: Sequence[str] | None = None


@dataclass(frozen=True)
class EpisodePlan:
    """Which episodes are drawn: how many, of `way` classes with `shot` support and `query` query clips each."""

    way: int
    shot: int
    query: int = 1
    episodes: int = 10_000
    seed: int = 0

    def sampler(self, labels: Sequence[str], groups: Sequence[str] | None = None) -> EpisodeSampler:
        """What draws them from clips of these labels. Raises InputError as it does."""
        return EpisodeSampler(labels, groups=groups, way=self.way, shot=self.shot, query=self.query, seed=self.seed)


@dataclass(frozen=True)
class Answers:
    """What a model answered in E episodes of W classes with Q queries each.

    Attributes:
        names: All classes.
        classes: Classes of every episode, positions in `names`, int64 [E, W].
        query: Query clips, positions among the encoded clips, int64 [E, W, Q].
        predicted: Answers, positions in the episode's row of `classes`, int64 [E, W, Q].
        shot: Support clips per class.
        excluded: Classes with too few clips to be drawn, with the number of their clips.
        seconds: Wall time of the episodes.
    """

    names: tuple[str, ...]
    classes: Int
    query: Int
    predicted: Int
    shot: int
    excluded: dict[str, int]
    seconds: float

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which answers are right, [E, W, Q]."""
        return self.predicted == np.arange(self.classes.shape[1])[:, None]


def episode_answers(
    scorer: EpisodeHead,
    clips: EncodedClips,
    plan: EpisodePlan,
    *,
    workers: int | None = None,
    advance: Callable[[int], None] = unseen,
) -> Answers:
    """Draw episodes from encoded clips and let a model answer them.

    The answers do not depend on `workers`: an episode depends on the seed and its number alone, and
    which episodes share a call is fixed.

    Args:
        scorer: The model.
        clips: The clips.
        plan: The episodes.
        workers: Threads; None for as many as the model wants.
        advance: Called with the number of episodes done.

    Raises:
        InputError: Options or data from which no episode can be drawn.
        CheckFailed: The model gives scores that are not finite.
    """
    episodes = plan.episodes
    if episodes < 1:
        raise InputError(f"episodes must be at least 1, not {episodes}")
    sampler = plan.sampler(clips.labels, clips.groups)
    start = time.perf_counter()
    size = max(1, min(_EPISODES, _QUERIES // (plan.way * plan.query)))
    chunks = [range(first, min(first + size, episodes)) for first in range(0, episodes, size)]
    drawn: list[EpisodeIndices] = []
    predicted: list[Int] = []
    with scorer.parallel() as wanted, threads(wanted if workers is None else workers) as each:
        run = _EpisodeRun(scorer, clips, sampler, each)
        for part, answers in each(run.chunk, chunks):
            drawn += part
            predicted.append(answers)
            advance(len(part))
    return Answers(
        names=sampler.classes,
        classes=np.stack([episode.classes for episode in drawn]),
        query=np.stack([episode.query for episode in drawn]),
        predicted=np.concatenate(predicted),
        shot=plan.shot,
        excluded=sampler.excluded,
        seconds=time.perf_counter() - start,
    )


class _EpisodeRun:
    """Runs chunks of episodes.

    Where the head merges shots after encoding them, and wherever there is one shot, every clip's
    prototypes are computed once and episodes only average; elsewhere those of every support set are.
    What of a query depends on it alone is computed once per clip too, unless that takes too much memory.
    """

    def __init__(self, scorer: EpisodeHead, clips: EncodedClips, sampler: EpisodeSampler, each: Map) -> None:
        self._scorer = scorer
        self._features = features = clips.features
        self._prompts = clips.prompts
        self._sampler = sampler
        place = {name: position for position, name in enumerate(sampler.classes)}
        self._owner = np.array([place[label] for label in clips.labels])  # (n,)
        self._of_clip: Float | None = None
        self._parts: Float | None = None
        chunks = [slice(first, first + _CLIPS) for first in range(0, len(features), _CLIPS)]
        if scorer.merges_after or sampler.shot == 1:
            self._of_clip = np.concatenate(list(each(self._clip_prototypes, chunks)))  # (n, V, T, D)
        if scorer.parts > 1 and scorer.parts * features.nbytes <= _PARTS_BYTES:
            self._parts = np.concatenate(list(each(lambda part: scorer.clip_parts(features[part]), chunks)))

    def chunk(self, numbers: range) -> tuple[list[EpisodeIndices], Int]:
        """Some episodes and the answers [E, W, Q] to their queries."""
        episodes = [self._sampler.episode(number) for number in numbers]
        classes = np.stack([episode.classes for episode in episodes])  # (E, W)
        support = np.stack([episode.support for episode in episodes])  # (E, W, K)
        query = np.stack([episode.query for episode in episodes])  # (E, W, Q)
        queries = self._queries(query.reshape(len(query), -1))
        logits = self._scorer.batch_match(queries, self._prompts[classes], self._prototypes(classes, support))
        if not np.isfinite(logits).all():
            raise CheckFailed(
                "the model gives scores that are not finite",
                "a bundle: try --precision fp32, or export it again; a checkpoint: its training went wrong",
            )
        return episodes, logits.argmax(axis=2).reshape(query.shape)

    def _queries(self, clips: Int) -> Float:
        """Parts of the query clips [E, W * Q]."""
        if self._parts is not None:
            return self._parts[clips]
        parts = self._scorer.clip_parts(self._features[clips.ravel()])
        return parts.reshape(*clips.shape, *parts.shape[1:])

    def _prototypes(self, classes: Int, support: Int) -> Float:
        """Prototypes [E, W, V, T, D] of the classes [E, W] from the clips [E, W, K]."""
        if self._of_clip is not None:
            return self._of_clip[support].mean(axis=2)
        sets = self._features[support.reshape(-1, support.shape[2])]  # (E * W, K, T, D)
        found = self._scorer.batch_prototypes(sets, self._prompts[classes.ravel()])
        return found.reshape(*classes.shape, *found.shape[1:])

    def _clip_prototypes(self, part: slice) -> Float:
        """Prototypes [n, V, T, D] of clips, each as the only one of its class."""
        return self._scorer.batch_prototypes(self._features[part][:, None], self._prompts[self._owner[part]])


@contextmanager
def threads(workers: int) -> Iterator[Map]:
    """`map` on threads; what has not begun is dropped when the block is left, so that Ctrl-C ends at once."""
    if workers <= 1:
        yield map
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool.map
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
