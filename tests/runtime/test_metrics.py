"""What Prometheus reads, over HTTP and through prometheus-client's own parser."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from live_servers import LONGEST
from made_videos import write_video
from prometheus_client.parser import text_string_to_metric_families as parsed
from test_stream import FPS, scene

import m2df_runtime as m2df
from m2df_runtime.errors import EnvironmentMissing, InputError
from m2df_runtime.match.results import Timings
from m2df_runtime.sinks.metrics import Metrics
from m2df_runtime.stream.sources.live import SourceState

NAMES = {
    "m2df_build_info": "gauge",
    "m2df_frames": "counter",
    "m2df_last_frame_timestamp_seconds": "gauge",
    "m2df_source_up": "gauge",
    "m2df_reconnects": "counter",
    "m2df_picture_useless": "gauge",
    "m2df_windows": "counter",
    "m2df_events": "counter",
    "m2df_stage_seconds": "histogram",
    "m2df_sink_sent": "counter",
    "m2df_sink_dropped": "counter",
    "m2df_sink_waiting": "gauge",
}


@pytest.fixture
def model(tiny_bundle: Path) -> m2df.Model:
    return m2df.load(tiny_bundle)


def samples(page: str) -> dict[tuple[str, ...], float]:
    """Value of each sample by its name and the values of its labels in the order of their names."""
    return {
        (s.name, *(value for _, value in sorted(s.labels.items()))): s.value
        for family in parsed(page)
        for s in family.samples
    }


@pytest.fixture
def metrics(model: m2df.Model) -> Metrics:
    return Metrics(model)


@pytest.fixture
def address(metrics: Metrics) -> Iterator[str]:
    server = metrics.serve(0)
    yield f"http://127.0.0.1:{server.server_address[1]}/metrics"
    server.shutdown()
    server.server_close()


def test_a_recording_is_counted(
    model: m2df.Model, metrics: Metrics, address: str, support_dir: Path, tmp_path: Path
) -> None:
    recording = write_video(tmp_path / "a.mp4", scene((None, 2), ("red", 2), (None, 2), ("blue", 2)))
    stream = m2df.Stream(m2df.Matcher(model, m2df.SupportBank.of(model, support_dir)), recording, window=1.0)
    metrics.watch(stream)
    before = time.time()
    taken = 0
    for step in stream.steps():
        metrics.step(step)
        taken += bool(step.answer and step.answer.prediction)
    page = urlopen(address, timeout=LONGEST).read().decode()
    assert {family.name: family.type for family in parsed(page)} == NAMES
    found = samples(page)
    name, counts = str(recording), stream.counts
    assert found["m2df_frames_total", "read", name] == counts.frames == 8 * FPS
    assert before <= found["m2df_last_frame_timestamp_seconds", name] <= time.time()
    windows = {key[1]: value for key, value in found.items() if key[0] == "m2df_windows_total"}
    assert sum(windows.values()) == counts.windows and windows["still"] == counts.still > 0 == windows["skipped"]
    assert {key[1]: value for key, value in found.items() if key[0] == "m2df_events_total"} == {"red": 1, "blue": 1}
    assert found["m2df_stage_seconds_count", "visual"] == taken > 0
    assert found["m2df_build_info", model.backend, model.precision, m2df.__version__] == 1


def test_states_of_cameras(metrics: Metrics) -> None:
    def hear(name: str, *states: str) -> None:
        for state in states:
            metrics.state(SourceState(name, state))  # type: ignore[arg-type]

    hear("a", "connecting", "running", "stalled", "running", "restarting", "connecting", "restarting", "connecting")
    hear("b", "connecting", "running")
    found = samples(metrics.page()[0].decode())
    assert (found["m2df_source_up", "a"], found["m2df_source_up", "b"]) == (0, 1)
    assert (found["m2df_reconnects_total", "a"], found["m2df_reconnects_total", "b"]) == (2, 0)
    for picture in ("frozen", "turned", None):
        metrics.state(SourceState("a", "running", picture=picture))  # type: ignore[arg-type]
        found = samples(metrics.page()[0].decode())
        for kind in ("frozen", "blank", "turned"):
            assert found["m2df_picture_useless", kind, "a"] == (kind == picture)


def test_times_fall_into_their_buckets(metrics: Metrics) -> None:
    """A bucket counts what is at most its bound: https://prometheus.io/docs/concepts/metric_types/#histogram."""
    for visual in (1.0, 1.1, 40.0, 9000.0):
        metrics.answered(Timings(decode=0.0, preprocess=0.0, visual=visual, query=0.0))
    found = samples(metrics.page()[0].decode())
    bounds = ("0.001", "0.0025", "0.025", "0.05", "2.5", "+Inf")
    assert [found["m2df_stage_seconds_bucket", bound, "visual"] for bound in bounds] == [1, 2, 2, 3, 3, 4]
    assert found["m2df_stage_seconds_bucket", "0.001", "decode"] == 4
    assert found["m2df_stage_seconds_sum", "visual"] == pytest.approx(9.0421)


def test_what_is_not_there_is_said(
    model: m2df.Model, metrics: Metrics, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(address.split(":")[2].split("/")[0])
    with pytest.raises(InputError, match=f"metrics cannot be served at 127.0.0.1, port {port}: Address already in use"):
        metrics.serve(port)
    with pytest.raises(InputError, match=r"metrics cannot be served at 192\.0\.2\.1"):  # of documentation alone
        metrics.serve(0, "192.0.2.1")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(EnvironmentMissing, match=r"pip install 'm2df\[metrics\]'"):
        Metrics(model)
