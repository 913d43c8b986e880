"""`m2df-export verify`: whether a bundle still computes what its model does, and if not, where it begins."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import click

from m2df_runtime.commands.console import emit, emit_json, spinner

EPILOG = """\b
Examples:
  m2df-export verify                                the newest bundle, its graphs against its best ones
  m2df-export verify bundles/mine --against runs/mine
                                                    against the model in PyTorch
  m2df-export verify bundles/mine --against bundles/old --data clips
                                                    against another bundle, on your own clips
  m2df-export verify bundles/mine --backend openvino --json

Stages: decode, pixels, features, prompts, prototypes, selection, distances, scores, episodes. Each is given the
reference's inputs, so that an error counts where it is made; the chain shows how errors add up. Every engine
runs in a process of its own. Exit codes: 0 passed, 1 failed, 2 bad input, 3 an engine that --backend names is missing.
"""


@click.command("verify", epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="Checkpoint, run directory or bundle to compare with.  [default: the bundle's best graphs on the CPU]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Clips, one sub-folder per class.  [default: generated clips]",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(["tensorrt", "cuda", "openvino", "cpu"]),
    help="Engine, repeatable.  [default: all that are here]",
)
@click.option(
    "--episodes", type=click.IntRange(1, 1_000_000), default=200, show_default=True, help="Episodes to compare."
)
@click.option(
    "--seed", type=click.IntRange(0, (1 << 40) - 1), default=0, show_default=True, help="Seed of the episodes."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per engine, and one at the end.")
def verify(
    bundle: Path | None,
    against: Path | None,
    data: Path | None,
    backends: tuple[str, ...],
    episodes: int,
    seed: int,
    as_json: bool,
) -> None:
    """Find the first stage at which a bundle leaves its model, in every engine and precision on this machine."""
    from m2df_export.check import report
    from m2df_export.check.verify import VerifyOptions
    from m2df_export.check.verify import verify as run
    from m2df_runtime.bundle.shipped import newest_bundle

    start = time.monotonic()
    options = VerifyOptions(
        bundle=bundle or newest_bundle(),
        against=against,
        data=data,
        backends=backends,  # type: ignore[arg-type]  # the choices are names of backends
        episodes=episodes,
        seed=seed,
    )
    with spinner("verifying"):
        found = run(options)
    seconds = time.monotonic() - start
    command = shlex.join(["m2df-export", *sys.argv[1:]])
    if as_json:
        for result in found.results:
            emit_json(report.engine_record(result))
        emit_json(report.verdict_record(found, seconds, command))
    else:
        emit(report.header(found))
        for result in found.results:
            emit(report.engine_text(result))
        emit(report.verdict(found, seconds, command))
    if not found.passed:
        raise click.exceptions.Exit(1)
