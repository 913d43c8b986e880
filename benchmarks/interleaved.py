"""Engines that take turns: the same work for all, their answers compared, their times and the ratios of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np

from benchmarks.chain import STAGES, Chain, Encode, EpisodeTurn, Outputs, Prepare, Stages, Turn, Work
from benchmarks.engines import EAGER, EngineSpec, Float
from benchmarks.record import percentiles
from benchmarks.workers import JobFailed, Worker, settle, started, turns
from m2df_runtime.commands.console import progress
from m2df_runtime.parity import drift, worst

OFFICIAL = "official way"
COMPARED = ("visual", "support", "query", "total", "cpu")
# An engine that takes so many times as long as the fastest, and over 2 s, is measured in a few rounds only.
SLOW, SLOW_MS, FEW = 10.0, 2000.0, 3
# Smallest cosine of features and prototypes, and largest error of logits as a share of the largest of them.
EIGHT_BITS = (0.995, 5e-2)
LIMITS = {
    "fp32": (0.9999, 1e-3),
    "fp16": (0.9995, 1e-2),
    "bf16": (0.995, 5e-2),
    "int8": EIGHT_BITS,
    "int8-static": EIGHT_BITS,
}

Samples = dict[int, Stages]  # by round


@dataclass
class Subject:
    """One engine in its process, how its answers compare, and its samples in milliseconds."""

    worker: Worker
    spec: EngineSpec
    outputs: Outputs
    checked: dict[str, float | bool]
    failed: str | None
    samples: Samples = field(default_factory=dict)
    every: int = 1
    peak_mib: float = 0.0

    def record(self) -> dict[str, object]:
        """For the JSON."""
        facts = {"engine": self.outputs.description, "precision": self.outputs.precision, "ours": self.spec.ours}
        if self.failed:
            return {**facts, "checked": self.checked, "failed": self.failed}
        start = {"load_s": self.worker.load_s, "first_run_ms": self.outputs.first_ms}
        costs = {"peak_mib": self.peak_mib, "rounds": len(self.samples), "ms": summary(self.samples)}
        return {**facts, "checked": self.checked, **start, **costs}

    def fail(self, error: JobFailed) -> None:
        """From now on this engine counts as failed, for that reason."""
        self.failed = str(error)
        click.echo(f"failed: {self.worker.name}: {error}", err=True)


def run(
    specs: Sequence[EngineSpec], work: Work, prompts: Float, rounds: int, warmup: int, *, trained: bool
) -> dict[str, Any]:
    """Measure engines in turns; the first of them is what the others' answers are held to.

    Args:
        specs: The engines.
        work: What they compute.
        prompts: Embeddings [C, D] of the classes' prompts.
        rounds: Rounds that count.
        warmup: Rounds before them.
        trained: Whether the weights are, so that top-1 says something.

    Returns:
        `ratios`, `engines`, `official` (whole episodes in PyTorch eager) and `left_out` (with the reasons).
    """
    by_name = {spec.name: spec for spec in specs}
    with started([Chain(spec, work) for spec in specs]) as (workers, missing):
        subjects: list[Subject] = []
        features: Float | None = None
        for worker in workers:
            try:
                features = worker.ask(Encode()) if features is None else features
                outputs: Outputs = worker.ask(Prepare(prompts, features))
            except JobFailed as error:
                missing[worker.name] = str(error)
                click.echo(f"left out: {worker.name}: {error}", err=True)
                continue
            checked, failed = compare(outputs, subjects[0].outputs if subjects else outputs, trained=trained)
            subjects.append(Subject(worker, by_name[worker.name], outputs, checked, failed))
            if failed:
                click.echo(f"failed: {worker.name}: {failed}", err=True)
        official: Samples = {}
        measure([subject for subject in subjects if not subject.failed], official, rounds, warmup)
        return {
            "ratios": ratios(subjects, official),
            "engines": {subject.spec.name: subject.record() for subject in subjects},
            "official": {"rounds": len(official), "ms": summary(official)} if official else None,
            "reference": subjects[0].spec.name if subjects else None,
            "left_out": missing,
        }


def compare(outputs: Outputs, reference: Outputs, *, trained: bool) -> tuple[dict[str, float | bool], str | None]:
    """How near outputs are to a reference, and why they are wrong if they are."""
    error = drift(outputs.logits, reference.logits).max_rel
    pairs = (outputs.features, reference.features), (outputs.prototypes, reference.prototypes)
    cosine = worst(drift(*pair) for pair in pairs).cosine
    same = bool(outputs.logits.argmax() == reference.logits.argmax())
    checked: dict[str, float | bool] = {"cosine": round(cosine, 7), "logits_error": round(error, 7), "same_top1": same}
    least, most = LIMITS.get(outputs.precision, LIMITS["bf16"])
    if not cosine >= least:  # NaN is wrong too
        return checked, f"cosine {cosine:.6f} with the reference, at least {least} expected"
    if not error <= most:
        return checked, f"logits are {error:.2g} from the reference, at most {most} expected"
    return checked, "another class than the reference" if trained and not same else None


def measure(subjects: Sequence[Subject], official: Samples, rounds: int, warmup: int) -> None:
    """Fill the samples of every engine, and those of whole episodes in PyTorch eager; one that dies has failed."""
    by_name = {subject.spec.name: subject for subject in subjects}
    order = turns([subject.worker for subject in subjects])
    with progress("rounds", rounds + warmup) as advance:
        for number in range(-warmup, rounds):
            spent: dict[str, float] = {}
            for worker in next(order):
                subject = by_name[worker.name]
                if subject.failed or (number >= 0 and number % subject.every):
                    continue
                try:
                    spent[worker.name] = _take(subject, official, number)
                except JobFailed as error:
                    subject.fail(error)
                settle()
            if number == -1:
                limit = max(SLOW * min(spent.values(), default=0.0), SLOW_MS)
                for name, total in spent.items():
                    by_name[name].every = -(-rounds // FEW) if total > limit else 1
            advance(1)
    for subject in subjects:
        if not subject.failed:
            try:
                subject.peak_mib = subject.worker.peak_mib()
            except JobFailed as error:
                subject.fail(error)


def _take(subject: Subject, official: Samples, number: int) -> float:
    """One turn, which counts from round 0 on; returns the milliseconds of its query."""
    stages: Stages = subject.worker.ask(Turn())
    whole: Stages | None = subject.worker.ask(EpisodeTurn()) if subject.spec.name == EAGER else None
    if number >= 0:
        subject.samples[number] = stages
        if whole is not None:
            official[number] = whole
    return stages["total"] or 0.0


def ratios(subjects: Sequence[Subject], official: Samples) -> dict[str, dict[str, dict[str, object]]]:
    """How many times as long everything else takes as each of m2df's engines: by peer, engine and stage.

    A ratio is that of two times of the same round; recorded are the median and the quartiles of these.
    """
    right = [subject for subject in subjects if not subject.failed]
    others: dict[str, tuple[Samples, tuple[str, ...]]]
    others = {subject.spec.name: (subject.samples, COMPARED) for subject in right if not subject.spec.ours}
    if official:
        others[OFFICIAL] = (official, ("total", "cpu"))
    own = {subject.spec.name: subject.samples for subject in right if subject.spec.ours}
    return {
        peer: {name: {stage: _ratio(slower, faster, stage) for stage in stages} for name, faster in own.items()}
        for peer, (slower, stages) in others.items()
    }


def _ratio(slower: Samples, faster: Samples, stage: str) -> dict[str, float]:
    pairs = [(slower[number][stage], faster[number][stage]) for number in slower if number in faster]
    values = [(above or 0.0) / max(below or 0.0, 1e-9) for above, below in pairs]
    low, median, high = (round(float(value), 3) for value in np.percentile(values, (25, 50, 75)))
    return {"median": median, "low": low, "high": high}


def summary(samples: Samples) -> dict[str, object]:
    """Percentiles of each stage; None for one that an engine does not have."""
    series = {stage: [v for stages in samples.values() if (v := stages[stage]) is not None] for stage in STAGES}
    return {stage: percentiles(values) if values else None for stage, values in series.items()}
