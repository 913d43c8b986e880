"""`m2df-eval --recordings`: measures of real recordings, comparisons, tuning, and rows that are wrong."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from made_videos import write_video
from PIL import Image
from test_stream import scene
from tiny_bundle import write_bundle

from m2df_runtime import Matcher, SupportBank, load
from m2df_train.commands.evaluate import cli

KEYS = [
    "model", "bank", "backend", "precision", "recordings", "seconds", "window", "stride", "rules", "events",
    "per_class", "delay", "mistaken", "repeated", "false_alarms", "background_hours", "false_alarms_per_hour",
    "false_alarms_per_hour_at_most", "at_recall",
]  # fmt: skip
TABLE = """recording,start,end,label
one.mp4,2,4.0,red
one,0:06,0:08,blue
part/two.mp4,2,3,green
"""


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings: red and blue at their times; blue where the table says green, and red where it says nothing."""
    folder = tmp_path_factory.mktemp("days")
    (folder / "part").mkdir()
    write_video(folder / "one.mp4", scene((None, 2), ("red", 2), (None, 2), ("blue", 2)))
    write_video(folder / "part" / "two.mp4", scene((None, 2), ("blue", 1), (None, 3), ("red", 2), (None, 1)))
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "events.csv"
    path.write_text(TABLE)
    return path


@pytest.fixture
def evaluate(run_here, days: Path, table: Path, tiny_bundle: Path, support_dir: Path):
    def run(*more: object, bundle: tuple[object, ...] = ("--bundle", tiny_bundle, "--support", support_dir)):
        options = ("--recordings", days, "--annotations", table, "--window", 1, "--stride", 0.5)
        return run_here(cli, *bundle, *options, *more)

    return run


def test_without_annotations_everything_is_background(
    run_here, days: Path, tiny_bundle: Path, support_dir: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    common = ("--bundle", tiny_bundle, "--support", support_dir, "--recordings", days, "--window", 1, "--stride", 0.5)
    record = json.loads(run_here(cli, *common, "--json", "--report", page).stdout)
    assert record["events"]["iou_0.3"] == {
        "true": 0, "found": 4, "matched": 0, "precision": 0.0, "recall": None, "f1": 0.0
    }  # fmt: skip
    assert (record["false_alarms"], record["background_hours"]) == (4, pytest.approx(17 / 3600, abs=1e-4))
    assert page.is_file()
    lines = run_here(cli, *common).stdout.splitlines()
    assert lines[1] == "  nothing is said to happen in them: all of the 4 events are false alarms"
    assert lines[2].startswith("  false alarms: 4 in 0.00 h of background, ") and "with 95 % confidence" in lines[2]


def test_what_is_found_is_measured(evaluate, table: Path, tiny_bundle: Path, support_dir: Path) -> None:
    done = evaluate("--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert list(record) == KEYS
    assert (record["model"], record["bank"]) == (str(tiny_bundle), str(support_dir))
    assert (record["recordings"], record["seconds"], record["window"], record["stride"]) == (2, 17, 1, 0.5)
    assert record["rules"] == {
        "enter": 0.7,
        "leave": 0.5,
        "min_duration": None,
        "merge_gap": 0.5,
        "max_duration": None,
        "cooldown": 0.0,
    }
    first = record["events"]["iou_0.3"]
    assert (first["true"], first["found"], first["matched"], first["f1"]) == (3, 4, 2, pytest.approx(4 / 7, abs=1e-4))
    assert record["per_class"]["red"]["iou_0.3"]["precision"] == 0.5
    assert record["per_class"]["green"]["iou_0.3"]["recall"] == 0
    assert (record["mistaken"], record["repeated"], record["false_alarms"]) == (1, 0, 1)
    assert record["background_hours"] == pytest.approx(12 / 3600, abs=1e-4)
    assert record["false_alarms_per_hour"] == pytest.approx(3600 / 12, abs=1e-3)
    assert 0 < record["delay"]["median"] < 1.5
    assert record["at_recall"] == {"0.8": None, "0.9": None}  # green is never probable where blue is seen
    lines = evaluate().stdout.splitlines()
    assert lines[0].endswith(": 2 recordings, 0.3 min, windows of 1 s every 0.5 s (cpu fp32)")
    assert lines[1].startswith("  at IoU 0.3: F1 57.1 %, precision 50.0 %, recall 66.7 %: 2 of 3 actions, 4 events")
    assert "  at 80 % recall: not reached" in lines
    assert [line.split()[0] for line in lines[-3:]] == ["blue", "green", "red"]
    table.write_text(TABLE.partition("part")[0])
    reached = [line for line in evaluate().stdout.splitlines() if line.startswith("  at 80 % recall: ")]
    assert len(reached) == 1 and ", with --enter " in reached[0]


def test_rules_are_taken_and_what_is_proposed_gives_what_is_told(evaluate) -> None:
    assert json.loads(evaluate("--min-duration", 5, "--json").stdout)["events"]["iou_0.3"]["found"] == 0
    for score in (0.3, 0.7, 0.9):
        assert evaluate("--enter", score, "--leave", score).returncode == 0
    record = json.loads(evaluate("--tune", "--json").stdout)
    assert list(record) == [*KEYS, "proposed", "f1_of_rules_chosen_on_other_recordings", "trade"]
    proposed = record["proposed"]
    assert proposed["f1"]["iou_0.3"] >= record["events"]["iou_0.3"]["f1"]
    options = [
        word
        for name in ("enter", "leave", "min_duration", "merge_gap")
        for word in (f"--{name.replace('_', '-')}", proposed["rules"][name])
    ]
    again = json.loads(evaluate(*options, "--json").stdout)
    assert (again["events"]["iou_0.3"]["f1"], again["false_alarms"]) == (
        proposed["f1"]["iou_0.3"],
        proposed["false_alarms"],
    )
    recalls = [(choice["recall"], choice["false_alarms"]) for choice in record["trade"]]
    assert recalls == sorted(recalls, reverse=True) and len(set(recalls)) == len(recalls)
    lines = evaluate("--tune").stdout.splitlines()
    assert any(line.startswith("proposed: --enter ") for line in lines)
    elsewhere = record["f1_of_rules_chosen_on_other_recordings"]["iou_0.3"]
    worse = elsewhere < record["events"]["iou_0.3"]["f1"]
    assert any(line.startswith("  keep those in use") for line in lines) == worse


def test_a_bank_may_be_asked_to_reject_more(evaluate) -> None:
    usual, strict = (json.loads(evaluate(*more, "--json").stdout) for more in ((), ("--miss-rate", 0.95)))
    assert strict["events"]["iou_0.3"]["found"] < usual["events"]["iou_0.3"]["found"]


def test_events_of_classes_for_what_else_is_seen_are_left_out(evaluate, table: Path) -> None:
    table.write_text(TABLE.replace("one,0:06,0:08,blue\n", ""))
    record = json.loads(evaluate("--ignore", "Blue", "--json").stdout)
    first = record["events"]["iou_0.3"]
    assert (first["true"], first["found"], first["matched"]) == (2, 2, 1)  # both events of red
    assert sorted(record["per_class"]) == ["green", "red"]
    done = evaluate("--ignore", "blue,grey")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == ("error: --ignore grey: no class is called so (there are blue, green, red)")


def test_two_bundles_and_two_banks_on_the_same_recordings(
    evaluate, tiny_bundle: Path, support_dir: Path, tmp_path: Path
) -> None:
    blind = write_bundle(tmp_path / "blind", blue=0.25)  # every blue picture looks the same to it, and like no other
    done = evaluate("--json", bundle=("--compare", tiny_bundle, blind, "--support", support_dir))
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert [list(record[side]) for side in "ab"] == [KEYS, KEYS]
    assert record["difference"] == pytest.approx(
        record["b"]["events"]["iou_0.3"]["f1"] - record["a"]["events"]["iou_0.3"]["f1"], abs=2e-4
    )
    assert record["both"] + record["only_a"] + record["only_b"] + record["neither"] == 3
    fewer = Path(shutil.copytree(support_dir, tmp_path / "fewer"))
    shutil.rmtree(fewer / "blue")
    (fewer / "red").rename(fewer / "Red")
    done = evaluate(bundle=("--bundle", tiny_bundle, "--compare", support_dir, fewer))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [lines[0].split()[0], lines[0].split(", ")[1].split(":")[0]] == ["A", str(support_dir)]
    assert "  actions found by both 1, A alone 1, B alone 0, neither 1" in lines


def test_a_banks_file_is_a_bank(evaluate, tiny_bundle: Path, support_dir: Path, tmp_path: Path) -> None:
    SupportBank.of(load(tiny_bundle), support_dir).save(tmp_path / "gate.bank")
    of_file = evaluate("--json", bundle=("--bundle", tiny_bundle, "--support", tmp_path / "gate.bank"))
    skipped = ("bank",)
    first, second = (
        {k: v for k, v in json.loads(done.stdout).items() if k not in skipped} for done in (of_file, evaluate("--json"))
    )
    assert first == second


def test_each_wrong_row_is_one_line(evaluate, table: Path) -> None:
    rows = [
        "one.mp4,1,2,rde",
        "three.mp4,1,2,red",
        "one.mp4,2,2,red",
        "one.mp4,soon,2,red",
        "one.mp4,1,99,red",
        "one.mp4,,2,red",
        "one.mp4,2,4.0,red",
    ]
    table.write_text(TABLE + "\n".join(rows) + "\n")
    done = evaluate()
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    told = [
        "'rde' is not a taught action (taught are blue, green, red)",
        "no recording is called 'three.mp4' (there are one.mp4, part/two.mp4)",
        "it ends at 2 s, which is not after its start at 2 s",
        "start is 'soon', which is not a time (seconds such as 75.5, or 1:15.5)",
        "it ends at 99 s, and one.mp4 at 8.0 s",
        "no start (a row is recording,start,end,label)",
        "the same row twice (remove one)",
    ]
    assert lines == [
        *(f"error: {table}, line {number}: {what}" for number, what in enumerate(told, 5)),
        f"error: {table}: 7 rows cannot be used (see the errors above)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column recording and start and end and label (the first line must be: recording,start,end,label)"),
        ("recording,start,end,label\n", "no rows (one row per action: recording,start,end,label)"),
        ("recording,start,end\n", "no column label (the first line must be: recording,start,end,label)"),
        ("\xff", "not a UTF-8 CSV file: "),
    ],
)
def test_what_is_no_table_is_refused(evaluate, table: Path, text: str, message: str) -> None:
    table.write_bytes(text.encode("latin-1"))
    done = evaluate()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"error: {table}: {message}")


def test_a_recording_that_cannot_be_read_does_not_stop_the_rest(
    run_here, days: Path, table: Path, tiny_bundle: Path, support_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(days, tmp_path / "days"))
    (folder / "bad.mp4").write_text("not a video")
    table.write_text(TABLE + "bad.mp4,1,2,red\n")
    done = run_here(
        cli, "--bundle", tiny_bundle, "--support", support_dir, "--recordings", folder, "--annotations", table, "--json"
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["recordings"] == 2
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"error: {folder / 'bad.mp4'}: ")
    assert lines[-1] == "error: 1 of 3 recordings could not be read (see the errors above)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--recordings", "days", "--tune"), "--tune needs --annotations CSV"),
        (("--tune",), "--tune needs --recordings DIR"),
        (("--merge-gap", "1"), "--merge-gap needs --recordings DIR"),
        (
            ("--recordings", "days", "--annotations", "a.csv", "--support", ".", "--shot", "5"),
            "--shot does not go with --recordings",
        ),
        (("--miss-rate", "0.1"), "--miss-rate needs --recordings DIR"),
        (
            ("--recordings", "days", "--support", ".", "--reject", "off", "--miss-rate", "0.1"),
            "--miss-rate is of --reject auto, not of --reject off",
        ),
        (("--recordings", "days", "--annotations", "a.csv"), "--recordings needs --support DIR"),
        (("--recordings", "days", "--annotations", "a.csv", "--support", "."), "days: not a folder"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run_here, options, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_here(cli, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]


def test_the_windows_are_those_of_the_matcher(days: Path, tiny_bundle: Path, support_dir: Path) -> None:
    """Events from kept scores are those that the stream tells, whatever the rules."""
    from m2df_runtime import EventRules, Stream
    from m2df_runtime.clips.opening import open_source
    from m2df_train.evaluation.recordings import scored

    model = load(tiny_bundle)
    matcher = Matcher(model, SupportBank.of(model, support_dir))
    source = open_source(days / "one.mp4")
    kept = scored(matcher, source, "one", [], window=1, stride=0.25)
    for rules in (EventRules(), EventRules(enter=0.9, leave=0.2, min_duration=0.5), EventRules(max_duration=1)):
        told = [event for event in Stream(matcher, source, window=1, stride=0.25, rules=rules) if event.type == "end"]
        found = kept.outcome(rules).events
        assert [(e.start, e.end, e.label, e.top_score) for e in told] == [
            (e.start, e.end, e.label, e.score) for e in found
        ]
        assert all(event.start <= event.told <= 8 for event in found)
    assert found


def test_a_page_shows_what_happens_what_was_found_and_each_mistake(evaluate, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "events.html"
    done = evaluate("--report", page)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == f"report: {page}", done.stderr
    html = page.read_text()
    assert "<script" not in html and "http" not in html  # complete in itself
    shown = [re.sub(r"<[^>]+>", "", line) for line in re.findall(r"<h3>(.*?)</h3>", html)]
    assert shown[:2] == ["one.mp4, 0:08.0", "part/two.mp4, 0:09.0"]
    mistaken, missed, alarm = shown[2:]
    assert missed == "part/two.mp4 0:02.0 to 0:03.0: green was missed"
    assert mistaken.startswith("part/two.mp4 0:0") and mistaken.endswith(": blue was told, mistaken")
    assert alarm.startswith("part/two.mp4 0:0") and alarm.endswith(": red was told, false alarm")
    spans = Counter(re.findall(r'<i class="([a-z ]+)" style="left', html))
    assert spans == {"true": 2, "true missed": 1, "event": 2, "event wrong": 2}
    pictures = [base64.b64decode(data) for data in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)]
    assert len(pictures) == 3 * 6
    with Image.open(io.BytesIO(pictures[8])) as frame:  # where green was missed there is blue
        red, _, blue = np.asarray(frame.convert("RGB")).reshape(-1, 3).max(axis=0)
    assert blue > 150 and red < blue


def test_a_page_is_about_one_bank(evaluate, tiny_bundle: Path, tmp_path: Path) -> None:
    both = ("--compare", tiny_bundle, tiny_bundle, "--support", tmp_path)
    done = evaluate("--report", tmp_path / "page.html", bundle=both)
    assert done.returncode == 2 and "--report is about one bank" in done.stderr
    assert not (tmp_path / "page.html").exists()
