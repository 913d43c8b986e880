"""Reading on a thread of its own, a few frames ahead: one processor decodes while another computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TypeVar

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
