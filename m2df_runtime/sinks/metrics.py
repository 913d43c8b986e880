"""What Prometheus asks of a process that goes on for months: frames, windows, events, times, and how cameras are.

Counted here and not in prometheus-client's own counters, which would add a series to each that says when it was made.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast, get_args

from m2df_runtime import __version__
from m2df_runtime.errors import EnvironmentMissing, InputError
from m2df_runtime.match.results import Timings
from m2df_runtime.sinks.sink import Dropped, Sink
from m2df_runtime.stream.picture_states import PictureState
from m2df_runtime.stream.sources.live import SourceState
from m2df_runtime.stream.stream import Step, Stream

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import Metric
    from prometheus_client.registry import Collector

    from m2df_runtime.backends.model import Model

# Seconds: a quarter of what the shipped model takes for one window to what no camera can wait for.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Metrics of one process, in a registry of their own. For any number of threads.

    Args:
        model: What answers; said in `m2df_build_info`.

    Attributes:
        registry: A `prometheus_client.CollectorRegistry`, in which others may register what they count.

    Raises:
        EnvironmentMissing: prometheus-client is not installed.

    Examples:
        >>> import m2df_runtime as m2df
        >>> from m2df_runtime.sinks.metrics import Metrics
        >>> model = m2df.load()
        >>> metrics = Metrics(model)
        >>> stream = m2df.Stream(m2df.Matcher(model, m2df.SupportBank.of(model, "actions")), "clip.mp4", window=1.0)
        >>> metrics.watch(stream)
        >>> for step in stream.steps():
        ...     metrics.step(step)
        >>> b'm2df_events_total{label="clap"} 1.0' in metrics.page()[0]
        True
    """

    def __init__(self, model: Model) -> None:
        try:
            from prometheus_client import CollectorRegistry
        except ImportError:
            raise EnvironmentMissing(
                "metrics need prometheus-client, which is not installed", "pip install 'm2df[metrics]'"
            ) from None
        self.registry = CollectorRegistry(auto_describe=False)
        self._build = {"version": __version__, "backend": model.backend, "precision": model.precision}
        self._streams: list[Stream] = []
        self._sinks: list[Sink[Any]] = []
        self._stages: dict[str, list[int]] = {}  # windows of each bucket, and of all above
        self._seconds: Counter[str] = Counter()
        self._windows: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._up: dict[str, bool] = {}
        self._pictures: dict[str, PictureState | None] = {}
        self._reconnects: Counter[str] = Counter()
        self._counting = threading.Lock()
        self.registry.register(cast("Collector", self))  # which it is, without loading the package for its name

    def watch(self, stream: Stream) -> None:
        """Tell of a stream's frames from now on; `step` is given what it answers."""
        with self._counting:
            self._streams.append(stream)

    def watch_sink(self, sink: Sink[Any]) -> None:
        """Tell from now on what becomes of what is put into a sink."""
        with self._counting:
            self._sinks.append(sink)

    def state(self, state: SourceState) -> None:
        """How a live source is now; it is what `LiveFrames` takes as `on_state`."""
        with self._counting:
            if state.state == "connecting" and state.name in self._up:
                self._reconnects[state.name] += 1
            self._up[state.name] = state.state == "running"
            self._pictures[state.name] = state.picture

    def step(self, step: Step) -> None:
        """What one window said."""
        with self._counting:
            if step.answer:
                prediction = step.answer.prediction
                still, unknown = step.answer.still, prediction is not None and prediction.rejected
                self._windows["still" if still else "unknown" if unknown else "answered"] += 1
                if prediction:
                    self._took(prediction.timings)
            self._events.update(event.label for event in step.events if event.type == "new")

    def answered(self, timings: Timings) -> None:
        """The times of an answer that belongs to no stream."""
        with self._counting:
            self._took(timings)

    def _took(self, timings: Timings) -> None:
        for stage, milliseconds in asdict(timings).items():
            counts = self._stages.setdefault(stage, [0] * (len(_BUCKETS) + 1))
            counts[bisect_left(_BUCKETS, milliseconds / 1000)] += 1
            self._seconds[stage] += milliseconds / 1000

    def page(self) -> tuple[bytes, str]:
        """What Prometheus reads, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def serve(self, port: int, host: str = "127.0.0.1") -> WSGIServer:
        """Answer `http://host:port/metrics` on a thread of its own; end it with `shutdown()` and `server_close()`.

        Raises:
            InputError: The port is in use or may not be taken, or the host is none of this machine.
        """
        from prometheus_client import start_http_server

        try:
            return start_http_server(port, host, self.registry)[0]
        except OSError as error:
            raise InputError(
                f"metrics cannot be served at {host}, port {port}: {error.strerror or error}",
                "choose another --metrics-port",
            ) from None

    def collect(self) -> Iterator[Metric]:
        """The series, for the registry."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        with self._counting:
            frames, last, lost = self._read()
            build = GaugeMetricFamily("m2df_build_info", "What runs.", labels=list(self._build))
            build.add_metric(list(self._build.values()), 1)
            by_source = CounterMetricFamily(
                "m2df_frames", "Frames that were looked at, or why they were not.", labels=["source", "outcome"]
            )
            for (source, outcome), count in sorted(frames.items()):
                by_source.add_metric([source, outcome], count)
            newest = GaugeMetricFamily(
                "m2df_last_frame_timestamp_seconds", "When the newest frame was looked at.", labels=["source"]
            )
            for source, moment in sorted(last.items()):
                newest.add_metric([source], moment)
            up = GaugeMetricFamily("m2df_source_up", "Whether frames come from a camera.", labels=["source"])
            again = CounterMetricFamily("m2df_reconnects", "Tries to open a camera again.", labels=["source"])
            for source, runs in sorted(self._up.items()):
                up.add_metric([source], int(runs))
                again.add_metric([source], self._reconnects[source])
            useless = GaugeMetricFamily(
                "m2df_picture_useless", "Whether a camera's picture shows nothing of use.", labels=["source", "picture"]
            )
            for source, picture in sorted(self._pictures.items()):
                for kind in get_args(PictureState):
                    useless.add_metric([source, kind], int(picture == kind))
            windows = CounterMetricFamily("m2df_windows", "Windows by what became of them.", labels=["outcome"])
            for outcome, count in sorted({**self._windows, **lost}.items()):
                windows.add_metric([outcome], count)
            events = CounterMetricFamily("m2df_events", "Events that began.", labels=["label"])
            for label, count in sorted(self._events.items()):
                events.add_metric([label], count)
            stages = HistogramMetricFamily("m2df_stage_seconds", "Time of an answer by stage.", labels=["stage"])
            for stage, counts in self._stages.items():
                stages.add_metric([stage], _cumulative(counts), self._seconds[stage])
            sinks = self._of_sinks()
        return iter([build, by_source, newest, up, again, useless, windows, events, stages, *sinks])

    def _of_sinks(self) -> list[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        sent = CounterMetricFamily("m2df_sink_sent", "Events that arrived.", labels=["sink"])
        dropped = CounterMetricFamily("m2df_sink_dropped", "Events that never will.", labels=["sink", "cause"])
        waiting = GaugeMetricFamily("m2df_sink_waiting", "Events that are to be sent.", labels=["sink"])
        for sink in self._sinks:
            counts = sink.counts
            sent.add_metric([sink.kind], counts.sent)
            waiting.add_metric([sink.kind], counts.waiting)
            for cause in get_args(Dropped):
                dropped.add_metric([sink.kind, cause], counts.dropped[cause])
        return [sent, dropped, waiting]

    def _read(self) -> tuple[Counter[tuple[str, str]], dict[str, float], dict[str, int]]:
        """Frames by source and outcome, the moment of each source's newest, and windows without an answer."""
        frames: Counter[tuple[str, str]] = Counter()
        last: dict[str, float] = {}
        lost = {"skipped": 0, "failed": 0}
        for stream in self._streams:
            counts = stream.counts
            frames[stream.name, "read"] += counts.frames
            for cause, count in counts.dropped.items():
                frames[stream.name, cause] += count
            if counts.last_frame is not None:
                last[stream.name] = max(last.get(stream.name, 0.0), counts.last_frame)
            lost["skipped"] += counts.skipped
            lost["failed"] += counts.failed
        return frames, last, lost


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    total, found = 0, []
    for bound, count in zip([*map(str, _BUCKETS), "+Inf"], counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found
