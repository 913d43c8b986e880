"""Progress of a training run: a bar with loss and remaining time on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

LINE_EVERY = 30.0  # seconds between lines where stderr is a file or a pipe


class StageProgress:
    """Reports stages on stderr; satisfies `trainer.Progress`."""

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Begin a stage; the yielded function takes the number of finished steps and a note."""
        reporter = _bar if sys.stderr.isatty() else _lines
        with reporter(title, total) as advance:
            yield advance


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)


@contextmanager
def _lines(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    started = last = time.monotonic()

    def advance(done: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= LINE_EVERY:
            last = now
            click.echo(f"{title}: {done}/{total}  {note}  {now - started:.0f} s", err=True)

    yield advance
