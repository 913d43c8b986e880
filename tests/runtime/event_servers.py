"""Who takes events, really: a mosquitto broker that can be stopped and started, its listener, and a web server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from live_servers import CERTIFICATE, LONGEST, closed_port, encrypted

_MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def until(found: Callable[[], object]) -> None:
    """Wait for what becomes true, whatever the machine."""
    deadline = time.monotonic() + LONGEST
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Heard:
    """What came so far, and waiting for more."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._news:
            self.lines.append(line)
            self._news.notify_all()

    def wait_for(self, found: Callable[[list[str]], object]) -> None:
        with self._news:
            assert self._news.wait_for(lambda: bool(found(self.lines)), LONGEST), self.lines


class Broker:
    """mosquitto on a port of loopback; with a user it asks for that name and password, secure for a certificate."""

    def __init__(self, folder: Path, user: tuple[str, str] | None = None, *, secure: bool = False) -> None:
        if _MOSQUITTO is None:
            pytest.skip("needs the broker mosquitto: apt-get install mosquitto")
        self.port = closed_port()
        self._secure, self._user = secure, user
        lines = ["user root", f"listener {self.port} 127.0.0.1", "persistence false"]
        if user:
            subprocess.run(["mosquitto_passwd", "-b", "-c", str(folder / "users"), *user], check=True)
            lines += ["allow_anonymous false", f"password_file {folder / 'users'}"]
        else:
            lines += ["allow_anonymous true"]
        if secure:
            lines += [f"certfile {CERTIFICATE}", f"keyfile {CERTIFICATE}"]
        self._config = folder / "mosquitto.conf"
        self._config.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = subprocess.DEVNULL
        self._process = subprocess.Popen([str(_MOSQUITTO), "-c", str(self._config)], stdout=log, stderr=log)

    def freeze(self) -> None:
        """Stay connected and answer nothing more."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """A client of its own that hears every topic."""
        from paho.mqtt.client import CallbackAPIVersion, Client

        heard = Listener()
        client = Client(CallbackAPIVersion.VERSION2)
        if self._user:
            client.username_pw_set(*self._user)
        if self._secure:
            client.tls_set_context(ssl.create_default_context(cafile=str(CERTIFICATE)))
        ready = threading.Event()
        client.reconnect_delay_set(1, 1)
        client.on_connect = lambda *_: client.subscribe("#", qos=1)
        client.on_subscribe = lambda *_: ready.set()
        client.on_message = lambda _, __, message: heard.take(message.topic, message.payload)
        client.connect_async("localhost" if self._secure else "127.0.0.1", self.port)
        client.loop_start()
        assert ready.wait(LONGEST)
        try:
            yield heard
        finally:
            client.disconnect()
            client.loop_stop()


class Listener:
    """Messages by topic, in the order in which they came."""

    def __init__(self) -> None:
        self.all: list[tuple[str, object]] = []
        self._news = threading.Condition()

    def take(self, topic: str, payload: bytes) -> None:
        text = payload.decode()
        with self._news:
            self.all.append((topic, json.loads(text) if text.startswith("{") else text))
            self._news.notify_all()

    def of(self, topic: str) -> list[object]:
        return [said for name, said in self.all if name == topic]

    def wait_for(self, topic: str, found: Callable[[list], object]) -> list:
        with self._news:
            assert self._news.wait_for(lambda: bool(found(self.of(topic))), LONGEST), self.all
        return self.of(topic)


class Hook(ThreadingHTTPServer):
    """Takes POST requests, answers each with the next status, the last again and again."""

    daemon_threads = True

    def __init__(self, *statuses: int, location: str = "", port: int = 0, secure: bool = False) -> None:
        self.statuses, self.location = list(statuses), location
        self.got: list[tuple[str, dict[str, str], object]] = []
        super().__init__(("127.0.0.1", port), _HookSession)
        if secure:
            self.socket = encrypted(self.socket)
        self._secure = secure

    def url(self, path: str = "/", login: str = "") -> str:
        scheme, host = ("https", "localhost") if self._secure else ("http", "127.0.0.1")
        return f"{scheme}://{login}{host}:{self.server_address[1]}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is none."""

    def __enter__(self) -> Hook:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _HookSession(BaseHTTPRequestHandler):
    server: Hook

    def log_message(self, *args: object) -> None:
        """Not on the tests' output."""

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = server.statuses[min(len(server.got), len(server.statuses) - 1)]
        server.got.append((self.path, dict(self.headers), body))
        self.send_response(status)
        if server.location:
            self.send_header("Location", server.location)
        self.send_header("Content-Length", "0")
        self.end_headers()
