"""Which frames of a live source are decoded and looked at, as pure code: so that what is told is never long past.

Files are read frame by frame (`read_ahead`): nothing is lost by waiting. A camera does not wait.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Item = TypeVar("Item")
Dropped = Literal["stale", "full"]

BUDGET = 0.5  # seconds that a frame may be old
_MOST_FRAMES = 64  # twice the budget at 60 frames a second
_MOST_BYTES = 1 << 27  # ten pictures of 4K as they are decoded
_MOST_ENCODED = 1024  # a minute at 15 frames a second
_MOST_ENCODED_BYTES = 1 << 25  # ten seconds at 25 Mbit/s


class Freshest(Generic[Item]):
    """Frames between who reads and who computes: the oldest are dropped where they wait too long or are too many.

    Args:
        clock: Seconds that rise.
        budget: Seconds that a frame may be old.

    Attributes:
        dropped: Frames that nobody looked at: `stale` were older than the budget, `full` were too many.
    """

    def __init__(self, clock: Callable[[], float], budget: float = BUDGET) -> None:
        self.dropped: Counter[Dropped] = Counter()
        self._clock, self._budget = clock, budget
        self._waiting: deque[tuple[float, int, Item]] = deque()  # since when, bytes, item
        self._nbytes = 0

    def put(self, item: Item, nbytes: int, age: float = 0.0) -> None:
        """The next frame, of so many bytes, which is so many seconds old already."""
        self._waiting.append((self._clock() - age, nbytes, item))
        self._nbytes += nbytes
        while len(self._waiting) > _MOST_FRAMES or (self._nbytes > _MOST_BYTES and len(self._waiting) > 1):
            self._first()
            self.dropped["full"] += 1

    def take(self) -> Item | None:
        """The oldest frame that is not too old; None where there is none."""
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


@dataclass(frozen=True)
class Encoded(Generic[Item]):
    """A frame that is to be decoded.

    Attributes:
        item: The frame.
        since: When it was due, by the clock.
        begins: Whether frames before it were left out, so that the decoder must begin anew.
    """

    item: Item
    since: float
    begins: bool = False


@dataclass(frozen=True)
class _Waiting(Generic[Item]):
    item: Item
    since: float
    nbytes: int
    keyframe: bool


class FreshestEncoded(Generic[Item]):
    """Encoded frames between who reads and who decodes: what is too old is left out, up to a keyframe.

    A frame is decoded from those before it, back to a keyframe. Where the oldest frame is too old, decoding goes on
    from the first keyframe that is not, or else from the newest. Where no other keyframe came yet, old frames are still
    given, for as long as the budget: the next keyframe may be ten seconds away, and a decoder that was only held up
    catches up in a fraction of that. One that does not gets nothing more before the next keyframe.

    Args:
        clock: Seconds that rise.
        tell_left_out: Told how many frames are left out, each time that some are.
        budget: Seconds that a frame may be old.
    """

    def __init__(
        self, clock: Callable[[], float], tell_left_out: Callable[[int], None], budget: float = BUDGET
    ) -> None:
        self._clock, self._tell_left_out, self._budget = clock, tell_left_out, budget
        self._waiting: deque[_Waiting[Item]] = deque()
        self._nbytes = 0
        self._begins = False
        self._behind: float | None = None  # since when what is taken is too old
        self._missing: float | None = None  # since when a keyframe is waited for

    def put(self, item: Item, nbytes: int, *, keyframe: bool, late: float = 0.0) -> None:
        """The next frame, of so many bytes, which comes so many seconds late."""
        now = self._clock()
        if self._missing is not None and not keyframe:
            self._tell_left_out(1)
            return
        self._missing = None
        self._waiting.append(_Waiting(item, now - late, nbytes, keyframe))
        self._nbytes += nbytes
        if len(self._waiting) > _MOST_ENCODED or self._nbytes > _MOST_ENCODED_BYTES:
            newest = max((place for place, one in enumerate(self._waiting) if one.keyframe), default=0)
            self._leave_out(newest or len(self._waiting), now)

    @property
    def missing(self) -> float:
        """Seconds for which nothing is given, because no keyframe came."""
        return 0.0 if self._missing is None else self._clock() - self._missing

    def take(self) -> Encoded[Item] | None:
        """The next frame to decode; None where there is none yet."""
        self._keep_up(self._clock())
        if not self._waiting:
            return None
        one = self._waiting.popleft()
        self._nbytes -= one.nbytes
        begins, self._begins = self._begins, False
        return Encoded(one.item, one.since, begins)

    def _keep_up(self, now: float) -> None:
        if not self._waiting:
            return
        if self._fresh(self._waiting[0], now):
            self._behind = None
            return
        keyframes = [(place, one) for place, one in enumerate(self._waiting) if one.keyframe]
        fresh = [place for place, one in keyframes if self._fresh(one, now)]
        if fresh:
            return self._leave_out(fresh[0], now)
        self._behind = now if self._behind is None else self._behind
        if keyframes and keyframes[-1][0] > 0:
            self._leave_out(keyframes[-1][0], now)
        elif now - self._behind > self._budget:
            self._leave_out(len(self._waiting), now)

    def _fresh(self, one: _Waiting[Item], now: float) -> bool:
        return now - one.since <= self._budget

    def _leave_out(self, count: int, now: float) -> None:
        """The oldest so many."""
        for _ in range(count):
            self._nbytes -= self._waiting.popleft().nbytes
        self._begins = True
        self._tell_left_out(count)
        if not self._waiting:
            self._missing = now
