"""Seconds of a live stream from a camera's stamps, which repeat, step back, jump and wrap, and drift for months.

Stamps tell how far frames are apart, which their arrival over a network does not; the arrival tells when that is.
"""

from __future__ import annotations

import math

from m2df_runtime.clips.source import DEFAULT_FPS

_BACK = 1.0  # seconds back from which a clock has begun anew; less is a frame that comes late
_AHEAD = 2.0  # seconds that a stamp may advance beyond what has passed: servers send what they hold in one go
_APART = 10.0  # seconds between stamps and arrival beyond which stamps are not believed
# Of the time between two frames, by which the stamps' clock is drawn to ours: no window notices. Nothing arrives before
# it happens, so where stamps are ahead, the first frames were held up somewhere.
_BEHIND, _BEFORE = 0.01, 0.1


class LiveTimes:
    """Times that rise, of frames by their stamps.

    Attributes:
        repeated: Frames with the stamp of the one before; they are left out.
        late: Frames up to a second before the one before; they are left out.
        jumps: How often the stamps' clock stepped back, jumped ahead or wrapped; time goes on from the arrival.
    """

    def __init__(self) -> None:
        self.repeated = self.late = self.jumps = 0
        self._last = -math.inf  # second of the last frame
        self._stamp: float | None = None  # of the last frame, since the connection began
        self._arrived = 0.0
        self._offset = 0.0  # from stamps to seconds

    def connected(self) -> None:
        """Another connection begins, whose stamps have nothing to do with those before."""
        self._stamp = None

    def place(self, stamp: float | None, arrived: float) -> float | None:
        """Second of a frame; None where it is left out.

        Args:
            stamp: What the source says, in seconds from any moment on; None where it says nothing.
            arrived: Seconds from the start of the stream to this moment.
        """
        if stamp is None or not math.isfinite(stamp):
            return self._rising(arrived)
        if self._stamp is None:
            self._anchor(stamp, arrived)
        else:
            step, passed = stamp - self._stamp, arrived - self._arrived
            if -_BACK < step <= 0:
                self.repeated += step == 0
                self.late += step < 0
                return None
            error = arrived - (stamp + self._offset)
            if step < 0 or step - passed > _AHEAD or abs(error) > _APART:
                self.jumps += 1
                self._anchor(stamp, arrived)
            else:
                self._offset += max(-_BEFORE * step, min(error, _BEHIND * step))
        self._stamp, self._arrived = stamp, arrived
        return self._rising(stamp + self._offset)

    def _anchor(self, stamp: float, arrived: float) -> None:
        self._offset = max(arrived, self._last + 1 / DEFAULT_FPS) - stamp

    def _rising(self, seconds: float) -> float:
        self._last = max(seconds, self._last + 1e-3)
        return self._last
