"""Options that several commands have: which bundle is opened, and on which engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from m2df_runtime.engine_names import BACKENDS, PRECISIONS, BackendName, Precision

if TYPE_CHECKING:
    from m2df_runtime import Model

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class EngineOptions:
    """How a bundle is opened; None takes the default."""

    bundle: Path | None
    backend: BackendName
    precision: Precision | None
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
            "--precision", type=click.Choice(PRECISIONS), help="[default: fastest that passed its parity check]"
        ),
        click.option("--threads", type=click.IntRange(1, 256), help="CPU threads. [default: the cores it may use]"),
    )
    for option in reversed(added):
        command = option(command)
    return command
