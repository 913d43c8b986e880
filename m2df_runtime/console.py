"""What the five commands share: exit codes, error lines, JSON lines, progress and logging.

This is the only place that turns an exception into a line on stderr and an exit code. Standard
output carries results and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import click

from m2df_runtime.errors import M2dfError

DEBUG_VARIABLE = "M2DF_DEBUG"
INTERRUPTED = 130  # 128 + SIGINT, what shells report for Ctrl-C


class M2dfGroup(click.Group):
    """A click group that does its main job without a subcommand; inputs are options, never positionals."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - click's own signature
        kwargs.setdefault("invoke_without_command", True)
        super().__init__(*args, **kwargs)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Usage line, without a place for subcommands where there are none."""
        pieces = super().collect_usage_pieces(ctx)
        return pieces if self.commands else [p for p in pieces if p != self.subcommand_metavar]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand; a stray file name gets told that inputs are options."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            known = f"; subcommands: {', '.join(sorted(self.commands))}" if self.commands else ""
            message = f"unexpected argument {args[0]!r}: inputs are given as options, see --help{known}"
            raise click.UsageError(message, ctx)
        return super().resolve_command(ctx, args)


def guarded(run: Callable[[], object]) -> int:
    """Run a command and return its exit code, with one line on stderr for each kind of failure.

    0 success, 1 failed check or a fault of m2df itself, 2 usage, bad input or files that cannot be
    read or written, 3 environment, 130 Ctrl-C. With M2DF_DEBUG=1 exceptions keep their traceback.
    """
    setup_logging()
    make_streams_tolerant()
    try:
        code = run()
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print_error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the border: everything else becomes one line
        if os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"):
            raise
        return report(error)
    return code if isinstance(code, int) else 0


def report(error: Exception) -> int:
    """Print one exception as an error line and return the exit code it stands for."""
    if isinstance(error, M2dfError):
        print_error(error.message, error.hint)
        return error.exit_code
    if isinstance(error, ImportError) and not (error.name or "").startswith("m2df"):
        hint = "pip install 'm2df[train]' to train, 'm2df[export]' to export; m2df-doctor lists packages"
        print_error(str(error), hint)
        return 3
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        print_error(f"{where}{error.strerror or error}")
        return 2
    if isinstance(error, MemoryError):
        print_error("out of memory", "use fewer clips at once or a smaller model")
        return 3
    print_error(f"{type(error).__name__}: {error}", f"a fault in m2df; {DEBUG_VARIABLE}=1 shows the traceback")
    return 1


def print_error(message: str, hint: str | None = None) -> None:
    """Write `error: message (hint)` as one line to stderr."""
    line = " ".join(f"{message} ({hint})".split()) if hint else " ".join(message.split())
    click.echo(f"error: {line}", err=True)


def emit_json(record: Mapping[str, object]) -> None:
    """Write one object as one line to stdout, at once, in ASCII so that every terminal can take it."""
    sys.stdout.write(json.dumps(record, allow_nan=False) + "\n")
    sys.stdout.flush()


class _LineHandler(logging.Handler):
    """Writes `warning: ...` lines to whatever stderr is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"{record.levelname.lower()}: {' '.join(record.getMessage().split())}", err=True)


def setup_logging() -> None:
    """Send warnings to stderr, one line each. Calling it again changes nothing.

    The handler is the root logger's: without one there, a library that logs to it (open_clip) gives it one of
    its own, and every warning of ours would be printed twice.
    """
    if not any(isinstance(handler, _LineHandler) for handler in logging.root.handlers):
        logging.root.addHandler(_LineHandler(logging.WARNING))


def make_streams_tolerant() -> None:
    """Print labels a terminal's encoding does not know as escapes, and read paths of any bytes, without failing."""
    # Paths come in as Python takes those of the command line.
    handling = ((sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace"), (sys.stdin, "surrogateescape"))
    for stream, errors in handling:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=errors)


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr where that is a terminal, else nothing.

    Yields:
        A function that advances the bar by a number of steps.
    """
    if not sys.stderr.isatty() or total == 0:
        yield lambda steps: None
        return
    with bar(description, total, transient=True) as update:
        yield lambda steps: update(advance=steps)


@contextmanager
def bar(description: str, total: int | None, *, transient: bool) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr, with the remaining time and a note beside it.

    Args:
        description: What is done.
        total: Steps; None where nobody knows.
        transient: Whether it disappears at the end.

    Yields:
        A function with the keywords `advance` (steps since the last call) or `completed` (steps in all), and `note`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=transient) as shown:
        task = shown.add_task(description, total=total, note="")
        yield partial(shown.update, task)


@contextmanager
def spinner(description: str) -> Iterator[None]:
    """A spinner with the elapsed time on stderr where that is a terminal, for work whose length nobody knows."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(description, total=None)
        yield


def main_entry(command: click.Command, args: Sequence[str] | None = None) -> NoReturn:
    """Run a command as the process's entry point: exits with its code. `args` defaults to the command line."""
    arguments = None if args is None else list(args)
    sys.exit(guarded(lambda: command.main(arguments, standalone_mode=False)))
