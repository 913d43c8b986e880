"""What all sinks have in common: a thread and a bounded queue of their own, so that nobody waits for network or disk.

Whoever has something puts it in and goes on. Where it is not taken away in time, the oldest is dropped and counted.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from m2df_runtime.errors import first_line, printable

if TYPE_CHECKING:
    from typing_extensions import Self

Item = TypeVar("Item")
Dropped = Literal["full", "refused", "failed", "late"]

MOST_EVENTS = 1000  # that wait: half a megabyte, a quarter of an hour of a camera before which something always happens
FLUSH = 10.0  # seconds in which what waits is still delivered where nobody is in a hurry

_log = logging.getLogger(__name__)


@dataclass
class SinkCounts:
    """What became of what was put into a sink.

    Attributes:
        sent: Delivered.
        waiting: Neither that nor dropped yet.
        dropped: Never delivered, by cause: `full` were the oldest of too many, `refused` the other side does not
            want, `failed` could not be made, `late` still waited at the end.
    """

    sent: int = 0
    waiting: int = 0
    dropped: Counter[Dropped] = field(default_factory=Counter)


class Sink(ABC, Generic[Item]):
    """Takes items from any thread without waiting, and delivers them in order on a thread of its own.

    Args:
        kind: What it is, in one word.
        name: What messages call it; without passwords.
        most: Items that may wait.
        most_bytes: Bytes that they may take together; None for any. A single larger one is kept.
        tell: Told one line whenever what a user can do something about changes. By default it is logged.
    """

    done = "sent"  # what it calls what it has delivered

    def __init__(
        self,
        kind: str,
        name: str,
        most: int,
        *,
        most_bytes: int | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.kind, self.name = kind, name
        self._most, self._most_bytes = most, most_bytes
        self._tell = tell or _log.warning
        self._told = ""
        self._news = threading.Condition()  # guards what follows
        self._waiting: deque[tuple[int, Item]] = deque()
        self._nbytes = 0
        self._taken = 0  # out of `_waiting`, and neither sent nor dropped yet
        self._sent = 0
        self._dropped: Counter[Dropped] = Counter()
        self._full = False
        self._closing = self._over = False
        threading.Thread(target=self._run, name=f"m2df {kind}", daemon=True).start()

    @property
    def counts(self) -> SinkCounts:
        """What became of what was put in so far."""
        with self._news:
            return SinkCounts(self._sent, len(self._waiting) + self._taken, self._dropped.copy())

    def text(self) -> str:
        """One line for people on what became of it."""
        counts = self.counts
        causes = ", ".join(f"{count} {cause}" for cause, count in counts.dropped.items())
        dropped = f", {sum(counts.dropped.values())} dropped ({causes})" if causes else ""
        return printable(f"{self.name}: {counts.sent} {self.done}{dropped}")

    def put(self, item: Item, nbytes: int = 0) -> None:
        """The next item, of so many bytes; after the end it is dropped."""
        with self._news:
            if self._closing:
                self._dropped["late"] += 1
                return
            self._waiting.append((nbytes, item))
            self._nbytes += nbytes
            dropped = 0
            while len(self._waiting) > self._most or self._too_large():
                self._nbytes -= self._waiting.popleft()[0]
                dropped += 1
            first = dropped > 0 and not self._full
            if dropped:
                self._full = True
                self._dropped["full"] += dropped
            self._news.notify_all()
        if first:
            self._say("more waits than is held: the oldest is dropped")

    def close(self, seconds: float = FLUSH) -> None:
        """Take nothing more, deliver what waits in so many seconds at most, and drop the rest. Idempotent."""
        with self._news:
            if self._closing:
                return
            self._closing = True
            self._news.notify_all()
            self._news.wait_for(lambda: not self._waiting and not self._taken, seconds)
            self._over = True
            if left := len(self._waiting) + self._taken:
                self._dropped["late"] += left
            self._waiting.clear()
            self._taken = 0
            self._news.notify_all()
        self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _deliver(self, item: Item) -> None:
        """Deliver an item, and say so by `_settle`, at once or later. What it raises is told, and the item dropped."""

    def _leave(self) -> None:
        """Called once after the end."""

    def _settle(self, dropped: Dropped | None = None) -> None:
        """An item is delivered, or dropped for a reason."""
        with self._news:
            if self._over:
                return
            self._taken -= 1
            if dropped:
                self._dropped[dropped] += 1
            else:
                self._sent += 1
            self._news.notify_all()

    def _say(self, what: str) -> None:
        """Tell something, once until it changes."""
        with self._news:
            if what == self._told:
                return
            self._told = what
        self._tell(printable(f"{self.name}: {what}"))

    def _run(self) -> None:
        while (item := self._next()) is not None:
            try:
                self._deliver(item[0])
            except Exception as error:  # one item, whatever it is, stops no other
                self._settle("failed")
                if isinstance(error, OSError) and error.filename:
                    self._say(f"{error.filename}: {error.strerror}")
                else:
                    self._say(first_line(error))

    def _next(self) -> tuple[Item] | None:
        """The oldest item; None at the end."""
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return None
            nbytes, item = self._waiting.popleft()
            self._nbytes -= nbytes
            self._taken += 1
            self._full = self._full and bool(self._waiting)
            return (item,)

    def _too_large(self) -> bool:
        return self._most_bytes is not None and self._nbytes > self._most_bytes and len(self._waiting) > 1
