"""Progress of a training run: a bar with loss and remaining time on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from m2df_runtime.commands.console import bar, say

LINE_EVERY = 30.0  # seconds between lines where stderr is a file or a pipe

Advance = Callable[[int, str], None]


class Progress(Protocol):
    """How a run reports: one stage at a time, each a context that gives `advance(done, note)`."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Advance]:
        """Begin a stage of `total` steps."""
        ...


class Silent:
    """Progress that nobody sees."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Advance]:
        """Say nothing."""
        return nullcontext(lambda done, note: None)


class StageProgress:
    """Reports stages on stderr."""

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        """Begin a stage; the yielded function takes the number of finished steps and a note."""
        reporter = _bar if sys.stderr.isatty() else _lines
        with reporter(title, total) as advance:
            yield advance


@contextmanager
def _bar(title: str, total: int) -> Iterator[Advance]:
    with bar(f"{title:<22}", total, transient=False) as update:
        yield lambda done, note: update(completed=done, note=note)


@contextmanager
def _lines(title: str, total: int) -> Iterator[Advance]:
    started = last = time.monotonic()

    def advance(done: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= LINE_EVERY:
            last = now
            left = f"  {(now - started) * (total - done) / done:.0f} s left" if 0 < done < total else ""
            say(f"{title}: {done}/{total}  {note}  {now - started:.0f} s{left}")

    yield advance
