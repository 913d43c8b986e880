"""Events as POST requests: to a web server of one's own, to home automation, to whatever takes JSON."""

from __future__ import annotations

import base64
import http.client
import json
import random
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus

from m2df_runtime import __version__
from m2df_runtime.sinks.places import cause_of, place_of
from m2df_runtime.sinks.sink import MOST_EVENTS, Sink
from m2df_runtime.stream.events import Event
from m2df_runtime.stream.sources.live import pauses

_TIMEOUT = 10.0  # seconds without anything from the server
_TRIES = 10  # of an event at which the server itself fails, in two and a half minutes: it may be the event
_BUSY = frozenset({408, 425, 429, 502, 503, 504})  # that will pass


class Webhook(Sink[Event]):
    """Posts every event that is put in, as the JSON object that `m2df-run --json` prints.

    A server that is not there or is busy is tried for ever, after 1 s, 2 s, up to every 30 s. What it answers with
    another error of its own is tried ten times, what it refuses is dropped. Redirects are not followed.

    Args:
        address: http:// or https://, with user and password where it asks for them; `${NAME}` is taken from the
            environment.
        tell: See `Sink`.

    Raises:
        InputError: An address of another kind, or a variable that is not there.

    Examples:
        >>> from m2df_runtime.sinks.webhook import Webhook
        >>> with Webhook("https://user:secret@example.org/hooks/123") as webhook:
        ...     webhook.name
        'https://example.org/***'
    """

    def __init__(self, address: str, tell: Callable[[str], None] | None = None) -> None:
        place = place_of(address, {"http": 80, "https": 443}, "https://example.org/hook")
        host = f"[{place.host}]" if ":" in place.host else place.host
        server = f"{place.scheme}://{host}:{place.port}"
        self._url = server + (place.path or "/")
        self._headers = {"Content-Type": "application/json", "User-Agent": f"m2df/{__version__}"}
        if place.user is not None:
            login = base64.b64encode(f"{place.user}:{place.password or ''}".encode()).decode()
            self._headers["Authorization"] = f"Basic {login}"
        self._opener = urllib.request.build_opener(_Stays)
        shown = server.removesuffix({"http": ":80", "https": ":443"}[place.scheme])
        # Who knows the path of a hook may use it.
        super().__init__("webhook", shown + ("/***" if place.path.strip("/") else ""), MOST_EVENTS, tell=tell)

    def _deliver(self, item: Event) -> None:
        body = json.dumps(item.record(), allow_nan=False).encode()
        failed = 0
        for pause in pauses(random.random):
            closing = self._closing
            status, why = self._posted(body)
            if 200 <= status < 300:
                self._say("events arrive")
                return self._settle()
            failed += status >= 500 and status not in _BUSY
            if status and status not in _BUSY and (status < 500 or failed == _TRIES):
                self._say(f"refused: {why}")
                return self._settle("refused")
            self._say(f"no event arrives, it is tried again: {why}")
            with self._news:  # at the end once more at once
                self._news.wait_for(lambda: self._over or self._closing != closing, pause)  # noqa: B023
            if self._over:
                return None

    def _posted(self, body: bytes) -> tuple[int, str]:
        """The status of the answer, 0 without one, and a word on it."""
        request = urllib.request.Request(self._url, body, self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as answer:
                return int(answer.status), ""
        except urllib.error.HTTPError as error:
            error.close()
            known = error.code in HTTPStatus._value2member_map_
            moved = "; give the address that it moved to" if 300 <= error.code < 400 else ""
            return error.code, f"{error.code} {HTTPStatus(error.code).phrase if known else ''}".strip() + moved
        except urllib.error.URLError as error:
            return 0, cause_of(error.reason if isinstance(error.reason, BaseException) else error)
        except (OSError, http.client.HTTPException) as error:
            return 0, cause_of(error)


class _Stays(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: events and their login are for the address that the user gave."""

    def redirect_request(self, *_: object) -> None:
        return None
