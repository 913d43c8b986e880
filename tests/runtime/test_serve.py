"""The server as its clients know it: asking, teaching, correcting, carrying and watching, over real connections."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from event_servers import until
from live_servers import CERTIFICATE, LONGEST
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving import TOKEN, Served, jpeg, message, picture, recording, serving
from tiny_bundle import write_clip, write_support
from websockets.exceptions import ConnectionClosed

from m2df_runtime import Matcher, Model, SupportBank, load
from m2df_runtime.errors import InputError
from m2df_runtime.serve.server import listening

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return load(tiny_bundle, "cpu")


@pytest.fixture(scope="module")
def master(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_support(tmp_path_factory.mktemp("master") / "actions", ("red", "green"), shots=2)
    SupportBank.of(model, folder)
    return folder


@pytest.fixture
def served(model: Model, master: Path, tmp_path: Path) -> Iterator[Served]:
    with serving(model, Path(shutil.copytree(master, tmp_path / "actions"))) as found:
        yield found


def told(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["did"]


def refusal(answer: httpx2.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "hint"}
    return answer.status_code, error["code"]


def counted(served: Served) -> dict[tuple[str, ...], float]:
    """What Prometheus reads, by name and labels."""
    page = served.client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    every = (sample for family in text_string_to_metric_families(page.text) for sample in family.samples)
    return {(one.name, *(value for _, value in sorted(one.labels.items()))): one.value for one in every}


def labels(served: Served) -> dict[str, list[str]]:
    found = served.client.get("/v1/classes").json()["classes"]
    return {entry["label"]: [clip["name"] for clip in entry["clips"]] for entry in found}


def sent(path: Path, field: str = "clips", name: str | None = None) -> list[tuple[str, tuple[str, bytes]]]:
    return [(field, (name or path.name, path.read_bytes()))]


def test_an_answer_is_the_matchers_and_can_be_looked_at_and_taught(served: Served, model: Model, tmp_path: Path):
    clip = write_clip(tmp_path / "clip.mp4", "green", seed=7)
    answer = served.client.post("/v1/predict?topk=1", files=sent(clip, "clip"))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    expected = Matcher(model, SupportBank.of(model, tmp_path / "actions")).predict(clip).record(topk=1)
    assert found["query"] == "clip.mp4"
    assert found["predictions"] == expected["predictions"]
    assert found["predictions"][0]["label"] == "green"
    assert set(found) == {"id", *expected, "warning"} and found["warning"] is None
    again = served.client.get(f"/v1/answers/{found['id']}").json()
    assert len(again["predictions"]) == 2
    photo = served.client.post("/v1/predict", files=[("clip", ("photo.jpg", jpeg(picture("green", 0.5))))]).json()
    assert photo["warning"] == "one picture, which shows no action (send a video)"
    assert served.client.get(f"/v1/answers/{photo['id']}").json() == photo
    strip = served.client.get(f"/v1/answers/{found['id']}/strip")
    with Image.open(io.BytesIO(strip.content)) as shown:
        assert shown.format == "JPEG" and shown.width == 4 * shown.height
    why = served.client.get(f"/v1/answers/{found['id']}/explain")
    assert why.headers["content-type"].startswith("text/html") and "<b>green</b>" in why.text
    assert why.headers["content-security-policy"].endswith("frame-ancestors 'self'; sandbox")
    assert "added class 'lime' with 1 clip: recorded-" in told(
        served.client.post("/v1/classes/lime/clips", data={"answer": found["id"]})
    )
    assert list(labels(served)) == ["green", "lime", "red"]
    assert refusal(served.client.get("/v1/answers/0123")) == (404, "no_answer")
    samples = counted(served)
    assert samples["m2df_requests_total", "/v1/predict", "200"] == 2
    assert samples["m2df_requests_total", "/v1/answers/{answer}", "404"] == 1
    assert samples["m2df_stage_seconds_count", "query"] == 2


def test_a_folder_that_is_not_there_is_taught_from_a_browser_and_kept(model: Model, tmp_path: Path):
    folder = tmp_path / "new"
    with serving(model, folder) as served:
        assert served.client.get("/v1/classes").json()["classes"] == []
        clip = write_clip(tmp_path / "clip.mp4", "red", seed=3)
        assert refusal(served.client.post("/v1/predict", files=sent(clip, "clip"))) == (409, "nothing_taught")
        assert refusal(served.client.post("/v1/undo")) == (409, "nothing_to_undo")
        assert not folder.exists()
        for colour in ("red", "blue"):
            told(served.client.post(f"/v1/classes/{colour}/clips", **recording(colour, 30, still=30)))
        view = served.client.get("/v1/classes").json()
        lengths = {entry["label"]: entry["clips"][0]["seconds"] for entry in view["classes"]}
        assert set(lengths) == {"red", "blue"}
        # 2 s of movement between 2 s of stillness; `bank record` keeps 0.3 s of that, and notices 0.3 s late at most.
        assert all(1.9 <= seconds <= 3.3 for seconds in lengths.values()), lengths
        untrimmed = recording("red", 30, still=30)
        untrimmed["data"]["trim"] = "false"  # type: ignore[index]
        told(served.client.post("/v1/classes/whole/clips", **untrimmed))
        seconds = served.client.get("/v1/classes").json()["classes"][2]["clips"][0]["seconds"]
        assert seconds == pytest.approx(6.0, abs=0.1)
        assert served.client.post("/v1/predict", files=sent(clip, "clip")).json()["predictions"][0]["label"] == "red"
        told(served.client.delete("/v1/classes/whole"))
        told(served.client.delete("/v1/classes/red"))
        told(served.client.delete("/v1/classes/blue"))
        assert refusal(served.client.post("/v1/predict", files=sent(clip, "clip"))) == (409, "nothing_taught")
        assert "undone" in told(served.client.post("/v1/undo"))
        assert served.client.post("/v1/predict", files=sent(clip, "clip")).json()["predictions"][0]["label"] == "blue"
    assert SupportBank.of(model, folder).labels == ("blue",)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_taught_is_corrected_forgotten_and_brought_back(kind: str, model: Model, master: Path, tmp_path: Path):
    support = Path(shutil.copytree(master, tmp_path / "actions"))
    if kind == "file":
        SupportBank.of(model, support).save(tmp_path / "gate.bank")
        support = tmp_path / "gate.bank"
    with serving(model, support) as served:
        before = served.client.get("/v1/classes").json()
        assert told(served.client.patch("/v1/classes/red", json={"label": "crimson"})) == (
            "renamed class 'red' to 'crimson'"
        )
        assert refusal(served.client.patch("/v1/classes/green", json={"label": "crimson"})) == (409, "class_taken")
        assert "joined" in told(served.client.patch("/v1/classes/green", json={"label": "crimson", "join": True}))
        assert len(labels(served)["crimson"]) == 4
        assert served.client.get("/v1/classes").json()["state"] != before["state"]
        told(served.client.post("/v1/undo"))
        clip = next(e for e in served.client.get("/v1/classes").json()["classes"] if e["label"] == "green")["clips"][1]
        assert served.client.get(f"/v1/classes/green/clips/{clip['id']}/strip").headers["content-type"] == "image/jpeg"
        assert told(served.client.delete(f"/v1/classes/green/clips/{clip['id']}")) == f"removed green/{clip['name']}"
        assert refusal(served.client.delete(f"/v1/classes/green/clips/{clip['id']}")) == (404, "no_clip")
        assert refusal(served.client.delete("/v1/classes/violet")) == (404, "no_class")
        still = recording("green", 2, still=45)
        assert "to the background" in told(served.client.post("/v1/background", **still))
        nothing = served.client.get("/v1/classes").json()["background"]["clips"]
        assert served.client.get(f"/v1/background/{nothing[0]['id']}/strip").status_code == 200
        assert "removed" in told(served.client.delete(f"/v1/background/{nothing[0]['id']}"))
        still["data"]["cut"] = "2"  # type: ignore[index]
        told(served.client.post("/v1/background", **still))
        lengths = [clip["seconds"] for clip in served.client.get("/v1/classes").json()["background"]["clips"]]
        assert lengths == pytest.approx([2.0, 2.0, 2.13], abs=0.1)  # 92 frames, 15 a second
        assert served.client.get("/v1/findings").status_code == 200
    assert dict.fromkeys(SupportBank.of(model, support).labels) == dict.fromkeys(("crimson", "green"))


def test_what_is_wrong_with_a_clip_is_said_of_the_name_it_was_sent_with(served: Served, tmp_path: Path):
    before = labels(served)
    good = write_clip(tmp_path / "good.mp4", "blue", seed=3).read_bytes()
    for name, content in (("my notes.txt", b"no video"), ("nothing.mp4", b"")):
        bad = (name, content)
        alone = served.client.post("/v1/predict", files=[("clip", bad)]).json()["error"]["message"]
        assert alone.startswith(f"{name}: ") and alone.count(name) == 1
        both = served.client.post("/v1/classes/blue/clips", files=[("clips", ("good.mp4", good)), ("clips", bad)])
        assert both.json()["error"]["message"] == f"{alone}; none of the 2 clips is taught"
    assert labels(served) == before


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_texts_of_ones_own_are_matched_with_shown_and_kept(kind: str, model: Model, master: Path, tmp_path: Path):
    support = Path(shutil.copytree(master, tmp_path / "actions"))
    if kind == "file":
        SupportBank.of(model, support).save(tmp_path / "gate.bank")
        support = tmp_path / "gate.bank"
    own = {"red": ("something red", "a red square"), "blue": "something blue"}
    rules = model.bundle.manifest.text.rules.over(own, "see {}!")
    clip = write_clip(tmp_path / "clip.mp4", "green", seed=7)
    with serving(model, support, rules=rules) as served:

        def texts() -> dict[str, list[str]]:
            return {entry["label"]: entry["texts"] for entry in served.client.get("/v1/classes").json()["classes"]}

        def predictions() -> list[dict[str, object]]:
            return served.client.post("/v1/predict", files=sent(clip, "clip")).json()["predictions"]

        assert texts() == {"green": ["green"], "red": ["something red", "a red square"]}
        plain, described = (SupportBank.of(model, support, one) for one in (None, rules))
        assert predictions() == Matcher(model, described).predict(clip).record()["predictions"]
        assert predictions() != Matcher(model, plain).predict(clip).record()["predictions"]
        told(served.client.post("/v1/classes/blue/clips", **recording("blue", 30)))
        told(served.client.patch("/v1/classes/red", json={"label": "crimson"}))
        assert texts() == {"blue": ["something blue"], "crimson": ["crimson"], "green": ["green"]}
        found = SupportBank.of(model, support, rules)
        assert predictions() == Matcher(model, found).predict(clip).record()["predictions"]
        told(served.client.post("/v1/undo"))
        assert texts()["red"] == ["something red", "a red square"]
        exported = served.client.get("/v1/export").content
        told(served.client.post("/v1/import", files=[("file", exported)]))
        assert texts() == {"blue": ["something blue"], "green": ["green"], "red": ["something red", "a red square"]}
    if kind == "file":  # it carries what it was taught with
        assert [entry.prompts for entry in SupportBank.of(model, support).classes] == [
            ("see something blue!",), ("see green!",), ("see something red!", "see a red square!")
        ]  # fmt: skip


def test_a_zip_carries_everything_and_is_taken_as_one_change(served: Served, model: Model, tmp_path: Path):
    told(served.client.post("/v1/background", files=sent(write_clip(tmp_path / "n.mp4", "white"))))
    exported = served.client.get("/v1/export")
    with zipfile.ZipFile(io.BytesIO(exported.content)) as archive:
        assert archive.namelist() == [
            "green/0.mp4", "green/1.mp4", "red/0.mp4", "red/1.mp4", "_background/n.mp4"
        ]  # fmt: skip
    clip = write_clip(tmp_path / "clip.mp4", "green", seed=7)
    with serving(model, tmp_path / "other") as other:
        told(other.client.post("/v1/classes/blue/clips", files=sent(write_clip(tmp_path / "b.mp4", "blue"))))
        assert told(other.client.post("/v1/import", files=[("file", exported.content)])) == (
            "replaced everything by 2 classes with 4 clips"
        )
        assert labels(other) == labels(served)
        one, two = (at.client.post("/v1/predict", files=sent(clip, "clip")).json() for at in (served, other))
        assert one["predictions"] == two["predictions"]
        told(other.client.post("/v1/undo"))
        assert labels(other) == {"blue": ["b.mp4"]}
        told(other.client.post("/v1/undo"))
        assert labels(other) == labels(served)
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w") as archive:  # of the folder itself, by hand
            for name in ("red/0.mp4", "green/0.mp4"):
                archive.write(tmp_path / "actions" / name, f"actions/{name}")
            archive.writestr("actions/.m2df/last.json", b"{}")
        told(other.client.post("/v1/import", files=[("file", whole.getvalue())]))
        assert labels(other) == {"green": ["0.mp4"], "red": ["0.mp4"]}
        told(other.client.post("/v1/undo"))
        damaged = io.BytesIO()
        with zipfile.ZipFile(damaged, "w") as archive:
            archive.writestr("wave/a.mp4", clip.read_bytes())
            archive.writestr("wave/b.mp4", b"no video")
        assert refusal(other.client.post("/v1/import", files=[("file", damaged.getvalue())])) == (422, "clip")
        assert labels(other) == labels(served)


def test_a_camera_gets_scores_and_events_while_it_films(served: Served):
    with served.client.stream("GET", "/v1/events") as news, served.live("window=1&stride=0.25") as live:
        lines = news.iter_lines()
        assert next(lines) == "retry: 2000"
        live.send('{"type": "hello", "token": null}')
        assert json.loads(live.recv()) == {"type": "ready", "window": 1.0, "stride": 0.25}
        got: list[dict] = []
        for number in range(60):  # 4 s, the square crosses in 2 s
            live.send(message(100 + number / 15, picture("green", (number % 30) / 29)))
            while (one := json.loads(live.recv()))["type"] != "ack":
                got.append(one)
            assert one["time"] == 100 + number / 15
        scores = [one for one in got if one["type"] == "scores"]
        assert [one["start"] for one in scores] == pytest.approx([100 + 0.25 * n for n in range(len(scores))])
        assert len(scores) >= 11
        moving = [one for one in scores if not one["still"]]
        assert moving and all({s["label"] for s in one["classes"]} == {"red", "green"} for one in scores)
        assert all(one["classes"][0]["label"] == "green" for one in moving)
        assert {one["none"] for one in scores} <= {0.0, 1.0}
        events = [one["event"] for one in got if one["type"] == "event"]
        if events:  # whether one is told depends on what the bank rejects
            assert events[0]["type"] == "new" and events[0]["label"] == "green"
            assert next(line for line in lines if line.startswith("data: ")) == f"data: {json.dumps(events[0])}"


def test_cameras_of_a_file_are_watched_besides(command, model: Model, tiny_bundle: Path, tmp_path: Path):
    support = write_support(tmp_path / "actions", ("red", "green"))  # of one clip each, so that nothing is rejected
    write_clip(tmp_path / "film.mp4", "green", seed=5, frames=100)
    cameras = tmp_path / "cameras.yaml"
    cameras.write_text("defaults: {window: 1, stride: 0.25}\ncameras:\n  - {name: door, file: film.mp4}\n")
    with serving(model, support, cameras=cameras) as served:
        with served.client.stream("GET", "/v1/events", headers={"Last-Event-ID": "0"}) as news:
            told_of = (json.loads(line.removeprefix("data: ")) for line in news.iter_lines() if line.startswith("data"))
            event = next(told_of)
        assert (event["type"], event["camera"], event["label"]) == ("new", "door", "green")
        assert [one["name"] for one in served.client.get("/v1/cameras").json()] == ["door"]
        until(lambda: counted(served).get(("m2df_frames_total", "read", "door")) == 100)
    none = ("--support", tmp_path / "none", "--cameras", cameras, "--bundle", tiny_bundle, "--backend", "cpu")
    done = command("serve", "--port", 0, *none)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--cameras: nothing is taught yet" in done.stderr


def test_one_action_is_too_few_for_a_camera(model: Model, tmp_path: Path):
    with serving(model, write_support(tmp_path / "one", ("red",))) as served, served.live() as live:
        live.send('{"type": "hello", "token": null}')
        assert json.loads(live.recv())["error"]["code"] == "one_class"
        with pytest.raises(ConnectionClosed) as closed:
            live.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4409


def test_a_token_is_asked_for_everywhere_but_of_probes_and_the_page(model: Model, master: Path, tmp_path: Path):
    support = Path(shutil.copytree(master, tmp_path / "actions"))
    with serving(model, support, token=TOKEN) as served:
        stranger = httpx2.Client(base_url=served.client.base_url, trust_env=False)
        for path in ("/v1/classes", "/v1/export", "/openapi.json", "/docs", "/v1/events", "/v1/none"):
            assert refusal(stranger.get(path)) == (401, "token")
        assert stranger.get("/healthz").json() == {"status": "ok"}
        assert served.client.get("/v1/classes").status_code == 200
        # A browser gets a cookie for the token; it alone changes nothing, unless the own page asks.
        set_by = served.client.post("/v1/session").headers["set-cookie"]
        assert "HttpOnly" in set_by and "SameSite=strict" in set_by
        for path in ("/docs", "/openapi.json"):
            page = httpx2.get(served.client.base_url.join(path), cookies=served.client.cookies, trust_env=False)
            assert page.status_code == 200
        cookie = {"Cookie": set_by.partition(";")[0]}
        assert stranger.get("/v1/classes", headers=cookie).status_code == 200
        assert refusal(stranger.post("/v1/undo", headers=cookie)) == (403, "origin")
        own = {**cookie, "Origin": f"http://127.0.0.1:{served.port}"}
        assert refusal(stranger.post("/v1/undo", headers=own))[0] == 422
        for first, code in (('{"type": "hello", "token": null}', 4401), ("{}", 4400), (b"frame", 4400)):
            with served.live() as live, pytest.raises(ConnectionClosed) as closed:
                live.send(first)
                while live.recv():
                    pass
            assert closed.value.rcvd is not None and closed.value.rcvd.code == code
        with served.live() as live:
            live.send(json.dumps({"type": "hello", "token": TOKEN}))
            assert json.loads(live.recv())["type"] == "ready"
        stranger.close()


def started(support: Path, bundle: Path, *options: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", "from m2df_runtime.commands.entry import run; run()", "serve", "--port", "0"),
            *("--support", str(support), "--bundle", str(bundle), "--backend", "cpu", *options),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving at "), process.communicate()
    return process, line.split()[-1]


TLS = ("--tls-cert", str(CERTIFICATE), "--tls-key", str(CERTIFICATE), "--host", "localhost")


@pytest.mark.parametrize(("number", "code", "options"), [(signal.SIGTERM, 0, ()), (signal.SIGINT, 130, TLS)])
def test_the_command_serves_and_ends_whatever_goes_on(
    number: signal.Signals, code: int, options: tuple[str, ...], tiny_bundle: Path, tmp_path: Path
):
    texts = tmp_path / "labels.csv"
    texts.write_text("class,text\nred,something red\n")
    options = (*options, "--labels", str(texts))
    process, address = started(tmp_path / "actions", tiny_bundle, *options, M2DF_TOKEN=TOKEN)
    trusted = ssl.create_default_context(cafile=CERTIFICATE) if TLS[0] in options else False
    try:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx2.Client(
            base_url=address, headers=headers, trust_env=False, timeout=LONGEST, verify=trusted
        ) as client:
            told(client.post("/v1/classes/red/clips", files=sent(write_clip(tmp_path / "secret name.mp4"))))
            assert client.get("/v1/classes").json()["classes"][0]["texts"] == ["something red"]
            with client.stream("GET", "/v1/events") as events:
                lines = events.iter_lines()
                assert next(lines) == "retry: 2000"
                process.send_signal(number)
                assert "".join(lines) == ""
        log = process.communicate(timeout=LONGEST)[1].splitlines()
    finally:
        process.kill()
    assert process.returncode == code
    lines = [json.loads(line) for line in log if line.startswith("{")]
    routes = [(line["method"], line["route"], line["status"]) for line in lines if line["message"] == "request"]
    assert ("POST", "/v1/classes/{label}/clips", 200) in routes
    assert not [line for line in log if TOKEN in line or "secret" in line]
    assert [line for line in log if line and not line.startswith("{")] == (["error: interrupted"] if code else [])


LOGGING = """
import logging
from m2df_runtime.serve.logs import log_lines

log_lines()
log = logging.getLogger("m2df_runtime.serve.guard")
fields = {"client": "127.0.0.1", "method": "GET", "route": "/v1/classes", "status": 200, "ms": 1.5}
log.info("request", extra={"fields": fields})
log.warning("%s: no such folder", "actions")
"""


def test_on_a_terminal_the_log_is_plain():
    ours, its = pty.openpty()
    subprocess.run([sys.executable, "-c", LOGGING], stderr=its, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    os.close(its)
    request, warning = os.read(ours, 1000).decode().splitlines()
    os.close(ours)
    assert re.fullmatch(r"\d\d:\d\d:\d\d 127\.0\.0\.1 GET /v1/classes 200 1\.5 ms", request)
    assert warning.endswith(" warning: actions: no such folder")


def test_others_are_let_in_with_a_token_alone(command, tmp_path: Path):
    for options, says in (
        (("--host", "0.0.0.0"), "0.0.0.0 is reached from other machines"),
        (("--host", "::"), ":: is reached from other machines"),
        (("--token", "short"), "a token has at least 16 plain characters"),
        (("--reject", "off", "--miss-rate", "0.1"), "--miss-rate is of --reject auto, not of --reject off"),
        (("--tls-cert", "a.pem"), "--tls-cert and --tls-key go together"),
        (("--host", "192.0.2.1", "--token", TOKEN), "cannot listen at 192.0.2.1, port 8000"),
    ):
        done = command("serve", "--support", tmp_path / "actions", *options)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="cannot listen"):
        listening("127.0.0.1", taken.getsockname()[1])
