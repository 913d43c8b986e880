"""Stopping a run at a place from which it can go on: the first Ctrl-C asks, the second ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from m2df_runtime.commands.console import say
from m2df_runtime.errors import M2dfError


class Interrupted(M2dfError):
    """A run was stopped and its state is written. Exit code 130, as shells report for Ctrl-C."""

    exit_code = 130


class Stop:
    """Whether someone has asked the run to stop."""

    def __init__(self) -> None:
        self.requested = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        say("stopping; once more ends it at once, without what was done since the last save")


@contextmanager
def stoppable() -> Iterator[Stop]:
    """A block in which Ctrl-C (or SIGTERM, as cluster schedulers send) only sets `requested`.

    Python lets the main thread alone take signals; elsewhere they keep their usual effect.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, stop._ask) for kind in kinds]
    try:
        yield stop
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
