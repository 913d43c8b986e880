"""m2df-run as a user meets it: in its own process, with real clips and a real bundle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image
from signal_at import signal_at
from tiny_bundle import write_clip

from m2df_runtime.commands.console import guarded
from m2df_runtime.errors import CheckFailed, EnvironmentMissing, InputError

MODULE = "m2df_runtime.commands.run"
CLAIM = (
    "at most about 14 % of taught actions rejected, if queries resemble the support clips (6 clips; 5 % takes 19; for "
    "this bank up to 39 % is plausible); false alarms: not measured"
)
TIMINGS = {"decode", "preprocess", "visual", "query", "total"}


def test_json_is_one_object_per_query_with_the_documented_keys(
    run_module, tiny_bundle: Path, support_dir: Path, query_dir: Path
) -> None:
    done = run_module(MODULE, "--bundle", tiny_bundle, "--support", support_dir, "--query", query_dir, "--json")
    assert (done.returncode, done.stderr) == (0, f"rejection: {CLAIM}\n")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(record["query"]).stem for record in records] == ["blue", "green", "red"]
    for record in records:
        assert set(record) == {"query", "predictions", "rejected", "threshold", "calibrated", "backend", "timings_ms"}
        assert set(record["timings_ms"]) == TIMINGS
        assert record["backend"] in ("cpu", "cuda")
        assert record["rejected"] is (record["predictions"][0]["distance"] > record["threshold"])
        assert all(set(score) == {"label", "probability", "distance"} for score in record["predictions"])
        assert record["predictions"][0]["label"] == Path(record["query"]).stem


def test_text_names_the_answer_first_and_lists_topk(run, query_dir: Path) -> None:
    done = run("--query", query_dir / "red.mp4", "--topk", 2, "--reject", "off")
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[0].startswith(f"{query_dir / 'red.mp4'}: red ")
    assert [line.split()[0] for line in lines[1:]] == ["red", *[lines[2].split()[0]], "decode"]


def test_a_miss_rate_is_wished_and_what_is_reached_is_said(run, query_dir: Path) -> None:
    done = run("--query", query_dir, "--miss-rate", 0.5, "--json")
    assert done.stderr.startswith("rejection: about 43 % of taught actions rejected, ")
    strict, usual = (
        {json.loads(line)["threshold"] for line in found.stdout.splitlines()}
        for found in (done, run("--query", query_dir, "--json"))
    )
    assert len(strict) == len(usual) == 1 and max(strict) < max(usual)
    for args, message in (
        (("--miss-rate", 0), "not in the range"),
        (("--miss-rate", 0.1, "--reject", "off"), "--miss-rate is of --reject auto, not of --reject off"),
    ):
        refused = run("--query", query_dir, *args)
        assert refused.returncode == 2 and message in refused.stderr


def test_second_run_needs_neither_text_nor_support_graph(
    command, bundle_copy: Path, support_dir: Path, query_dir: Path
) -> None:
    args = ("--bundle", bundle_copy, "--support", support_dir, "--query", query_dir / "red.mp4")
    assert command(*args).returncode == 0
    for name in ("text.onnx", "support.onnx", "tokenizer.json"):
        (bundle_copy / name).unlink()
    assert command(*args).returncode == 0


def test_a_whole_run_imports_no_torch(tiny_bundle: Path, support_dir: Path, query_dir: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom m2df_runtime.commands.run import cli\n"
        "cli(sys.argv[1:], standalone_mode=False)\n"
        "heavy = {'torch', 'open_clip', 'torchvision', 'onnx', 'm2df_train', 'm2df_export'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    args = ["--bundle", tiny_bundle, "--support", support_dir, "--query", query_dir, "--picture", tmp_path / "p.png"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stderr


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom m2df_runtime.commands import doctor, run\n"
        "print(sorted({'numpy', 'cv2', 'av', 'onnxruntime', 'pydantic', 'PIL', 'torch', 'rich'} & set(sys.modules)))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout == "[]\n"


def test_paths_from_standard_input(run, query_dir: Path) -> None:
    paths = f"{query_dir / 'red.mp4'}\n\n{query_dir / 'blue.mp4'}\n"
    done = run("--query", "-", "--json", stdin=paths)
    assert [json.loads(line)["predictions"][0]["label"] for line in done.stdout.splitlines()] == ["red", "blue"]
    empty = run("--query", "-", stdin="")
    assert (empty.returncode, empty.stdout) == (2, "")
    assert "standard input was empty" in empty.stderr


def test_batch_goes_on_after_a_bad_clip_and_exits_with_1(run, query_dir: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("not a video")
    done = run("--query", bad, "--query", query_dir / "red.mp4", "--query", tmp_path / "none.mp4", "--json")
    assert done.returncode == 1
    assert [json.loads(line)["predictions"][0]["label"] for line in done.stdout.splitlines()] == ["red"]
    errors = done.stderr.splitlines()
    assert errors[0].startswith(f"error: {bad}: ")
    assert "none.mp4: no such file" in errors[1]
    assert errors[2] == "error: 2 of 3 queries could not be read (see the errors above)"


def test_every_kind_of_bad_clip_is_named_and_the_batch_goes_on(run, query_dir: Path, tmp_path: Path) -> None:
    whole = (query_dir / "red.mp4").read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its index is at the end
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "dangling.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    bad = ["empty.mp4", "text.mp4", "cut.mp4", "picture.png", "folder.mp4", "dangling.mp4", "pipe.mp4", "none-%03d.png"]
    lines = "".join(f"{tmp_path / name}\n" for name in bad)
    done = run("--query", "-", "--json", stdin=f"{lines}{query_dir / 'red.mp4'}\n")
    assert done.returncode == 1
    assert [json.loads(line)["predictions"][0]["label"] for line in done.stdout.splitlines()] == ["red"]
    errors = done.stderr.splitlines()
    assert errors.pop() == f"error: {len(bad)} of {len(bad) + 1} queries could not be read (see the errors above)"
    for name, line in zip(bad, errors, strict=True):
        assert line.startswith(f"error: {tmp_path / name}: ")
        assert "fault in m2df" not in line


def test_lines_of_standard_input_may_hold_anything(run, query_dir: Path) -> None:
    strange = ["a\0b.mp4", "x" * 100_000, "\udcff\udcfe.mp4", "\x1b[31mred.mp4"]
    done = run("--query", "-", "--json", stdin="\n".join([*strange, str(query_dir / "red.mp4")]))
    assert done.returncode == 1
    assert [json.loads(line)["predictions"][0]["label"] for line in done.stdout.splitlines()] == ["red"]
    errors = done.stderr.splitlines()
    names = ["a\\x00b.mp4: no such file", "x" * 900, "\\udcff\\udcfe.mp4: no such file", "\\x1b[31mred.mp4: no such"]
    for name, line in zip([*names, "4 of 5 queries could not"], errors, strict=True):
        assert line.startswith(f"error: {name}")
    assert max(map(len, errors)) < 2100


def test_batch_of_bad_paths_reports_each(run, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    done = run("--query", long, "--query", tmp_path / "none.mp4")
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert [str(long) in lines[0], "none.mp4: no such file" in lines[1], "2 of 2 queries" in lines[2]] == [True] * 3


def test_paths_of_any_bytes_come_in_on_standard_input(
    tiny_bundle: Path, support_dir: Path, query_dir: Path, tmp_path: Path
) -> None:
    query = os.fsencode(tmp_path) + b"/\xe9.mp4"
    try:
        os.symlink(query_dir, os.fsencode(tmp_path) + b"/\xe9")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    command = [sys.executable, "-m", MODULE, "--bundle", str(tiny_bundle), "--support", str(support_dir), "--json"]
    done = subprocess.run(
        [*command, "--query", "-"],
        input=query[:-4] + b"\n" + query + b"\n",
        capture_output=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 1
    answers = [json.loads(line)["predictions"][0]["label"] for line in done.stdout.splitlines()]
    assert answers == ["blue", "green", "red"]
    assert b"no such file" in done.stderr


def test_single_bad_query_exits_with_2(run, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("not a video")
    (tmp_path / "empty").mkdir()
    cases = {
        "bad.mp4": "bad.mp4: ",
        "none.mp4": "none.mp4: no such file",
        "empty": "no clips in this folder",
        "*.avi": "no file matches",
    }
    for name, message in cases.items():
        done = run("--query", tmp_path / name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--query", "clip.mp4"], "--query needs --support"),
        (["--support", "folder"], "--support needs --query"),
        (["clip.mp4"], "unexpected argument 'clip.mp4': inputs are given as options"),
        (["--support", "d", "--query", "q", "--reject", "2"], "not auto, off, or a probability"),
        (["--support", "d", "--query", "q", "--reject", "nan"], "not auto, off, or a probability"),
        (["--support", "d", "--query", "q", "--roi", "1,2,3"], "not full, motion, or x,y,width,height"),
        (["--support", "d", "--query", "q", "--roi", "0,0,0,5"], "not a rectangle"),
        (["--support", "d", "--query", "q", "--topk", "0"], "--topk"),
        (["--support", "d", "--query", "q", "--backend", "tpu"], "--backend"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_wrong_usage_exits_with_2(command, args: list[str], message: str) -> None:
    done = command(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_options_change_prompt_texts_and_region(run, query_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("class,text\nred,something red\n")
    query = ("--query", query_dir / "red.mp4", "--json")
    plain = json.loads(run(*query).stdout)
    told = json.loads(run(*query, "--labels", tmp_path / "labels.csv", "--prompt", "see {}!").stdout)
    (tmp_path / "none.csv").write_text("class,text\nreed,something red\n")
    unmatched = run(*query, "--labels", tmp_path / "none.csv")
    assert "none.csv: no row is of a class" in unmatched.stderr
    assert json.loads(unmatched.stdout)["predictions"] == plain["predictions"]
    cropped = json.loads(run(*query, "--roi", "0,0,20,20").stdout)
    assert plain["predictions"][0]["distance"] != told["predictions"][0]["distance"]
    assert plain["predictions"][0]["distance"] != cropped["predictions"][0]["distance"]
    bad = run(*query, "--prompt", "no place")
    assert (bad.returncode, "exactly one {}" in bad.stderr) == (2, True)
    outside = run(*query, "--roi", "500,500,20,20")
    assert (outside.returncode, "outside" in outside.stderr) == (2, True)


def test_rejected_query_is_unknown(run, query_dir: Path) -> None:
    done = run("--query", query_dir / "red.mp4", "--reject", "1")
    assert "unknown (nearest: red)" in done.stdout
    assert json.loads(run("--query", query_dir / "red.mp4", "--reject", "1", "--json").stdout)["rejected"] is True


def test_pictures_are_numbered_in_a_batch(run, query_dir: Path, tmp_path: Path) -> None:
    done = run("--query", query_dir, "--picture", tmp_path / "out.png")
    names = [str(tmp_path / f"out-{number}.png") for number in (1, 2, 3)]
    assert (done.returncode, f"written: {', '.join(names)}" in done.stderr.splitlines()) == (0, True)
    for number in (1, 2, 3):
        with Image.open(tmp_path / f"out-{number}.png") as image:
            assert image.format == "PNG"
    assert run("--query", query_dir / "red.mp4", "--picture", tmp_path / "one.png").returncode == 0
    assert (tmp_path / "one.png").is_file()
    (tmp_path / "file").write_text("")
    blocked = run("--query", query_dir / "red.mp4", "--picture", tmp_path / "file" / "one.png")
    assert blocked.returncode == 2
    assert blocked.stderr.startswith("error: ")


def test_a_picture_follows_links_and_replaces_files_alone(run, query_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to("old.png")
    done = run("--query", query_dir / "red.mp4", "--picture", tmp_path / "link.png")
    assert (done.returncode, done.stderr.count("\n")) == (0, 2)
    assert (tmp_path / "link.png").is_symlink()
    with Image.open(tmp_path / "old.png") as image:
        assert image.format == "PNG"
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        done = run("--query", query_dir / "red.mp4", "--picture", tmp_path / name)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {tmp_path / name}: ")
        assert done.stderr.count("\n") == 1
    assert (tmp_path / "pipe.png").is_fifo()


def test_a_photo_is_answered_and_it_is_said_that_it_is_no_clip(run, query_dir: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (32, 32), "red").save(photo)
    done = run("--query", query_dir / "red.mp4", "--query", photo, "--json")
    said = f"warning: {photo}: one picture, which shows no action (name a video, or a folder of frames)"
    assert (done.returncode, done.stdout.count("\n")) == (0, 2)
    assert [line for line in done.stderr.splitlines() if "picture" in line] == [said]


def test_a_rectangle_leaves_the_support_clips_as_they_are(run, support_dir: Path, query_dir: Path) -> None:
    query = ("--query", query_dir / "red.mp4", "--json")
    plain = json.loads(run(*query).stdout)
    (bank,) = (support_dir / ".m2df").glob("*.bank")
    content, stamp = bank.read_bytes(), bank.stat().st_mtime_ns
    cropped = json.loads(run(*query, "--roi", "3,2,20,24").stdout)
    assert cropped["predictions"] != plain["predictions"]
    assert [*(support_dir / ".m2df").glob("*.bank")] == [bank]
    assert (bank.read_bytes(), bank.stat().st_mtime_ns) == (content, stamp)
    outside = run(*query, "--query", query_dir / "blue.mp4", "--roi", "500,500,20,20")
    assert (outside.returncode, outside.stdout) == (1, "")
    for name, line in zip(("red.mp4", "blue.mp4"), outside.stderr.splitlines(), strict=False):
        assert line.startswith(f"error: {query_dir / name}: region 500,500,20,20 lies outside")


def test_pictures_that_cannot_be_written_take_no_answer_away(run, query_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "out.png"
    done = run("--query", query_dir, "--query", tmp_path / "none.mp4", "--picture", place, "--json")
    assert done.returncode == 1
    assert [json.loads(line)["predictions"][0]["label"] for line in done.stdout.splitlines()] == [
        "blue",
        "green",
        "red",
    ]
    errors = done.stderr.splitlines()
    for number, line in enumerate(errors[:3], 1):
        assert line.startswith(f"error: {place.with_name(f'out-{number}.png')}: ")
    assert errors[-1] == (
        "error: 1 of 4 queries could not be read; 3 of 4 queries were answered without a picture or page "
        "(see the errors above)"
    )


def test_unicode_names_in_any_terminal(run_module, tiny_bundle: Path, tmp_path: Path) -> None:
    for label, colour in (("跳ぶ", "red"), ("élan vital", "blue")):
        write_clip(tmp_path / "s" / label / "a.mp4", colour)
    query = write_clip(tmp_path / "requête 1.mp4", "red", seed=5)
    for encoding in ("utf-8", "ascii"):
        done = run_module(
            MODULE, "--bundle", tiny_bundle, "--support", tmp_path / "s", "--query", query, PYTHONIOENCODING=encoding
        )
        assert (done.returncode, done.stderr) == (0, "rejection: not calibrated: teach a second clip\n")
    record = run_module(MODULE, "--bundle", tiny_bundle, "--support", tmp_path / "s", "--query", query, "--json").stdout
    assert json.loads(record)["predictions"][0]["label"] == "跳ぶ"


def test_damaged_bundle_exits_with_2(command, bundle_copy: Path, support_dir: Path, query_dir: Path) -> None:
    (bundle_copy / "visual.onnx").write_bytes(b"x")
    done = command("--bundle", bundle_copy, "--support", support_dir, "--query", query_dir / "red.mp4")
    assert (done.returncode, done.stdout) == (2, "")
    assert "visual.onnx" in done.stderr


def test_missing_engine_exits_with_3(
    run_module, tiny_bundle: Path, support_dir: Path, query_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not here')")
    args = ("--bundle", tiny_bundle, "--support", support_dir, "--query", query_dir / "red.mp4")
    done = run_module(MODULE, *args, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (3, "")
    assert "pip install 'm2df[cpu]'" in done.stderr


@pytest.mark.parametrize(
    ("event", "path", "left"),
    [
        ("os.mkdir", r"\.m2df ", 0),
        ("open", r"\.m2df/\.[^/]*\.m2df-tmp ", 0),  # the temporary file
        ("os.rename", r"\.m2df/\.[^/]*\.m2df-tmp ", 1),  # it is whole, the bank is not there
        ("open", r"\.m2df None", 1),  # the folder, to make the rename last
    ],
    ids=["before", "writing", "renaming", "after"],
)
def test_killed_while_building_leaves_no_half_bank(
    run_module, tiny_bundle: Path, support_dir: Path, query_dir: Path, tmp_path: Path, event: str, path: str, left: int
) -> None:
    args = ("--bundle", tiny_bundle, "--support", support_dir, "--query", query_dir / "red.mp4")
    killed = run_module(MODULE, *args, **signal_at(tmp_path / "hook", event, path, signal.SIGKILL))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len([path for path in support_dir.glob(".m2df/*") if path.name != "lock"]) == left
    done = run_module(MODULE, *args)
    assert (done.returncode, done.stderr) == (0, f"rejection: {CLAIM}\n")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a.mp4: bad", "replace it"), 2, "error: a.mp4: bad (replace it)"),
        (CheckFailed("1 of 2 failed"), 1, "error: 1 of 2 failed"),
        (EnvironmentMissing("no engine", "install\nit"), 3, "error: no engine (install it)"),
        (OSError(28, "No space left on device", "out.png"), 2, "error: out.png: No space left on device"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            3,
            "error: No module named 'torch' "
            "(pip install 'm2df[train]' to train, 'm2df[export]' to export; m2df-doctor lists packages)",
        ),
        (KeyError("x"), 1, "error: KeyError: 'x' (a fault in m2df; M2DF_DEBUG=1 shows the traceback)"),
    ],
)
def test_every_failure_is_one_line_and_its_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("M2DF_DEBUG", raising=False)

    def fail() -> None:
        raise error

    assert guarded(fail) == code
    assert capsys.readouterr() == ("", line + "\n")


def test_warnings_of_libraries_are_lines_like_ours(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.resetwarnings()

        def warn() -> None:
            warnings.warn("odd\n  chunks\x1b[2J", UserWarning, stacklevel=1)

        assert guarded(warn) == 0
    assert capsys.readouterr() == ("", "warning: odd chunks\\x1b[2J\n")


def test_debug_variable_keeps_the_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise InputError("a.mp4: bad")

    monkeypatch.setenv("M2DF_DEBUG", "1")
    with pytest.raises(InputError, match=r"a\.mp4"):
        guarded(fail)
