"""How late a stream arrives, from its stamps: what is held up before it is read is old, whoever holds it up.

Nothing arrives before it happens. The smallest difference between arrival and stamp is therefore that of what came in
time, and what is above it is delay: of the network, of the camera, or ours, where it waited in the system's buffers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from m2df_runtime.stream.policy import BUDGET

_FORGOTTEN = 1e-3  # of the time that passes, by which the smallest difference grows: clocks drift by a tenth of that
# Seconds of video that may come in one go: cameras, servers and radio links send bursts, whose last frame is in time.
_AT_ONCE = 3.0
_OURS = 5.0  # seconds in which whatever waits is read where nothing is decoded; what stays late is not so through us


@dataclass
class _Clock:
    """What was seen of the stamps' clock since it began."""

    stamp: float = -math.inf
    arrived: float = -math.inf
    smallest: float = math.inf
    recent: deque[tuple[float, float]] = field(default_factory=deque)  # arrival and difference, both rising
    late_since: float | None = None


class Lateness:
    """Follows the frames of one connection, in the order in which they come.

    What counts is the least late frame of the last three seconds, so a burst is not late. Lateness that stays although
    frames are left out is not ours to end: the stream is slower than before, or its stamps are no seconds, as those of
    cameras that count frames. It is 0 from then on, until the next connection: late events are better than none.

    Args:
        clock: Seconds that rise.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._believed = True
        self._seen = _Clock()

    def of(self, stamp: float | None) -> float:
        """Seconds by which what has just arrived is late, and all before it of the last seconds; 0 where nobody knows.

        Args:
            stamp: What the source says, in seconds from any moment on, in the order of decoding, in which stamps rise;
                None where it says nothing.
        """
        now = self._clock()
        if stamp is None or not math.isfinite(stamp) or not self._believed:
            return 0.0
        if stamp < self._seen.stamp:  # the clock was set, or one frame was ahead of it
            self._seen = _Clock()
        seen, difference = self._seen, now - stamp
        seen.smallest = min(difference, seen.smallest + _FORGOTTEN * (now - seen.arrived))
        seen.stamp, seen.arrived = stamp, now
        while seen.recent and seen.recent[-1][1] >= difference:
            seen.recent.pop()
        seen.recent.append((now, difference))
        while now - seen.recent[0][0] > _AT_ONCE:
            seen.recent.popleft()
        late = max(0.0, seen.recent[0][1] - seen.smallest)
        if late <= BUDGET:
            seen.late_since = None
        elif seen.late_since is None:
            seen.late_since = now
        elif now - seen.late_since > _OURS:
            self._believed = False
            return 0.0
        return late
