"""Video files: exact frames through PyAV, never by a header's frame count or a container's seek.

One pass over the packets finds the frames and their times. A read decodes from the last keyframe before each wanted
frame and passes over the packets between; a file whose time stamps cannot place its frames is decoded once to count
what comes out.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.decoded_frames import Look, VideoPicture, failures, frames_of, pixel_aspect, shown_stream
from m2df_runtime.clips.limits import check_pixels, max_pixels
from m2df_runtime.clips.source import DEFAULT_FPS, FrameSource, Picture, frame_rate
from m2df_runtime.errors import ClipError, first_line
from m2df_runtime.median import median

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_log = logging.getLogger(__name__)

_STAMPLESS = "avi"  # keeps no presentation stamps; FFmpeg invents them, wrongly where frames are reordered
_LONGEST_GAP = (2.0, 25.0)  # seconds, and frame times, beyond both of which a gap is a jump of the clock
# Decoders that pass over a frame at the very packet that carries it. Half of a usual GOP is frames no other refers to.
_PASS_OVER = frozenset({"h264", "hevc"})


class VideoFile(FrameSource):
    """A video file, decoded by FFmpeg through PyAV on the calling thread.

    Frames come out as a player shows them: turned upright, in the display's aspect, in the order of presentation.
    All have the size of the first; one of another shape is fitted in with black beside it. What cannot be decoded
    shows the frame before it, with one warning. A gap longer than both 2 s and 25 frame times is a jump of the clock
    and counts as one frame time. The same file gives the same frames on every machine: frame threads would make
    what is left of a damaged picture depend on their schedule.

    Raises:
        ClipError: Not a video, audio only, a codec without decoder, or no frame that can be decoded.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        with self._opened() as (container, stream):
            packets = _Packets.scanned(container, stream)
            rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
            tick = float(stream.time_base) if stream.time_base else 0.0
        if packets.first is None:
            if not packets.count:
                raise ClipError(path, "the video stream holds no frames")
            raise ClipError(path, "no frame can be decoded", "is the file damaged?")
        self._look = Look(path, packets.first, packets.aspect)
        self._stamped = packets.place_frames()
        if self._stamped:
            self._stamps = np.sort(np.asarray(packets.stamps, dtype=np.int64))
            self._starts, self._entries = packets.entries(self._stamps)
        else:
            self._stamps = self._census(packets)
        self._jumps = not packets.first.interlaced_frame  # a field that is passed over would spoil its other half
        self.n_frames = len(self._stamps)
        timed = tick > 0 and bool((np.diff(self._stamps) > 0).all())
        seconds = (self._stamps - self._stamps[0]) * tick if timed else np.arange(self.n_frames) / rate
        self.times = _without_jumps(path, seconds)
        self.fps = frame_rate(self.times, rate)

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`."""
        previous: VideoFrame | None = None
        repeated = 0
        for frame in self._frames(indices):
            repeated += frame is previous
            previous = frame
            yield VideoPicture(frame, self._look)
        if repeated:
            _log.warning("%s: %d of %d frames cannot be decoded; repeating", self.name, repeated, len(indices))

    def _frames(self, wanted: NDArray[np.int64]) -> Iterator[VideoFrame]:
        """The decoded frame for each wanted index."""
        done = 0
        while done < len(wanted):
            walk = self._by_stamp if self._stamped else self._by_number
            try:
                for frame in walk(wanted[done:]):
                    yield frame
                    done += 1
            except _NoEntryError as error:
                _log.debug("%s: %s; decoding every frame", self.name, error)
                self._jumps = False
            except _MisplacedError as error:
                _log.debug("%s: %s; counting frames", self.name, error)
                self._stamped = False

    def _by_stamp(self, wanted: NDArray[np.int64]) -> Iterator[VideoFrame]:
        """Frames on screen at the wanted frames' stamps; decoding begins anew at the keyframe before each."""
        place = 0
        passed = False
        previous: VideoFrame | None = None
        entry: int | None = None
        with self._opened() as (container, stream):
            # Not where every frame is wanted: of a long recording the set alone would take 100 bytes a frame.
            passes_over = self._jumps and len(wanted) < self.n_frames and stream.codec_context.name in _PASS_OVER
            stamps = set(self._stamps[wanted].tolist()) if passes_over else set()
            for number, packet in enumerate(container.demux(stream)):
                if self._jumps and number < self._starts[wanted[place]]:
                    passed = True
                    continue
                if passed:
                    stream.codec_context.flush_buffers()
                    previous, passed, entry = None, False, int(self._entries[wanted[place]])
                if passes_over:
                    stream.codec_context.skip_frame = "DEFAULT" if packet.pts in stamps else "NONREF"
                for frame in frames_of(stream, packet):
                    stamp = frame.pts
                    if stamp is None or (previous is not None and stamp <= cast(int, previous.pts)):
                        raise _MisplacedError(f"frame {stamp} comes after {previous and previous.pts}")
                    if entry is not None and stamp < entry:  # shown before the keyframe, decoded after it
                        continue
                    if entry is not None and stamp > entry:
                        raise _NoEntryError(f"keyframe {entry} does not decode by itself")
                    entry = None
                    while place < len(wanted) and self._stamps[wanted[place]] < stamp:
                        yield previous or frame
                        place += 1
                    if place < len(wanted) and self._stamps[wanted[place]] == stamp:
                        yield frame
                        place += 1
                    if place == len(wanted):
                        return
                    previous = frame
        yield from self._rest(previous, len(wanted) - place)

    def _by_number(self, wanted: NDArray[np.int64]) -> Iterator[VideoFrame]:
        """Frames by their number in the order in which the decoder gives them."""
        place, count = 0, 0
        previous: VideoFrame | None = None
        with self._opened() as (container, stream):
            for packet in container.demux(stream):
                for previous in frames_of(stream, packet):
                    if wanted[place] == count:
                        yield previous
                        place += 1
                    if place == len(wanted):
                        return
                    count += 1
        yield from self._rest(previous, len(wanted) - place)

    def _rest(self, last: VideoFrame | None, count: int) -> Iterator[VideoFrame]:
        """What lies beyond the last frame that decodes."""
        if last is None:
            raise ClipError(self._path, "no frame can be decoded", "is the file damaged?")
        for _ in range(count):
            yield last

    def _census(self, packets: _Packets) -> NDArray[np.int64]:
        """Ticks of all frames that the decoder gives; all 0 where nothing tells their times."""
        with self._opened() as (container, stream):
            stamps = [frame.pts for packet in container.demux(stream) for frame in frames_of(stream, packet)]
        if not stamps:
            raise ClipError(self._path, "no frame can be decoded", "is the file damaged?")
        known = [stamp for stamp in stamps if stamp is not None]
        if len(known) == len(stamps) and _rises(known):
            return np.asarray(known, dtype=np.int64)
        ticks = sorted(packets.decoding)
        if len(ticks) == len(stamps):  # one frame a packet, shown in the rhythm in which they are decoded
            return np.asarray(ticks, dtype=np.int64)
        return np.zeros(len(stamps), dtype=np.int64)

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        """The file and the stream that is shown; whatever goes wrong meanwhile is a ClipError."""
        import av

        # "file" only: a playlist disguised as a video must not make FFmpeg fetch other addresses.
        options = {"protocol_whitelist": "file"}
        with (
            failures(self._path, _NoEntryError, _MisplacedError),
            av.open(str(self._path.absolute()), options=options, metadata_errors="replace") as container,
        ):
            stream = shown_stream(self._path, container)
            check_pixels(self._path, stream.codec_context.width, stream.codec_context.height)
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(max_pixels())}
            yield container, stream


class _NoEntryError(Exception):
    """A frame that is marked as a keyframe does not decode by itself."""


class _MisplacedError(Exception):
    """Decoded frames do not carry the stamps that the packets announced."""


@dataclass
class _Packets:
    """What one pass over a stream's packets tells.

    Attributes:
        stamps: Presentation stamp of every packet that carries a frame to show, in file order.
        decoding: Decoding stamps of the same packets, where known.
        keys: Of keyframes, the presentation stamp and the packet's number in the stream.
        count: Packets with content.
        starts_with_key: Whether decoding can begin at the first packet.
        reorders: Whether the codec may show frames in another order than it decodes them.
        invented: Whether the container keeps no presentation stamps.
        first: The first frame that the decoder gave.
        aspect: Width by height of a pixel.
    """

    stamps: list[int | None] = field(default_factory=list)
    decoding: list[int] = field(default_factory=list)
    keys: list[tuple[int, int]] = field(default_factory=list)
    count: int = 0
    starts_with_key: bool = False
    reorders: bool = False
    invented: bool = False
    first: VideoFrame | None = None
    aspect: float = 1.0

    @classmethod
    def scanned(cls, container: InputContainer, stream: VideoStream) -> _Packets:
        """Reads all packets, and decodes up to the first frame."""
        import av

        packets = cls()
        try:
            for number, packet in enumerate(container.demux(stream)):
                packets._add(number, packet)
                if packets.first is None:
                    packets.first = next(iter(frames_of(stream, packet)), None)
        except (av.error.FFmpegError, OSError) as error:
            _log.warning("%s: packets end early: %s", container.name, first_line(error))
            if packets.first is None:
                packets.first = next(iter(frames_of(stream, None)), None)
        packets.reorders = stream.codec_context.has_b_frames > 0
        packets.invented = container.format.name == _STAMPLESS
        packets.aspect = pixel_aspect(stream)
        return packets

    def _add(self, number: int, packet: Packet[Any]) -> None:
        if not packet.size:
            return
        self.count += 1
        self.starts_with_key |= self.count == 1 and packet.is_keyframe
        if packet.is_discard or packet.is_corrupt:
            return
        self.stamps.append(packet.pts)
        if packet.dts is not None:
            self.decoding.append(packet.dts)
        if packet.is_keyframe and packet.pts is not None:
            self.keys.append((packet.pts, number))

    def place_frames(self) -> bool:
        """Whether frames can be found by their presentation stamps.

        Not where stamps only rise although the codec reorders frames (AVI), nor where a clock steps back, nor in a
        recording that starts inside a group of pictures, whose first packets give no frame.
        """
        known = [stamp for stamp in self.stamps if stamp is not None]
        complete = len(known) == len(self.stamps) == len(set(known)) > 0
        steady = all(a <= b for a, b in itertools.pairwise(self.decoding))
        doubtful = self.reorders and (self.invented or _rises(known))
        return complete and steady and self.starts_with_key and not doubtful

    def entries(self, stamps: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For frames [n] by stamp the packet at which decoding may begin, and that packet's stamp: int64 [n] each."""
        ticks, numbers = (np.asarray(column, dtype=np.int64) for column in zip(*sorted(self.keys), strict=True))
        last = np.searchsorted(ticks, stamps, side="right") - 1
        return np.where(last < 0, 0, numbers[last]), np.where(last < 0, stamps, ticks[last])


def _rises(stamps: list[int]) -> bool:
    return all(a < b for a, b in itertools.pairwise(stamps))


def _without_jumps(path: Path, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Times [n] with one frame time in place of each jump of the clock."""
    if len(seconds) < 3:
        return seconds
    gaps = np.diff(seconds)
    usual = median(gaps)
    jumps = (gaps > _LONGEST_GAP[0]) & (gaps > _LONGEST_GAP[1] * usual)
    if not jumps.any():
        return seconds
    _log.warning("%s: its clock jumps by %.0f s in all; the jumps are left out", path, gaps[jumps].sum())
    return np.concatenate([[0.0], np.cumsum(np.where(jumps, usual, gaps))])
