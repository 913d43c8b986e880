"""m2df-run --window as a user meets it: events of real recordings, as lines and as JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from made_videos import write_video
from test_stream import scene

MODULE = "m2df_runtime.commands.run"
EVENT = [
    *("type", "id", "camera", "zone", "label", "score", "top_score", "runner_up", "distance", "windows"),
    *("start", "end", "start_time", "end_time"),
]


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(
        tmp_path_factory.mktemp("long") / "long.mp4", scene((None, 2), ("red", 2), (None, 2), ("blue", 2))
    )


@pytest.fixture
def watch(run, long: Path):
    return partial(run, "--query", long, "--window", 1, "--stride", 0.5)


def test_events_are_lines_as_they_end(watch, long: Path) -> None:
    done = watch()
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split(" from ")[0] for line in lines] == [f"{long}: red", f"{long}: blue"]
    assert " to 0:08.0, " in lines[1]
    watched, rejection = done.stderr.splitlines()
    assert watched == (
        f"{long}: 2 events in 15 windows of 1 s, one every 0.5 s; nothing moves in 5; 200 frames read, 30 encoded"
    )
    assert rejection.startswith("rejection: at most about 14 % of taught actions rejected, ")


def test_json_has_one_object_per_event_and_line_with_the_documented_keys(watch, long: Path) -> None:
    records = [json.loads(line) for line in watch("--json").stdout.splitlines()]
    assert all(list(record) == EVENT for record in records)
    assert [(r["type"], r["label"], r["id"]) for r in records if r["type"] != "update"] == [
        ("new", "red", 1), ("end", "red", 1), ("new", "blue", 2), ("end", "blue", 2)
    ]  # fmt: skip
    end = records[-1]
    assert (end["camera"], end["zone"], end["end"], end["start_time"], end["end_time"]) == (
        str(long),
        None,
        8.0,
        None,
        None,
    )


def test_windows_print_the_scores_of_every_window(watch, long: Path) -> None:
    records = [json.loads(line) for line in watch("--json", "--windows", "--topk", 2).stdout.splitlines()]
    windows = [record for record in records if record["type"] == "window"]
    assert [(w["start"], w["end"]) for w in windows] == [(k / 2, k / 2 + 1) for k in range(15)]
    for window in windows:
        assert list(window) == ["type", "camera", "zone", "start", "end", "classes", "rejected", "still"]
        assert [list(one) for one in window["classes"]] == [["label", "probability", "distance", "score"]] * 2
        accepted = not (window["still"] or window["rejected"])
        assert all(one["score"] == (one["probability"] if accepted else 0) for one in window["classes"])
    assert windows[0]["still"] and not windows[5]["still"]
    lines = watch("--windows", "--topk", 1).stdout.splitlines()
    assert len(lines) == 17
    assert lines[0].startswith(f"{long}, 0:00.0 to 0:01.0: ") and lines[0].endswith("%  (nothing moves)")


def test_rules_come_from_the_command_line(watch) -> None:
    assert len(watch("--min-duration", 30).stdout) == 0
    assert len(watch("--enter", 1, "--leave", 1).stdout) == 0
    assert len(watch("--max-duration", 1).stdout.splitlines()) > 2
    one = watch("--merge-gap", 60, "--json").stdout.splitlines()
    assert json.loads(one[-1])["end"] == 8.0


def test_a_long_clip_without_window_gets_one_answer_and_is_told_how_to_get_events(
    run, long: Path, query_dir: Path
) -> None:
    done = run("--query", long, "--query", long, "--query", query_dir / "red.mp4", "--json")
    assert [set(json.loads(line)) for line in done.stdout.splitlines()] == [
        {"query", "predictions", "rejected", "threshold", "calibrated", "backend", "timings_ms"}
    ] * 3
    told, _ = done.stderr.splitlines()
    assert told == f"{long} lasts 8 s and got one answer for all of it; --window 1 tells what happens when"


def test_a_window_longer_than_the_file_answers_the_whole_file(run, long: Path) -> None:
    done = run("--query", long, "--window", 100, "--windows", "--json")
    (window,) = (r for r in map(json.loads, done.stdout.splitlines()) if r["type"] == "window")
    (clip,) = map(json.loads, run("--query", long, "--json").stdout.splitlines())
    assert (window["start"], window["end"]) == (0.0, 8.0)
    assert [{k: one[k] for k in one if k != "score"} for one in window["classes"]] == clip["predictions"]


def test_a_recording_that_cannot_be_read_does_not_stop_the_others(run, long: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("not a video")
    done = run("--query", tmp_path / "bad.mp4", "--query", long, "--window", "auto")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.splitlines()[0].startswith(f"error: {tmp_path / 'bad.mp4'}: ")
    assert done.stderr.splitlines()[-1] == "error: 1 of 2 recordings could not be read (see the errors above)"
    alone = run("--query", tmp_path / "bad.mp4", "--window", "auto")
    assert (alone.returncode, alone.stdout, len(alone.stderr.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stride", "1"], "Error: --stride needs --window, for example --window auto"),
        (["--windows"], "Error: --windows needs --window"),
        (["--window", "soon"], "'soon' is not auto or a number of seconds"),
        (["--window", "0"], "error: a window of 0.0 s"),
        (["--window", "nan"], "error: a window of nan s"),
        (["--window", "1", "--stride", "2"], "error: a stride of 2 s is longer than the window of 1 s"),
        (["--window", "1", "--enter", "0.3"], "error: events enter at 0.3 and leave at 0.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(run, long: Path, options: list[str], message: str) -> None:
    done = run("--query", long, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]


def test_a_bank_of_one_class_cannot_tell_events(command, tiny_bundle: Path, long: Path, tmp_path: Path) -> None:
    (tmp_path / "support" / "red").mkdir(parents=True)
    write_video(tmp_path / "support" / "red" / "a.mp4", scene(("red", 1)))
    done = command("--bundle", tiny_bundle, "--support", tmp_path / "support", "--query", long, "--window", 1)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: the bank has one class (red), and every window would be it")


def started(tiny_bundle: Path, support_dir: Path, long: Path) -> subprocess.Popen[str]:
    """m2df-run in its own process, with more to print than a pipe holds."""
    args = ["--bundle", tiny_bundle, "--support", support_dir, "--query", long, "--window", 1, "--stride", 0.02]
    return subprocess.Popen(
        [sys.executable, "-m", MODULE, *map(str, args), "--windows", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ},
    )


def test_a_reader_that_leaves_ends_it_without_a_word(tiny_bundle: Path, support_dir: Path, long: Path) -> None:
    with started(tiny_bundle, support_dir, long) as process:
        assert json.loads(process.stdout.readline())["type"] == "window"
        process.stdout.close()
        assert process.wait() == 1
        assert process.stderr.read() == ""


def test_ctrl_c_ends_it_in_the_middle(tiny_bundle: Path, support_dir: Path, long: Path) -> None:
    with started(tiny_bundle, support_dir, long) as process:
        assert json.loads(process.stdout.readline())["type"] == "window"
        process.send_signal(signal.SIGINT)  # while it waits for somebody to read on
        rest, told = process.stdout.read(), process.stderr.read()  # `communicate` leaves out what `readline` read ahead
        assert process.wait() == 130
        assert told.strip() == "error: interrupted"
        assert all(json.loads(line) for line in rest.splitlines()[:-1])
