"""Cameras of `cameras.yaml` that a server watches: their events go to whoever reads them, their states are told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from m2df_runtime.errors import printable
from m2df_runtime.serve.service import Service
from m2df_runtime.stream.camera_file import Camera
from m2df_runtime.stream.sources.live import SourceState
from m2df_runtime.stream.stream import Stream

_log = logging.getLogger(__name__)


class WatchedCameras:
    """Cameras, each on a thread of its own from now on.

    Args:
        service: What answers, and takes events.
        cameras: They.

    Raises:
        Refused: Nothing is taught.
        InputError: One action is, or a camera's options contradict each other.
        ClipError: A recording in a camera's place cannot be read.
    """

    def __init__(self, service: Service, cameras: Sequence[Camera]) -> None:
        self._service = service
        self._states = {  # a recording tells of none
            camera.name: SourceState(camera.name, "running" if isinstance(camera.source, Path) else "connecting")
            for camera in cameras
        }
        self._telling = threading.Lock()
        self._streams = [Stream.of_camera(service.matcher, camera, camera.frames(self._became)) for camera in cameras]
        for stream in self._streams:
            service.metrics.watch(stream)
            threading.Thread(target=self._follow, args=(stream,), name="m2df camera", daemon=True).start()

    def stop(self) -> None:
        """Watch them no more."""
        for stream in self._streams:
            stream.stop()

    def records(self) -> list[dict[str, object]]:
        """How each is."""
        with self._telling:
            states = [*self._states.values()]
        return [{"name": s.name, "state": s.state, "cause": s.cause, "picture": s.picture} for s in states]

    def _became(self, state: SourceState) -> None:
        self._service.metrics.state(state)
        with self._telling:
            before, self._states[state.name] = self._states[state.name], state
        if (before.state, before.cause, before.picture) != (state.state, state.cause, state.picture):
            _log.info("%s", state.text())

    def _follow(self, stream: Stream) -> None:
        try:
            with closing(stream.steps()) as steps:
                for step in steps:
                    self._service.metrics.step(step)
                    for event in step.events:
                        self._service.board.tell(event.record())
            self._became(SourceState(stream.name, "ended"))
        except Exception as error:  # whatever it is, it stops this camera alone
            _log.error("%s: %s", printable(stream.name), error, exc_info=error)
            self._became(SourceState(stream.name, "failed"))
