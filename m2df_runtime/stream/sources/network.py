"""Cameras and streams on a network, through FFmpeg: RTSP, HTTP, UDP and TCP."""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from m2df_runtime.clips.decoded_frames import Look, VideoPicture, frames_of, pixel_aspect, shown_stream
from m2df_runtime.clips.limits import check_pixels, max_pixels
from m2df_runtime.errors import ClipError
from m2df_runtime.stream.policy import Encoded
from m2df_runtime.stream.sources.addresses import UNREACHABLE, checked_address, filled_in, masked
from m2df_runtime.stream.sources.live import Cause, LiveFrames, Shown, SourceLost, SourceState
from m2df_runtime.stream.sources.packets import all_packets, fresh_packets

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

    _Packets = Iterable[Encoded[Packet[Any]]]

TIMEOUT = 10.0  # seconds for opening, and without anything that arrives
_UNDECODED = 30.0  # seconds in which data comes and no picture: longer than cameras let pass between two keyframes
# What each may open besides itself: no stream makes FFmpeg read a file or fetch another kind of address.
_PROTOCOLS = {
    "rtsp": "rtsp,rtp,udp,tcp",
    "http": "http,tcp",
    "https": "https,http,tls,tcp",
    "udp": "udp",
    "tcp": "tcp",
}
# Not playlists, which name other addresses, nor pictures and subtitles that FFmpeg makes videos of.
_FORMATS = "rtsp,rtp,mpegts,mpjpeg,mjpeg,matroska,webm,flv,mov,mp4,asf,ogg,nut,h264,hevc"
_WITHOUT_STAMPS = frozenset({"mpjpeg", "mjpeg", "h264", "hevc"})  # FFmpeg counts their frames at 25 a second
_SAID: tuple[tuple[str, Cause], ...] = (
    ("HTTPUnauthorizedError", "unauthorised"),
    ("HTTPForbiddenError", "unauthorised"),
    ("HTTPNotFoundError", "not found"),
    ("ExitError", "timeout"),
    ("TimeoutError", "timeout"),
    ("ConnectionRefusedError", "refused"),
    ("InvalidDataError", "codec"),
    ("ArgumentError", "codec"),  # a format that is not in the list above
    ("DemuxerNotFoundError", "codec"),
    ("DecoderNotFoundError", "codec"),
    ("HTTPError", "refused"),
    ("HTTPClientError", "refused"),
    ("HTTPServerError", "refused"),
)

_log = logging.getLogger(__name__)


class NetworkFrames(LiveFrames):
    """A camera or stream by its address.

    RTSP asks for TCP first. Certificates are checked, against those of the system or of `$SSL_CERT_FILE`.

    Args:
        address: rtsp://, http://, https://, udp:// or tcp://; with user and password where it asks for them, which
            `${NAME}` takes from the environment.
        on_state: See `LiveFrames`.
        timeout: Seconds for opening, and without anything that arrives, after which it is opened again.
        name: What messages and events call it; None is the address without its password.

    Raises:
        InputError: An address of another kind, or a variable that is not there.
    """

    def __init__(
        self,
        address: str,
        on_state: Callable[[SourceState], None] | None = None,
        *,
        timeout: float = TIMEOUT,
        name: str | None = None,
    ) -> None:
        self._address = filled_in(checked_address(address))
        self._timeout = timeout
        self._nothing = f"nothing came for {timeout:g} s"
        super().__init__(name or masked(address), on_state)

    def connected(self) -> AbstractContextManager[Iterator[Shown]]:
        """See `LiveFrames.connected`."""
        return self._opened(lambda container, stream, _: nullcontext(all_packets(container, stream)))

    def connected_fresh(self, tell_left_out: Callable[[int], None]) -> AbstractContextManager[Iterator[Shown]]:
        """See `LiveFrames.connected_fresh`."""
        return self._opened(lambda container, stream, tick: fresh_packets(container, stream, tick, tell_left_out))

    @contextmanager
    def _opened(
        self, reading: Callable[[InputContainer, VideoStream, float], AbstractContextManager[_Packets]]
    ) -> Iterator[Iterator[Shown]]:
        """The frames of those packets that `reading` gives of a connection, its stream and the seconds of a tick."""
        import av

        scheme = self._address.partition(":")[0]
        began = time.monotonic()
        try:
            container = av.open(
                self._address,
                options=_options(scheme),
                timeout=(self._timeout, self._timeout),
                metadata_errors="replace",
            )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            late = time.monotonic() - began >= self._timeout  # FFmpeg calls an RTSP server's silence invalid data
            raise SourceLost("timeout", self._nothing) if late else self._lost(error, opening=True) from None
        with container:
            if scheme.startswith("http") and container.duration:
                raise SourceLost(
                    "closed",
                    f"a recording of {container.duration / 1e6:.0f} s, not a live stream; save it and name the file",
                    final=True,
                )
            try:
                stream = shown_stream(self.name, container)
                check_pixels(self.name, stream.codec_context.width, stream.codec_context.height)
            except ClipError as error:
                raise SourceLost("codec", error.reason) from None
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(max_pixels())}
            stamped = stream.time_base is not None and container.format.name not in _WITHOUT_STAMPS
            tick = float(stream.time_base or 0) if stamped else 0.0
            try:
                with reading(container, stream, tick) as packets:
                    yield self._frames(packets, stream, tick)
            except (av.error.FFmpegError, OSError) as error:
                raise self._lost(error) from None

    def _frames(self, packets: _Packets, stream: VideoStream, tick: float) -> Generator[Shown]:
        """What the stream shows. Raises FFmpeg's errors, and SourceLost where data comes and no picture."""
        look: Look | None = None
        since = shown = time.monotonic()

        def decoded(packet: Packet[Any] | None) -> Iterator[Shown]:
            nonlocal look, shown
            for frame in frames_of(stream, packet):
                shown = time.monotonic()
                look = look or Look(self.name, frame, pixel_aspect(stream))
                stamp = frame.pts * tick if tick and frame.pts is not None else None
                yield Shown(stamp, VideoPicture(frame, look), shown - since)

        for packet in packets:
            if packet.begins:
                yield from decoded(None)
                stream.codec_context.flush_buffers()
                shown = time.monotonic()
            since = packet.since
            yield from decoded(packet.item)
            if time.monotonic() - shown > _UNDECODED:
                raise SourceLost("codec", f"no picture in what came for {_UNDECODED:g} s")
        yield from decoded(None)

    def _lost(self, error: Exception, *, opening: bool = False) -> SourceLost:
        """What FFmpeg's error means. Its text may hold the address, its number and `strerror` do not."""
        number = getattr(error, "errno", None)
        reason = getattr(error, "strerror", None) or type(error).__name__
        names = {kind.__name__ for kind in type(error).__mro__}
        cause = next((cause for name, cause in _SAID if name in names), None)
        if cause == "timeout":
            return SourceLost("timeout", self._nothing)
        if cause == "codec":
            return SourceLost("codec", "what comes is no video that can be read")
        if cause is not None:
            return SourceLost(cause, reason)
        if number in UNREACHABLE:
            return SourceLost("unreachable", reason)
        if opening and number == errno.EIO:  # FFmpeg says no more of names and of certificates
            if not _known_host(self._address):
                return SourceLost("not found", "no such host")
            if self._address.startswith("https:"):
                return SourceLost("TLS", "no secure connection; $SSL_CERT_FILE names other certificates to trust")
        return SourceLost("closed", reason)


def _options(scheme: str) -> dict[str, str]:
    """Of FFmpeg's demuxers and protocols."""
    options = {
        "protocol_whitelist": _PROTOCOLS[scheme],
        "format_whitelist": _FORMATS,
        "analyzeduration": "1000000",  # microseconds; 5 s by default, in which nothing would be looked at
        "fpsprobesize": "0",
    }
    if scheme == "rtsp":
        options |= {"rtsp_flags": "prefer_tcp"}
    if scheme == "udp":
        options |= {"overrun_nonfatal": "1"}
    if scheme == "https":
        options |= {"tls_verify": "1"}
        trusted = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
        if trusted:
            options |= {"ca_file": trusted}
    return options


def _known_host(address: str) -> bool:
    try:
        host = urlsplit(address).hostname
        return host is None or bool(socket.getaddrinfo(host, None))
    except (OSError, ValueError):
        return False
