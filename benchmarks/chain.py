"""What one engine does in its process, timed stage by stage: a query with a known support side, or a whole episode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, TypeVar

import numpy as np

from benchmarks.engines import Engine, EngineSpec, Float, Pixels
from m2df_runtime.match.reading import TimedSource
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.pixels.spec import ClipSpec

PER_QUERY = ("decode", "resize", "visual", "query")  # what a query costs
# `cpu` is the processor time of `total`, on all cores.
STAGES = ("decode", "resize", "copy", "visual", "support", "query", "total", "cpu")
AWAKE = 500.0  # ms; a shorter turn begins with one that does not count, which wakes the process' threads and caches

Result = TypeVar("Result")
Stages = dict[str, float | None]


@dataclass(frozen=True)
class Work:
    """What everybody computes: one query clip against classes of support clips."""

    query: Path
    support: tuple[tuple[Path, ...], ...]
    spec: ClipSpec


@dataclass(frozen=True)
class Encode:
    """Request: the features [C, K, T, D] of the support clips."""


@dataclass(frozen=True)
class Prepare:
    """Request: take in the support side, prompts [C, D] and features [C, K, T, D], and answer with an Outputs."""

    prompts: Float
    features: Float


@dataclass(frozen=True)
class Turn:
    """Request: one query; answers with the milliseconds of each stage."""


@dataclass(frozen=True)
class EpisodeTurn:
    """Request: one query with its support clips read and encoded anew, as the papers' public code evaluates."""


@dataclass(frozen=True)
class Outputs:
    """What an engine computes: features [T, D] of the query, prototypes [C, V, T, D], logits [C].

    `first_ms` is what the first run of every graph took together, compilation included.
    """

    features: Float
    prototypes: Float
    logits: Float
    description: str
    precision: str
    first_ms: float


@dataclass(frozen=True)
class Chain:
    """The job of one engine."""

    engine: EngineSpec
    work: Work

    @property
    def name(self) -> str:
        """The engine's."""
        return self.engine.name

    def start(self) -> Callable[[Any], Any]:
        """Load the engine."""
        return _Running(self.engine.load(), self.work).answer


class _Running:
    def __init__(self, engine: Engine, work: Work) -> None:
        self._engine = engine
        self._work = work
        self._last = 0.0

    def answer(self, request: object) -> object:
        if isinstance(request, Encode):
            return np.stack([self._engine.features(self._read(clips)[0]) for clips in self._work.support])
        if isinstance(request, Prepare):
            return self._prepare(request)
        run = self._episode if isinstance(request, EpisodeTurn) else self._query
        if self._last < AWAKE:
            run()
        stages = run()
        self._last = stages["total"] or 0.0
        return stages

    def _prepare(self, request: Prepare) -> Outputs:
        self._prompts, self._shots = request.prompts, request.features
        pixels, _ = self._read((self._work.query,))
        start = perf_counter()
        prototypes = self._classes(self._shots)
        self._kept = self._engine.keep(self._prompts, prototypes)
        features = self._engine.encode(pixels)
        logits = self._engine.match(features, self._kept)
        first = 1000 * (perf_counter() - start)
        engine, exact = self._engine, self._engine.features(pixels)[0]
        return Outputs(exact, prototypes, logits[0], engine.description, engine.precision, round(first, 1))

    def _query(self) -> Stages:
        begin = process_time()
        pixels, stages = self._read((self._work.query,))
        features, stages["visual"] = _timed(lambda: self._engine.encode(pixels))
        _, stages["query"] = _timed(lambda: self._engine.match(features, self._kept))
        stages["total"] = sum(stages[name] or 0.0 for name in PER_QUERY)
        stages["cpu"] = 1000 * (process_time() - begin)
        # Beside the total: the support side is computed once per class, and the copy is a part of `visual`.
        _, stages["support"] = _timed(lambda: self._engine.prototypes(self._shots[0], self._prompts[:1]))
        stages["copy"] = _timed(lambda: self._engine.copy(pixels))[1] if self._engine.gpu else None
        return stages

    def _episode(self) -> Stages:
        begin = process_time()
        support = [clip for clips in self._work.support for clip in clips]
        pixels, stages = self._read((*support, self._work.query))
        features, stages["visual"] = _timed(lambda: self._engine.encode(pixels))
        shots = features[: len(support)].reshape(*self._shots.shape)
        prototypes, stages["support"] = _timed(lambda: self._classes(shots))
        kept = self._engine.keep(self._prompts, prototypes)
        _, stages["query"] = _timed(lambda: self._engine.match(features[len(support) :], kept))
        stages["total"] = sum(stages[name] or 0.0 for name in (*PER_QUERY, "support"))
        stages["cpu"], stages["copy"] = 1000 * (process_time() - begin), None
        return stages

    def _classes(self, shots: Any) -> Float:  # noqa: ANN401 - the engine's own type, or on the host
        pairs = zip(shots, self._prompts, strict=True)
        return np.stack([self._engine.prototypes(clips, prompt[None]) for clips, prompt in pairs])

    def _read(self, clips: tuple[Path, ...]) -> tuple[Pixels, Stages]:
        """Pixels [B, T, S, S, 3] of clips, and the time to decode and to preprocess them."""
        start, decode, pixels = perf_counter(), 0.0, []
        for clip in clips:
            source = TimedSource(clip)
            pixels.append(load_clip(source, self._work.spec))
            decode += source.seconds
        total = perf_counter() - start
        return np.stack(pixels), {"decode": 1000 * decode, "resize": 1000 * (total - decode)}


def _timed(run: Callable[[], Result]) -> tuple[Result, float]:
    start = perf_counter()
    result = run()
    return result, 1000 * (perf_counter() - start)
