"""`m2df-train`: trains a recipe on your clips, on a benchmark or, bare, the demo recipe on generated actions."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2df_runtime.commands.console import M2dfGroup, emit, emit_json, main_entry, stages
from m2df_train.public_benchmarks import BENCHMARKS

if TYPE_CHECKING:
    from m2df_train.recipe.recipe import Recipe

EPILOG = """\b
Examples:
  m2df-train                                     the demo recipe, on a CPU, to runs/<time>-demo/
  m2df-train --data clips/                       your own classes: one folder of clips for each
  m2df-train --recipe hmdb51/m2df --data hmdb51_org --split-files splits/hmdb_ARN
  m2df-train --recipe mine.yaml --seed 3 --set head.options.otam.lambda=0.1 --set train.way=10
  m2df-train --recipe runs/x/recipe.yaml --out runs/x --resume
  torchrun --nproc_per_node 4 -m m2df_train.commands.train --recipe mine.yaml    on four GPUs
  m2df-train import fully_trained.pt --dataset hmdb51   a checkpoint of CLIP-MDMF or CLIP-FSAR
  m2df-train prepare --dataset hmdb51 --root hmdb51_org   is a download complete?
"""


SUBCOMMANDS = {
    "import": "m2df_train.commands.import_:import_command",
    "prepare": "m2df_train.commands.prepare:prepare_command",
}


@click.group("m2df-train", cls=M2dfGroup, subcommands=SUBCOMMANDS, epilog=EPILOG)
@click.option("--recipe", help="Name of a shipped recipe, or a YAML file.  [default: demo; custom with --data]")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of class folders, or a download of --dataset.")
@click.option("--dataset", type=click.Choice(BENCHMARKS), help="Benchmark that --data is a download of.")
@click.option("--split-files", type=click.Path(path_type=Path), help="Folder of the lists of videos of its splits.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory.  [default: runs/<time>-<recipe>]")
@click.option("--seed", type=click.IntRange(0, (1 << 40) - 1), help="Replaces the recipe's seed.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One option over the recipe's; repeatable.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, or with the recipe's newest run.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.pass_context
def cli(context: click.Context, **options: Any) -> None:  # noqa: ANN401 - click passes every option by name
    """Train a few-shot head on episodes, and the image tower under it as the recipe says.

    Prints episode accuracy with its 95 % confidence interval on classes that were in no training,
    beside the training-free head and chance. Ctrl-C stops at a point from which --resume goes on.
    """
    if context.invoked_subcommand is None:
        run(Options(**options))


@dataclass(frozen=True)
class Options:
    """What the command line says, by the names of its options."""

    recipe: str | None
    data: Path | None
    dataset: str | None
    split_files: Path | None
    out: Path | None
    seed: int | None
    settings: tuple[str, ...]
    resume: bool
    as_json: bool


def run(options: Options) -> None:
    """Train, and print the result in the main process."""
    from m2df_train.recipe.recipe import load_recipe

    resolved = load_recipe(options.recipe or ("custom" if options.data else "demo"), _settings(options))
    if options.seed is not None:
        resolved = resolved.model_copy(update={"seed": options.seed})
    folder = _run_folder(resolved, options.out, options.resume)
    # PyTorch loads for seconds: what is wrong with the command line has been said before.
    from m2df_train.training.processes import Processes
    from m2df_train.training.run_report import lines, measured
    from m2df_train.training.trainer import train

    processes = Processes(resolved.train.precision)
    folder = processes.same(folder)  # its name may hold the time
    result = train(resolved, folder, stages, processes)
    processes.close()
    if result is None:
        return
    if options.as_json:
        found = {"checkpoint": str(result.checkpoint), "seconds": round(result.seconds, 1)}
        emit_json({**found, **measured(result.splits)})
    else:
        emit("\n".join(lines(result)))


def _settings(options: Options) -> tuple[str, ...]:
    """All settings over the recipe: those of the data options, and over these what --set says."""
    values = {"root": options.data, "dataset": options.dataset, "split_files": options.split_files}
    data = (f"data.{key}={json.dumps(str(value), ensure_ascii=False)}" for key, value in values.items() if value)
    return (*data, *options.settings)


def _run_folder(recipe: Recipe, out: Path | None, resume: bool) -> Path:
    from m2df_runtime.errors import InputError
    from m2df_train.model.run_folder import RECIPE, RUNS
    from m2df_train.recipe.recipe import load_recipe

    name = recipe.name.replace("/", "-")
    if resume:
        begun_runs = (p for p in RUNS.glob("*") if re.fullmatch(r"\d{8}-\d{6}-" + re.escape(name), p.name))
        runs = [out] if out else sorted(begun_runs, key=lambda p: p.stat().st_mtime)
        if not runs or not (runs[-1] / RECIPE).is_file():
            raise InputError(f"{out or RUNS}: no run of recipe {recipe.name} to resume", "leave out --resume")
        begun = runs[-1] / RECIPE
        if load_recipe(str(begun)) != recipe:
            raise InputError(
                f"{runs[-1]}: was begun with another recipe, seed or settings", f"go on with it: --recipe {begun}"
            )
        return runs[-1]
    folder = out or RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    if (folder / RECIPE).exists():
        raise InputError(f"{folder}: holds a run already", "add --resume to go on with it, or name another --out")
    return folder


def main() -> None:
    """Entry point of `m2df-train`."""
    main_entry(cli)


if __name__ == "__main__":
    main()
