"""A real server on a free port of this machine, in a thread of the test's own process."""

from __future__ import annotations

import io
import json
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
from live_servers import LONGEST
from PIL import Image
from tiny_bundle import COLOURS
from websockets.sync.client import ClientConnection, connect

from m2df_runtime import LabelRules, Model, Support
from m2df_runtime.serve.access import Access
from m2df_runtime.serve.app import App
from m2df_runtime.serve.cameras import WatchedCameras
from m2df_runtime.serve.limits import Limits
from m2df_runtime.serve.server import Server, listening
from m2df_runtime.serve.service import Service
from m2df_runtime.stream.camera_file import read_cameras

TOKEN = "a secret of tests"


@dataclass(frozen=True)
class Served:
    """A server that answers: what it does, its port, and a client of it."""

    service: Service
    port: int
    client: httpx2.Client

    def live(self, query: str = "", **options: object) -> ClientConnection:
        return connect(f"ws://127.0.0.1:{self.port}/v1/live?{query}", proxy=None, open_timeout=LONGEST, **options)  # type: ignore[arg-type]


@contextmanager
def serving(
    model: Model,
    support: Path,
    *,
    token: str | None = None,
    names: Sequence[str] = (),
    cameras: Path | None = None,
    rules: LabelRules | None = None,
    **limits,
) -> Iterator[Served]:
    bounds = Limits(**limits)
    service = Service(Support(support, model, rules), bounds)
    watched = WatchedCameras(service, read_cameras(cameras)) if cameras else None
    server = Server(App(service, Access(token, names), watched), bounds)
    with listening("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
        thread.start()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with httpx2.Client(
            base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=LONGEST, trust_env=False
        ) as client:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield Served(service, port, client)
        server.should_exit = True
        thread.join()
        if watched:
            watched.stop()
        service.close()


def picture(colour: str, at: float, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """A square of one colour on its way across a dark picture, uint8 [H, W, 3]; `at` from 0 to 1."""
    width, height = size
    side = height // 3
    frame = np.full((height, width, 3), 10, np.uint8)
    left = round((width - side) * at)
    frame[side : 2 * side, left : left + side] = COLOURS[colour]
    return frame


def jpeg(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def recording(colour: str, count: int = 15, still: int = 0, fps: float = 15.0) -> dict[str, object]:
    """What a browser sends of a recording: frames, of which so many at both ends are still, and their times."""
    places = [0.0] * still + [n / (count - 1) for n in range(count)] + [1.0] * still
    files = [("frames", (f"{n}.jpg", jpeg(picture(colour, at)), "image/jpeg")) for n, at in enumerate(places)]
    return {"files": files, "data": {"times": json.dumps([n / fps for n in range(len(places))])}}


def message(time: float, frame: np.ndarray) -> bytes:
    """A frame as a live session takes it."""
    return struct.pack("<d", time) + jpeg(frame)
