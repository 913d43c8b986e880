"""Options that several commands have: which bundle is opened, on which engine, what is read of the classes, and when
an answer is `unknown`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from m2df_runtime.commands.console import say
from m2df_runtime.engine_names import BACKENDS, RUN_PRECISIONS, BackendName, RunPrecision

if TYPE_CHECKING:
    from m2df_runtime import Model
    from m2df_runtime.bundle.prompt_texts import LabelRules

Command = TypeVar("Command", bound=Callable[..., Any])
Reject = Literal["auto", "off"] | float
SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


def with_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    """A click command with these options, which its help lists in their order."""
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True)
class EngineOptions:
    """How a bundle is opened; None takes the default."""

    bundle: Path | None
    backend: BackendName
    precision: RunPrecision | None
    threads: int | None

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> EngineOptions:
        """Those out of all options."""
        return cls(**{name: options.pop(name) for name in ("bundle", "backend", "precision", "threads")})

    def load(self) -> Model:
        """Open the bundle. Raises InputError or EnvironmentMissing."""
        from m2df_runtime import load

        return load(self.bundle, self.backend, self.precision, self.threads)


def engine_options(command: Command) -> Command:
    """The options of `EngineOptions` on a click command."""
    added = (
        click.option(
            "--bundle",
            type=click.Path(path_type=Path),
            help="Exported model. [default: newest in bundles/, else the demo's]",
        ),
        click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True),
        click.option(
            "--precision",
            type=click.Choice(RUN_PRECISIONS),
            help="[default: fastest that was measured here, else on a CPU at export]",
        ),
        click.option("--threads", type=click.IntRange(1, 256), help="CPU threads. [default: the cores it may use]"),
    )
    return with_options(command, added)


@dataclass(frozen=True)
class TextOptions:
    """What a model reads of the classes; None takes the bundle's."""

    prompt: str | None
    labels: Path | None

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> TextOptions:
        """Those out of all options."""
        return cls(**{name: options.pop(name) for name in ("prompt", "labels")})

    @cached_property
    def _texts(self) -> dict[str, tuple[str, ...]]:
        from m2df_runtime.bundle.prompt_texts import read_labels

        return read_labels(self.labels) if self.labels else {}

    def rules(self, model: Model) -> LabelRules | None:
        """Labels to prompts; None where no option asks for others. Raises InputError."""
        asked = self.labels is not None or self.prompt is not None
        return model.bundle.manifest.text.rules.over(self._texts, self.prompt) if asked else None

    def warn_unmatched(self, classes: Iterable[str]) -> None:
        """Log a warning where no row of the file is of any of the classes."""
        from m2df_runtime.bundle.prompt_texts import warn_unmatched

        if self.labels:
            warn_unmatched(self.labels, self._texts, classes)


def text_options(command: Command) -> Command:
    """The options of `TextOptions` on a click command."""
    added = (
        click.option("--prompt", metavar="TEXT", help="Prompt template with one {}. [default: the bundle's]"),
        click.option(
            "--labels", type=click.Path(path_type=Path), metavar="CSV", help="Columns class,text: texts of classes."
        ),
    )
    return with_options(command, added)


def say_engine(model: Model) -> None:
    """Say which engine was taken and why, where that was measured."""
    if model.about_engine:
        say(f"engine: {model.about_engine}")


def parse_reject(ctx: click.Context, param: click.Parameter, value: str) -> Reject:
    """`auto`, `off`, or a probability. Raises BadParameter."""
    if value in ("auto", "off"):
        return "auto" if value == "auto" else "off"
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise click.BadParameter(f"{value!r} is not auto, off, or a probability in [0, 1]", ctx, param)
    return number


def check_miss_rate(miss_rate: float | None, reject: Reject | None) -> None:
    """Refuse a miss rate beside a `--reject` that has none; None is what was not given. Raises UsageError."""
    if miss_rate is not None and reject not in (None, "auto"):
        raise click.UsageError(f"--miss-rate is of --reject auto, not of --reject {reject}")


def reject_options(command: Command) -> Command:
    """The options of when an answer is `unknown` on a click command."""
    added = (
        click.option(
            "--reject",
            metavar="auto|off|NUMBER",
            callback=parse_reject,
            default="auto",
            show_default=True,
            help="Answer 'unknown' beyond the calibrated distance (auto, where classes have several clips), never "
            "(off), or below a probability.",
        ),
        click.option(
            "--miss-rate",
            type=SHARE,
            metavar="SHARE",
            help="Share of taught actions that --reject auto may answer with 'unknown'. [default: 0.05]",
        ),
    )
    return with_options(command, added)
