"""`m2df-train`: trains a recipe; bare, the demo recipe on generated actions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from m2df_runtime.console import M2dfGroup, emit_json, main_entry
from m2df_train.import_cli import import_command
from m2df_train.prepare_cli import prepare_command

if TYPE_CHECKING:
    from m2df_train.evaluate import Accuracy
    from m2df_train.recipe import Recipe
    from m2df_train.trainer import Result

EPILOG = """\b
Examples:
  m2df-train                                     the demo recipe, on a CPU, to runs/<time>-demo/
  m2df-train --recipe demo-bundle --out runs/x   a recipe that ships with m2df
  m2df-train --recipe mine.yaml --seed 3         your own recipe
  m2df-train --recipe mine.yaml --out runs/x --resume
  m2df-train --set head.options.otam.lambda=0.1 --set episodic.way=10
  m2df-train import fully_trained.pt --dataset hmdb51   a checkpoint of CLIP-MDMF or CLIP-FSAR
  m2df-train prepare --dataset hmdb51 --root hmdb51_org   is a download complete?
"""


@click.group(cls=M2dfGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--recipe", default="demo", show_default=True, help="Name of a shipped recipe, or a YAML file.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory.  [default: runs/<time>-<recipe>]")
@click.option("--seed", type=click.IntRange(min=0), help="Replaces the recipe's seed.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One option over the recipe's; repeatable.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, or with the recipe's newest run.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.pass_context
def cli(
    context: click.Context,
    recipe: str,
    out: Path | None,
    seed: int | None,
    settings: tuple[str, ...],
    resume: bool,
    as_json: bool,
) -> None:
    """Train a few-shot head, and the small CLIP under it, on episodes.

    Prints episode accuracy with its 95 % confidence interval on actions that were in no training,
    beside the training-free head and chance.
    """
    if context.invoked_subcommand is not None:
        return
    from m2df_train.progress import StageProgress
    from m2df_train.recipe import load_recipe
    from m2df_train.trainer import measured, train

    resolved = load_recipe(recipe, settings)
    if seed is not None:
        resolved = resolved.model_copy(update={"seed": seed})
    folder = _run_folder(resolved, out, resume)
    result = train(resolved, folder, StageProgress())
    if as_json:
        emit_json({"checkpoint": str(result.checkpoint), "seconds": round(result.seconds, 1), **measured(result)})
    else:
        _print(result)


cli.add_command(import_command)
cli.add_command(prepare_command)


def _run_folder(recipe: Recipe, out: Path | None, resume: bool) -> Path:
    from m2df_runtime.errors import InputError
    from m2df_train.checkpoint import RUNS
    from m2df_train.recipe import load_recipe

    name = recipe.name
    if resume:
        runs = [out] if out else sorted(RUNS.glob(f"*-{name}"), key=lambda p: p.stat().st_mtime)
        if not runs or not (runs[-1] / "recipe.yaml").is_file():
            raise InputError(f"{out or RUNS}: no run of recipe {name} to resume", "leave out --resume to start one")
        begun = runs[-1] / "recipe.yaml"
        if load_recipe(str(begun)) != recipe:
            raise InputError(
                f"{runs[-1]}: was begun with another recipe, seed or settings", f"go on with it: --recipe {begun}"
            )
        return runs[-1]
    folder = out or RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    if (folder / "recipe.yaml").exists():
        raise InputError(f"{folder}: holds a run already", "add --resume to go on with it, or name another --out")
    return folder


def _print(result: Result) -> None:
    click.echo("accuracy on unseen generated actions")
    for trained, free in zip(result.trained, result.training_free, strict=True):
        click.echo(
            f"  {trained.way}-way {trained.shot}-shot   {_percent(trained)}"
            f"   training-free {_percent(free)}   chance {100 * result.chance:.1f} %"
        )
    click.echo(f"checkpoint: {result.checkpoint}   ({result.seconds / 60:.1f} min)")


def _percent(value: Accuracy) -> str:
    return f"{value.accuracy:.1f} ± {value.ci95:.1f} %"


def main() -> None:
    """Entry point of `m2df-train`."""
    main_entry(cli)


if __name__ == "__main__":
    main()
