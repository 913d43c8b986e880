"""Addresses of cameras, and how messages name them: never with a password."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from urllib.parse import quote

from m2df_runtime.errors import InputError

UNREACHABLE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN})
"""Numbers of errors that say that no way leads to an address."""

SCHEMES = ("rtsp", "http", "https", "udp", "tcp")

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# Some take it as ?password=..., some as a part of the path: /user=admin_password=..._channel=1.
_SECRET = re.compile(
    r"((?:pass(?:w(?:or)?d|phrase)?|pwd|psw|token|secret|api_?key|key|auth\w*?|credential\w*|sig(?:nature)?)=)[^&;/#]+",
    re.IGNORECASE,
)
_HIDDEN = "***"
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def is_address(text: str) -> bool:
    """Whether it is a URL, of whatever kind, and no path."""
    return _ADDRESS.match(text) is not None


def masked(text: str) -> str:
    """An address as messages, events and records name it: passwords and tokens are three stars.

    A password that is not escaped as it should be may hold any character, so everything before the last @ is one.
    """
    found = _ADDRESS.match(text)
    if not found:
        return text
    scheme, rest = found.groups()
    login, at, place = rest.rpartition("@")
    place = at + place
    if login:
        user, colon, _ = login.partition(":")
        place = f"{user}:{_HIDDEN}{place}" if colon else f"{_HIDDEN}{place}"
    return f"{scheme}://{_SECRET.sub(lambda secret: secret[1] + _HIDDEN, place)}"


def checked_address(text: str) -> str:
    """The address of a camera.

    Raises:
        InputError: It is of another kind, or names no host.
    """
    found = _ADDRESS.match(text)
    scheme, rest = found.groups() if found else ("", "")
    if scheme.lower() not in SCHEMES:
        kinds = ", ".join(f"{known}://" for known in SCHEMES)
        raise InputError(f"{masked(text)}: not an address that is read", f"those of cameras begin with {kinds}")
    if not rest.strip("/@:?"):
        raise InputError(f"{masked(text)}: the address names no host", "for example rtsp://192.168.1.20/stream1")
    return f"{scheme.lower()}://{rest}"


def filled_in(address: str) -> str:
    """The address with `${NAME}` replaced by that variable of the environment, escaped: `ps` shows no password then.

    Raises:
        InputError: There is no such variable.
    """

    def value(found: re.Match[str]) -> str:
        text = os.environ.get(found[1])
        if text is None:
            raise InputError(f"{masked(address)}: ${{{found[1]}}} is not in the environment", f"export {found[1]}=…")
        return quote(text, safe="")

    return _VARIABLE.sub(value, address)


def device_number(query: Path | str) -> int | None:
    """The number of a device camera; None where it is no number."""
    text = str(query)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else None
