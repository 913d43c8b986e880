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
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.limits import check_pixels, max_pixels
from m2df_runtime.clips.source import DEFAULT_FPS, FrameSource, Picture, fitted, reduced_size
from m2df_runtime.errors import ClipError, M2dfError, first_line

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_log = logging.getLogger(__name__)

_ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC: cover art of an audio file
_TEXT_DEMUXER = "tty"  # FFmpeg renders plain text as ANSI art
_STAMPLESS = "avi"  # keeps no presentation stamps; FFmpeg invents them, wrongly where frames are reordered
_LONGEST_GAP = (2.0, 25.0)  # seconds, and frame times, beyond both of which a gap is a jump of the clock
_ASPECTS = (0.25, 4.0)  # pixel shapes outside are mistakes of a header
# Decoders that pass over a frame at the very packet that carries it. Half of a usual GOP is frames no other refers to.
_PASS_OVER = frozenset({"h264", "hevc"})
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
# SWS_BILINEAR | SWS_BITEXACT of libswscale; PyAV has a name for the second only since 18, which Python 3.10 has not.
_BILINEAR_BITEXACT = 2 | 1 << 19
# 8-bit formats whose first plane is brightness.
_LUMA_FIRST = frozenset(
    f"yuv{full}{layout}p" for full in ("", "j") for layout in ("410", "411", "420", "422", "440", "444")
) | {"nv12", "nv21"}
# ITU-R BT.601 and 709 alike: 8-bit brightness runs from 16 to 235.
_FROM_LIMITED = np.clip(np.rint((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)


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
            raise ClipError(path, "no frame can be decoded" if packets.count else "the video stream holds no frames")
        self._look = _Look(path, packets.first, packets.aspect)
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
        span = float(self.times[-1])
        self.fps = (self.n_frames - 1) / span if span > 0 else rate

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`."""
        previous: VideoFrame | None = None
        repeated = 0
        for frame in self._frames(indices):
            repeated += frame is previous
            previous = frame
            yield _VideoPicture(frame, self._look)
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
                for frame in _frames_of(stream, packet):
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
                for previous in _frames_of(stream, packet):
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
            stamps = [frame.pts for packet in container.demux(stream) for frame in _frames_of(stream, packet)]
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
            _failures(self._path),
            av.open(str(self._path.absolute()), options=options, metadata_errors="replace") as container,
        ):
            stream = _shown_stream(self._path, container)
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
                    packets.first = next(iter(_frames_of(stream, packet)), None)
        except (av.error.FFmpegError, OSError) as error:
            _log.warning("%s: packets end early: %s", container.name, first_line(error))
            if packets.first is None:
                packets.first = next(iter(_frames_of(stream, None)), None)
        packets.reorders = stream.codec_context.has_b_frames > 0
        packets.invented = container.format.name == _STAMPLESS
        ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
        if ratio and _ASPECTS[0] <= ratio <= _ASPECTS[1]:
            packets.aspect = float(ratio)
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
    usual = float(np.median(gaps))
    jumps = (gaps > _LONGEST_GAP[0]) & (gaps > _LONGEST_GAP[1] * usual)
    if not jumps.any():
        return seconds
    _log.warning("%s: its clock jumps by %.0f s in all; the jumps are left out", path, gaps[jumps].sum())
    return np.concatenate([[0.0], np.cumsum(np.where(jumps, usual, gaps))])


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    """Turns every way in which FFmpeg, PyAV or memory can fail into a ClipError."""
    try:
        yield
    except (M2dfError, _NoEntryError, _MisplacedError):
        raise
    except MemoryError as error:
        raise ClipError(path, "not enough memory to decode it") from error
    except Exception as error:  # PyAV raises FFmpeg's errors, and for odd files ValueError, AttributeError and others
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ClipError(path, f"not a readable video: {reason}", "is it damaged?") from error


def _shown_stream(path: Path, container: InputContainer) -> VideoStream:
    """The stream that a player shows."""
    streams = [stream for stream in container.streams.video if not stream.disposition & _ATTACHED_PICTURE]
    if not streams or container.format.name == _TEXT_DEMUXER:
        kind = "audio only, without a video stream" if container.streams.audio else "not a video"
        raise ClipError(path, kind, "give a file with moving pictures")
    moving = [stream for stream in streams if stream.frames != 1] or streams  # a thumbnail may stand before the film
    best = container.streams.best("video")
    stream = best if best in moving else moving[0]
    if stream.codec_context is None:
        raise ClipError(path, "its video codec is unknown to FFmpeg, no frame can be decoded", "convert it to H.264")
    return stream


def _frames_of(stream: VideoStream, packet: Packet[Any] | None) -> list[VideoFrame]:
    """What the decoder gives for a packet, nothing for a damaged one; an empty packet ends the stream."""
    import av

    try:
        return stream.codec_context.decode(packet)
    except av.error.FFmpegError as error:
        _log.debug("stream %d: %s", stream.index, error)
        return []


class _Turn(NamedTuple):
    """How a picture becomes upright: exchange rows and columns, then reverse either."""

    transposed: bool
    reversed_rows: bool
    reversed_columns: bool

    def __call__(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """[h, w] or [h, w, 3]."""
        frame = frame.swapaxes(0, 1) if self.transposed else frame
        return frame[:: -1 if self.reversed_rows else 1, :: -1 if self.reversed_columns else 1]


class _Look:
    """How frames of one file become upright pictures of one size.

    Args:
        path: The file.
        first: Its first frame.
        aspect: Width by height of a pixel.
    """

    def __init__(self, path: Path, first: VideoFrame, aspect: float) -> None:
        self.path = path
        self._aspect = aspect
        self._turns: dict[int, _Turn] = {}
        self.size = self._upright_size(first)

    def turn(self, frame: VideoFrame) -> _Turn:
        """How this frame becomes upright; asked of FFmpeg once for each rotation that occurs."""
        angle = frame.rotation
        if angle not in self._turns:
            self._turns[angle] = _turn(frame)
        return self._turns[angle]

    def shown_size(self, frame: VideoFrame) -> tuple[int, int]:
        """Width and height with square pixels, before turning: the shorter of the two is stretched."""
        return max(1, round(frame.width * max(1.0, self._aspect))), max(1, round(frame.height / min(1.0, self._aspect)))

    def _upright_size(self, frame: VideoFrame) -> tuple[int, int]:
        width, height = self.shown_size(frame)
        return (height, width) if self.turn(frame).transposed else (width, height)

    def fits(self, frame: VideoFrame) -> bool:
        """Whether the frame has the first one's size."""
        return self._upright_size(frame) == self.size


def _turn(frame: VideoFrame) -> _Turn:
    """From the display matrix: point (x, y) is shown at (a x + c y, b x + d y)."""
    # Side data keeps its frame in a cycle that only the garbage collector ends: of a copy of 2 x 2 pixels.
    tiny = frame.reformat(width=2, height=2, format="gray", threads=1)
    try:
        matrix = tiny.side_data.get("DISPLAYMATRIX")
    except ValueError:  # beside kinds of side data that PyAV does not know it tells the angle alone
        turns = round(frame.rotation / 90) % 4
        return _Turn(turns % 2 == 1, turns in (1, 2), turns in (2, 3))
    if matrix is None:
        return _Turn(False, False, False)
    a, b, _, c, d = np.frombuffer(cast(bytes, matrix), dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        return _Turn(True, b < 0, c < 0)
    return _Turn(False, d < 0, a < 0)


class _VideoPicture(Picture):
    """A decoded frame."""

    def __init__(self, frame: VideoFrame, look: _Look) -> None:
        self._frame = frame
        self._look = look
        self.nbytes = sum(plane.buffer_size for plane in frame.planes)

    def rgb(self) -> NDArray[np.uint8]:
        with _failures(self._look.path):
            frame = self._converted(*self._look.shown_size(self._frame))
            return fitted(np.ascontiguousarray(self._look.turn(self._frame)(frame)), self._look.size)

    def grey(self, long_side: int | None = None) -> NDArray[np.uint8]:
        """See `Picture.grey`: of common formats the brightness that is stored, not converted to colour and back."""
        if self._frame.format.name not in _LUMA_FIRST or not self._look.fits(self._frame):
            return super().grey(long_side)
        import cv2

        with _failures(self._look.path):
            plane = self._frame.planes[0]
            luma: NDArray[np.uint8] = np.frombuffer(cast(bytes, plane), np.uint8).reshape(
                plane.height, plane.line_size
            )[:, : plane.width]
            width, height = self._look.shown_size(self._frame)
            size = reduced_size(width, height, long_side)
            if size != (plane.width, plane.height):
                shrunk = size[0] <= plane.width and size[1] <= plane.height
                kind = cv2.INTER_AREA if shrunk else cv2.INTER_LINEAR
                luma = cv2.resize(luma, size, interpolation=kind).astype(np.uint8, copy=False)
            full = self._frame.color_range == _FULL_RANGE or self._frame.format.name.startswith("yuvj")
            grey = luma if full else cv2.LUT(luma, _FROM_LIMITED).astype(np.uint8, copy=False)
            return np.array(self._look.turn(self._frame)(grey), dtype=np.uint8, order="C")

    def _converted(self, width: int, height: int) -> NDArray[np.uint8]:
        from av.video.reformatter import VideoReformatter

        converted = VideoReformatter().reformat(
            self._frame, width=width, height=height, format="rgb24", interpolation=_BILINEAR_BITEXACT, threads=1
        )
        return converted.to_ndarray().astype(np.uint8, copy=False)
