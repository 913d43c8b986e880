"""m2df-run with a broker, a hook, metrics and clips, as a user meets them."""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import av
import pytest
from event_servers import Broker, Hook, until
from live_servers import LOGIN, LONGEST, Play, Rtsp, closed_port, film, serving, silent
from made_videos import write_video
from test_cameras import PATIENT, WATCH, Watching, acted
from test_metrics import samples
from test_stream import scene

import m2df_runtime as m2df
from m2df_runtime.sinks.names import fit

SECRET = "hunter2 :/@#"
# Whoever waits for the end gets what a busy machine has not delivered yet.
UNHURRIED = "from m2df_runtime.commands import outlets\noutlets._HURRY = 60\n" + PATIENT


@pytest.fixture
def watching(tiny_bundle: Path, support_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watching]:
    monkeypatch.setenv("SECRET", SECRET)
    m2df.SupportBank.of(m2df.load(tiny_bundle), support_dir)  # kept, as after a first call
    return partial(Watching, "--bundle", tiny_bundle, "--support", support_dir, *WATCH)


def test_everybody_hears_the_same_events_and_nobody_a_password(
    watching: Callable[..., Watching], tmp_path: Path
) -> None:
    recording = write_video(tmp_path / "long.mp4", scene((None, 1), ("green", 2), (None, 1)))
    clips, port = tmp_path / "clips", closed_port()
    with (
        Broker(tmp_path, ("user", SECRET)) as broker,
        broker.listening() as listener,
        Hook(200) as hook,
        serving(Rtsp(Play(acted("red"), login=True))) as camera,
    ):
        name = camera.url("user:***")
        topic = f"home/{fit(name)}"
        outlets = (
            *("--mqtt", f"mqtt://user:${{SECRET}}@127.0.0.1:{broker.port}/home"),
            *("--webhook", hook.url("/in?token=${SECRET}")),
            *("--metrics-port", port, "--save-clips", clips, "--before", 0.4, "--after", 0.2),
        )
        queries = ("--query", camera.url(LOGIN.replace(" ", "%20")), "--query", recording)
        with watching(*queries, "--json", *outlets, program=UNHURRIED) as run:
            for camera_name in (name, str(recording)):
                listener.wait_for(
                    f"home/{fit(camera_name)}/events", lambda heard: any(one["type"] == "end" for one in heard)
                )
            until(lambda: len([*clips.glob("event-*.mp4")]) >= 2)
            page = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=LONGEST).read().decode()
            assert run.ended(signal.SIGTERM) == 0
            records = [json.loads(line) for line in run.lines["out"]]
            listener.wait_for("home/status", lambda heard: heard[:1] == ["online"] and set(heard[1:]) == {"offline"})
        for camera_name in (name, str(recording)):
            expected = [record for record in records if record["camera"] == camera_name]
            assert listener.of(f"home/{fit(camera_name)}/events") == expected
        by_id = lambda record: (record["camera"], record["id"], record["type"], record["end"])  # noqa: E731
        assert sorted((body for _, _, body in hook.got), key=by_id) == sorted(records, key=by_id)
        states = [one["state"] for one in listener.of(f"{topic}/state")]
        assert states[-2:] == ["running", "ended"]
    ends = Counter((record["camera"], record["label"]) for record in records if record["type"] == "end")
    assert {label for camera_name, label in ends if camera_name == name} == {"red"}
    written = sorted(clips.glob("event-*.mp4"))
    assert len(written) == ends.total()
    of_file = [path for path in written if path.name.startswith("event-long-")]
    assert [path.name for path in of_file] == [f"event-long-{k:04d}-green.mp4" for k in range(1, len(of_file) + 1)]
    for path in written:
        with av.open(str(path)) as container:
            assert container.streams.video[0].width == 64 and any(True for _ in container.decode(video=0))
    found = samples(page)
    assert found["m2df_source_up", name] == 1 and found["m2df_reconnects_total", name] == 0
    assert found["m2df_frames_total", "read", str(recording)] == 100
    assert found["m2df_events_total", "green"] >= 1 and found["m2df_sink_sent_total", "mqtt"] >= 1
    said = "\n".join(run.lines["err"] + run.lines["out"])
    for sink in (f"mqtt://user:***@127.0.0.1:{broker.port}/home", hook.url("/***")):
        assert f"{sink}: {len(records)} sent" in run.lines["err"]
    assert f"{clips}: {ends.total() - len(of_file)} written" in run.lines["err"]
    everything = said + page + json.dumps(listener.all, default=str) + "".join(path.name for path in written)
    assert "hunter2" not in everything and "sesame" not in everything


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_dead_broker_and_a_hanging_hook_stop_nothing(
    number: signal.Signals, watching: Callable[..., Watching]
) -> None:
    with silent() as port, serving(Rtsp(Play(film(scene(("red", 4)))))) as camera:
        mqtt, hook = f"mqtt://127.0.0.1:{closed_port()}", f"http://127.0.0.1:{port}"
        with watching("--query", camera.url(), "--windows", "--json", "--mqtt", mqtt, "--webhook", hook) as run:
            run.wait_for("err", lambda line: line == f"{mqtt}: no connection, it is tried again: refused")
            run.wait_for("out", lambda line: json.loads(line)["type"] == "new")
            assert run.ended(number) == (0 if number is signal.SIGTERM else 130)
    events = [record for record in map(json.loads, run.lines["out"]) if record["type"] != "window"]
    assert events[-1]["type"] == "end"
    for name in (mqtt, hook):
        assert f"{name}: 0 sent, {len(events)} dropped ({len(events)} late)" in run.lines["err"], run.lines


def test_events_of_recordings_all_arrive(run, tmp_path: Path) -> None:
    recording = write_video(tmp_path / "long.mp4", scene((None, 1), ("red", 2), (None, 1), ("blue", 2)))
    with Hook(503, 200) as hook:
        done = run("--query", recording, "--window", 1, "--json", "--webhook", hook.url())
        assert done.returncode == 0
        records = [json.loads(line) for line in done.stdout.splitlines()]
        assert [body for _, _, body in hook.got[1:]] == records
    assert f"{hook.url().rstrip('/')}: {len(records)} sent" in done.stderr.splitlines()


def test_what_cannot_be_opened_is_said_before_anything_is_read(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = write_video(tmp_path / "long.mp4", scene(("red", 2)))
    with silent() as port:
        for options, code, message in (
            (
                ("--metrics-port", port),
                2,
                f"error: metrics cannot be served at 127.0.0.1, port {port}: Address already",
            ),
            (("--mqtt", "mqtt://a:hunter2@"), 2, "error: mqtt://a:***@: the address names no host"),
            (("--metrics-host", "0.0.0.0"), 2, "Error: --metrics-host needs --metrics-port PORT"),
        ):
            done = run("--query", recording, "--window", 1, *options)
            assert (done.returncode, done.stdout) == (code, "")
            assert done.stderr.splitlines()[-1].startswith(message)
    done = run("--query", recording, "--mqtt", "mqtt://a")
    assert done.returncode == 2 and "--mqtt needs --window" in done.stderr
    for module, options in (
        ("prometheus_client", ("--metrics-port", port)),
        ("paho.mqtt.client", ("--mqtt", "mqtt://a")),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        done = run("--query", recording, "--window", 1, *options)
        assert (done.returncode, done.stdout) == (3, "") and "which is not installed (pip install" in done.stderr
