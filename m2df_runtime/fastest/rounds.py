"""Engines in turns: which give the model's answers, and how long a query takes each of them."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from m2df_runtime.backends.measured import Timed
from m2df_runtime.backends.model import probe_backend
from m2df_runtime.backends.openvino import OpenVINOBackend
from m2df_runtime.backends.precisions import takeable
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.engine_names import EngineName, RunPrecision
from m2df_runtime.errors import EnvironmentMissing
from m2df_runtime.fastest.engine import Answers, EngineFailed, EngineProcess, EngineSpec
from m2df_runtime.parity import drift, gates_of, worst
from m2df_runtime.progress import Progress, silent

_BACKENDS: tuple[EngineName, ...] = ("cpu", "openvino", "cuda", "tensorrt")
_FIRST = 2  # queries of each engine before the rounds
_SLOW = 2.0  # an engine that takes so many times as long as another is not waited for any further, and its memory freed
_SETTLE = 0.02  # seconds between turns: threads of the last engine stop spinning within a few ms


@dataclass
class Contender:
    """A backend and a precision of a bundle, and what was found of them.

    Attributes:
        backend: The backend.
        precision: The precision.
        samples: Milliseconds of its queries.
        cosine: The smallest of its features and prototypes with those of the reference.
        agreement: Share of answers that are the reference's; None where the weights are random, and answers noise.
        behind: Whether it was too slow at first to take part in the rounds, though its answers were right.
        problem: Why it is not measured, or not to be taken.
    """

    backend: EngineName
    precision: RunPrecision
    samples: list[float] = field(default_factory=list)
    cosine: float | None = None
    agreement: float | None = None
    behind: bool = False
    problem: str | None = None

    @property
    def ms(self) -> float | None:
        """Median of its queries; None where it is not to be taken."""
        return median(self.samples) if self.samples and not self.problem else None

    @property
    def timed(self) -> Timed | None:
        """As it is kept; None where it is not to be taken."""
        return None if self.ms is None else Timed(backend=self.backend, precision=self.precision, ms=round(self.ms, 3))


@dataclass(frozen=True)
class Absent:
    """A backend that is not on this machine, and why."""

    backend: EngineName
    problem: str


def measure(
    bundle: Bundle, rounds: int, threads: int | None, progress: Progress = silent
) -> tuple[list[Contender], list[Absent]]:
    """Measure a bundle on every backend of this machine, in every precision that may be taken unasked.

    They are held to the best precision in the first engine that works: ONNX Runtime on the CPU, where it is installed.
    Engines take turns in a new random order each round, so that none is timed earlier or later than the rest.

    Args:
        bundle: The bundle.
        rounds: How often each is asked that is not far behind.
        threads: As in `Model`.
        progress: Shown how far it is.

    Returns:
        The fastest of the rounds first, then those that were behind, then those that are not to be taken; and the
        backends that are not on this machine.
    """
    contenders, absent = _contenders(bundle)
    asked = [one for one in contenders if not one.problem]
    with ExitStack() as held:
        running = _started(bundle, threads, asked, held, progress)
        shuffled = random.Random(0)
        with progress("rounds", rounds) as advance:
            for _ in range(rounds):
                shuffled.shuffle(running)
                for one, process in running:
                    _time(one, process)
                running = [(one, process) for one, process in running if not one.problem]
                advance(1)
    return sorted(contenders, key=lambda one: (one.ms is None, one.behind, one.ms or 0.0)), absent


def _contenders(bundle: Bundle) -> tuple[list[Contender], list[Absent]]:
    found: list[Contender] = []
    absent: list[Absent] = []
    for backend in _BACKENDS:
        try:
            probe_backend(backend)
        except EnvironmentMissing as error:
            absent.append(Absent(backend, str(error)))
        else:
            found += [Contender(backend, p, problem=_missing(p)) for p in takeable(bundle, backend)]
    return found, absent


def _missing(precision: RunPrecision) -> str | None:
    """Why this machine does not compute in a precision; asked here, where it costs no process."""
    if precision == "bf16":
        try:
            OpenVINOBackend(bfloat16=True)
        except EnvironmentMissing as error:
            return str(error)
    return None


def _started(
    bundle: Bundle, threads: int | None, asked: list[Contender], held: ExitStack, progress: Progress
) -> list[tuple[Contender, EngineProcess]]:
    """The engines that give the right answers and are not far behind, which have answered their first queries."""
    running: list[tuple[Contender, EngineProcess]] = []
    reference: tuple[RunPrecision, Answers] | None = None
    with progress("engines", len(asked)) as advance:
        for one in asked:
            try:
                process = EngineProcess(EngineSpec(bundle.path, one.backend, one.precision, threads))
                held.callback(process.close)
                answers = process.answers()
            except EngineFailed as error:
                one.problem = str(error)
            else:
                reference = reference or (one.precision, answers)
                _compare(one, answers, *reference, noise=bundle.manifest.source.random_weights)
                for _ in range(0 if one.problem else _FIRST):
                    _time(one, process)
                running.append((one, process))
            best = min((other.ms for other, _ in running if other.ms), default=0.0)
            for other, its in running:
                other.behind = other.ms is not None and other.ms > _SLOW * best
                if other.behind or other.problem:
                    its.close()
            running = [(other, its) for other, its in running if not (other.behind or other.problem)]
            advance(1)
    for one, _ in running:
        one.samples.clear()  # what follows is measured in turns
    return running


def _compare(one: Contender, answers: Answers, precision: RunPrecision, reference: Answers, *, noise: bool) -> None:
    """Hold an engine's answers to the reference's; those of random weights are noise, of which features count alone."""
    gates = gates_of(one.backend, one.precision, precision)
    found = worst(
        drift(actual, expected)
        for actual, expected in (
            (answers.features, reference.features),
            (answers.prototypes, reference.prototypes),
        )
    )
    one.cosine = found.cosine
    problem = found.problem(gates)
    if not noise:
        one.agreement = float((answers.chosen == reference.chosen).mean())
        if gates.agreement is not None and one.agreement < gates.agreement:
            problem = problem or f"top-1 agreement {one.agreement:.1%}, needed {gates.agreement:.1%}"
    if problem:
        one.problem = f"not the model's answers: {problem}"


def _time(one: Contender, process: EngineProcess) -> None:
    try:
        one.samples.append(process.query())
    except EngineFailed as error:
        one.problem = str(error)
    time.sleep(_SETTLE)
