"""Reading on a thread of its own while another computes: of files a few frames ahead, of cameras whatever is newest."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TypeVar

from m2df_runtime.stream.policy import Freshest
from m2df_runtime.stream.windows import Window

_AHEAD = 16  # frames: a second of video, and a few windows' stride
_ASK = 0.1  # seconds after which a waiting thread asks whether it is still wanted

Item = TypeVar("Item")


@dataclass(frozen=True)
class _End:
    """Nothing comes after this, because of an error or not."""

    error: BaseException | None = None


def read_ahead(items: Iterable[Item]) -> Generator[Item]:
    """The items, read on another thread until the iterator is closed. What reading raises is raised here."""
    ready: queue.Queue[Item | _End] = queue.Queue(_AHEAD)
    unwanted = threading.Event()

    def put(item: Item | _End) -> bool:
        while not unwanted.is_set():
            try:
                ready.put(item, timeout=_ASK)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            if all(put(item) for item in items):
                put(_End())
        except BaseException as error:  # whatever it is, it belongs to who asked
            put(_End(error))

    reader = threading.Thread(target=read, name="m2df reader", daemon=True)
    reader.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        unwanted.set()
        reader.join()


def read_freshest(windows: Iterable[Window], tell_skipped: Callable[[int], None]) -> Generator[Window]:
    """Windows of a camera, read on another thread: those for which there is no time are skipped.

    A window that is looked at has all its frames however slow answers are. One that ended before a pause of the camera,
    or before frames were left out, is known to have ended when it is long past: it waited since. What reading raises is
    raised here. The thread ends when the camera's part does; nobody waits for it.

    Args:
        windows: The windows as they come.
        tell_skipped: Told how many were skipped since the last one, before each that is given.
    """
    waiting: Freshest[Window] = Freshest(time.monotonic)
    ready = threading.Condition()
    over: list[_End] = []
    told = 0

    def read() -> None:
        end = _End()
        newest: dict[str | None, int] = {}  # number of the last frame that was counted, by zone: windows overlap
        try:
            for window in windows:
                counted = newest.get(window.zone, -1)
                nbytes = sum(frame.picture.nbytes for frame in window.frames if frame.number > counted)
                newest[window.zone] = window.frames[-1].number
                with ready:
                    waiting.put(window, nbytes, window.overdue)
                    ready.notify()
        except BaseException as error:  # as above
            end = _End(error)
        with ready:
            over.append(end)
            ready.notify()

    threading.Thread(target=read, name="m2df windows of a camera", daemon=True).start()
    while True:
        with ready:
            while (window := waiting.take()) is None and not over:
                ready.wait()
            skipped = waiting.dropped.total()
        tell_skipped(skipped - told)
        told = skipped
        if window is None:
            break
        yield window
    if over[0].error is not None:
        raise over[0].error
