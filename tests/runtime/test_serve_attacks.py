"""What is tried against a server: each request is refused or does no harm, and the server goes on as it was."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import socket
import struct
import termios
import time
import zipfile
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from live_servers import LONGEST
from serving import TOKEN, Served, jpeg, picture, serving
from test_serve import refusal
from tiny_bundle import write_clip, write_support
from websockets.exceptions import ConnectionClosed, InvalidStatus

from m2df_runtime import Model, SupportBank, load
from m2df_runtime.serve.limits import Limits, Rate
from m2df_runtime.serve.problems import Refused
from m2df_runtime.serve.workers import Workers

MB = 1 << 20
HELLO = json.dumps({"type": "hello", "token": TOKEN})
PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXTINF:1,\nhttp://127.0.0.1:1/\n#EXT-X-ENDLIST\n"
HUGE_GIF = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + bytes(6) + b"!\xf9\4\0\0\0\0\0,"
PAGE = b"<!doctype html><script>alert(1)</script>"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacked")


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return load(tiny_bundle, "cpu")


@pytest.fixture(scope="module")
def clip(place: Path) -> bytes:
    return write_clip(place / "clip.mp4", "white").read_bytes()


@pytest.fixture(scope="module")
def server(model: Model, place: Path) -> Iterator[Served]:
    support = write_support(place / "actions", ("red", "green"))
    SupportBank.of(model, support)
    bounds = {"upload_bytes": 2 * MB, "import_bytes": 4 * MB, "head_seconds": 1.0, "pause_seconds": 1.0}
    with serving(model, support, token=TOKEN, uploads_per_minute=100_000, **bounds) as found:
        yield found


def taught(server: Served) -> list[object]:
    view = server.client.get("/v1/classes").json()
    return [view["classes"], view["background"]]


def files_in(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*") if ".m2df" not in path.parts}


@pytest.fixture(autouse=True)
def unharmed(server: Served, place: Path) -> Iterator[Served]:
    """Whatever a test does, the server answers after it, and what is taught is what was taught before."""
    before, files = taught(server), files_in(place)
    yield server
    assert taught(server) == before
    assert files_in(place) == files


def raw(port: int, request: bytes) -> tuple[int, bytes]:
    """Status and body of what comes back; 0 where the connection is closed without a word."""
    with socket.create_connection(("127.0.0.1", port), timeout=LONGEST) as sock:
        sock.sendall(request)
        got = b""
        try:
            while block := sock.recv(MB):
                got += block
        except ConnectionResetError:
            pass
    return (int(got.split(b" ", 2)[1]), got.partition(b"\r\n\r\n")[2]) if got else (0, b"")


def head(line: str, *headers: str, host: str | None = "127.0.0.1", token: str | None = TOKEN) -> bytes:
    lines = [f"{line} HTTP/1.1", *([f"Host: {host}"] if host is not None else []), *headers]
    lines += [f"Authorization: Bearer {token}"] if token else []
    lines += ["Connection: close"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


FORM = "Content-Type: multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="clip"; filename="a"\r\n\r\n'
CL2 = "Content-Length: 2"
RANGES = {200, 206, 400, 416}
RAW = {
    # where things lie
    "page/..": (head("GET /page/../service.py"), {404}),
    "page/%2e%2e": (head("GET /page/%2e%2e/service.py"), {404}),
    "page/%2e%2e%2f": (head("GET /page/%2e%2e%2fservice.py"), {404}),
    "page/..%5c": (head("GET /page/..%5cservice.py"), {404}),
    "page//etc": (head("GET /page//etc/passwd"), {404}),
    "//etc": (head("GET //etc/passwd"), {404}),
    "absolute form": (head("GET http://evil.example/v1/classes", host="evil.example"), {403}),
    "label of slashes": (head("DELETE /v1/classes/..%2f..%2fetc"), {404}),
    "answer of slashes": (head("GET /v1/answers/..%2f..%2fetc%2fpasswd"), {404}),
    "clip of dots": (head("GET /v1/classes/red/clips/%2e%2e/strip"), {404}),
    "a zero in a path": (head("GET /v1/answers/%00"), {404}),
    "no utf-8 in a path": (head("GET /v1/answers/%ff%fe%ed%a0%80"), {404}),
    # who it is said to be for, and from
    "no host": (head("GET /healthz", host=None), {400, 403}),
    "empty host": (head("GET /healthz", host=""), {403}),
    "rebound name": (head("GET /healthz", host="evil.example:80"), {403}),
    "name that ends alike": (head("GET /healthz", host="localhost.evil.example"), {403}),
    "name that begins alike": (head("GET /healthz", host="127.0.0.1.evil.example"), {403}),
    "host with a user": (head("GET /healthz", host="127.0.0.1:80@evil.example"), {403}),
    "two hosts": (head("GET /v1/classes", "Host: 127.0.0.1"), {400}),
    "two tokens": (head("GET /v1/classes", "Authorization: Bearer x"), {400}),
    "forwarded host": (head("GET /v1/classes", "X-Forwarded-Host: 127.0.0.1", host="evil.example"), {403}),
    "other page reads": (head("GET /v1/classes", "Origin: https://evil.example"), {403}),
    "other page writes": (head("POST /v1/undo", "Origin: https://evil.example", "Content-Length: 0"), {403}),
    "page of a file": (head("POST /v1/undo", "Origin: null", "Content-Length: 0"), {403}),
    "other port": (head("POST /v1/undo", "Origin: http://127.0.0.1:1", "Content-Length: 0"), {403}),
    "origin that begins alike": (head("POST /v1/undo", "Origin: http://127.0.0.1.evil.example", CL2), {403}),
    "cross-site without origin": (head("GET /v1/export", "Sec-Fetch-Site: cross-site"), {403}),
    "preflight": (head("OPTIONS /v1/classes", "Origin: https://evil.example"), {403}),
    # without the token
    "no token": (head("GET /v1/classes", token=None), {401}),
    "wrong token": (head("GET /v1/classes", token=TOKEN[:-1] + "?"), {401}),
    "part of the token": (head("GET /v1/classes", token=TOKEN[:-1]), {401}),
    "token of other letters": (head("GET /v1/classes", token="\u00e9\u4e00" * 8), {401}),
    "token in the address": (head(f"GET /v1/classes?token={TOKEN.replace(' ', '+')}", token=None), {401}),
    "basic": (head("GET /v1/classes", "Authorization: Basic YTpi", token=None), {401}),
    "made-up cookie": (head("GET /v1/classes", "Cookie: m2df_session=x", token=None), {401}),
    "broken cookie": (head("GET /v1/classes", 'Cookie: m2df_session="\\400\\; =;;', token=None), {401}),
    "open path as prefix": (head("GET /page/../v1/classes", token=None), {404}),
    "open path in other letters": (head("GET /HEALTHZ", token=None), {401}),
    # sizes
    "announces 3 MB": (head("POST /v1/predict", f"Content-Length: {3 * MB}"), {413}),
    "announces 10^30 bytes": (head("POST /v1/predict", f"Content-Length: {10**30}"), {400, 413}),
    "announces -1 bytes": (head("POST /v1/predict", "Content-Length: -1"), {400}),
    "announces two sizes": (head("POST /v1/predict", CL2, "Content-Length: 3") + b"ab", {400}),
    "size and chunks": (head("POST /v1/undo", CL2, "Transfer-Encoding: chunked") + b"0\r\n\r\nGET /v1/export", {400}),
    "chunks without end": (
        head("POST /v1/predict", FORM, "Transfer-Encoding: chunked")
        + b"%x\r\n%s\r\n" % (len(PART), PART)
        + (b"100000\r\n" + bytes(MB) + b"\r\n") * 3,
        {413, 0},
    ),
    "body where none is": (head("GET /v1/classes", CL2) + b"{}", {413}),
    "line of 100 kB": (head("GET /" + "a" * 100_000), {400, 0}),
    "header of 100 kB": (head("GET /healthz", "X: " + "a" * 100_000), {400, 0}),
    "10,000 headers": (head("GET /healthz", *["X: y"] * 10_000), {400, 0}),
    "1,000 ranges": (head("GET /v1/export", "Range: bytes=" + ",".join(f"{n}-{n}" for n in range(1000))), RANGES),
    # no HTTP
    "http/0.9": (b"GET /\r\n\r\n", {400, 403}),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), {400, 0}),
    "noise": (bytes(range(256)) * 16, {400, 0}),
    "folded header": (head("GET /healthz", "X: a\r\n b"), {200, 400}),
    "feed in a header": (head("GET /healthz", "X: a\nInjected: b"), {200, 400}),
    "other methods": (head("TRACE /v1/classes"), {405}),
    "connect": (head("CONNECT 127.0.0.1:22"), {400, 404, 405, 401, 0}),
    "method that is none": (head("STEAL /v1/classes"), {400}),
    "method in a header": (head("GET /v1/classes/red", "X-HTTP-Method-Override: DELETE"), {405}),
    "upgrade to h2c": (head("GET /healthz", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"), {200}),
    "slow head": (head("GET /healthz")[:-2], {0}),
    "slow body": (head("POST /v1/predict", FORM, "Content-Length: 99"), {408}),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
def test_a_raw_request(name: str, server: Served):
    request, expected = RAW[name]
    status, body = raw(server.port, request)
    assert status in expected, body[:300]
    assert b"root:" not in body and b"import " not in body
    if status in (401, 403, 408, 413):
        assert set(json.loads(body)["error"]) == {"code", "message", "hint"}


@dataclass(frozen=True)
class Ask:
    """A request; where a file's content is None, it is that of a good clip."""

    method: str
    path: str
    files: tuple[tuple[str, str, bytes | None], ...] = ()
    more: dict[str, object] = field(default_factory=dict)

    def send(self, client: httpx2.Client, clip: bytes) -> httpx2.Response:
        files = [(kind, (name, clip if data is None else data)) for kind, name, data in self.files]
        return client.request(self.method, self.path, **({"files": files} if files else {}), **self.more)


def predict(data: bytes | None = None, name: str = "a.mp4", query: str = "") -> Ask:
    return Ask("POST", f"/v1/predict{query}", (("clip", name, data),))


def recorded(times: str, frame: bytes | None = None, count: int = 2) -> Ask:
    frames = [jpeg(picture("red", 0.1 * n)) if frame is None else frame for n in range(count)]
    files = tuple(("frames", f"{n}.jpg", data) for n, data in enumerate(frames))
    return Ask("POST", "/v1/predict", files, {"data": {"times": times}})


def teach(label: str, **data: str) -> Ask:
    return Ask("POST", f"/v1/classes/{label}/clips", (("clips", "a.mp4", None),), {"data": data})


def nothing(**data: str) -> Ask:
    return Ask("POST", "/v1/background", (("clips", "a.mp4", None),), {"data": data})


def rename(**more: object) -> Ask:
    return Ask("PATCH", "/v1/classes/red", (), more)


def form(content: bytes, boundary: str = "; boundary=x") -> Ask:
    headers = {"Content-Type": f"multipart/form-data{boundary}"}
    return Ask("POST", "/v1/predict", (), {"content": content, "headers": headers})


def carry(data: bytes) -> Ask:
    return Ask("POST", "/v1/import", (("file", "a.zip", data),))


def zipped(members: dict[str, bytes], mode: int = 0o100644) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.filename = name  # with its backslashes
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return buffer.getvalue()


def lying_zip() -> bytes:
    """Of 8 MB that are said to be 1 kB."""
    size, said = (struct.pack("<I", number) for number in (8 * MB, 1000))
    return zipped({"wave/a.mp4": bytes(8 * MB)}).replace(size, said)


JSON = {"Content-Type": "application/json"}
JOURNAL = b'{"did":"x","moves":[["red","x"]]}'
REQUESTS: dict[str, tuple[Ask, set[int]]] = {
    # names
    "label of dots": (teach("%2e%2e"), {404, 405, 422}),
    "hidden label": (teach(".m2df"), {422}),
    "label of nothing": (teach("_background"), {422}),
    "system label": (teach("__MACOSX"), {422}),
    "label of spaces": (teach("%20%20"), {422}),
    "label with a zero": (teach("a%00b"), {422}),
    "label with a line": (teach("a%0d%0ab"), {422}),
    "label of 300 bytes": (teach("a" * 300), {422}),
    "new label with slashes": (rename(json={"label": "../../x"}), {422}),
    "new label of half a letter": (rename(content=b'{"label": "\\ud800"}', headers=JSON), {422}),
    "label that is there": (rename(json={"label": "green"}), {409}),
    # JSON and parameters
    "no json": (rename(content=b"{", headers=JSON), {422}),
    "deep json": (rename(content=b"[" * 100_000, headers=JSON), {400, 422}),
    "other fields": (rename(json={"label": "x", "path": "/etc"}), {422}),
    "label that is none": (rename(json={"label": {"$ne": 1}}), {422}),
    "form for json": (rename(data={"label": "x"}), {422}),
    "topk nan": (predict(query="?topk=NaN"), {422}),
    "topk -1": (predict(query="?topk=-1"), {422}),
    "topk of 5,000 digits": (predict(query=f"?topk={'9' * 5000}"), {422}),
    "cut nan": (nothing(cut="nan"), {422}),
    "cut inf": (nothing(cut="inf"), {422}),
    "cut 0": (nothing(cut="0"), {422}),
    "trim perhaps": (teach("a", trim="?"), {422}),
    "answer that is a path": (teach("a", answer="../../etc/passwd"), {404}),
    "times nan": (recorded("[0, NaN]"), {422}),
    "times fall": (recorded("[1, 0]"), {422}),
    "times too few": (recorded("[0]"), {422}),
    "times deep": (recorded("[" * 50_000), {422}),
    "times true": (recorded("[false, true]"), {422}),
    "times of years": (recorded("[0, 1e8]"), {413}),
    # forms
    "no boundary": (form(b"x", ""), {400, 422}),
    "form without end": (form(b"--x\r\nContent-Disposition: form-data; name=clip\r\n"), {400, 422}),
    "2,000 fields": (form(b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n' * 2000 + b"--x--"), {400}),
    "1,500 files": (recorded("[]", PAGE, 1500), {400}),
    "clip and frames": (Ask("POST", "/v1/predict", (("clip", "a.mp4", None), ("frames", "f", PAGE))), {422}),
    "nothing": (Ask("POST", "/v1/predict"), {422}),
    "text for a file": (Ask("POST", "/v1/predict", (), {"data": {"clip": "/etc/passwd"}}), {422}),
    # files that are none
    "empty file": (predict(b""), {422}),
    "page as a video": (predict(PAGE, "a.html"), {422}),
    "playlist as a video": (predict(PLAYLIST, "a.m3u8"), {422}),
    "list of files as a video": (predict(b"ffconcat version 1.0\nfile /etc/passwd\n", "a.ffconcat"), {422}),
    "gif of 4 gigapixels": (predict(HUGE_GIF, "a.gif"), {422}),
    "frame that is none": (recorded("[0, 1]", PAGE), {422}),
    "other picture as a frame": (recorded("[0, 1]", HUGE_GIF), {422}),
    # zips
    "no zip": (carry(b"PK\3\4nothing"), {422}),
    "empty zip": (carry(zipped({})), {422}),
    "zip beyond its folder": (carry(zipped({"../../evil/a.mp4": PAGE})), {422}),
    "zip of a whole path": (carry(zipped({"/etc/a.mp4": PAGE})), {422}),
    "zip of a drive": (carry(zipped({"C:\\a\\b.mp4": PAGE})), {422}),
    "zip with a link": (carry(zipped({"wave/a.mp4": b"/etc/passwd"}, 0o120777)), {422}),
    "zip with a device": (carry(zipped({"wave/a.mp4": b""}, 0o020666)), {422}),
    "zip of other files": (carry(zipped({"wave/run.sh": b"rm"})), {422}),
    "zip of our own state": (carry(zipped({".m2df/change.json": JOURNAL})), {422}),
    "zip bomb": (carry(zipped({f"wave/{n}.mp4": bytes(MB) for n in range(9)})), {413}),
    "zip that lies of its size": (carry(lying_zip()), {413, 422}),
    "zip of 30,000 entries": (carry(zipped({f"a/{n}.mp4": b"" for n in range(30_000)})), {413}),
    "zip with a name twice": (carry(zipped({"\u00e9/a.mp4": PAGE, "e\u0301/a.mp4": PAGE})), {422}),
    "zip with a name twice but for capitals": (carry(zipped({"Wave/a.mp4": PAGE, "wave/a.mp4": PAGE})), {422}),
    "zip in a zip": (carry(zipped({"wave/a.mp4": zipped({"a/a.mp4": PAGE})})), {422}),
    "zip with a deep path": (carry(zipped({"a/" * 50 + "a.mp4": PAGE})), {422}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request(name: str, server: Served, clip: bytes):
    ask, expected = REQUESTS[name]
    answer = ask.send(server.client, clip)
    assert answer.status_code in expected, answer.text
    assert str(Path(os.sep, "tmp")) not in answer.text and "Traceback" not in answer.text
    assert set(answer.json()["error"]) == {"code", "message", "hint"}


def test_damaged_videos(server: Served, clip: bytes):
    """Half a clip, and one whose header tells of 4 gigapixels, may be answered; they may not do harm."""
    at = clip.rindex(b"mp4v")
    for data in (clip[: len(clip) // 2], clip[: at + 28] + b"\xff\xff\xff\xff" + clip[at + 32 :]):
        assert predict(data).send(server.client, clip).status_code in (200, 413, 422)


def closed_with(server: Served, *messages: str | bytes, query: str = "", first: str | None = HELLO) -> tuple[int, str]:
    """The close code of a live session that is sent these, and the code of the error before."""
    said = ""
    with server.live(query) as live:
        try:
            for one in (*([first] if first is not None else []), *messages):
                live.send(one)
            while True:
                got = json.loads(live.recv(timeout=LONGEST))
                said = got.get("error", {}).get("code", said)
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            return closed.rcvd.code, said


def huge_jpeg() -> bytes:
    data = bytearray(jpeg(picture("red", 0.5)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xdc\xff\xdc"
    return bytes(data)


LIVE: dict[str, tuple[tuple[str | bytes, ...], str, int]] = {
    "window nan": ((), "window=nan", 4400),
    "window inf": ((), "window=inf", 4400),
    "window -1": ((), "window=-1", 4400),
    "window of hours": ((), "window=9999", 4400),
    "stride longer than the window": ((), "window=1&stride=2", 4400),
    "stride of nothing": ((), "window=1&stride=1e-300", 4400),
    "text for a frame": (("frame",), "window=1", 4400),
    "no time": ((b"1234",), "window=1", 4400),
    "time nan": ((struct.pack("<d", float("nan")) + b"x",), "window=1", 4400),
    "no picture": ((struct.pack("<d", 0.0) + PAGE,), "window=1", 4400),
    "picture of 4 gigapixels": ((struct.pack("<d", 0.0) + huge_jpeg(),), "window=1", 4400),
    "frame of 2 MB": ((bytes(2 * MB),), "window=1", 1009),
}


@pytest.mark.parametrize("name", LIVE)
def test_a_live_session(name: str, server: Served):
    messages, query, code = LIVE[name]
    assert closed_with(server, *messages, query=query)[0] == code


def test_a_live_session_of_another_page_or_without_token(server: Served):
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        with pytest.raises(InvalidStatus) as refused, server.live(additional_headers=headers):
            pass
        assert refused.value.response.status_code == 403
    for first in ('{"type": "hello", "token": null}', '{"type": "hello", "token": ["x"]}', "[" * 50_000, "null", '"x"'):
        assert closed_with(server, first=first)[0] in (4400, 4401)


def test_html_in_a_name_is_data_everywhere(server: Served, clip: bytes):
    label = "<img src=x onerror=alert(1)>\u202e\"'&"
    encoded = "".join(f"%{byte:02x}" for byte in label.encode())
    ask = Ask("POST", f"/v1/classes/{encoded}/clips", (("clips", "<b>../..\\x?.mp4", None),))
    done = ask.send(server.client, clip)
    assert done.status_code == 200, done.text
    listed = server.client.get("/v1/classes")
    assert listed.headers["content-type"] == "application/json"
    assert listed.headers["x-content-type-options"] == "nosniff"
    entry = next(one for one in listed.json()["classes"] if one["label"] == label)
    assert entry["clips"][0]["name"] == "x.mp4"
    assert "script-src 'self'" in listed.headers["content-security-policy"]
    answer = predict().send(server.client, clip).json()
    assert answer["predictions"][0]["label"] == label
    why = server.client.get(f"/v1/answers/{answer['id']}/explain").text
    assert "<img src=x" not in why and "&lt;img src=x" in why
    assert "<img" not in server.client.get("/docs").text
    assert server.client.post("/v1/undo").status_code == 200


def test_what_all_answers_say(server: Served):
    for path in ("/healthz", "/v1/classes", "/v1/none", "/docs"):
        answer = server.client.get(path, headers={"Origin": f"http://127.0.0.1:{server.port}"})
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers
        assert answer.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_200_sockets_that_say_nothing_are_in_nobodys_way(server: Served):
    sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    try:
        assert server.client.get("/healthz").status_code == 200
        for sock in sockets:  # each is closed in its time
            sock.settimeout(LONGEST)
            assert sock.recv(1) == b""
    finally:
        for sock in sockets:
            sock.close()


def test_of_one_kind_of_client_there_are_so_many(model: Model, place: Path, clip: bytes):
    """Uploads of an address in a minute, whatever name it gives itself; uploads, cameras and readers at a time."""
    bounds = {"uploads_per_minute": 2, "at_once": 1, "sessions": 1, "listeners": 1, "connections": 8}
    with serving(model, place / "actions", **bounds) as few:
        part = head("POST /v1/predict", FORM, "Content-Length: 99")
        with socket.create_connection(("127.0.0.1", few.port)) as slow:
            slow.sendall(part)
            answers = iter(lambda: few.client.post("/v1/undo"), None)
            busy = next(one for one in answers if one.status_code == 429)
            assert refusal(busy) in ((429, "busy"), (429, "rate"))
        for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
            answer = few.client.post("/v1/undo", headers={"X-Forwarded-For": address})
        assert refusal(answer) == (429, "rate")
        assert int(answer.headers["retry-after"]) > 0
        assert few.client.get("/v1/classes").status_code == 200
        with few.live("window=1") as live:
            live.send('{"type": "hello", "token": null}')
            assert json.loads(live.recv())["type"] == "ready"
            assert closed_with(few)[0] == 4429
        with few.client.stream("GET", "/v1/events") as news:
            lines = news.iter_lines()  # which ends the request when it goes
            assert next(lines)
            assert refusal(few.client.get("/v1/events")) == (429, "busy")
        crowd = [socket.create_connection(("127.0.0.1", few.port)) for _ in range(20)]
        crowd[-1].settimeout(LONGEST)
        with suppress(ConnectionResetError):
            assert crowd[-1].recv(1) == b""
        for sock in crowd:
            sock.close()
    clock = iter((0.0, 0.0, 0.0, 30.0, 30.0))
    rate = Rate(2, lambda: next(clock))
    assert [rate.wait("a") for _ in range(5)] == [0.0, 0.0, 30.0, 0.0, 30.0]


def unread(handle: int) -> int:
    """Bytes that were sent over a socket and that nobody has read."""
    count = array("i", [0])
    fcntl.ioctl(handle, termios.TIOCOUTQ, count)
    return count[0]


def test_a_decoder_may_be_killed_be_slow_or_take_too_much(model: Model, place: Path, clip: bytes):
    spec, path = model.bundle.manifest.clip, place / "clip.mp4"
    hasty = Workers(1, Limits(decode_seconds=0.0))
    with pytest.raises(Refused, match="takes more than 0 s"):
        hasty.read(path, "clip", spec, None)
    hasty.close()
    workers = Workers(1, Limits(decode_seconds=300.0))
    first = workers.read(path, "clip", spec, None)
    (worker,) = workers._living
    os.kill(worker._process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(workers.read, path, "clip", spec, None)
        while not unread(worker._connection.fileno()):
            time.sleep(0.01)
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(Refused, match="ended the process"):
            asked.result()
    again = workers.read(path, "clip", spec, None)
    assert (again.pixels == first.pixels).all()
    assert again.seconds == first.seconds
    environment = Path(f"/proc/{next(iter(workers._living))._process.pid}/environ").read_bytes()
    assert b"M2DF_TOKEN" not in environment
    workers.close()
    with pytest.raises(Refused, match="server ends"):
        workers.read(path, "clip", spec, None)
    small = Workers(1, Limits(clip_seconds=0.1, decode_seconds=300.0))
    with pytest.raises(Refused, match="lasts 0 s"):
        small.read(path, "clip", spec, None)
    small.close()
