"""Latency of one query, stage by stage: m2df on every backend in every precision, beside what one would use instead.

    python -m benchmarks.latency                                 the shipped bundle
    python -m benchmarks.latency --bundle B --checkpoint C       a bundle, and its model in PyTorch
    python -m benchmarks.latency --twin                          the shipped model with random weights, and in PyTorch
    python -m benchmarks.latency --model ViT-B-16-quickgelu      random weights, exported for the purpose

Every engine has a process of its own, all do the same work, and they take turns in a new random order each round,
so that none is measured at another time than the rest: what to read first is the ratios. An engine whose answer is
not the model's is reported as failed.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.chain import Work
from benchmarks.engines import EAGER, EngineSpec, Float, ours, peers
from benchmarks.interleaved import run
from benchmarks.models import export, random_model, random_twin
from benchmarks.record import Machine, bundle_hash, write
from benchmarks.ruled import ruled
from m2df_export.precision.optional_packages import nncf_missing
from m2df_runtime.bank.folder import read_support
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.prompt_texts import prompt_embeddings
from m2df_runtime.bundle.shipped import demo_queries, demo_support, newest_bundle
from m2df_runtime.clips.listing import list_clips
from m2df_runtime.commands.console import main_entry
from m2df_runtime.cpus import MAX_THREADS
from m2df_runtime.engine_names import Precision
from m2df_runtime.errors import CheckFailed, InputError
from m2df_runtime.files import sha256_file

if TYPE_CHECKING:
    from m2df_train.model.heads import HeadName

TWIN = "twin.safetensors"


def work_of(bundle: Bundle, query: Path | None, support: Path, way: int, shot: int) -> tuple[Work, Float]:
    """The work, and the embeddings [C, D] of the classes' prompts.

    Raises:
        InputError: The support folder holds too few classes or clips.
    """
    classes = list(read_support(support).classes.items())[:way]
    clips = tuple(tuple(clip.path for clip in found[:shot]) for _, found in classes)
    if len(clips) < way or min(map(len, clips)) < shot:
        raise InputError(f"{support}: less than {way} classes of {shot} clips", "take a smaller --way or --shot")
    rules = bundle.manifest.text.rules
    encode = ruled(bundle.path).encode_texts
    prompts = prompt_embeddings((rules.prompts(label) for label, _ in classes), encode)
    return Work(query or list_clips(demo_queries()).clips[0], clips, bundle.manifest.clip), prompts


def engines(
    bundle: Bundle, source: str | Path | None, threads: int | None, only: str | None
) -> tuple[list[EngineSpec], dict[str, str]]:
    """What to measure, the reference for all answers first, and why backends are missing.

    The reference is PyTorch in fp32, else the bundle's best precision in ONNX Runtime.

    Raises:
        InputError: `only` leaves nothing.
    """
    reference = EAGER if source is not None else f"m2df cpu {bundle.manifest.precisions[0]}"
    own, missing = ours(bundle, threads)
    found = sorted([*peers(bundle, source, threads), *own], key=lambda spec: spec.name != reference)
    kept = [spec for spec in found if only is None or re.search(only, spec.name)]
    if not kept:
        raise InputError(f"no engine's name matches {only!r}", f"there are: {', '.join(spec.name for spec in found)}")
    return kept, {name: reason for name, reason in missing.items() if only is None or re.search(only, name)}


def show(record: dict[str, Any]) -> None:
    """Print the main figures."""
    for peer, beside in record["ratios"].items():
        for name, stages in beside.items():
            click.echo(f"{peer} / {name}: " + ", ".join(f"{s} {v['median']:.2f}" for s, v in stages.items()))
    for name, engine in record["engines"].items():
        if "ms" in engine:
            total = engine["ms"]["total"]
            click.echo(f"{name}: total p50 {total['p50']:.2f} ms, p95 {total['p95']:.2f} ms")


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle [newest, else the shipped one].")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Its checkpoint, to time PyTorch beside it.")
@click.option(
    "--twin",
    is_flag=True,
    help="In place of a checkpoint the bundle's model with random weights, in PyTorch and exported.",
)
@click.option("--model", help="In place of both an open_clip model with random weights and an untrained head.")
@click.option("--head", type=click.Choice(["m2df", "clip-fsar", "training-free"]), default="m2df", help="For --model.")
@click.option("--query", type=click.Path(path_type=Path), help="Query clip [the first of the demo].")
@click.option("--support", type=click.Path(path_type=Path, file_okay=False), help="Support folder [the demo's].")
@click.option("--way", type=click.IntRange(2), default=5)
@click.option("--shot", type=click.IntRange(1), default=1)
@click.option(
    "--threads", type=click.IntRange(1, MAX_THREADS), help="Threads of each engine, but for defaults [its own choice]."
)
@click.option("--only", metavar="REGEX", help="Engines to measure, by name [all].")
@click.option("--rounds", type=click.IntRange(2), default=100)
@click.option("--warmup", type=click.IntRange(1), default=3, help="Rounds before those that count.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/latency-<model>.json].")
def cli(
    bundle: Path | None,
    checkpoint: Path | None,
    twin: bool,
    model: str | None,
    head: HeadName,
    query: Path | None,
    support: Path | None,
    way: int,
    shot: int,
    threads: int | None,
    only: str | None,
    rounds: int,
    warmup: int,
    out: Path | None,
) -> None:
    """Time one query through m2df and everything it is compared with."""
    if model and (bundle or checkpoint or twin):
        raise InputError("--model brings its own bundle", "leave out --bundle, --checkpoint and --twin")
    if twin and checkpoint:
        raise InputError("--twin makes its own checkpoint", "leave out --checkpoint")
    machine = Machine()
    with tempfile.TemporaryDirectory() as folder:
        if model:
            calibrated: tuple[Precision, ...] = () if nncf_missing() else ("int8-static",)
            opened = export(random_model(model, head), Path(folder) / "bundle", ("fp32", "fp16", "int8", *calibrated))
        else:
            opened = Bundle.open(bundle or newest_bundle())
        if twin:
            from m2df_train.model.checkpoint import save_checkpoint

            made = random_twin(opened)
            opened, checkpoint = export(made, Path(folder) / "bundle", opened.manifest.precisions), Path(folder) / TWIN
            save_checkpoint(checkpoint, made)
        specs, missing = engines(opened, model or checkpoint, threads, only)
        work, prompts = work_of(opened, query, support or demo_support(), way, shot)
        found = run(specs, work, prompts, rounds, warmup, trained=not opened.manifest.source.random_weights)
        manifest, digest = opened.manifest, bundle_hash(opened)
    for name, reason in missing.items():
        click.echo(f"left out: {name}: {reason}", err=True)
    record = {
        **found,
        "left_out": missing | found["left_out"],
        "model": {
            "name": manifest.source.model, "weights": "random" if manifest.source.random_weights else "trained",
            "head": manifest.head.name, "sha256": digest, "checkpoint_sha256": manifest.source.checkpoint_sha256,
        },
        "settings": {
            "way": way, "shot": shot, "threads": threads, "frames": work.spec.frames, "size": work.spec.size,
            "rounds": rounds, "warmup": warmup, "query": work.query.name,
            "query_sha256": sha256_file(work.query) if work.query.is_file() else None,
        },
        "environment": machine.environment(),
    }  # fmt: skip
    show(record)
    click.echo(f"written: {write(f'latency-{manifest.source.model.lower()}', record, out)}")
    wrong = [name for name, engine in record["engines"].items() if engine["ours"] and "failed" in engine]
    if wrong:
        raise CheckFailed(f"{', '.join(wrong)}: not the answer of {record['reference']}", "the record says why")


if __name__ == "__main__":
    main_entry(cli)
