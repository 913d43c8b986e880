"""Video files: frame counts and times from the packets, exact frames by forward decoding.

Headers lie about frame counts and seeking lands on wrong frames (47 of 60 OpenCV seeks on a
variable-rate file), so neither is used: one pass over the packets, one forward decode that
converts only the wanted frames and stops after the last of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.errors import InputError
from m2df_runtime.image_sequences import checked_indices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

_log = logging.getLogger(__name__)

_DEFAULT_FPS = 25.0
_ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC: cover art of an audio file
_TEXT_DEMUXER = "tty"  # FFmpeg renders plain text as ANSI art


class VideoFile:
    """A video file, decoded by FFmpeg through PyAV.

    Frames come out upright: right-angle rotations and mirrorings of the container are applied.
    A file whose decoder yields less than its packets promise is read as far as it goes: a missing
    frame is replaced by the last one decoded before it, with one warning.

    Attributes:
        n_frames: Frames, counted from the packets.
        times: Presentation times in seconds from the first frame, float64 [n].
        fps: Mean frames per second.

    Raises:
        InputError: Not a video, audio only, or without frames.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        container, stream = self._open()
        with container:
            stamps = _packet_stamps(container, stream)
            rate = float(stream.average_rate or stream.guessed_rate or _DEFAULT_FPS)
            base = stream.time_base
        self.n_frames = len(stamps)
        if not stamps:
            raise InputError(f"{path}: the video stream holds no frames", hint="is the file truncated?")
        known = [stamp for stamp in stamps if stamp is not None]
        ordered = np.sort(np.asarray(known, dtype=np.int64))
        timed = len(known) == len(stamps) and base is not None
        if timed and base is not None:
            self.times: NDArray[np.float64] = (ordered - ordered[0]) * float(base)
        else:
            self.times = np.arange(self.n_frames) / rate
        # Frames find their index by time stamp, so that a frame lost in decoding shifts no other.
        distinct = timed and bool((np.diff(ordered) > 0).all())
        self._position = {int(stamp): index for index, stamp in enumerate(ordered)} if distinct else None
        span = float(self.times[-1])
        self.fps = (self.n_frames - 1) / span if span > 0 else rate

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames in the order asked, uint8 [M, H, W, 3] RGB. Raises InputError if nothing can be decoded."""
        chosen = checked_indices(indices, self.n_frames)
        wanted = np.unique(chosen)
        frames = self._decode(wanted.tolist(), self._position)
        if frames is None and self._position is not None:
            _log.debug("%s: the decoder does not keep the packets' time stamps; counting frames", self._path)
            frames = self._decode(wanted.tolist(), None)
        if frames is None:
            raise InputError(f"{self._path}: no frame can be decoded", hint="is the file damaged?")
        return np.stack([frames[place] for place in np.searchsorted(wanted, chosen).tolist()])

    def _decode(self, wanted: list[int], position: dict[int, int] | None) -> list[NDArray[np.uint8]] | None:
        """The wanted (ascending) frames, or None when no decoded frame could be placed."""
        converter = _RgbConverter()
        found: list[NDArray[np.uint8]] = []
        previous: VideoFrame | None = None
        missing = 0
        container, stream = self._open()
        with container:
            for count, frame in enumerate(_decoded(container, stream)):
                index = count if position is None else position.get(-1 if frame.pts is None else frame.pts)
                if index is None:
                    continue
                while len(found) < len(wanted) and wanted[len(found)] < index:
                    found.append(converter(previous or frame))
                    missing += 1
                if len(found) < len(wanted) and wanted[len(found)] == index:
                    found.append(converter(frame))
                previous = frame
                if len(found) == len(wanted):
                    break
            if previous is None:
                return None if wanted else []
            while len(found) < len(wanted):
                found.append(converter(previous))
                missing += 1
        if missing:
            _log.warning("%s: %d of %d frames cannot be decoded; repeating", self._path, missing, len(wanted))
        return found

    def _open(self) -> tuple[InputContainer, VideoStream]:
        import av

        try:
            # "file" only: a playlist disguised as a video must not make FFmpeg fetch other addresses.
            container = av.open(str(self._path.absolute()), options={"protocol_whitelist": "file"})
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise InputError(f"{self._path}: not a readable video: {reason}", hint="is it damaged?") from error
        streams = [stream for stream in container.streams.video if not _is_cover_art(stream)]
        if streams and container.format.name != _TEXT_DEMUXER:
            streams[0].thread_type = "AUTO"
            return container, streams[0]
        kind = "audio only, without a video stream" if container.streams.audio else "not a video"
        container.close()
        raise InputError(f"{self._path}: {kind}", hint="give a file with moving pictures")


def _is_cover_art(stream: VideoStream) -> bool:
    return bool(int(getattr(stream, "disposition", 0)) & _ATTACHED_PICTURE)  # PyAV 13 does not tell


def _packet_stamps(container: InputContainer, stream: VideoStream) -> list[int | None]:
    """Presentation stamp of every packet that carries a frame to show, in file order."""
    import av

    stamps: list[int | None] = []
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard and not packet.is_corrupt:
                stamps.append(packet.pts if packet.pts is not None else packet.dts)
    except (av.error.FFmpegError, OSError) as error:
        _log.warning("%s: packets end early: %s", container.name, error)
    return stamps


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Frames in order of presentation; damaged packets are passed over and the decoder is flushed at the end."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError):
            packet = None
        try:
            yield from stream.codec_context.decode(packet)
        except av.error.FFmpegError as error:
            _log.debug("%s: %s", container.name, error)
        if packet is None or not packet.size:
            return


class _RgbConverter:
    """Turns decoded frames into upright uint8 [H, W, 3] RGB arrays of the first frame's size."""

    def __init__(self) -> None:
        self._reformatter: VideoReformatter | None = None
        self._size: tuple[int, int] | None = None

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        from av.video.reformatter import VideoReformatter

        if self._reformatter is None or self._size is None:
            self._reformatter = VideoReformatter()
            self._size = (frame.width, frame.height)
        width, height = self._size
        picture = self._reformatter.reformat(frame, width=width, height=height, format="rgb24").to_ndarray()
        return np.ascontiguousarray(_upright(picture.astype(np.uint8, copy=False), frame))


def _upright(array: NDArray[np.uint8], frame: VideoFrame) -> NDArray[np.uint8]:
    """Applies the display matrix: point (x, y) is shown at (a x + c y, b x + d y)."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return array
    a, b, _, c, d = np.frombuffer(cast(bytes, matrix), dtype=np.int32)[:5].tolist()
    across, down = a, d
    if abs(b) > abs(a):
        array, across, down = array.transpose(1, 0, 2), c, b
    return array[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
