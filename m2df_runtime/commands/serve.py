"""`m2df-run serve`: the page and the HTTP interface."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2df_runtime.commands.console import emit, say
from m2df_runtime.commands.options import (
    EngineOptions,
    Reject,
    TextOptions,
    check_miss_rate,
    engine_options,
    reject_options,
    say_engine,
    text_options,
)
from m2df_runtime.commands.until_signal import until_signal
from m2df_runtime.errors import EnvironmentMissing, InputError

if TYPE_CHECKING:
    import socket

    from m2df_runtime.serve.cameras import WatchedCameras
    from m2df_runtime.serve.server import Server
    from m2df_runtime.serve.service import Service

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
@click.option(
    "--cameras", type=click.Path(path_type=Path), metavar="YAML", help="Also watch the cameras that a file describes."
)
@reject_options
@text_options
@engine_options
def serve(**options: Any) -> None:  # noqa: ANN401 - click hands over every option by name
    """Serve a page to teach and try actions with a browser's camera, and the same over HTTP."""
    engine, texts = EngineOptions.taken_from(options), TextOptions.taken_from(options)
    _serve(ServeOptions(**options, texts=texts), engine)


@dataclass(frozen=True)
class ServeOptions:
    """The options of m2df-run serve."""

    support: Path | None
    host: str
    port: int
    token: str | None
    names: tuple[str, ...]
    tls_cert: Path | None
    tls_key: Path | None
    uploads_per_minute: int
    cameras: Path | None
    reject: Reject
    miss_rate: float | None
    texts: TextOptions

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise click.UsageError("--tls-cert and --tls-key go together")
        check_miss_rate(self.miss_rate, self.reject)

    @property
    def certificate(self) -> tuple[Path, Path] | None:
        return (self.tls_cert, self.tls_key) if self.tls_cert and self.tls_key else None


def _serve(options: ServeOptions, engine: EngineOptions) -> None:
    """Do the job. Raises InputError or EnvironmentMissing."""
    _check(options)
    try:
        import fastapi  # noqa: F401
        import httptools  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise EnvironmentMissing(f"the server needs {error.name}", "pip install 'm2df[serve]'") from None
    from m2df_runtime import Support
    from m2df_runtime.serve.access import Access
    from m2df_runtime.serve.app import App
    from m2df_runtime.serve.limits import Limits
    from m2df_runtime.serve.logs import log_lines
    from m2df_runtime.serve.server import Server, listening
    from m2df_runtime.serve.service import Service

    limits = Limits(uploads_per_minute=options.uploads_per_minute)
    with ExitStack() as held:
        sock = held.enter_context(listening(options.host, options.port))
        model = engine.load()
        say_engine(model)
        support = Support(options.support or _demo(held), model, options.texts.rules(model))
        service = Service(support, limits, reject=options.reject, miss_rate=options.miss_rate)
        held.callback(service.close)
        if taught := service.labels:  # else it is taught later
            options.texts.warn_unmatched(taught)
        watched = _watched(service, options.cameras, held) if options.cameras else None
        server = Server(App(service, Access(options.token, options.names), watched), limits, options.certificate)
        if not options.support:
            say("these are the demo actions; what you teach is gone at the end: --support DIR keeps it")
        log_lines()
        kind = "https" if options.certificate else "http"
        _run(server, sock, f"{kind}://{_shown(options.host)}:{sock.getsockname()[1]}/")


def _check(options: ServeOptions) -> None:
    """Raises InputError for options that would let in whom nobody wants."""
    host, token = options.host, options.token
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


def _watched(service: Service, path: Path, held: ExitStack) -> WatchedCameras:
    """The cameras of a file, until the end."""
    from m2df_runtime.serve.cameras import WatchedCameras
    from m2df_runtime.serve.problems import Refused
    from m2df_runtime.stream.camera_file import read_cameras

    cameras = read_cameras(path)
    try:
        watched = WatchedCameras(service, cameras)
    except Refused as error:
        raise InputError(f"--cameras: {error.message}", "teach two actions first: bank add, or the page") from None
    held.callback(watched.stop)
    return watched


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

    with until_signal(stop):
        emit(f"serving at {address}")
        server.run([sock])
