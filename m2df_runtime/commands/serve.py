"""`m2df-run serve`: the page and the HTTP interface."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from m2df_runtime.commands.console import emit, say
from m2df_runtime.commands.entry import INTERRUPTED
from m2df_runtime.commands.options import EngineOptions, Reject, engine_options, reject_options
from m2df_runtime.errors import EnvironmentMissing, InputError

if TYPE_CHECKING:
    import socket

    from m2df_runtime.serve.server import Server

_GRACE = 0.9  # seconds from a signal to the end, whatever does not let go
_SHORTEST_TOKEN = 16  # characters
_LOOPBACK = ("localhost", "::1")

EPILOG = """
\b
Examples:
  m2df-run serve                                      the demo actions, at http://127.0.0.1:8000/
  m2df-run serve --support actions                    your own; the folder need not be there yet
  M2DF_TOKEN=… m2df-run serve --support actions --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
"""


@click.command("serve", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--support",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE",
    help="Support folder, made by the first teaching, or a bank file. [default: a copy of the demo actions]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--token",
    envvar="M2DF_TOKEN",
    metavar="TEXT",
    help="What clients must know; at least 16 characters. [default: $M2DF_TOKEN; none before this machine alone]",
)
@click.option("--name", "names", multiple=True, metavar="HOST", help="A name that browsers call it by; repeatable.")
@click.option("--tls-cert", type=click.Path(path_type=Path), metavar="PEM", help="Certificate, for https.")
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="PEM", help="Its key.")
@click.option(
    "--uploads-per-minute", type=click.IntRange(1), default=600, show_default=True, help="Of one client's address."
)
@reject_options
@engine_options
def serve(
    support: Path | None,
    host: str,
    port: int,
    token: str | None,
    names: tuple[str, ...],
    tls_cert: Path | None,
    tls_key: Path | None,
    uploads_per_minute: int,
    reject: Reject,
    miss_rate: float | None,
    **options: Any,  # noqa: ANN401 - click's options by name
) -> None:
    """Serve a page to teach and try actions with a browser's camera, and the same over HTTP."""
    _check(host, token, tls_cert, tls_key)
    try:
        import fastapi  # noqa: F401
        import multipart  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise EnvironmentMissing(f"the server needs {error.name}", "pip install 'm2df[serve]'") from None
    from m2df_runtime import Support
    from m2df_runtime.serve.access import Access
    from m2df_runtime.serve.app import App
    from m2df_runtime.serve.limits import Limits
    from m2df_runtime.serve.logs import log_json_lines
    from m2df_runtime.serve.server import Server, listening
    from m2df_runtime.serve.service import Service

    limits = Limits(uploads_per_minute=uploads_per_minute)
    with ExitStack() as held:
        sock = held.enter_context(listening(host, port))
        place = support or _demo(held)
        model = EngineOptions.taken_from(options).load()
        service = Service(Support(place, model), limits, reject=reject, miss_rate=miss_rate)
        held.callback(service.close)
        certificate = (tls_cert, tls_key) if tls_cert and tls_key else None
        server = Server(App(service, Access(token, names)), limits, certificate)
        if not support:
            say("these are the demo actions; what you teach is gone at the end: --support DIR keeps it")
        log_json_lines()
        _run(server, sock, f"{'https' if certificate else 'http'}://{_shown(host)}:{sock.getsockname()[1]}/")


def _check(host: str, token: str | None, tls_cert: Path | None, tls_key: Path | None) -> None:
    """Raises InputError or UsageError for options that would let in whom nobody wants."""
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    if token is not None and (len(token) < _SHORTEST_TOKEN or not (token.isascii() and token.isprintable())):
        raise InputError(
            f"a token has at least {_SHORTEST_TOKEN} plain characters",
            "openssl rand -hex 16 makes one; give it as M2DF_TOKEN in the environment",
        )
    if token is None and not (host in _LOOPBACK or host.startswith("127.")):
        raise InputError(
            f"{host} is reached from other machines, and nobody would be asked for a token",
            "set M2DF_TOKEN to a secret of at least 16 characters, or leave --host out",
        )


def _demo(held: ExitStack) -> Path:
    """A copy of the shipped actions, which goes at the end."""
    from m2df_runtime.bundle.shipped import demo_support

    shipped = demo_support()
    if not shipped.is_dir():
        raise InputError("this installation has no demo clips", "use --support DIR")
    place = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="m2df-demo-")), "actions")
    return Path(shutil.copytree(shipped, place, ignore=shutil.ignore_patterns(".m2df")))


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _run(server: Server, sock: socket.socket, address: str) -> None:
    """Answer until SIGTERM, or Ctrl-C, which raises KeyboardInterrupt."""

    def stop() -> None:
        server.should_exit = True

    with _until_signal(stop):
        emit(f"serving at {address}")
        server.run([sock])


@contextmanager
def _until_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at SIGINT or SIGTERM, and end the process where that takes too long or is asked again."""
    came: list[int] = []

    def asked(number: int, frame: FrameType | None) -> None:
        code = INTERRUPTED if number == signal.SIGINT else 0
        if came:
            os._exit(code)
        came.append(number)
        late = threading.Timer(_GRACE, os._exit, (code,))
        late.daemon = True
        late.start()
        stop()

    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = [number for number, handler in kept.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, asked)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, kept[number])
    if signal.SIGINT in came:
        raise KeyboardInterrupt
