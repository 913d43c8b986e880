"""Ctrl-C and SIGTERM for commands that go on until they are asked to end."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from m2df_runtime.commands.entry import INTERRUPTED

_GRACE = 0.9  # seconds from a signal to the end, whatever does not let go


class _Asks:
    """What is done when the process is asked to end, and when it is asked again.

    A signal is told twice: by its handler, which runs in the main thread as soon as that is in Python, and by a socket,
    which a thread reads. The first alone would wait for ever where the main thread is about to write to somebody who
    does not read; the second is another's while an event loop has it.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self.came: list[int] = []
        self._stop = stop
        self._told = {"handler": 0, "socket": 0}
        self._changing = threading.RLock()  # a handler may interrupt another

    def handler(self, number: int, frame: FrameType | None) -> None:
        """What `signal.signal` takes."""
        self._tell("handler", number)

    def listen(self, wakes: socket.socket) -> None:
        """Read the numbers of signals until the other side is closed."""
        while number := wakes.recv(1):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                self._tell("socket", number[0])

    def _tell(self, by: str, number: int) -> None:
        with self._changing:
            self._told[by] += 1
            if max(self._told.values()) == len(self.came):
                return  # the other one told it
            self.came.append(number)
            first = len(self.came) == 1
        code = INTERRUPTED if number == signal.SIGINT else 0
        if not first:
            os._exit(code)
        late = threading.Timer(_GRACE, os._exit, (code,))  # also where Python's own end takes longer
        late.daemon = True
        late.start()
        self._stop()


@contextmanager
def until_signal(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Call `stop` at SIGINT or SIGTERM, and end the process where that takes too long or is asked again.

    `stop` is called in any thread. Gives the signals that came.

    Raises:
        KeyboardInterrupt: At its end, where SIGINT came.
    """
    asks = _Asks(stop)
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = [number for number, handler in kept.items() if handler is not signal.SIG_IGN]
    wakes, woken = socket.socketpair()
    with wakes, woken:
        woken.setblocking(False)
        threading.Thread(target=asks.listen, args=(wakes,), daemon=True).start()
        before = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        for number in heard:
            signal.signal(number, asks.handler)
        try:
            yield asks.came
        finally:
            for number in heard:
                signal.signal(number, kept[number])
            signal.set_wakeup_fd(before)
            woken.shutdown(socket.SHUT_WR)
    if signal.SIGINT in asks.came:
        raise KeyboardInterrupt
