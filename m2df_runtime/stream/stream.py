"""A recording as windows, their answers and events: one engine for files, cameras and whatever else gives frames."""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.source import ArraySource, FrameSource, Picture, Rectangle
from m2df_runtime.cpus import available_cpus
from m2df_runtime.errors import ClipError, InputError, printable
from m2df_runtime.match.matcher import Matcher
from m2df_runtime.match.results import Prediction
from m2df_runtime.pixels.load import chosen_frames
from m2df_runtime.pixels.resize_and_crop import fit
from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.stream.default_window import default_window
from m2df_runtime.stream.events import Event, EventRules, EventTracker, WindowScores, clock
from m2df_runtime.stream.frames import kept_frames
from m2df_runtime.stream.policy import BUDGET
from m2df_runtime.stream.read_ahead import read_ahead, read_freshest
from m2df_runtime.stream.sources.addresses import is_address
from m2df_runtime.stream.sources.device import DeviceFrames
from m2df_runtime.stream.sources.file import FileFrames
from m2df_runtime.stream.sources.given import GivenFrames
from m2df_runtime.stream.sources.network import NetworkFrames
from m2df_runtime.stream.sources.timed import RisingTimes, TimedFrames
from m2df_runtime.stream.windows import Window, cut
from m2df_runtime.stream.zones import Zone, checked_zone, zone_name

if TYPE_CHECKING:
    from m2df_runtime.stream.camera_file import Camera

Float = NDArray[np.float32]
Recording = (
    Path
    | str
    | int
    | FrameSource
    | NDArray[np.uint8]
    | TimedFrames
    | Iterable[tuple[float, NDArray[np.uint8] | Picture]]
)
"""A path, the address or number of a camera, something to read frames from, all frames, or an iterator of times in
seconds and frames."""

_STRIDES = 4  # of a window, where nothing else is said
_AT_ONCE = 4  # windows of a file that are answered: each holds its frames
_SAID = 0.01  # of a step of the grid, by which a stride may be rounded without a word
_SHORTEST = 0.01  # seconds of a stride: a recording has no frame in less

_log = logging.getLogger(__name__)

Item = TypeVar("Item")


def scores_of(prediction: Prediction) -> dict[str, float]:
    """Scores of classes that mean something when none of them is going on: class to [0, 1].

    That is a class's probability, and 0 for all where the answer is rejected. Probabilities alone only compare the
    classes: one of them is always the most probable. Where nothing moves, all scores are 0 without a question.
    """
    return {score.label: 0.0 if prediction.rejected else score.probability for score in prediction.classes}


@dataclass(frozen=True)
class WindowAnswer:
    """One window and its answer.

    Attributes:
        camera: Name of the recording or camera.
        zone: Part of its picture; None for all of it.
        start: Its first second.
        end: The second at which it ends.
        prediction: The answer to it as to any clip; None where nothing moves and nobody asked for it.
        scores: Class to score in [0, 1], what events are made of; see `scores_of`.
        still: Whether nothing moves in it.
    """

    camera: str
    zone: str | None
    start: float
    end: float
    prediction: Prediction | None
    scores: dict[str, float]
    still: bool

    def window_scores(self) -> WindowScores:
        """What events are made of."""
        classes = self.prediction.classes if self.prediction else ()
        return WindowScores(self.start, self.end, self.scores, {one.label: one.distance for one in classes})

    def record(self, topk: int | None = None) -> dict[str, object]:
        """The object that `m2df-run --windows --json` prints, with the best `topk` classes or all of them."""
        found = self.prediction.classes[:topk] if self.prediction else ()
        return {
            "type": "window",
            "camera": self.camera,
            "zone": self.zone,
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "classes": [{**asdict(one), "score": self.scores[one.label]} for one in found],
            "rejected": self.prediction is not None and self.prediction.rejected,
            "still": self.still,
        }

    def text(self, topk: int | None = None) -> str:
        """The line that `m2df-run --windows` prints."""
        when = f"{zone_name(self.camera, self.zone)}, {clock(self.start)} to {clock(self.end)}:"
        if self.prediction is None:
            return printable(f"{when} nothing moves")
        shown = ", ".join(f"{one.label} {100 * one.probability:.0f} %" for one in self.prediction.classes[:topk])
        why = "  (nothing moves)" if self.still else "  (unknown)" if self.prediction.rejected else ""
        return printable(f"{when} {shown}{why}")


@dataclass(frozen=True)
class Step:
    """One window's answer and the events that it told of; without an answer, those told by the end of a recording.

    A camera that was lost or stalled has ended so, too, and goes on with the windows after that.
    """

    answer: WindowAnswer | None
    events: tuple[Event, ...]


@dataclass
class Counts:
    """What a pass over a recording took, as it goes on.

    Attributes:
        frames: Frames read.
        windows: Windows looked at.
        still: Those of them in which nothing moves.
        encoded: Frames encoded.
        events: Events told.
        skipped: Windows of a camera that were not looked at, because answers took too long.
        failed: Windows of a camera that could not be answered; of a recording that is an error.
        dropped: Frames of a camera that were not looked at, by cause: `stale` and `full` were too old or too many,
            `undecoded` too old to be decoded, `repeated` and `late` came twice or in the wrong order.
        last_frame: When the newest of the frames was read, in Unix seconds; None before the first.
    """

    frames: int = 0
    windows: int = 0
    still: int = 0
    encoded: int = 0
    events: int = 0
    skipped: int = 0
    failed: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    last_frame: float | None = None


class Stream:
    """What happens in a recording or before a camera, and when: iterate it for `Event`s.

    Windows of `window` seconds, one every `stride` seconds, are answered by the matcher as clips are; events follow
    from their scores. Memory does not grow with the recording. Each iteration reads a recording from its start. A
    camera goes on for ever, is opened again whenever it is lost, and windows for which there is no time are skipped.

    Args:
        matcher: Answers the windows; `Matcher.swap` takes effect between two of them, of a file those not yet begun.
        source: A path (video file, frame folder, pattern or animated picture), the address of a camera (rtsp, http,
            https, udp or tcp) or its number on this machine, all frames (uint8 [n, H, W, 3] RGB, 25 a second), a
            `FrameSource`, or any iterator of pairs of a time in seconds and a frame (uint8 [H, W, 3]).
        window: Seconds of a window; None takes the median length of the support clips, between 1 and 6 s.
        stride: Seconds from one window to the next; None takes a quarter of the window. With the sampler `grid` it is
            rounded to a multiple of the window's T-th part.
        roi: x, y, width, height in pixels of the upright picture, cut out first.
        zones: Parts of the picture that are watched each by itself, by name: x, y, width, height in pixels, or in
            fractions of its sides where none of them is above 1. A frame is decoded once for all.
        rules: When windows become an event.
        labels: Classes whose events are told, whatever their capital letters; None tells all.

    Raises:
        InputError: A window or stride that is none, a zone that is none, `roi` beside zones, a bank of one class, or an
            address of another kind.
        ClipError: The file cannot be read.

    Examples:
        >>> import m2df_runtime as m2df
        >>> model = m2df.load()
        >>> matcher = m2df.Matcher(model, m2df.SupportBank.of(model, "actions"))
        >>> for event in m2df.Stream(matcher, "clip.mp4", window=1.0):
        ...     if event.type == "end":
        ...         print(event.label)
        clap
    """

    def __init__(
        self,
        matcher: Matcher,
        source: Recording,
        *,
        window: float | None = None,
        stride: float | None = None,
        roi: Rectangle | None = None,
        zones: Mapping[str, Zone] | None = None,
        rules: EventRules | None = None,
        labels: Collection[str] | None = None,
    ) -> None:
        if len(matcher.bank.labels) < 2:
            raise InputError(
                f"the bank has one class ({matcher.bank.labels[0]}), and every window would be it",
                "teach a second action, or one of what else happens there",
            )
        self.matcher = matcher
        self.rules = rules or EventRules()
        self.window = default_window(matcher.bank) if window is None else _seconds("window", window)
        self.stride = self._checked_stride(stride)
        self.counts = Counts()
        if roi and zones:
            raise InputError("a rectangle and zones at once", "make the rectangle one of the zones")
        self._zones: dict[str | None, Zone | None] = {None: roi}
        if zones:
            self._zones = {name: checked_zone(name, numbers) for name, numbers in zones.items()}
        self._labels = None if labels is None else frozenset(labels)
        self._faults = _Faults()
        self._source = _timed(source)
        self._stopped = threading.Event()

    @classmethod
    def of_cameras(cls, matcher: Matcher, path: Path | str) -> list[Stream]:
        """A stream for each camera of a `cameras.yaml` that is enabled, to be iterated side by side.

        Raises:
            InputError: The file has mistakes, or the bank has one class.
            ClipError: A recording in it cannot be read.
        """
        from m2df_runtime.stream.camera_file import read_cameras

        return [cls.of_camera(matcher, camera, camera.frames()) for camera in read_cameras(Path(path))]

    @classmethod
    def of_camera(cls, matcher: Matcher, camera: Camera, frames: TimedFrames) -> Stream:
        """The stream of a camera as its file describes it, with its frames.

        Raises:
            InputError: Its window and stride contradict each other, or the bank has one class.
        """
        try:
            return cls(
                matcher,
                frames,
                window=camera.window,
                stride=camera.stride,
                zones=camera.zones,
                rules=camera.rules,
                labels=camera.labels,
            )
        except InputError as error:
            raise InputError(f"camera {camera.name}: {error.message}", error.hint) from None

    @property
    def name(self) -> str:
        """What events call the recording."""
        return self._source.name

    def stop(self) -> None:
        """End what goes on, from any thread: what is known until now is told. A stream stays stopped."""
        self._stopped.set()
        self._source.stop()

    def __iter__(self) -> Iterator[Event]:
        """The events, each as soon as it is known."""
        for step in self.steps():
            yield from step.events

    def windows(self) -> Iterator[WindowAnswer]:
        """The answer to every window.

        Raises:
            ClipError: A frame cannot be read, the frames of a window take too much memory, or its features are not
                finite.
        """
        return (step.answer for step in self.steps(every=True) if step.answer is not None)

    def steps(self, *, every: bool = False) -> Generator[Step]:
        """The answer to every window with the events that it told of.

        Args:
            every: Also answer windows in which nothing moves, whose scores are 0 whatever the answer.

        Raises:
            ClipError: As `windows`.
        """
        self.counts = Counts()
        self._numbers = itertools.count(1)
        self.matcher.model.prepare("visual", "query")
        with closing(self._source.parts()) as parts:
            for part in parts:
                yield from self._steps_of(part, every)

    def _steps_of(self, part: TimedFrames, every: bool) -> Generator[Step]:
        counts = self.counts
        trackers = {
            zone: EventTracker(
                self.rules,
                self.window,
                self.stride,
                camera=self.name,
                zone=zone,
                began=part.began,
                numbers=self._numbers,
                labels=self._labels,
            )
            for zone in self._zones
        }
        with closing(self._answered(part, counts, every)) as answered:
            for window, prediction in answered:
                if prediction is None or window.still:
                    scores = dict.fromkeys(self.matcher.bank.labels, 0.0)
                else:
                    scores = scores_of(prediction)
                answer = WindowAnswer(
                    self.name, window.zone, window.start, window.end, prediction, scores, window.still
                )
                counts.windows += 1
                counts.still += window.still
                counts.dropped = self._source.dropped
                events = trackers[window.zone].step(answer.window_scores())
                counts.events += sum(event.type == "new" for event in events)
                yield Step(answer, tuple(events))
        counts.dropped = self._source.dropped
        events = [event for tracker in trackers.values() for event in tracker.finish()]
        counts.events += sum(event.type == "new" for event in events)
        yield Step(None, tuple(events))

    @property
    def _spec(self) -> ClipSpec:
        return self.matcher.model.bundle.manifest.clip

    def _answered(self, part: TimedFrames, counts: Counts, every: bool) -> Generator[tuple[Window, Prediction | None]]:
        """Windows with their answers; of a file, several are answered at once.

        Others wait for nothing that is yet to come: what happens is told when it is known.
        """
        once = {}
        if self._spec.channels == "rgb" and self._spec.region == "full":
            once = {zone: _EncodedOnce(self.matcher) for zone in self._zones}
        several = min(available_cpus(), _AT_ONCE) if part.any_thread and not once else 1
        before = counts.encoded
        waiting: deque[tuple[Window, Future[Prediction] | None]] = deque()

        def first() -> Iterator[tuple[Window, Prediction | None]]:
            window, answer = waiting.popleft()
            try:
                prediction = answer.result() if answer else None
            except ClipError as error:
                self._refused(part, window.zone, error)
                counts.failed += 1
                return
            except _NoTurn:
                counts.skipped += 1
                return
            if once:
                counts.encoded = before + sum(one.encoded for one in once.values())
            elif answer:
                counts.encoded += self._spec.frames
            self._faults.over(window.zone, self.name)
            yield window, prediction

        windows_of = self._newest_windows if part.live else self._windows
        with closing(windows_of(part, counts)) as windows, ThreadPoolExecutor(several, "m2df windows") as pool:
            try:
                for window in windows:
                    if part.live and self._stopped.is_set():
                        break  # what waits is not known yet, and answering it takes time
                    wanted = every or not window.still
                    predict = once[window.zone] if once else self.matcher.predict
                    answer = partial(_in_turn, predict) if part.live else predict
                    waiting.append((window, pool.submit(answer, window) if wanted else None))
                    if len(waiting) >= several:
                        yield from first()
                while waiting:
                    yield from first()
            finally:
                pool.shutdown(cancel_futures=True)

    def _windows(self, part: TimedFrames, counts: Counts) -> Generator[Window]:
        kept = kept_frames(RisingTimes(part), self._spec, self.name, [*self._zones.values()])
        with closing(read_ahead(kept) if part.any_thread else kept) as frames:
            yield from cut(
                self._until_stopped(frames, counts),
                self.window,
                self.stride,
                self.name,
                [*self._zones],
                lambda zone, error: self._refused(part, zone, error),
            )

    def _refused(self, part: TimedFrames, zone: str | None, error: ClipError) -> None:
        """What cannot be used of a camera is left out, since another picture may come. Raises it of a recording."""
        if not part.live:
            raise error
        self._faults.say(zone, error)

    def _newest_windows(self, part: TimedFrames, counts: Counts) -> Generator[Window]:
        def skipped(count: int) -> None:
            counts.skipped += count

        yield from read_freshest(self._windows(part, counts), skipped)

    def _until_stopped(self, frames: Iterable[Item], counts: Counts) -> Iterator[Item]:
        for frame in frames:
            if self._stopped.is_set():
                return
            counts.frames += 1
            counts.last_frame = time.time()
            yield frame

    def _checked_stride(self, stride: float | None) -> float:
        """Seconds of a stride, on the grid where frames are chosen on one."""
        asked = self.window / _STRIDES if stride is None else _seconds("stride", stride)
        if asked > self.window:
            raise InputError(
                f"a stride of {asked:g} s is longer than the window of {self.window:g} s",
                "what happens between two windows would not be looked at",
            )
        if self._spec.sampler != "grid":
            return asked
        step = self.window / self._spec.frames
        rounded = max(1, round(asked / step)) * step
        if stride is not None and abs(rounded - asked) > _SAID * step:
            _log.warning(
                "the stride of %g s becomes %g s, a multiple of %g s, to meet the same frames", asked, rounded, step
            )
        return rounded


class _NoTurn(Exception):
    """A window of a camera got no processor in time."""


# Cameras whose windows are answered at once: were it all of them, every answer would take as long as all together.
_turns = threading.BoundedSemaphore(available_cpus())


def _in_turn(predict: Callable[[Window], Prediction], window: Window) -> Prediction:
    if not _turns.acquire(timeout=BUDGET):
        raise _NoTurn
    try:
        return predict(window)
    finally:
        _turns.release()


class _Faults:
    """Says once for each zone why a camera's windows cannot be answered, until they can be."""

    def __init__(self) -> None:
        self._zones: set[str | None] = set()

    def say(self, zone: str | None, error: ClipError) -> None:
        if zone not in self._zones:
            self._zones.add(zone)
            where = "" if zone is None else f"zone {zone}: "
            _log.warning("%s%s; nothing is told of it until that changes", where, error)

    def over(self, zone: str | None, camera: str) -> None:
        if zone in self._zones:
            self._zones.discard(zone)
            _log.warning("%s%s is looked at again", camera, "" if zone is None else f", zone {zone},")


class _EncodedOnce:
    """Answers windows whose frames do not depend on each other: a frame that several windows see is encoded once.

    Its features differ from those of a clip by what an engine's batch changes: nothing or rounding in float graphs;
    in int8 the range of the values that are encoded together.

    Attributes:
        encoded: Frames so far.
    """

    def __init__(self, matcher: Matcher) -> None:
        self.encoded = 0
        self._matcher = matcher
        self._spec = matcher.model.bundle.manifest.clip
        self._features: dict[int, Float] = {}  # frame's number to [D]

    def __call__(self, window: Window) -> Prediction:
        first = window.frames[0].number
        self._features = {number: kept for number, kept in self._features.items() if number >= first}
        chosen = [window.frames[index] for index in chosen_frames(window, self._spec).tolist()]
        new = {frame.number: frame for frame in chosen if frame.number not in self._features}
        if new:
            pixels = np.stack([fit(frame.picture.rgb(), None, self._spec) for frame in new.values()])
            encoded = self._matcher.model.encode_clips(pixels[None], [window.name])[0]  # (n, D)
            self._features.update(zip(new, encoded, strict=True))
            self.encoded += len(new)
        features = np.stack([self._features[frame.number] for frame in chosen])
        return self._matcher.predict_encoded(features[None], [window.name])[0]


def _seconds(what: str, value: float) -> float:
    if not _SHORTEST <= value < math.inf:  # not a number, too
        raise InputError(f"a {what} of {value} s", f"give seconds, at least {_SHORTEST}")
    return float(value)


def _timed(source: Recording) -> TimedFrames:
    if isinstance(source, TimedFrames):
        return source
    if isinstance(source, np.ndarray):
        return FileFrames(ArraySource(source))
    if isinstance(source, int):
        return DeviceFrames(source)
    if isinstance(source, str) and is_address(source):
        return NetworkFrames(source)
    if isinstance(source, FrameSource | str | os.PathLike):
        return FileFrames(source)
    if isinstance(source, Iterable):
        return GivenFrames(source)
    raise InputError(
        f"a recording is a path, a camera, frames or an iterator of times and frames, not {type(source).__name__}"
    )
