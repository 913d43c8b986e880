"""What PyAV decodes, as pictures: which stream is shown, and how its frames become upright pictures of one size."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.source import Picture, fitted, reduced_size
from m2df_runtime.errors import ClipError, M2dfError, first_line

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_log = logging.getLogger(__name__)

_ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC: cover art of an audio file
_TEXT_DEMUXER = "tty"  # FFmpeg renders plain text as ANSI art
_ASPECTS = (0.25, 4.0)  # pixel shapes outside are mistakes of a header
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
# SWS_BILINEAR | SWS_BITEXACT of libswscale; PyAV has a name for the second only since 18, which Python 3.10 has not.
_BILINEAR_BITEXACT = 2 | 1 << 19
# 8-bit formats whose first plane is brightness.
_LUMA_FIRST = frozenset(
    f"yuv{full}{layout}p" for full in ("", "j") for layout in ("410", "411", "420", "422", "440", "444")
) | {"nv12", "nv21"}
# ITU-R BT.601 and 709 alike: 8-bit brightness runs from 16 to 235.
_FROM_LIMITED = np.clip(np.rint((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)


@contextmanager
def failures(clip: Path | str, *own: type[Exception]) -> Iterator[None]:
    """Turns every way in which FFmpeg, PyAV or memory can fail into a ClipError, but for a reader's `own` errors."""
    try:
        yield
    except M2dfError:
        raise
    except MemoryError as error:
        raise ClipError(clip, "not enough memory to decode it") from error
    except Exception as error:  # PyAV raises FFmpeg's errors, and for odd files ValueError, AttributeError and others
        if isinstance(error, own):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ClipError(clip, f"not a readable video: {reason}", "is it damaged?") from error


def shown_stream(clip: Path | str, container: InputContainer) -> VideoStream:
    """The stream that a player shows."""
    streams = [stream for stream in container.streams.video if not stream.disposition & _ATTACHED_PICTURE]
    if not streams or container.format.name == _TEXT_DEMUXER:
        kind = "audio only, without a video stream" if container.streams.audio else "not a video"
        raise ClipError(clip, kind, "give a file with moving pictures")
    moving = [stream for stream in streams if stream.frames != 1] or streams  # a thumbnail may stand before the film
    best = container.streams.best("video")
    stream = best if best in moving else moving[0]
    if stream.codec_context is None:
        raise ClipError(clip, "its video codec is unknown to FFmpeg, no frame can be decoded", "convert it to H.264")
    return stream


def pixel_aspect(stream: VideoStream) -> float:
    """Width by height of a pixel."""
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return float(ratio) if ratio and _ASPECTS[0] <= ratio <= _ASPECTS[1] else 1.0


def frames_of(stream: VideoStream, packet: Packet[Any] | None) -> list[VideoFrame]:
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


class Look:
    """How frames of one file or stream become upright pictures of one size.

    Args:
        clip: What messages call the file or stream.
        first: Its first frame.
        aspect: Width by height of a pixel.
    """

    def __init__(self, clip: Path | str, first: VideoFrame, aspect: float) -> None:
        self.clip = clip
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


class VideoPicture(Picture):
    """A decoded frame."""

    def __init__(self, frame: VideoFrame, look: Look) -> None:
        self._frame = frame
        self._look = look
        self.nbytes = sum(plane.buffer_size for plane in frame.planes)

    def rgb(self) -> NDArray[np.uint8]:
        with failures(self._look.clip):
            frame = self._converted(*self._look.shown_size(self._frame))
            return fitted(np.ascontiguousarray(self._look.turn(self._frame)(frame)), self._look.size)

    def grey(self, long_side: int | None = None) -> NDArray[np.uint8]:
        """See `Picture.grey`: of common formats the brightness that is stored, not converted to colour and back."""
        if self._frame.format.name not in _LUMA_FIRST or not self._look.fits(self._frame):
            return super().grey(long_side)
        import cv2

        with failures(self._look.clip):
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
