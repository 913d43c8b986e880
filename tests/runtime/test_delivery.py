"""Events to a real broker and a real web server, and every way in which these fail."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from event_servers import Broker, Heard, Hook
from live_servers import CERTIFICATE, closed_port, silent

from m2df_runtime import EnvironmentMissing, Event, InputError
from m2df_runtime.sinks import mqtt, webhook
from m2df_runtime.sinks.mqtt import Mqtt
from m2df_runtime.sinks.names import fit
from m2df_runtime.sinks.sink import MOST_EVENTS
from m2df_runtime.sinks.webhook import Webhook
from m2df_runtime.stream.sources import live
from m2df_runtime.stream.sources.live import SourceState

CAMERA = "rtsp://user:***@192.168.1.20/stream1?channel=1"
TOPIC = "home/rtsp_user_192.168.1.20_stream1_channel_1"
SECRET = "hunter2 :/@#"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_PAUSES", (0.01, 0.01))
    monkeypatch.setattr(mqtt, "_PAUSES", (1, 1))  # whole seconds, says paho
    monkeypatch.setenv("SECRET", SECRET)


def event(id: int = 1, label: str = "wave") -> Event:
    return Event("end", id, CAMERA, None, label, 0.8, 0.9, "clap", -1.0, 3, 1.25, 2.5, 1.7e9, 1.7e9 + 1)


@pytest.mark.parametrize("secure", [False, True])
def test_a_broker_hears_events_and_how_cameras_are(
    secure: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Heard()
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with Broker(tmp_path, ("user", SECRET), secure=secure) as broker, broker.listening() as listener:
        address = f"{'mqtts' if secure else 'mqtt'}://user:${{SECRET}}@localhost:{broker.port}/home"
        with Mqtt(address, said) as sink:
            sink.state(SourceState(CAMERA, "connecting"))
            for number in (1, 2, 3):
                sink.put(event(number))
            listener.wait_for("home/status", lambda told: told == ["online"])
            sink.state(SourceState(CAMERA, "restarting", "refused", "Connection refused"))
            listener.wait_for(f"{TOPIC}/events", lambda told: len(told) == 3)
            sink.state(SourceState(CAMERA, "ended"))
        assert sink.counts.sent == 3 and not sink.counts.dropped
        assert listener.of(f"{TOPIC}/events") == [event(number).record() for number in (1, 2, 3)]
        listener.wait_for("home/status", lambda told: told[:1] == ["online"] and set(told[1:]) == {"offline"})
        states = listener.wait_for(f"{TOPIC}/state", lambda told: told[-1]["state"] == "ended")
        assert [(one["camera"], one["state"], one["cause"]) for one in states][-2:] == [
            (CAMERA, "restarting", "refused"),
            (CAMERA, "ended", None),
        ]
        with broker.listening() as later:  # what is retained is all that is heard
            later.wait_for(f"{TOPIC}/state", lambda told: [one["state"] for one in told] == ["ended"])
            later.wait_for("home/status", lambda told: told == ["offline"])
            assert later.of(f"{TOPIC}/events") == []
        wrong = Heard()
        with Mqtt(address.replace("${SECRET}", "guessed"), wrong):
            wrong.wait_for(lambda lines: any("it is tried again: unauthorised" in line for line in lines))
    shown = f"{'mqtts' if secure else 'mqtt'}://user:***@localhost:{broker.port}/home"
    assert said.lines[0] == f"{shown}: connected"
    assert sink.text() == f"{shown}: 3 sent"
    assert "hunter2" not in "".join(said.lines) and "guessed" not in "".join(wrong.lines)


def test_a_broker_that_is_not_there_at_first_and_is_lost_later(tmp_path: Path) -> None:
    broker, said, more = Broker(tmp_path), Heard(), 30
    with Mqtt(f"mqtt://127.0.0.1:{broker.port}/home", said) as sink:
        for number in range(1, MOST_EVENTS + more + 1):
            sink.put(event(number))
        said.wait_for(lambda lines: any("it is tried again: refused" in line for line in lines))
        assert sink.counts.dropped["full"] in (more, more - 1)  # one may be on its way already
        with broker, broker.listening() as listener:
            heard = listener.wait_for(f"{TOPIC}/events", lambda told: told and told[-1]["id"] == MOST_EVENTS + more)
            ids = [one["id"] for one in heard]
            kept = [*range(more, MOST_EVENTS + more + 1)]
            assert ids[1:] == kept[-len(ids[1:]) :], "in order, from when somebody listens; the first was on its way"
            broker.freeze()
            sink.state(SourceState(CAMERA, "stalled"))
            sink.put(event(5001))
            broker.stop()
            said.wait_for(lambda lines: any("the connection is lost" in line for line in lines))
            sink.state(SourceState(CAMERA, "running"))
            sink.put(event(5002))
            broker.start()
            said.wait_for(lambda lines: sum(line.endswith(": connected") for line in lines) == 2)
            sink.close()  # once the broker has taken both events
            with broker.listening() as later:
                later.wait_for(f"{TOPIC}/state", lambda told: [one["state"] for one in told] == ["running"])
    assert sink.counts.dropped.keys() == {"full"}
    assert sink.counts.sent + sink.counts.dropped["full"] == MOST_EVENTS + more + 2, "the newest were kept"
    assert sum("more waits than is held" in line for line in said.lines) == 1


def test_the_broker_tells_of_a_process_that_is_gone(tmp_path: Path) -> None:
    code = "import sys, time; from m2df_runtime.sinks.mqtt import Mqtt; m = Mqtt(sys.argv[1]); time.sleep(600)"
    with Broker(tmp_path) as broker, broker.listening() as listener:
        process = subprocess.Popen([sys.executable, "-c", code, f"mqtt://127.0.0.1:{broker.port}"])
        try:
            listener.wait_for("m2df/status", lambda told: told == ["online"])
            process.kill()
            listener.wait_for("m2df/status", lambda told: told[:1] == ["online"] and set(told[1:]) == {"offline"})
        finally:
            process.kill()
            process.wait()


def test_what_waits_for_nobody_is_dropped_at_the_end() -> None:
    said = Heard()
    sink = Mqtt(f"mqtt://127.0.0.1:{closed_port()}", said)
    for number in (1, 2, 3):
        sink.put(event(number))
    sink.close(0.1)
    sink.put(event(4))
    assert (sink.counts.sent, sink.counts.waiting, dict(sink.counts.dropped)) == (0, 0, {"late": 4})
    assert sink.text().endswith("0 sent, 4 dropped (4 late)")


def test_a_hook_gets_every_event_once_it_takes_them() -> None:
    said = Heard()
    with Hook(500, 503, 200, 204) as server:
        with Webhook(server.url("/in/123?token=abc", "me:${SECRET}@"), said) as sink:
            sink.put(event(1))
            sink.put(event(2))
        got = list(server.got)
    assert [body for _, _, body in got] == [event(number).record() for number in (1, 1, 1, 2)]
    assert {path for path, _, _ in got} == {"/in/123?token=abc"}
    login = base64.b64encode(f"me:{SECRET}".encode()).decode()
    assert {(head["Authorization"], head["Content-Type"]) for _, head, _ in got} == {
        (f"Basic {login}", "application/json")
    }
    shown = server.url("/***")
    assert said.lines == [
        f"{shown}: no event arrives, it is tried again: 500 Internal Server Error",
        f"{shown}: no event arrives, it is tried again: 503 Service Unavailable",
        f"{shown}: events arrive",
    ]
    assert sink.text() == f"{shown}: 2 sent"


@pytest.mark.parametrize(
    ("status", "tries", "why"),
    [(404, 1, "404 Not Found"), (500, 10, "500 Internal Server Error"), (302, 1, "302 Found; give the address")],
)
def test_what_a_hook_refuses_stops_nothing_after_it(status: int, tries: int, why: str) -> None:
    said = Heard()
    with Hook(200) as other, Hook(*[status] * tries, 200, location=other.url()) as server:
        with Webhook(server.url(), said) as sink:
            sink.put(event(1))
            sink.put(event(2))
        assert [body["id"] for _, _, body in server.got] == [*[1] * tries, 2]
        assert other.got == [], "redirects are not followed"
    assert (sink.counts.sent, dict(sink.counts.dropped)) == (1, {"refused": 1})
    assert f"{server.url().rstrip('/')}: refused: {why}" in said.lines[-2]


def test_a_hook_that_hangs_or_is_not_there_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    said, port = Heard(), closed_port()
    with silent() as hanging:
        sink = Webhook(f"http://127.0.0.1:{hanging}", said)
        for number in range(MOST_EVENTS + 11):
            sink.put(event(number))
        assert sink.counts.dropped["full"] in (10, 11)
        sink.close(0.1)  # in the middle of a request
        assert sink.counts.sent + sum(sink.counts.dropped.values()) == MOST_EVENTS + 11
        monkeypatch.setattr(webhook, "_TIMEOUT", 0.05)
        sink = Webhook(f"http://127.0.0.1:{hanging}", said)
        sink.put(event())
        said.wait_for(lambda lines: lines[-1].endswith("it is tried again: timeout"))
        sink.close(0.1)
    monkeypatch.setattr(webhook, "_TIMEOUT", 60)
    sink = Webhook(f"http://127.0.0.1:{port}", said)
    sink.put(event(7))
    said.wait_for(lambda lines: lines[-1].endswith("it is tried again: refused"))
    with Hook(200, port=port) as server:
        said.wait_for(lambda lines: lines[-1].endswith("events arrive"))
        sink.close()
    assert [body["id"] for _, _, body in server.got] == [7]


def test_certificates_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Heard()
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with Hook(200, secure=True) as server:
        with Webhook(server.url(), said) as sink:
            sink.put(event())
            said.wait_for(lambda lines: any("TLS (self-signed certificate" in line for line in lines))
            sink.close(0)
        assert server.got == []
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        with Webhook(server.url(), said) as sink:
            sink.put(event())
        assert len(server.got) == 1


@pytest.mark.parametrize(
    ("kind", "address", "message"),
    [
        (Mqtt, "http://a:hunter2@b", "http://a:***@b: the address does not begin with mqtt:// or mqtts://"),
        (Mqtt, "mqtt://a:hunter2@/x", "mqtt://a:***@/x: the address names no host"),
        (Mqtt, "mqtt://a:hunter2@b:none", "the address names no host"),
        (Mqtt, f"mqtt://{'b' * 64}.org", "the address names no host"),
        (Mqtt, "mqtt://a:hunter2@b/all/#", "mqtt://a:***@b/all/#: + and # cannot stand in a prefix of topics"),
        (Mqtt, "mqtt://a:${GONE}@b", "mqtt://a:***@b: ${GONE} is not in the environment"),
        (Webhook, "example.org/hunter2", "the address does not begin with http:// or https://"),
        (Webhook, "https://", "https://: the address names no host"),
    ],
)
def test_addresses_that_are_none(kind: type[Mqtt | Webhook], address: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        kind(address)
    assert message in str(raised.value) and "hunter2@" not in str(raised.value)


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(EnvironmentMissing, match=r"pip install 'm2df\[mqtt\]'"):
        Mqtt("mqtt://127.0.0.1")


def test_names_that_fit_anywhere() -> None:
    assert fit("Flur/oben é") == "Flur_oben_é"
    assert fit("../+#\0\ud800") == "_"
    long = [f"rtsp://192.168.1.20:554/cam/realmonitor?profile=main&channel={number}" for number in (1, 2)]
    assert fit(long[0]) != fit(long[1]) and all(len(fit(one)) == 60 for one in long)
    assert len(fit("動" * 100).encode()) <= 60
