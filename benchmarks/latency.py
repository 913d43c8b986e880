"""Latency per stage of one query, every backend and precision of a bundle beside PyTorch eager.

    python -m benchmarks.latency --bundle bundles/mine --checkpoint runs/mine

All subjects take turns within a round, in a new random order each time, so that a machine that slows
down slows all of them; what to read first is the ratios.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Literal, TypeVar

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.record import environment, percentiles, write
from m2df_runtime.bundle import MANIFEST_NAME, Bundle, demo_queries, newest_bundle, sha256_bytes, sha256_file
from m2df_runtime.console import main_entry, progress
from m2df_runtime.errors import EnvironmentMissing, InputError
from m2df_runtime.matcher import TimedSource
from m2df_runtime.preprocess import ClipSpec, load_clip
from m2df_runtime.session import Session
from m2df_runtime.video import list_clips
from m2df_train.evaluation.scorer import Scorer

STAGES = ("decode", "preprocess", "visual", "support", "query", "total")
# A query costs these; the support side is computed once per class and kept.
PER_QUERY = ("decode", "preprocess", "visual", "query")
EAGER = "torch-eager"

Result = TypeVar("Result")


@dataclass(frozen=True)
class Subject:
    """One way to run the model, and its samples in milliseconds per stage."""

    name: str
    scorer: Scorer
    samples: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})

    def add(self, stages: dict[str, float]) -> None:
        """Keep one round."""
        for stage, value in stages.items():
            self.samples[stage].append(value)
        self.samples["total"].append(sum(stages[stage] for stage in PER_QUERY))


@dataclass(frozen=True)
class Work:
    """What one round computes: a clip against W classes of K clips each."""

    clip: Path
    spec: ClipSpec
    way: int
    shot: int
    dim: int

    def load(self) -> tuple[NDArray[np.uint8], dict[str, float]]:
        """The clip's pixels [1, T, S, S, 3], and the time to decode and to preprocess."""
        start = perf_counter()
        source = TimedSource(self.clip)
        pixels = load_clip(source, self.spec)
        total = 1000 * (perf_counter() - start)
        decode = 1000 * source.seconds
        return pixels[None], {"decode": decode, "preprocess": total - decode}

    def infer(self, scorer: Scorer, pixels: NDArray[np.uint8]) -> dict[str, float]:
        """Time of the visual, support (one class) and query graphs. Features of the support are random."""
        rng = np.random.default_rng(0)
        shots = rng.standard_normal((self.shot, self.spec.frames, self.dim), dtype=np.float32)
        prompts = rng.standard_normal((self.way, self.dim), dtype=np.float32)
        features, visual = _timed(lambda: scorer.encode_clips(pixels))
        prototypes, support = _timed(lambda: scorer.prototypes(shots, prompts[:1]))
        classes = np.repeat(prototypes[None], self.way, axis=0)
        _, query = _timed(lambda: scorer.match(features, prompts, classes))
        return {"visual": visual, "support": support, "query": query}


def _timed(run: Callable[[], Result]) -> tuple[Result, float]:
    start = perf_counter()
    result = run()
    return result, 1000 * (perf_counter() - start)


def subjects(bundle: Bundle, checkpoint: Path | None, threads: int) -> Iterator[Subject]:
    """The bundle in each precision on each backend of this machine, and the checkpoint in PyTorch."""
    if checkpoint is not None:
        import torch

        from m2df_train.checkpoint import load_checkpoint
        from m2df_train.evaluation.torch_scorer import CheckpointScorer

        torch.set_num_threads(threads)
        loaded = load_checkpoint(checkpoint)
        if (loaded.backbone.dim, loaded.clip) != (bundle.manifest.dim, bundle.manifest.clip):
            raise InputError(f"{checkpoint}: not the model of {bundle.path}", "export this checkpoint")
        yield Subject(EAGER, CheckpointScorer(loaded))
    backends: tuple[Literal["cuda", "cpu"], ...] = ("cuda", "cpu")
    for backend in backends:
        for precision in bundle.manifest.precisions:
            try:
                session = Session(bundle, backend=backend, precision=precision, threads=threads)
            except EnvironmentMissing as error:
                click.echo(f"left out: {backend}: {error}", err=True)
                break
            yield Subject(f"onnxruntime-{backend}-{precision}", session)


def measure(work: Work, found: Sequence[Subject], rounds: int, warmup: int) -> None:
    """Fill the subjects' samples."""
    order = list(found)
    shuffled = random.Random(0)
    with progress("rounds", rounds + warmup) as advance:
        for number in range(-warmup, rounds):
            pixels, loading = work.load()
            shuffled.shuffle(order)
            for subject in order:
                stages = {**loading, **work.infer(subject.scorer, pixels)}
                if number >= 0:
                    subject.add(stages)
            advance(1)


def ratios(found: Sequence[Subject]) -> dict[str, dict[str, float]]:
    """How many times faster than PyTorch eager each subject is, median of the ratios of the same round."""
    eager = next((subject for subject in found if subject.name == EAGER), None)
    if eager is None:
        return {}
    return {
        f"{EAGER} / {subject.name}": {
            stage: round(float(np.median(np.divide(eager.samples[stage], subject.samples[stage]))), 3)
            for stage in ("visual", "support", "query", "total")
        }
        for subject in found
        if subject is not eager
    }


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--bundle", "bundle_path", type=click.Path(path_type=Path), help="Bundle [newest, else the shipped one].")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Its checkpoint, to time PyTorch eager beside it.")
@click.option("--clip", type=click.Path(path_type=Path), help="Query clip [the first demo query].")
@click.option("--way", type=click.IntRange(1), default=5)
@click.option("--shot", type=click.IntRange(1), default=1)
@click.option("--threads", type=click.IntRange(1), default=1, help="Threads of each engine; above 1 pools compete.")
@click.option("--rounds", type=click.IntRange(2), default=100)
@click.option("--warmup", type=click.IntRange(0), default=10)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/latency.json].")
def cli(
    bundle_path: Path | None,
    checkpoint: Path | None,
    clip: Path | None,
    way: int,
    shot: int,
    threads: int,
    rounds: int,
    warmup: int,
    out: Path | None,
) -> None:
    """Time one query through every backend and precision of a bundle."""
    before = environment()
    bundle = Bundle.open(bundle_path or newest_bundle())
    manifest = bundle.manifest
    found = list(subjects(bundle, checkpoint, threads))
    work = Work(clip or list_clips(demo_queries()).clips[0], manifest.clip, way, shot, manifest.dim)
    measure(work, found, rounds, warmup)
    faster = ratios(found)
    record = {
        "ratios": faster,
        "milliseconds": {s.name: {stage: percentiles(s.samples[stage]) for stage in STAGES} for s in found},
        "settings": {
            "way": way, "shot": shot, "threads": threads, "frames": manifest.clip.frames, "size": manifest.clip.size,
            "rounds": rounds, "warmup": warmup, "clip": work.clip.name, "clip_sha256": _hash(work.clip),
        },
        "bundle": {"name": manifest.name, "sha256": bundle_hash(bundle), "model": manifest.source.model},
        "environment": before,
    }  # fmt: skip
    for name, stages in faster.items():
        click.echo(f"{name}: " + ", ".join(f"{stage} {value:.2f}x" for stage, value in stages.items()))
    for subject in found:
        total = percentiles(subject.samples["total"])
        click.echo(f"{subject.name}: total p50 {total['p50']:.2f} ms, p99 {total['p99']:.2f} ms")
    click.echo(f"written: {write('latency', record, out)}")


def bundle_hash(bundle: Bundle) -> str:
    """Hash of the bundle's manifest, which holds the hash of every other file; of the zip if it is one."""
    manifest = bundle.path / MANIFEST_NAME
    return sha256_bytes(manifest.read_bytes()) if manifest.is_file() else sha256_file(bundle.path)


def _hash(clip: Path) -> str | None:
    return sha256_file(clip) if clip.is_file() else None


if __name__ == "__main__":
    main_entry(cli)
