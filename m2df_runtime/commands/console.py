"""What the five commands share: exit codes, error lines, JSON lines, progress and logging.

This is the only place that turns an exception into a line on stderr and an exit code. Standard
output carries results and nothing else.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import click

from m2df_runtime import __version__
from m2df_runtime.commands import entry
from m2df_runtime.errors import M2dfError, printable
from m2df_runtime.progress import Advance, unseen

DEBUG_VARIABLE = "M2DF_DEBUG"
_OUTPUT = "standard output"
_LONGEST_LINE = 2000  # characters of an error line; a path has at most 4,096 bytes, a line of standard input any number
_LINE_EVERY = 30.0  # seconds between lines of progress where stderr is a file or a pipe


class M2dfGroup(click.Group):
    """A click group that does its main job without a subcommand; inputs are options, never positionals.

    `-h` and `--version` come with it; subcommands take `-h` from their group.

    Args:
        subcommands: Module and name of each by its name, such as `m2df_runtime.commands.bank:bank`. A module loads when
            its subcommand is asked for: no call pays for the others.
    """

    def __init__(self, *args: Any, subcommands: Mapping[str, str] | None = None, **kwargs: Any) -> None:  # noqa: ANN401
        kwargs.setdefault("invoke_without_command", True)
        kwargs["context_settings"] = {"help_option_names": ["-h", "--help"], **(kwargs.get("context_settings") or {})}
        super().__init__(*args, **kwargs)
        self._subcommands = dict(subcommands or {})
        click.version_option(__version__, prog_name=self.name)(self)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the subcommands."""
        return sorted(self._subcommands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A subcommand, loaded by now; None where there is none of that name."""
        place = self._subcommands.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Usage line, without a place for subcommands where there are none."""
        pieces = super().collect_usage_pieces(ctx)
        return pieces if self._subcommands else [p for p in pieces if p != self.subcommand_metavar]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand; a stray file name gets told that inputs are options."""
        if args and args[0] not in self._subcommands and not args[0].startswith("-"):
            known = f"; subcommands: {', '.join(self.list_commands(ctx))}" if self._subcommands else ""
            several = "; an option takes one value: repeat it, or quote a pattern"
            message = f"unexpected argument {args[0]!r}: inputs are given as options, see --help{several}{known}"
            raise click.UsageError(message, ctx)
        return super().resolve_command(ctx, args)


def guarded(run: Callable[[], object]) -> int:
    """Run a command and return its exit code, with one line on stderr for each kind of failure.

    0 success, 1 failed check or a fault of m2df itself, 2 usage, bad input or files that cannot be
    read or written, 3 environment, 130 Ctrl-C. With M2DF_DEBUG=1 exceptions keep their traceback.
    """
    setup_logging()
    make_streams_tolerant()
    entry.cleans_up(True)
    try:
        code = run()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt, Exception) as error:  # the border: everything becomes one line
        if entry.interrupted() or isinstance(error, click.Abort | KeyboardInterrupt):
            print_error("interrupted")
            return entry.INTERRUPTED
        return _failed(error)
    finally:
        entry.cleans_up(False)


def _failed(error: Exception) -> int:
    """Print what a command failed with, as far as streams can still be written, and return its exit code."""
    if isinstance(error, OSError):
        _empty_lost_output(error)
    if isinstance(error, BrokenPipeError):
        return 1  # the reader (`| head`) left
    if isinstance(error, click.ClickException):
        with suppress(OSError, ValueError):
            error.show()
        return error.exit_code
    if os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"):
        raise error
    return report(error)


def _empty_lost_output(error: OSError) -> None:
    """Where standard output cannot be written, let what is still to come vanish: Python would complain at exit."""
    if isinstance(error, BrokenPipeError) or error.filename == _OUTPUT:
        with suppress(OSError):  # in a test it is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    _say_in_one_line(f"error: {message} ({hint})" if hint else f"error: {message}")


def _say_in_one_line(message: str) -> None:
    line = " ".join(message.split())
    if len(line) > _LONGEST_LINE:
        line = f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 2 :]}"
    say(line)


def say(line: str) -> None:
    """Write a line to stderr. Where that cannot be written, the work goes on: results are what counts."""
    with suppress(OSError, ValueError, RuntimeError):  # the last where a signal comes while another line is written
        click.echo(printable(line), err=True)


def emit(text: str) -> None:
    """Write a result to stdout, at once. Raises OSError that names standard output where that cannot be written."""
    try:
        click.echo(text)
    except OSError as error:
        error.filename = _OUTPUT
        raise


def emit_json(record: Mapping[str, object]) -> None:
    """Write one object as one line to stdout, at once, in ASCII so that every terminal can take it."""
    emit(json.dumps(record, allow_nan=False))


class _LineHandler(logging.Handler):
    """Writes `warning: ...` lines to whatever stderr is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        _say_in_one_line(f"{record.levelname.lower()}: {record.getMessage()}")


def setup_logging() -> None:
    """Send warnings, those of libraries too, to stderr, one line each. Calling it again changes nothing.

    The handler is the root logger's: without one there, a library that logs to it (open_clip) gives it one of
    its own, and every warning of ours would be printed twice.
    """
    if not any(isinstance(handler, _LineHandler) for handler in logging.root.handlers):
        logging.root.addHandler(_LineHandler(logging.WARNING))
    warnings.showwarning = _log_warning


def _log_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    """Python's own form is two lines with a line of a library's source."""
    logging.getLogger("py.warnings").warning("%s", message)


def make_streams_tolerant() -> None:
    """Print labels a terminal's encoding does not know as escapes, and read paths of any bytes, without failing."""
    # Paths come in as Python takes those of the command line.
    handling = ((sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace"), (sys.stdin, "surrogateescape"))
    for stream, errors in handling:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=errors)


@contextmanager
def progress(title: str, total: int | None = None, /) -> Iterator[Advance]:
    """A `Progress` on stderr: a bar that disappears at the end where that is a terminal, else nothing."""
    if not sys.stderr.isatty() or total == 0:
        yield unseen
        return
    with _bar(title, total, transient=True) as advance:
        yield advance


@contextmanager
def stages(title: str, total: int | None = None, /) -> Iterator[Advance]:
    """A `Progress` on stderr of runs that last: a bar that stays where that is a terminal, else a line now and then."""
    shown = _bar(f"{title:<22}", total, transient=False) if sys.stderr.isatty() else _lines(title, total or 0)
    with shown as advance:
        yield advance


@contextmanager
def _lines(title: str, total: int) -> Iterator[Advance]:
    started = last = time.monotonic()
    done = 0
    first: tuple[int, float] | None = None  # a run that goes on reports what it finds done with its first step

    def advance(steps: int, note: str = "", /) -> None:
        nonlocal last, done, first
        done += steps
        now = time.monotonic()
        first = first or (done, now)
        if done >= total or now - last >= _LINE_EVERY:
            last = now
            since, rest = done - first[0], total - done
            left = f"  {(now - first[1]) * rest / since:.0f} s left" if since > 0 and rest > 0 else ""
            say(f"{title}: {done}/{total}  {note}  {now - started:.0f} s{left}")

    yield advance


@contextmanager
def _bar(title: str, total: int | None, *, transient: bool) -> Iterator[Advance]:
    """A bar with the remaining time and a note beside it."""
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
        task = shown.add_task(title, total=total, note="")
        yield lambda steps, note="", /: shown.update(task, advance=steps, note=note)


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
    entry.prepare()
    arguments = None if args is None else list(args)
    code = guarded(lambda: command.main(arguments, standalone_mode=False))
    if any(thread.daemon and thread.name.startswith("m2df") for thread in threading.enumerate()):
        # It reads a camera or writes a clip. Python's own end would tear it out of OpenCV, which then aborts.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    gc.freeze()  # Python would look for garbage in all that is left: 0.1 s after the answer
    sys.exit(code)
