"""Real servers on loopback that play real video: RTSP, MPEG-TS and MJPEG over HTTP; and every way to fail in between.

FFmpeg makes the RTP packets; the RTSP server numbers and stamps them anew, so that a film can go on for ever and a
clock can be set at will.
"""

from __future__ import annotations

import base64
import io
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import av
import numpy as np
from numpy.typing import NDArray

FPS = 25
LONGEST = 240.0  # seconds that something is waited for; what is late fails, whatever the machine
LOGIN = "user:open sesame"
CERTIFICATE = Path(__file__).with_name("localhost.pem")  # of localhost, signed by itself, with its key
_ENCODERS = {"h264": "libx264", "hevc": "libx265", "mpegts": "libx264"}

Fault = Literal["close", "reset", "stall", "half"]


class _Writes(io.RawIOBase):
    """A file that keeps what each write brought."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.taken.append(bytes(data))  # type: ignore[call-overload]
        return len(self.taken[-1])


@dataclass(frozen=True)
class Play:
    """What one connection gets.

    Attributes:
        film: Of each frame the packets that carry it.
        codec: h264 or hevc.
        frames: How many are played, the film again and again; None for ever.
        then: What happens after them.
        fps: Frames a second; 0 as fast as they are taken.
        stamps: Second of each frame by its number.
        answer: Status of the answer to DESCRIBE.
        login: Whether user and password are asked for.
    """

    film: tuple[tuple[bytes, ...], ...]
    codec: str = "h264"
    frames: int | None = None
    then: Fault = "close"
    fps: float = FPS
    stamps: Callable[[int], float] = lambda number: 7 + number / FPS  # 0 is none to FFmpeg
    answer: str = "200 OK"
    login: bool = False


def film(frames: NDArray[np.uint8], kind: str = "h264", begin: int = 0) -> tuple[tuple[bytes, ...], ...]:
    """Frames [n, H, W, 3] from number `begin` on as packets of RTP, or as MPEG-TS; keyframes are ten frames apart."""
    out, packets = _Writes(), []
    form, options = ("mpegts", {"flush_packets": "1"}) if kind == "mpegts" else ("rtp", {"packetsize": "1400"})
    with av.open(out, "w", format=form, options=options) as container:
        encoder = {"tune": "zerolatency", "g": "10", "threads": "1"}
        if kind == "hevc":
            encoder["x265-params"] = "log-level=none:pools=none"
        stream = container.add_stream(_ENCODERS[kind], rate=FPS, options=encoder)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = begin + number
            container.mux(stream.encode(frame))
            if kind == "mpegts" or out.taken:
                packets.append(tuple(out.taken))
                out.taken = []
        container.mux(stream.encode(None))
        packets.append(tuple(out.taken))
    if kind != "mpegts":
        media = (tuple(packet for packet in group if packet[1] & 0x7F == 96) for group in packets)  # no reports
        return tuple(group for group in media if group)
    return tuple(packets)


@cache
def jpegs(frames: bytes, shape: tuple[int, ...]) -> tuple[bytes, ...]:
    """Frames as JPEG files."""
    import cv2

    pictures = np.frombuffer(frames, np.uint8).reshape(shape)
    return tuple(cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes() for picture in pictures)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, handler: type[socketserver.BaseRequestHandler], port: int = 0) -> None:
        self.over = threading.Event()
        self.connections: list[socket.socket] = []
        super().__init__(("127.0.0.1", port), handler)

    @property
    def port(self) -> int:
        return self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is none."""

    def end(self) -> None:
        """Hang up, and listen no more."""
        self.over.set()
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Rtsp(_Server):
    """Plays to each connection what is next in `plays`, the last again and again.

    Attributes:
        plays: What is played.
        played: Connections that PLAY was asked of.
    """

    def __init__(self, *plays: Play, port: int = 0) -> None:
        self.plays = list(plays)
        self.played = 0
        super().__init__(_RtspSession, port)

    def url(self, login: str = "") -> str:
        return f"rtsp://{login}{'@' if login else ''}127.0.0.1:{self.port}/stream1"


class _RtspSession(socketserver.StreamRequestHandler):
    server: Rtsp

    def handle(self) -> None:
        self.server.connections.append(self.connection)
        play = self.server.plays[min(self.server.played, len(self.server.plays) - 1)]
        asked = f"Basic {base64.b64encode(LOGIN.encode()).decode()}"
        while line := self.rfile.readline():
            method, _, rest = line.decode().partition(" ")
            headers = {}
            while (line := self.rfile.readline().decode().strip()) != "":
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            sequence = headers.get("cseq", "0")
            if method == "DESCRIBE" and play.login and headers.get("authorization") != asked:
                self._answer(sequence, "401 Unauthorized", {"WWW-Authenticate": 'Basic realm="camera"'})
            elif method == "DESCRIBE":
                sdp = (
                    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
                    f"m=video 0 RTP/AVP 96\r\na=rtpmap:96 {play.codec.replace('hevc', 'H265').upper()}/90000\r\n"
                    "a=control:track1\r\n"
                )
                kind = {"Content-Type": "application/sdp", "Content-Base": rest.split()[0] + "/"}
                self._answer(sequence, play.answer, kind, sdp if play.answer.startswith("200") else "")
            elif method == "SETUP" and "TCP" not in headers["transport"]:
                self._answer(sequence, "461 Unsupported Transport")
            elif method == "SETUP":
                self._answer(sequence, "200 OK", {"Transport": "RTP/AVP/TCP;unicast;interleaved=0-1", "Session": "1"})
            elif method == "PLAY":
                self.server.played += 1
                self._answer(sequence, "200 OK", {"Session": "1"})
                return self._play(play)
            else:
                self._answer(sequence, "200 OK", {"Public": "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"})

    def _answer(self, sequence: str, status: str, headers: dict[str, str] | None = None, body: str = "") -> None:
        lines = [f"RTSP/1.0 {status}", f"CSeq: {sequence}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        lines += [f"Content-Length: {len(body)}"] if body else []
        self.wfile.write("\r\n".join([*lines, "", body]).encode())

    def _play(self, play: Play) -> None:
        count = 0
        for number, group in _endless(play.film, play.frames, play.fps, self.server.over):
            stamp = round(90_000 * play.stamps(number)) % 2**32
            for packet in group:
                data = packet[:2] + struct.pack(">HI", count % 2**16, stamp) + packet[8:]
                self.wfile.write(struct.pack(">BBH", ord("$"), 0, len(data)) + data)
                count += 1
        _fail(self.connection, play.then, struct.pack(">BBH", ord("$"), 0, 1000) + b"half a packet", self.server.over)


def _endless(
    groups: tuple[tuple[bytes, ...], ...], frames: int | None, fps: float, over: threading.Event
) -> Iterator[tuple[int, tuple[bytes, ...]]]:
    """Number and packets of every frame, when it is time."""
    began, number = time.monotonic(), 0
    while not over.is_set() and (frames is None or number < frames):
        yield number, groups[number % len(groups)]
        number += 1
        if fps:
            over.wait(max(0.0, began + number / fps - time.monotonic()))


def _fail(connection: socket.socket, how: Fault, half: bytes, over: threading.Event) -> None:
    if how == "stall":
        connection.settimeout(0.1)
        with suppress(OSError):
            while not over.is_set():
                with suppress(TimeoutError):
                    if not connection.recv(4096):  # who watched has left
                        break
    if how == "half":
        connection.sendall(half)
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


def encrypted(listening: socket.socket) -> ssl.SSLSocket:
    """A server's socket, with TLS and the tests' certificate from now on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context.wrap_socket(listening, server_side=True)


class Http(ThreadingHTTPServer):
    """Serves `/live.ts`, `/live.mjpeg`, `/film.mp4` and `/locked.ts`, which asks for user and password.

    Attributes:
        sent: Frames so far.
    """

    daemon_threads = True

    def __init__(
        self, play: Play, pictures: tuple[bytes, ...], file: bytes, *, secure: bool = False, host: str = "127.0.0.1"
    ) -> None:
        self.play, self.pictures, self.file = play, pictures, file
        self.over = threading.Event()
        self.sent = 0
        super().__init__((host, 0), _HttpSession)
        self.scheme = "https" if secure else "http"
        if secure:
            self.socket = encrypted(self.socket)

    def url(self, path: str, login: str = "") -> str:
        return f"{self.scheme}://{login}{'@' if login else ''}127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is none."""

    def end(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()


class _HttpSession(BaseHTTPRequestHandler):
    server: Http

    def log_message(self, *args: object) -> None:
        """Not on the tests' output."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        asked = f"Basic {base64.b64encode(LOGIN.encode()).decode()}"
        if path == "/locked.ts" and self.headers["Authorization"] != asked:
            self._head(401, "text/plain", {"WWW-Authenticate": 'Basic realm="camera"'})
        elif path in ("/live.ts", "/locked.ts"):
            self._head(200, "video/mp2t")
            self._play(self.server.play)
        elif path == "/live.mjpeg":
            self._head(200, "multipart/x-mixed-replace; boundary=frame")
            parts = tuple(
                (b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(one), one),)
                for one in self.server.pictures
            )
            self._play(replace(self.server.play, film=parts))
        elif path == "/film.mp4":
            self._head(200, "video/mp4", {"Content-Length": str(len(self.server.file))})
            self.wfile.write(self.server.file)
        elif path == "/page":
            page = b"<html>a page, no video</html>" * 100
            self._head(200, "text/html", {"Content-Length": str(len(page))})
            self.wfile.write(page)
        else:
            self._head(404, "text/plain")

    def _head(self, status: int, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def _play(self, play: Play) -> None:
        for _, group in _endless(play.film, play.frames, play.fps, self.server.over):
            self.wfile.write(b"".join(group))
            self.server.sent += 1
        _fail(self.connection, play.then, b"G" + bytes(50), self.server.over)


@contextmanager
def serving(server: Rtsp | Http) -> Iterator[Rtsp | Http]:
    """Answer until the end."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.end()
        thread.join()


@contextmanager
def sending(play: Play, kind: Literal["udp", "tcp"]) -> Iterator[str]:
    """The address of MPEG-TS: sent to a port of this machine, or to whoever connects to one."""
    over = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as sender:
        sender.bind(("127.0.0.1", 0))
        port = closed_port() if kind == "udp" else sender.getsockname()[1]
        if kind == "tcp":
            sender.listen()  # before anybody is told of the port

        def send() -> None:
            out = sender
            if kind == "udp":
                sender.connect(("127.0.0.1", port))
            else:
                out = sender.accept()[0]
            for _, group in _endless(play.film, play.frames, play.fps, over):
                data = b"".join(group)
                for start in range(0, len(data), 7 * 188):
                    with suppress(ConnectionRefusedError):  # nobody listens yet
                        out.send(data[start : start + 7 * 188])

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            yield f"{kind}://127.0.0.1:{port}"
        finally:
            over.set()
            thread.join()


@contextmanager
def silent() -> Iterator[int]:
    """The port of one who takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def closed_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
