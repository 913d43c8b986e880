"""Who may ask: whoever has the token, under a name that this server goes by, from its own page or from no page.

A page of another origin, and a name that was bent to this machine's address (DNS rebinding), get nothing.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any

from m2df_runtime.serve.problems import Refused

COOKIE = "m2df_session"
_OPEN = ("/", "/favicon.ico", "/healthz", "/readyz")
_SAFE = ("GET", "HEAD")
_ONCE = (b"host", b"origin", b"authorization", b"content-length", b"cookie", b"transfer-encoding")
_TOKEN_HINT = "send it as `Authorization: Bearer TOKEN`"


class Access:
    """What is asked of every request before anything of it is read.

    Args:
        token: Of the server; None lets everybody in who reaches it.
        names: By which it may be called besides its addresses and `localhost`.
    """

    def __init__(self, token: str | None, names: Sequence[str]) -> None:
        self._token = token
        self._names = {name.lower() for name in names} | {"localhost"}
        self.session = secrets.token_urlsafe(32)  # what the cookie holds; of this process alone

    def check(self, scope: dict[str, Any]) -> None:
        """Raises Refused where a request or a WebSocket is not to be answered."""
        headers = self._headers(scope)
        host = headers.get(b"host", "")
        if not self._known(host):
            raise Refused(403, "host", "the server is not called so", "use its address, or start it with --name NAME")
        own = self._checked_origin(headers, host, scope)
        if scope["type"] == "websocket" or self.open(scope["path"]):
            return  # the first message of a WebSocket holds the token
        if self._bears(headers):
            return
        if not self._has_session(headers):
            raise Refused(401, "token", "the token is missing or wrong", _TOKEN_HINT)
        if not own and scope["method"] not in _SAFE:
            raise Refused(403, "origin", "a cookie alone changes nothing", _TOKEN_HINT)

    def allows(self, token: str | None) -> bool:
        """Whether a token is the right one."""
        return self._token is None or (token is not None and _same(token, self._token))

    def allowed(self, scope: dict[str, Any]) -> bool:
        """Whether a request has the token, or the cookie that stands for it."""
        headers = self._headers(scope)
        return self._bears(headers) or self._has_session(headers)

    def _bears(self, headers: dict[bytes, str]) -> bool:
        kind, _, token = headers.get(b"authorization", "").partition(" ")
        return self.allows(token.strip() if kind.lower() == "bearer" else None)

    def _has_session(self, headers: dict[bytes, str]) -> bool:
        try:
            found = SimpleCookie(headers.get(b"cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return found is not None and _same(found.value, self.session)

    @staticmethod
    def open(path: str) -> bool:
        """Whether a path is for everybody: the page's files, which hold no secret, and probes."""
        return path in _OPEN or path.startswith("/page/")

    def _known(self, host: str) -> bool:
        name, closed, port = host.rpartition(":")
        if not closed or host.endswith("]"):
            name, port = host, ""
        if port and not (port.isascii() and port.isdigit()):
            return False
        if name.startswith("[") and name.endswith("]"):
            name = name[1:-1]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self._names
        return True

    @staticmethod
    def _checked_origin(headers: dict[bytes, str], host: str, scope: dict[str, Any]) -> bool:
        """Whether it comes from the server's own page. Raises Refused where it comes from another."""
        origin = headers.get(b"origin")
        if origin is not None:
            kind, _, place = origin.partition("://")
            if kind not in ("http", "https") or _with_port(place, kind) != _with_port(host, kind):
                raise Refused(403, "origin", "a page of another origin may not ask this", "open the server's own page")
            return True
        site = headers.get(b"sec-fetch-site", "none")
        if site in ("cross-site", "same-site") and not Access.open(scope["path"]):
            raise Refused(403, "origin", "a page of another origin may not ask this", "open the server's own page")
        return site == "same-origin"

    @staticmethod
    def _headers(scope: dict[str, Any]) -> dict[bytes, str]:
        found: dict[bytes, str] = {}
        for name, value in scope["headers"]:
            if name in found and name in _ONCE:
                raise Refused(400, "header", "a header stands there twice", "send it once")
            found[name] = value.decode("latin-1")
        return found


def _same(one: str, two: str) -> bool:
    """In a time that does not tell how much of it is right."""
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), two.encode())


def _with_port(place: str, kind: str) -> str:
    has_port = ":" in place.rpartition("]")[2]
    return place.lower() if has_port else f"{place.lower()}:{443 if kind == 'https' else 80}"
