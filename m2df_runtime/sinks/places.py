"""Where events are sent to: addresses of brokers and web servers, without their secrets in any message."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from m2df_runtime.errors import InputError
from m2df_runtime.stream.sources.addresses import UNREACHABLE, filled_in, masked


@dataclass(frozen=True)
class Place:
    """An address, taken apart.

    Attributes:
        scheme: In small letters.
        host: Name or number.
        port: Of the host.
        path: What follows, escaped, with a query.
        user: Not escaped; None where there is none.
        password: Likewise.
        shown: What messages call it.
    """

    scheme: str
    host: str
    port: int
    path: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    shown: str = ""


def place_of(address: str, ports: Mapping[str, int], example: str) -> Place:
    """An address with `${NAME}` taken from the environment.

    Args:
        address: As the user gave it.
        ports: Of each scheme that is known, where the address names none.
        example: Of an address as it should be.

    Raises:
        InputError: It is of another kind, or names no host, or a variable is not there.
    """
    shown = masked(address)
    if address.partition("://")[0].lower() not in ports or "://" not in address:
        kinds = " or ".join(f"{scheme}://" for scheme in ports)
        raise InputError(f"{shown}: the address does not begin with {kinds}", f"for example {example}")
    try:
        parts = urlsplit(filled_in(address), allow_fragments=False)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:  # of the port, the brackets or the name
        host, port = "", None
    if not host or any(character.isspace() for character in host):
        raise InputError(f"{shown}: the address names no host", f"for example {example}")
    path = quote(parts.path + (f"?{parts.query}" if parts.query else ""), safe="/?&=%:;,@!$*'()+~")
    user, password = (None if one is None else unquote(one) for one in (parts.username, parts.password))
    return Place(parts.scheme, host, ports[parts.scheme] if port is None else port, path, user, password, shown)


def cause_of(error: BaseException) -> str:
    """Why nobody answers, in the words that are used of cameras. The text of an error may hold an address."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "verify_message", None) or error.reason
        return f"TLS ({reason}; $SSL_CERT_FILE names other certificates to trust)"
    if isinstance(error, socket.gaierror):
        return "not found (no such host)"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, OSError) and error.errno in UNREACHABLE:
        return "unreachable"
    reason = error.strerror if isinstance(error, OSError) else None
    return f"closed ({reason or type(error).__name__})"
