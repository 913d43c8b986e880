"""The server process: its socket, its connections, and its end within a second."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from m2df_runtime.errors import InputError
from m2df_runtime.serve.app import App
from m2df_runtime.serve.limits import Limits

_LONGEST_HEAD = 1 << 15  # bytes of a request's first lines
_FRAME_BYTES = 1 << 20  # of a message of a live session
_GRACE = 0.4  # seconds for what is being answered when the end is asked for


class Server(uvicorn.Server):
    """Answers on one socket until `should_exit` is set, from any thread or signal.

    Args:
        app: What answers.
        limits: Of connections.
        certificate: Files of a certificate and of its key.

    Raises:
        InputError: The certificate cannot be used.
    """

    def __init__(self, app: App, limits: Limits, certificate: tuple[Path, Path] | None = None) -> None:
        self._app = app
        cert, key = certificate or (None, None)

        class Connection(_Connection):
            own_limits = limits

        config = uvicorn.Config(
            app.asgi,
            http=Connection,
            ws="websockets-sansio",
            ws_max_size=_FRAME_BYTES,
            ws_per_message_deflate=False,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=_GRACE,  # type: ignore[arg-type]  # whole or not
            ssl_certfile=cert,
            ssl_keyfile=key,
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"the certificate cannot be used: {error}", "check --tls-cert and --tls-key") from None
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn: it would wait for readers of events."""
        self._app.end()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals are the command's."""
        yield


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: The port is in use or may not be taken, or the host is none of this machine.
    """
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot listen at {host}, port {port}: {reason}", "choose another --port or --host") from None


class _Connection(HttpToolsProtocol):
    """A connection that is closed where a request does not begin in time, or begins with too much; one of so many."""

    own_limits: Limits

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*args, **kwargs)
        self._late: asyncio.TimerHandle | None = None
        self._head = 0  # bytes of a request that has not begun
        self._lines = 0  # bytes of its address and headers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        if len(self.connections) > self.own_limits.connections:
            transport.abort()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._waited()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self.cycle is None or self.cycle.response_complete:
            self._head += len(data)
            self._wait()
        super().data_received(data)
        if self._head > _LONGEST_HEAD and self._late and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def on_message_begin(self) -> None:
        """See httptools."""
        self._lines = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self._count(len(name) + len(value) + 4)  # with ": " and the end of the line
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._waited()
        self._head = 0
        super().on_headers_complete()

    def _count(self, size: int) -> None:
        """Raises, which the parser makes a bad request of, where the head is too long; it may have come at once."""
        self._lines += size
        if self._lines > _LONGEST_HEAD:
            raise ValueError("the head of the request is too long")

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.own_limits.head_seconds, self.transport.close)

    def _waited(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
