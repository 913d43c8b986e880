"""Processes in which uploads are decoded: a file that is made to crash or to go on for ever ends one of them alone."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.match.reading import ReadClip
from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.serve.limits import Limits
from m2df_runtime.serve.problems import Refused, unstored

SECRETS = ("M2DF_TOKEN",)  # in the environment, and of no use to a decoder
_START_SECONDS = 120.0  # a loaded machine takes long to load libraries
_LONGEST_SAID = 1 << 20
_MOST_ARRAY = 1 << 30  # bytes: `ClipSpec` bounds what a model sees


class Workers:
    """A few processes that decode, each started when it is needed and replaced when it ended.

    Args:
        count: How many.
        limits: Seconds and memory of each.
    """

    def __init__(self, count: int, limits: Limits) -> None:
        self._limits = limits
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(None)
        self._living: set[_Worker] = set()
        self._closed = False
        self._changing = threading.Lock()

    def warm(self) -> None:
        """Start one, so that the first upload does not wait for it."""
        worker = self._idle.get()
        self._idle.put(worker or self._started())

    def close(self) -> None:
        """End all, whatever they do."""
        with self._changing:
            self._closed = True
            living = [*self._living]
        for worker in living:
            worker.kill()  # whoever waits for it tidies up

    def read(self, path: Path, name: str, spec: ClipSpec, look: ClipSpec | None) -> ReadClip:
        """A clip as a model sees it, called `name`.

        Raises:
            Refused: It cannot be read, is too long, or takes too much time or memory.
        """
        asked = {
            "do": "read",
            "path": os.fspath(path),
            "spec": spec.model_dump(),
            "look": look.model_dump() if look else None,
        }
        said, arrays = self._asked(name, asked)
        frames = arrays[1] if len(arrays) > 1 else None
        return ReadClip(name, arrays[0], said["decode"], said["preprocess"], frames, said["seconds"], said["single"])

    def keep(
        self,
        name: str,
        target: Path,
        stem: str,
        *,
        path: Path | None = None,
        frames: Sequence[Path] = (),
        times: Sequence[float] = (),
        trim: bool,
        cut: float | None = None,
    ) -> list[Path]:
        """Clips written by ourselves, from a file or from frames of a browser.

        Args:
            name: What messages call it.
            target: The folder for them.
            stem: Their name, which gets numbers where there are several.
            path: The file.
            frames: JPEG files.
            times: Seconds of each.
            trim: Cut off the ends in which nothing moves.
            cut: Seconds of the pieces that it is cut into.

        Raises:
            Refused: As `read`, or nothing moves.
        """
        asked = {
            "do": "keep",
            "path": os.fspath(path) if path else None,
            "frames": [os.fspath(frame) for frame in frames],
            "times": list(times),
            "target": os.fspath(target),
            "stem": stem,
            "trim": trim,
            "cut": cut,
        }
        said, _ = self._asked(name, asked)
        return [target / file for file in said["files"]]

    def unpack(self, file: Path, target: Path) -> list[Path]:
        """The clips of a zip, in a new folder.

        Raises:
            Refused: As `archive.unpack`, or it takes too much time or memory.
        """
        asked = {"do": "unpack", "path": os.fspath(file), "target": os.fspath(target)}
        said, _ = self._asked("the zip", {**asked, "most": self._limits.import_bytes})
        return [target / clip for clip in said["files"]]

    def _asked(self, name: str, asked: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
        seconds = self._limits.decode_seconds
        asked |= {"seconds": self._limits.clip_seconds, "alarm": int(seconds) + 5}
        worker = self._idle.get()
        try:
            worker = worker if worker and worker.lives else self._started()
            said, arrays = worker.ask(asked, seconds)
        except (EOFError, OSError):
            self._end(worker)
            worker = None
            if self._closed:
                raise Refused(503, "ending", "the server ends") from None
            message = f"{name}: decoding it ended the process that did it"
            raise Refused(422, "clip", message, "the file is damaged, or made to do harm") from None
        except _TooSlow:
            self._end(worker)
            worker = None
            raise Refused(422, "too_slow", f"{name}: decoding it takes more than {seconds:g} s", "shorten it") from None
        finally:
            self._idle.put(worker)
        if "error" not in said:
            return said, arrays
        raise _told(name, said)

    def _started(self) -> _Worker:
        worker = _Worker(self._limits.decode_bytes)
        with self._changing:
            if self._closed:
                worker.kill()
                raise Refused(503, "ending", "the server ends")
            self._living.add(worker)
        return worker

    def _end(self, worker: _Worker | None) -> None:
        if worker:
            worker.kill()
            worker.close()
            with self._changing:
                self._living.discard(worker)


class _TooSlow(Exception):
    """A worker did not answer in time."""


class _Worker:
    def __init__(self, memory: int) -> None:
        ours, theirs = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
        # Each thread of a numeric library reserves memory, of which there is little; one is what a clip needs.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "m2df_runtime.serve.decoding", str(theirs.fileno()), str(memory)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment,
            )
        self._connection = Connection(ours.detach())
        self._ready = False

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def ask(self, asked: dict[str, Any], seconds: float) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
        """Raises EOFError or OSError where it ended, _TooSlow where it takes longer."""
        if not self._ready:
            self._wait(_START_SECONDS)
            self._connection.recv_bytes(_LONGEST_SAID)
            self._ready = True
        self._connection.send_bytes(json.dumps(asked).encode())
        self._wait(seconds)
        said = json.loads(self._connection.recv_bytes(_LONGEST_SAID))
        arrays = []
        for shape in said["shapes"]:
            data = self._connection.recv_bytes(_MOST_ARRAY)
            arrays.append(np.frombuffer(data, np.uint8).reshape(shape))
        return said, arrays

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self._connection.close()

    def _wait(self, seconds: float) -> None:
        if not self._connection.poll(seconds):
            raise _TooSlow


def _told(name: str, said: dict[str, Any]) -> Refused:
    kind, reason, hint = said["error"], said["reason"], said["hint"]
    if kind == "memory":
        return Refused(413, "too_large", f"{name}: {reason}", "scale it down, or shorten it")
    if kind == "storage":
        return unstored(OSError(said["errno"], reason))
    return Refused(said.get("status", 422), kind, f"{name}: {reason}", hint)
