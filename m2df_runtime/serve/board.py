"""Events as they happen, for everybody who reads them: a short past, and a bounded queue for each reader."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress

from m2df_runtime.serve.problems import Refused

_KEPT = 256  # events that a reader who comes back is told
_WAITING = 256  # events that wait for a reader; the oldest are left out
_ALIVE = 15.0  # seconds after which a line is sent that means nothing, so that nobody takes the connection for dead


class Board:
    """Where events are put up. `tell` may be called from any thread, all else on the server's loop.

    Args:
        most: Readers at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._past: deque[tuple[int, str]] = deque(maxlen=_KEPT)
        self._readers: set[asyncio.Queue[tuple[int, str] | None]] = set()
        self._count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._early: list[str] = []  # what was told before there was a loop
        self._opening = threading.Lock()

    def open(self) -> None:
        """Begin, on the server's loop."""
        with self._opening:
            self._loop = asyncio.get_running_loop()
        for text in self._early:
            self._tell(text)

    def close(self) -> None:
        """Let all readers go."""
        for reader in self._readers:
            _put(reader, None)

    def tell(self, record: dict[str, object]) -> None:
        """Put up an event."""
        text = json.dumps(record, allow_nan=False)
        with self._opening:
            if self._loop is None:
                self._early.append(text)
                return
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._tell, text)

    def _tell(self, text: str) -> None:
        self._count += 1
        self._past.append((self._count, text))
        for reader in self._readers:
            _put(reader, (self._count, text))

    def read(self, after: int | None) -> AsyncIterator[bytes]:
        """What is sent to a reader: events as they come, and first those after a number that it has.

        Raises:
            Refused: Too many read.
        """
        if len(self._readers) >= self._most:
            raise Refused(429, "busy", f"{self._most} clients read events already", "close one", retry_after=5)
        reader: asyncio.Queue[tuple[int, str] | None] = asyncio.Queue(_WAITING)
        if after is not None:
            for one in self._past:
                if one[0] > after:
                    reader.put_nowait(one)
        return self._lines(reader)

    async def _lines(self, reader: asyncio.Queue[tuple[int, str] | None]) -> AsyncIterator[bytes]:
        self._readers.add(reader)
        try:
            yield b"retry: 2000\n\n"
            while True:
                try:
                    one = await asyncio.wait_for(reader.get(), _ALIVE)
                except asyncio.TimeoutError:
                    yield b": alive\n\n"
                    continue
                if one is None:
                    return
                yield f"id: {one[0]}\nevent: event\ndata: {one[1]}\n\n".encode()
        finally:
            self._readers.discard(reader)


def _put(reader: asyncio.Queue[tuple[int, str] | None], one: tuple[int, str] | None) -> None:
    if reader.full():
        reader.get_nowait()
    reader.put_nowait(one)
