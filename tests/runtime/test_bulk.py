"""`m2df-run --out`: what is in the file of results, whatever happens to a clip, to a process or to the run."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image
from signal_at import signal_at
from tiny_bundle import COLOURS, write_bundle, write_clip

from m2df_runtime.backends.model import Model
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bulk.local import LocalEngine
from m2df_runtime.bulk.results import Basis, BulkClip, answered, failed, opened
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.commands.bulk import in_shard
from m2df_runtime.errors import InputError
from m2df_runtime.match.matcher import Matcher

ROOT = Path(__file__).parents[2]
BASIS = Basis("b" * 16, "c" * 16, "top 5, rejection auto")


def lines_of(path: Path) -> list[dict[str, object]]:
    """The lines of a file of results, all of which must be whole."""
    text = path.read_bytes()
    assert text == b"" or text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


def by_name(path: Path) -> dict[str, dict[str, object]]:
    """The lines of a file by the names of their clips, each of which is there once."""
    lines = lines_of(path)
    found = {Path(str(line["path"])).name: line for line in lines}
    assert len(found) == len(lines)
    return found


def write_frames(folder: Path, colour: str = "red") -> Path:
    folder.mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (64, 48), COLOURS[colour]).save(folder / f"{number}.jpg")
    return folder


@pytest.fixture
def place(support_dir: Path, query_dir: Path, tmp_path: Path) -> Path:
    """A folder with `support` and, in `clips`, one clip for each way in which one may end."""
    write_bundle(tmp_path / "bundle", blue=math.nan)
    shutil.rmtree(support_dir / "blue")
    clips = tmp_path / "clips"
    shutil.copytree(query_dir, clips)
    write_frames(clips / "frames", "green")
    write_clip(clips / "red at night.mp4", "red", seed=3)
    frames = [Image.new("RGB", (64, 48), (220, 30 + number, 30)) for number in range(6)]
    frames[0].save(clips / "cut.gif", save_all=True, append_images=frames[1:], duration=40)
    (clips / "cut.gif").write_bytes((clips / "cut.gif").read_bytes()[:-20])
    (clips / "broken.mp4").write_bytes(b"no video")
    return tmp_path


@pytest.fixture
def run(command, place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    return lambda *args: command("--bundle", "bundle", "--support", "support", "--query", *args)


OUT = ("--out", "results.jsonl", "--threads", 1)
CLIPS = ("clips", "--query", "gone.mp4")


def test_each_clip_is_answered_as_alone_and_a_later_run_goes_on(run, place: Path) -> None:
    out = place / "results.jsonl"
    done = run(*CLIPS, *OUT, "--reject", "off", "--json")
    assert done.returncode == 1, done.stderr
    summary = json.loads(done.stdout)
    assert {name: summary[name] for name in ("out", "clips", "ok", "rejected", "failed", "answered")} == {
        "out": "results.jsonl", "clips": 8, "ok": 5, "rejected": 0, "failed": 3, "answered": 8,
    }  # fmt: skip
    assert done.stderr.count("warning: clips/cut.gif: the file is cut short") == 1
    assert "error: 3 of 8 clips failed" in done.stderr

    found = by_name(out)
    alone = {}
    for line in run(*CLIPS, "--reject", "off", "--json").stdout.splitlines():
        record = json.loads(line)
        alone[Path(record["query"]).name] = record
    assert found.keys() == {*alone, "blue.mp4", "broken.mp4", "gone.mp4"}
    for name, record in alone.items():
        line = found[name]
        best = record["predictions"][0]
        assert (line["path"], line["status"]) == (record["query"], "ok")
        assert {key: line[key] for key in ("label", "probability", "distance")} == best
        for key in ("predictions", "threshold", "calibrated", "backend"):
            assert line[key] == record[key]
        if name != "frames":
            stat = (place / line["path"]).stat()
            assert (line["size"], line["mtime"]) == (stat.st_size, stat.st_mtime_ns / 1e9)
    codes = {name: line["error"]["code"] for name, line in found.items() if line["status"] == "failed"}
    assert codes == {"blue.mp4": "not-finite", "broken.mp4": "unreadable", "gone.mp4": "missing"}
    assert found["gone.mp4"]["error"]["text"] == "no such file (check the path)"
    assert (found["gone.mp4"]["path"], found["gone.mp4"]["size"]) == ("gone.mp4", None)

    before = out.read_bytes()
    again = run(*CLIPS, *OUT, "--reject", "off")
    assert (again.returncode, out.read_bytes()) == (1, before)
    assert "results.jsonl: 8 clips, 5 recognised, 0 unknown, 3 failed; 8 were done before; 0 in " in again.stdout

    # What changed is done again, what failed only where that is asked for, and the rest stays where it is.
    os.utime(place / "clips" / "red.mp4", (1, 1))
    shutil.copy(place / "clips" / "green.mp4", place / "clips" / "broken.mp4")
    shutil.copy(place / "clips" / "green.mp4", place / "gone.mp4")
    changed = json.loads(run(*CLIPS, *OUT, "--reject", "off", "--json").stdout)
    assert (changed["answered"], changed["ok"], changed["failed"]) == (3, 7, 1)
    retried = json.loads(run(*CLIPS, *OUT, "--reject", "off", "--json", "--retry-failed").stdout)
    assert (retried["answered"], retried["failed"]) == (1, 1)
    later = by_name(out)
    assert later.keys() == found.keys()
    assert later["red.mp4"] == {**found["red.mp4"], "mtime": 1.0}
    assert later["broken.mp4"]["predictions"] == found["green.mp4"]["predictions"]
    untouched = {"green.mp4", "frames", "red at night.mp4", "cut.gif"}
    assert {name: later[name] for name in untouched} == {name: found[name] for name in untouched}

    # A part of the clips, in a file with answers of others, which stay.
    part = json.loads(run("clips/red.mp4", *OUT, "--reject", "off", "--json").stdout)
    assert (part["clips"], part["answered"], len(lines_of(out))) == (1, 0, 8)


def test_a_file_holds_answers_of_one_bank_with_one_set_of_options(run, place: Path) -> None:
    out = place / "results.jsonl"
    assert run("clips/green.mp4", *OUT).returncode == 0
    before = out.read_bytes()
    for args, message in (
        (("--reject", "off"), "holds answers with top 5, rejection auto, not with top 5, rejection off"),
        (("--topk", 1), "not with top 1, rejection auto"),
        (("--roi", "motion"), "holds answers of another bundle"),
        (("--roi", "0,0,40,40"), "not with top 5, rejection auto, region 0,0,40,40"),
        (("--prompt", "film of {}"), "holds answers of another bank"),
    ):
        refused = run("clips/green.mp4", *OUT, *args)
        assert (refused.returncode, out.read_bytes()) == (2, before)
        assert message in refused.stderr and "--restart empties the file first" in refused.stderr
    shutil.copy(place / "clips" / "red.mp4", place / "support" / "green" / "2.mp4")
    assert "holds answers of another bank" in run("clips/green.mp4", *OUT).stderr
    assert run("clips/red.mp4", *OUT, "--restart").returncode == 0
    assert [*by_name(out)] == ["red.mp4"]

    for content in (b"my notes\n", b"my notes", b'{"path": "a"}\n', b'{"path": [\n', b"\0" * 40):
        out.write_bytes(content)
        refused = run("clips/green.mp4", *OUT, "--restart")
        assert (refused.returncode, out.read_bytes()) == (2, content)
        assert "line 1 is no result of m2df-run" in refused.stderr
    refused = run("clips/green.mp4", "--out", "clips")
    assert refused.returncode == 2 and "clips: a folder, not a file" in refused.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--shard", "1/2"), "--shard needs --out"),
        (("--retry-failed",), "--retry-failed needs --out"),
        ((*OUT, "--shard", "0/2"), "'0/2' is not a part such as 1/4"),
        ((*OUT, "--shard", "3/2"), "'3/2' is not a part such as 1/4"),
        ((*OUT, "--window", "2"), "--window is for another job"),
        ((*OUT, "--picture", "a.png"), "--picture is for another job"),
    ],
)
def test_wrong_usage_of_bulk_options(command, args: tuple[object, ...], message: str) -> None:
    done = command("--support", "support", "--query", "clips", *args)
    assert done.returncode == 2 and message in done.stderr


def test_parts_are_all_clips_once(run, place: Path) -> None:
    paths = [f"clips/{number}.mp4" for number in range(600)]
    for count in (1, 2, 7):
        parts = [[path for path in paths if in_shard(path, (which, count))] for which in range(1, count + 1)]
        assert sorted(path for part in parts for path in part) == sorted(paths)
        assert min(map(len, parts)) > 600 / count / 2
    # SHA-256 of "abc" begins with ba7816bf8f01cfea (FIPS 180-2, appendix B.1).
    assert in_shard("abc", (0xBA7816BF8F01CFEA % 1000 + 1, 1000))

    for which in (1, 2, 3):
        run("clips", "--out", f"{which}.jsonl", "--shard", f"{which}/3")
    together = place / "together.jsonl"
    together.write_bytes(b"".join((place / f"{which}.jsonl").read_bytes() for which in (1, 2, 3)))
    before = together.read_bytes()
    whole = json.loads(run("clips", "--out", "together.jsonl", "--json").stdout)
    assert (whole["clips"], whole["answered"], together.read_bytes()) == (7, 0, before)


def test_a_file_that_ends_at_any_byte_is_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    clips = [BulkClip(f"{name}.mp4", 10, 0.5) for name in ("a", "\udc80", "c")]
    with opened(out, BASIS, clips) as results:
        with pytest.raises(InputError, match="another process is writing it"), opened(out, BASIS, clips):
            pass
        for clip in results.left:
            results.append(clip, failed("unreadable", "no video"))
    whole = out.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for end in range(len(whole) + 1):
        out.write_bytes(whole[:end])
        with opened(out, BASIS, clips) as results:
            done = sum(one <= end for one in ends)
            assert (results.left, results.counts["failed"]) == (clips[done:], done)
            for clip in results.left:
                results.append(clip, failed("unreadable", "no video"))
        assert out.read_bytes() == whole


def test_a_clip_that_ends_two_processes_has_failed_and_the_others_are_answered(run, place: Path, monkeypatch) -> None:
    write_frames(place / "clips" / "killer")
    for name, value in signal_at(place / "hook", "open", r"killer/0\.jpg", signal.SIGKILL).items():
        monkeypatch.setenv(name, value)
    done = run("clips", *OUT, "--reject", "off", "--json")
    found = by_name(place / "results.jsonl")
    assert (done.returncode, json.loads(done.stdout)["ok"], len(found)) == (1, 5, 8)
    assert found["killer"]["error"] == {"code": "crashed", "text": "reading it ended 2 processes: SIGKILL"}
    assert list((place / "clips" / "killer").parent.parent.glob(".*.lock")) == []


def test_a_gpu_answers_at_once_what_waits(
    tiny_bundle: Path, support_dir: Path, query_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(Bundle.open(tiny_bundle), backend="cpu", threads=1)
    matcher = Matcher(model, SupportBank.of(model, support_dir))
    paths = [str(query_dir / f"{colour}.mp4") for colour in ("red", "green", "blue")] * 4
    alone = [answered(matcher.predict(path), 2) for path in paths]
    monkeypatch.setattr(Model, "backend", property(lambda self: "cuda"))
    with closing(LocalEngine(matcher, roi=None, topk=2, processes=2)) as engine:
        for _ in range(2):  # the processes stay for the next clips
            found = dict(engine.answers(paths))
            assert found.keys() == {*range(len(paths))}
            for number, fields in found.items():
                assert (fields["status"], fields["label"]) == (alone[number]["status"], alone[number]["label"])
                assert fields["distance"] == pytest.approx(alone[number]["distance"], abs=1e-6)


def test_whatever_ends_a_run_what_is_done_is_in_the_file(place: Path) -> None:
    """The signals come when a process is about to read the last clip, to all processes as from a terminal."""
    write_frames(place / "clips" / "last")
    out, clips = place / "results.jsonl", ("clips/green.mp4", "clips/red.mp4", "clips/last")
    command = [sys.executable, "-m", "m2df_runtime.commands.run", "--bundle", "bundle", "--support", "support"]
    command += ["--query", *" --query ".join(clips).split(" "), "--out", str(out), "--threads", "1"]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

    def ended(number: signal.Signals | None) -> int:
        hook = {"PYTHONPATH": paths}
        if number is not None:
            hook = signal_at(place / f"hook-{number}", "open", r"last/0\.jpg", number, group=True, paths=paths)
        process = subprocess.Popen(
            command, cwd=place, env={**os.environ, **hook}, start_new_session=True, stdout=subprocess.DEVNULL
        )
        code = process.wait()
        with pytest.raises(ProcessLookupError):  # nobody of its group is left
            while True:
                os.killpg(process.pid, 0)
        return code

    assert ended(signal.SIGKILL) == -signal.SIGKILL
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        assert ended(number) == code
        assert {*by_name(out)} <= {"green.mp4", "red.mp4"}
    assert ended(None) == 0
    assert {*by_name(out)} == {"green.mp4", "red.mp4", "last"}
