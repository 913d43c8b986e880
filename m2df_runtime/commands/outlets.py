"""`--mqtt`, `--webhook`, `--metrics-port` and clips of cameras: what hears of events besides standard output."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from m2df_runtime.commands.console import say
from m2df_runtime.commands.recordings import RecordingOptions, clip_folder
from m2df_runtime.sinks.sink import FLUSH

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from m2df_runtime import Event, Matcher, Stream
    from m2df_runtime.clips.source import FrameSource
    from m2df_runtime.sinks.clips import LiveClips
    from m2df_runtime.sinks.metrics import Metrics
    from m2df_runtime.sinks.sink import Sink
    from m2df_runtime.stream.sources.live import SourceState
    from m2df_runtime.stream.sources.timed import TimedFrames
    from m2df_runtime.stream.stream import Step

_HURRY = 0.3  # of the second in which the process has ended after a signal


class Outlets:
    """Those that the options name, opened.

    Args:
        options: Of m2df-run.
        matcher: What answers.
        clips: Whether clips of events are written here.

    Raises:
        InputError: An address that is none, or a port that is in use.
        EnvironmentMissing: A package that one of them needs is not installed.
        OSError: The folder of clips cannot be made.
    """

    def __init__(self, options: RecordingOptions, matcher: Matcher, *, clips: bool) -> None:
        self._events: list[Sink[Event]] = []
        self._states: list[Callable[[SourceState], None]] = []
        self._clips: LiveClips | None = None
        self._recordings: dict[str, FrameSource] = {}
        self._metrics: Metrics | None = None
        self._server: WSGIServer | None = None
        self._folder = clip_folder(options) if clips else None
        if options.metrics_port is not None:
            from m2df_runtime.sinks.metrics import Metrics

            self._metrics = Metrics(matcher.model)
            self._server = self._metrics.serve(options.metrics_port, options.metrics_host or "127.0.0.1")
            self._states.append(self._metrics.state)
        if self._folder:
            from m2df_runtime.sinks.clips import LiveClips

            self._clips = LiveClips(self._folder, say)
        if options.webhook:
            from m2df_runtime.sinks.webhook import Webhook

            self._events.append(Webhook(options.webhook, say))
        if options.mqtt:
            from m2df_runtime.sinks.mqtt import Mqtt

            mqtt = Mqtt(options.mqtt, say)
            self._events.append(mqtt)
            self._states.append(mqtt.state)
        self._sinks: list[Sink[Any]] = [*self._events, *([self._clips] if self._clips else [])]
        if self._metrics:
            for sink in self._sinks:
                self._metrics.watch_sink(sink)

    def camera(self, source: TimedFrames) -> TimedFrames:
        """The source to read in place of a camera."""
        return self._clips.of(source) if self._clips else source

    def recording(self, source: FrameSource) -> FrameSource:
        """The source to read in place of a recording."""
        self._recordings[source.name] = source
        return source

    def watch(self, stream: Stream) -> None:
        """Tell of a stream's frames."""
        if self._metrics:
            self._metrics.watch(stream)

    def state(self, state: SourceState) -> None:
        """How a camera is now."""
        for hear in self._states:
            hear(state)

    def step(self, step: Step) -> None:
        """What one window said.

        Raises:
            OSError: The clip of a recording cannot be written.
            ClipError: The recording cannot be read.
        """
        if self._metrics:
            self._metrics.step(step)
        for event in step.events:
            for sink in self._events:
                sink.put(event)
            if event.type == "end" and self._clips and self._folder:
                if event.camera in self._recordings:
                    self._folder.save(event, self._recordings[event.camera])
                else:
                    self._clips.add(event)

    def close(self, *, hurry: bool) -> None:
        """Deliver what waits, and say what became of everything. Idempotent.

        Args:
            hurry: Whether somebody waits for the end.
        """
        sinks, self._sinks = self._sinks, []
        deadline = time.monotonic() + (_HURRY if hurry else FLUSH)
        for sink in sinks:
            sink.close(max(0.0, deadline - time.monotonic()))
            say(sink.text())
        server, self._server = self._server, None
        if server and not hurry:  # it takes half a second to hear of it, and ends with the process, too
            server.shutdown()
            server.server_close()

    def __enter__(self) -> Outlets:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(hurry=error is not None)
