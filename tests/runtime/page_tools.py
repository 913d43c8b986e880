"""A browser's camera that plays clips, and a server in a process of its own, for tests and pictures of the page."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps

from m2df_runtime.bundle.shipped import demo_support
from m2df_runtime.clips.opening import open_source

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 240_000  # milliseconds that a browser waits, for busy machines


class Camera:
    """The file that the browser's camera plays, over and over from the moment at which it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def options(self) -> list[str]:
        """What Chromium is started with to have it. Nobody is asked; who was granted a camera has one."""
        device = ["--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={self.path}"]
        return [*device, "--deny-permission-prompts"]

    def plays(self, *clips: Path) -> None:
        """Show these clips, one after the other, from the next time on that the camera is opened."""
        with io.BytesIO() as film:
            for clip in clips:
                source = open_source(clip)
                for frame in source.read(range(source.n_frames)):
                    whole = ImageOps.pad(Image.fromarray(frame), (320, 240), color=(40, 40, 40))
                    whole.save(film, "JPEG", quality=90)
            new = self.path.with_suffix(".new")
            new.write_bytes(film.getvalue())
        os.replace(new, self.path)


class Server:
    """`m2df-run serve` in a process of its own, at one address through all its lives."""

    def __init__(self, support: Path, *options: str) -> None:
        self.support, self.options = support, options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "m2df_runtime.commands.run", "serve", "--support", str(self.support)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), *self.options],
            stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        self.said: list[str] = []
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()
        while not self._ready():
            assert self.process.poll() is None, "\n".join(self.said)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr
        self.said.extend(process.stderr)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}readyz", timeout=30) as answer:
                return answer.status == 200
        except OSError:
            return False

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE / 1000)


@contextmanager
def serving(support: Path, *options: str) -> Iterator[Server]:
    server = Server(support, *options)
    try:
        yield server
    finally:
        server.stop()


def clip_of(label: str, number: int = 1) -> Path:
    """A shipped support clip."""
    return demo_support() / label / f"{number}.mp4"
