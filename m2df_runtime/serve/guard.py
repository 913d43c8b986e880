"""What stands before every route: who may ask, how much and how often; headers of every answer; a line of log of each.

Nothing of a request's body is read before it was allowed, and none of it beyond what is taken.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m2df_runtime.serve.access import Access
from m2df_runtime.serve.counts import RequestCounts
from m2df_runtime.serve.limits import Limits, Rate
from m2df_runtime.serve.problems import Refused

IMPORT = "/v1/import"
_BODIES = ("POST", "PUT", "PATCH")
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"permissions-policy": b"camera=(self), microphone=(), geolocation=()",
    b"content-security-policy": _PAGE_POLICY.encode(),
    b"cache-control": b"no-store",
}

_log = logging.getLogger("m2df_runtime.serve.requests")


class Guard:
    """Wraps the application.

    Args:
        app: What is behind it.
        access: Who may ask.
        limits: How much.
        counts: Told of every answer.
    """

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, counts: RequestCounts) -> None:
        self._app, self._access, self._limits, self._counts = app, access, limits, counts
        self._uploads = Rate(limits.uploads_per_minute, time.monotonic)
        self._working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        answer = _Answer(send)
        try:
            self._access.check(dict(scope))
            with self._room(scope):
                body = _Body(receive, answer, self._most(scope), self._limits)
                body.check(scope)
                await self._app(scope, body.receive, answer.send)
        except Refused as error:
            answer.refused = answer.refused or error
        except Exception:
            _log.exception("a request failed")
            answer.refused = answer.refused or Refused(500, "fault", "the server failed", "see its log")
        await answer.finish()
        self._said(scope, answer.status, started)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        try:
            self._access.check(dict(scope))
        except Refused as error:
            await receive()  # websocket.connect
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted, that is 403
            self._said(scope, error.status, started)
            return
        await self._app(scope, receive, send)
        self._said(scope, 101, started)

    def _said(self, scope: Scope, status: int, started: float) -> None:
        """One line of log: the route in place of the path, which holds names."""
        route = getattr(scope.get("route"), "path", None)
        self._counts.add(route, status)
        fields = {
            "client": scope["client"][0] if scope["client"] else None,
            "method": scope.get("method", "WEBSOCKET"),
            "route": route,
            "status": status,
            "ms": round(1000 * (time.perf_counter() - started), 1),
        }
        _log.info("request", extra={"fields": fields})

    def _most(self, scope: Scope) -> int:
        if scope["method"] not in _BODIES:
            return 0
        return self._limits.import_bytes if scope["path"] == IMPORT else self._limits.upload_bytes

    @contextmanager
    def _room(self, scope: Scope) -> Iterator[None]:
        """Raises Refused where a client sends too often, or too many send at once."""
        if scope["method"] not in _BODIES:
            yield
            return
        client = scope["client"][0] if scope["client"] else ""
        wait = self._uploads.wait(client)
        if wait:
            often = self._limits.uploads_per_minute
            raise Refused(429, "rate", f"more than {often} uploads in a minute", "wait", retry_after=wait)
        if self._working >= self._limits.at_once:
            raise Refused(429, "busy", f"{self._limits.at_once} uploads are worked on", "try again", retry_after=1)
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1


class _Answer:
    """What is sent to a client; a refusal goes before whatever else has not begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.refused: Refused | None = None
        self.status = 0
        self._over = False

    async def send(self, message: Message) -> None:
        if self.refused or self._over:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = dict(message.get("headers") or ())
            added = [(name, value) for name, value in _HEADERS.items() if name not in given]
            message = {**message, "headers": [*(message.get("headers") or ()), *added]}
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self._over = True
        await self._send(message)

    async def finish(self) -> None:
        """Send the refusal, where there is one and nothing else has begun."""
        error = self.refused
        if error is None or self.status:
            return
        self.refused = None
        body = json.dumps(error.record()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers.append((b"connection", b"close"))  # what was not read of it is not to be taken for the next request
        if error.retry_after is not None:
            headers.append((b"retry-after", str(math.ceil(error.retry_after)).encode()))
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


class _Body:
    """A request's body as it comes: not too much of it, and not too slowly."""

    def __init__(self, receive: Receive, answer: _Answer, most: int, limits: Limits) -> None:
        self._receive, self._answer, self._most, self._limits = receive, answer, most, limits
        self._taken, self._whole = 0, False
        self._until = time.monotonic() + limits.body_seconds

    def check(self, scope: Scope) -> None:
        """Raises Refused where more is announced than is taken."""
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self._most:
                raise self._too_large()

    async def receive(self) -> Message:
        """See ASGI."""
        if self._whole:
            return await self._receive()  # until the client leaves
        left = min(self._limits.pause_seconds, self._until - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        except asyncio.TimeoutError:
            raise self._refuse(Refused(408, "slow", "the rest of the request did not come", "send it faster")) from None
        if message["type"] == "http.request":
            self._taken += len(message.get("body") or b"")
            self._whole = not message.get("more_body")
            if self._taken > self._most:
                raise self._refuse(self._too_large())
        return message

    def _refuse(self, error: Refused) -> Refused:
        self._answer.refused = error  # whatever the application makes of it
        return error

    def _too_large(self) -> Refused:
        if not self._most:
            return Refused(413, "too_large", "this request has no body", "leave it out")
        return Refused(413, "too_large", f"more than {self._most >> 20} MiB", "send a shorter or smaller clip")
