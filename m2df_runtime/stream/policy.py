"""Which frames of a live source are looked at, as pure code: the newest, so that what is told is never long past.

Files are read frame by frame (`read_ahead`): nothing is lost by waiting. A camera does not wait.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

Item = TypeVar("Item")
Dropped = Literal["stale", "full"]

BUDGET = 0.5  # seconds that a frame may wait
_MOST_FRAMES = 64  # twice the budget at 60 frames a second
_MOST_BYTES = 1 << 27  # ten pictures of 4K as they are decoded


class Freshest(Generic[Item]):
    """Frames between who reads and who computes: the oldest are dropped where they wait too long or are too many.

    Args:
        clock: Seconds that rise.
        budget: Seconds that a frame may wait.

    Attributes:
        dropped: Frames that nobody looked at: `stale` have waited longer than the budget, `full` were too many.
    """

    def __init__(self, clock: Callable[[], float], budget: float = BUDGET) -> None:
        self.dropped: Counter[Dropped] = Counter()
        self._clock, self._budget = clock, budget
        self._waiting: deque[tuple[float, int, Item]] = deque()  # since when, bytes, item
        self._nbytes = 0

    def put(self, item: Item, nbytes: int) -> None:
        """The next frame, of so many bytes."""
        self._waiting.append((self._clock(), nbytes, item))
        self._nbytes += nbytes
        while len(self._waiting) > _MOST_FRAMES or (self._nbytes > _MOST_BYTES and len(self._waiting) > 1):
            self._first()
            self.dropped["full"] += 1

    def take(self) -> Item | None:
        """The oldest frame that has not waited too long; None where there is none."""
        now = self._clock()
        while self._waiting:
            since, item = self._first()
            if now - since <= self._budget:
                return item
            self.dropped["stale"] += 1
        return None

    def _first(self) -> tuple[float, Item]:
        since, nbytes, item = self._waiting.popleft()
        self._nbytes -= nbytes
        return since, item
