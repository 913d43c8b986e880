"""Ctrl-C and SIGTERM for commands that go on until they are asked to end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from m2df_runtime.commands.entry import INTERRUPTED

_GRACE = 0.9  # seconds from a signal to the end, whatever does not let go


@contextmanager
def until_signal(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Call `stop` at SIGINT or SIGTERM, and end the process where that takes too long or is asked again.

    Gives the signals that came.

    Raises:
        KeyboardInterrupt: At its end, where SIGINT came.
    """
    came: list[int] = []

    def asked(number: int, frame: FrameType | None) -> None:
        code = INTERRUPTED if number == signal.SIGINT else 0
        if came:
            os._exit(code)
        came.append(number)
        late = threading.Timer(_GRACE, os._exit, (code,))  # also where Python's own end takes longer
        late.daemon = True
        late.start()
        stop()

    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = [number for number, handler in kept.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, asked)
    try:
        yield came
    finally:
        for number in heard:
            signal.signal(number, kept[number])
    if signal.SIGINT in came:
        raise KeyboardInterrupt
