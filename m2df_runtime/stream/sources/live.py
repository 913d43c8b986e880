"""What live sources have in common: a thread that reads, opens again what was lost, and says how it goes.

A camera may be off at the start, stall, and come back with pictures of another size. What comes between two losses is
a recording of its own, a part; the seconds of all parts are those since reading began.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple

from m2df_runtime.clips.source import Picture
from m2df_runtime.errors import ClipError, printable
from m2df_runtime.stream.picture_states import PictureState, PictureWatch
from m2df_runtime.stream.policy import Freshest
from m2df_runtime.stream.sources.live_times import LiveTimes
from m2df_runtime.stream.sources.timed import TimedFrames

State = Literal["connecting", "running", "stalled", "restarting", "ended", "failed"]
Cause = Literal["refused", "unreachable", "not found", "unauthorised", "TLS", "timeout", "codec", "closed"]

STALLED = 3.0  # seconds without a frame after which windows and events do not wait for the next
_PAUSES = (1.0, 30.0)  # seconds before a source is opened again: the first, and the longest
_JITTER = 0.2  # part of a pause: cameras that went down together do not come back together
_STEADY = 10.0  # seconds of frames after which the next loss is a new one, and pauses are short again
_LEAVE = 0.3  # seconds that a reader gets to end; one that FFmpeg holds ends when that lets go

_PICTURES: dict[PictureState, str] = {
    "frozen": "the picture is frozen",
    "blank": "the picture is blank",
    "turned": "the picture is of another place than before",
}

_log = logging.getLogger(__name__)


class SourceLost(Exception):
    """A source cannot be opened, or gives nothing more.

    Args:
        cause: Of what kind.
        detail: What the other side or the system said, without an address.
        final: Whether opening it again would give the same.
    """

    def __init__(self, cause: Cause, detail: str, *, final: bool = False) -> None:
        super().__init__(detail)
        self.cause, self.detail, self.final = cause, detail, final


@dataclass(frozen=True)
class SourceState:
    """How a live source is.

    Attributes:
        name: What messages call it.
        state: `connecting`, `running`, `stalled` (connected, without frames), `restarting` (waiting to connect again),
            `ended` (by us), `failed` (will not be tried again).
        cause: Why it restarts or failed.
        detail: More of that.
        picture: What is wrong with its pictures while it runs: `frozen` (they stay the same), `blank` (black, or one
            brightness all over), `turned` (another place than before).
    """

    name: str
    state: State
    cause: Cause | None = None
    detail: str = ""
    picture: PictureState | None = None

    def text(self) -> str:
        """One line for people."""
        why = f": {self.cause}" if self.cause else f": {_PICTURES[self.picture]}" if self.picture else ""
        return printable(f"{self.name}: {self.state}{why}{f' ({self.detail})' if self.detail else ''}")


class Shown(NamedTuple):
    """A frame of a source as it comes.

    Attributes:
        stamp: What the source says of its time, in seconds from any moment on; None where it says nothing.
        picture: What it shows.
        age: Seconds since it was due: it came late, or waited to be decoded.
    """

    stamp: float | None
    picture: Picture
    age: float = 0.0


class _Taken(NamedTuple):
    connection: int
    seconds: float
    picture: Picture


def pauses(chance: Callable[[], float]) -> Iterator[float]:
    """Seconds to wait before each try: 1, 2, 4 up to 30, each by up to a fifth longer or shorter, at most 30.

    Args:
        chance: Gives numbers in [0, 1).
    """
    pause, longest = _PAUSES
    while True:
        yield min(longest, pause * (1 + _JITTER * (2 * chance() - 1)))
        pause = min(2 * pause, longest)


class LiveFrames(TimedFrames, ABC):
    """A camera that is read from now on, for ever, until it is stopped.

    Args:
        name: What messages and events call it; without passwords.
        on_state: Told every change of state, on the thread that saw it. By default it is logged.
    """

    def __init__(self, name: str, on_state: Callable[[SourceState], None] | None = None) -> None:
        self.name = name
        self._on_state = on_state or _logged
        self._reading: _Reading | None = None
        self._stopped = threading.Event()

    @abstractmethod
    def connected(self) -> AbstractContextManager[Iterator[Shown]]:
        """The source, opened: an iterator of all its frames.

        Raises:
            SourceLost: It cannot be opened, or, from the iterator, gives nothing more.
        """

    def connected_fresh(self, tell_left_out: Callable[[int], None]) -> AbstractContextManager[Iterator[Shown]]:
        """The same, without frames that would be too old when they are decoded; here, where none waits for that, all.

        Args:
            tell_left_out: Told how many are left out, each time that some are, on whatever thread finds it.

        Raises:
            SourceLost: As `connected`.
        """
        return self.connected()

    @property
    def dropped(self) -> dict[str, int]:
        """Frames that were not looked at, by cause, since reading began."""
        return self._reading.dropped() if self._reading else {}

    def parts(self) -> Generator[TimedFrames]:
        """See `TimedFrames.parts`. Raises ClipError where the source failed for good."""
        if self._stopped.is_set():
            return
        self._reading = reading = _Reading(self, self._on_state)
        if self._stopped.is_set():  # meanwhile
            reading.end()
        try:
            while (first := reading.take()) is not None:
                yield _Part(self.name, reading, first)
        finally:
            reading.end()
            reading.thread.join(_LEAVE)
            if reading.jumps:
                _log.warning(
                    "%s: its clock stepped back or jumped %d times; time went on from there", self.name, reading.jumps
                )

    def frames(self) -> Iterator[tuple[float, Picture]]:
        """All parts as one."""
        for part in self.parts():
            yield from part.frames()

    def stop(self) -> None:
        """See `TimedFrames.stop`."""
        self._stopped.set()
        if self._reading:
            self._reading.end()


class _Reading:
    """One pass over a live source: the thread that reads, and what it read so far."""

    def __init__(self, source: LiveFrames, on_state: Callable[[SourceState], None]) -> None:
        self._source, self._on_state = source, on_state
        self._started = time.monotonic()
        self._frames: Freshest[_Taken] = Freshest(time.monotonic)
        self._times = LiveTimes()
        self._ready = threading.Condition()  # guards what follows, `_frames` included
        self._connection = 0
        self._newest = self._started  # when the last frame came
        self._held: _Taken | None = None  # the first frame of the next part
        self._failure: Exception | None = None
        self._undecoded = 0
        self._telling = threading.RLock()
        self._state: tuple[State | None, PictureState | None] = (None, None)
        self._pictures = PictureWatch()
        self._end = threading.Event()
        self.thread = threading.Thread(target=self._read, name="m2df camera", daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Read no more; whoever waits for a frame gets none."""
        with self._ready:
            self._end.set()
            self._ready.notify_all()
        self._tell("ended")

    def began(self) -> float:
        """Wall clock of second 0, by the clock as it goes now."""
        return time.time() - (time.monotonic() - self._started)

    @property
    def jumps(self) -> int:
        """How often the camera's clock did not go on."""
        return self._times.jumps

    def dropped(self) -> dict[str, int]:
        """Frames by why nobody looked at them."""
        with self._ready:
            found: dict[str, int] = dict(self._frames.dropped.items())
            found |= {"undecoded": self._undecoded, "repeated": self._times.repeated, "late": self._times.late}
        return {cause: count for cause, count in found.items() if count}

    def watch(self, taken: _Taken) -> None:
        """Look at the picture of a frame that was taken, and tell where it shows nothing of use."""
        with suppress(ClipError):  # whoever needs the frame meets it, too
            picture = self._pictures.seen(taken.seconds, taken.picture.grey)
            with self._telling:
                if self._state[0] == "running":
                    self._tell("running", picture=picture)

    def take(self) -> _Taken | None:
        """The next frame, whenever it comes; None after the end."""
        with self._ready:
            while not self._end.is_set():
                if self._failure is not None:
                    raise self._failure
                taken, self._held = self._held or self._frames.take(), None
                if taken is not None:
                    return taken
                self._ready.wait()
        return None

    def take_of(self, connection: int) -> _Taken | None:
        """The next frame of a connection; None where it is lost or stalls."""
        with self._ready:
            while not self._end.is_set():
                taken = self._frames.take()
                if taken is not None and taken.connection == connection:
                    return taken
                if taken is not None or self._connection != connection or self._failure is not None:
                    self._held = taken
                    return None
                left = self._newest + STALLED - time.monotonic()
                if left <= 0:
                    break
                self._ready.wait(left)
        if not self._end.is_set():
            self._tell("stalled", detail=f"no frame for {STALLED:g} s")
        return None

    def _read(self) -> None:
        try:
            self._read_on()
        except Exception as error:  # a fault of ours, or memory: it belongs to who takes the frames
            self._fail(error)

    def _read_on(self) -> None:
        left = pauses(random.random)
        while not self._end.is_set():
            self._tell("connecting")
            since = time.monotonic()
            lost = self._lost()
            if self._end.is_set():
                return
            with self._ready:
                self._connection += 1
                steady = self._newest - since > _STEADY
                self._ready.notify_all()
            if lost.final:
                self._tell("failed", lost.cause, lost.detail)
                return self._fail(ClipError(self._source.name, lost.detail))
            if steady:
                left = pauses(random.random)
            self._tell("restarting", lost.cause, lost.detail)
            self._end.wait(next(left))

    def _lost(self) -> SourceLost:
        """Read what one connection gives, and tell how it was lost."""
        try:
            with self._source.connected_fresh(self._left_out) as frames:
                self._times.connected()
                for shown in frames:
                    if self._end.is_set():
                        break
                    self._put(shown)
        except SourceLost as lost:
            return lost
        except ClipError as error:  # pictures that are too large; another stream may come
            return SourceLost("codec", error.reason)
        return SourceLost("closed", "the stream ended")

    def _left_out(self, count: int) -> None:
        with self._ready:
            self._undecoded += count

    def _put(self, shown: Shown) -> None:
        with self._ready:
            self._newest = time.monotonic()
            seconds = self._times.place(shown.stamp, self._newest - shown.age - self._started)
            if seconds is not None:
                taken = _Taken(self._connection, seconds, shown.picture)
                self._frames.put(taken, shown.picture.nbytes, shown.age)
                self._ready.notify_all()
        if self._state[0] != "running":
            self._tell("running")

    def _fail(self, error: Exception) -> None:
        with self._ready:
            self._failure = error
            self._ready.notify_all()

    def _tell(
        self, state: State, cause: Cause | None = None, detail: str = "", picture: PictureState | None = None
    ) -> None:
        with self._telling:  # one after the other, whichever thread saw it
            if (state, picture) != self._state and self._state[0] not in ("ended", "failed"):
                self._state = (state, picture)
                self._on_state(SourceState(self._source.name, state, cause, detail, picture))


class _Part(TimedFrames):
    """What comes between two losses of a live source."""

    live = True

    def __init__(self, name: str, reading: _Reading, first: _Taken) -> None:
        self.name = name
        self.began = reading.began()
        self._reading, self._first = reading, first

    def frames(self) -> Iterator[tuple[float, Picture]]:
        """See `TimedFrames.frames`."""
        taken: _Taken | None = self._first
        while taken is not None:
            self._reading.watch(taken)
            yield taken.seconds, taken.picture
            taken = self._reading.take_of(self._first.connection)


def _logged(state: SourceState) -> None:
    bad = state.picture or state.state in ("stalled", "restarting", "failed")
    level = logging.WARNING if bad else logging.INFO
    _log.log(level, "%s", state.text())
