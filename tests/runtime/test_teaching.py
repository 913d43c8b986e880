"""The verbs of teaching, on a support folder and on a bank file: what they change, leave and refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from full_disk import file_size_limit
from live_servers import LOGIN, Play, Rtsp, closed_port, film, serving
from PIL import Image
from test_bank import Counting
from tiny_bundle import write_bundle, write_clip, write_support

from m2df_runtime import Support, SupportBank
from m2df_runtime.bank.changes import Change, changing, commit
from m2df_runtime.bank.folder import ClassTaken, list_support
from m2df_runtime.clips.opening import open_source
from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.files import locked

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Counting:
    return Counting(tiny_bundle)


def packed(folder: Path, model: Counting, out: Path, *, clips: bool = True) -> Path:
    Support(folder, model).pack(out, clips=clips)
    return out


@pytest.fixture(scope="module")
def masters(model: Counting, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three classes (red, green, blue) of two clips each, encoded, wherever they are kept."""
    place = tmp_path_factory.mktemp("masters")
    folder = write_support(place / "support", shots=2)
    whole, slim = packed(folder, model, place / "whole.bank"), packed(folder, model, place / "slim.bank", clips=False)
    return {"folder": folder, "file": whole, "file without clips": slim}


@pytest.fixture(params=["folder", "file", "file without clips"])
def support(request: pytest.FixtureRequest, masters: dict[str, Path], model: Counting, tmp_path: Path) -> Support:
    """A copy of each of the masters."""
    source = masters[request.param]
    copy = shutil.copytree if source.is_dir() else shutil.copy
    return Support(copy(source, tmp_path / ("gate" if source.is_dir() else "gate.bank")), model)


def state(support: Support) -> dict[str, object]:
    """What a user sees of it: classes, clips and their contents, background."""
    bank = SupportBank.of(support.model, support.path)
    found: dict[str, object] = {entry.label: {c.name: c.digest for c in entry.clips} for entry in bank.classes}
    return {**found, "_background": {clip.name: clip.digest for clip in bank.background}}


def same_as_a_folder(support: Support, place: Path) -> None:
    """Whatever was done to it, its numbers are those of a folder with the same clips that was never seen."""
    bank = SupportBank.of(support.model, support.path)
    for clip in (*(clip for entry in bank.classes for clip in entry.clips), *bank.background):
        assert clip.origin is not None
        if not clip.origin.has_clip:
            return
        (place / clip.name).parent.mkdir(parents=True, exist_ok=True)
        clip.origin.restored((place / clip.name).parent, Path(clip.name).name)
    anew = SupportBank.of(support.model, place)
    assert bank.labels == anew.labels
    features = [np.concatenate([entry.features for entry in found.classes]) for found in (bank, anew)]
    np.testing.assert_array_equal(*features)
    for one, two in ((bank.prototypes, anew.prototypes), (bank.prompts, anew.prompts)):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)  # texts of other numbers at once round otherwise


def made(folder: Path, *seeds: int, colour: str = "white") -> list[Path]:
    return [write_clip(folder / f"{seed}.mp4", colour, seed=seed) for seed in seeds]


def test_adding_encodes_the_new_clips_alone(support: Support, model: Counting, tmp_path: Path) -> None:
    before = state(support)
    clips = made(tmp_path / "new", 1, 2)
    model.taken()
    assert support.add("wave", [*clips, clips[0]]) == "added class 'wave' with 2 clips: 1.mp4, 2.mp4"
    assert support.add("red", made(tmp_path / "new", 0, colour="red")[0]).startswith("nothing changed")  # it has it
    assert support.add("red", write_clip(tmp_path / "0.mp4", "red", seed=50)) == "added 1 clip to class 'red': 0-2.mp4"
    after = state(support)
    assert model.taken()[0] == 3
    assert {**after, "red": before["red"]} == {**before, "wave": after["wave"]}
    assert list(after["wave"]) == ["wave/1.mp4", "wave/2.mp4"]
    assert list(after["red"]) == ["red/0-2.mp4", "red/0.mp4", "red/1.mp4"]
    same_as_a_folder(support, tmp_path / "anew")


def test_clips_of_nothing_are_no_class(support: Support, tmp_path: Path) -> None:
    before = state(support)
    assert support.background(made(tmp_path, 1)) == "added 1 clip to the background: 1.mp4"
    assert list(state(support)["_background"]) == ["_background/1.mp4"]
    assert support.view().clips_of("_background")[0].name == "_background/1.mp4"
    support.remove("_background/1.mp4")
    assert state(support) == before


def test_removing_renaming_and_joining(support: Support, model: Counting, tmp_path: Path) -> None:
    before = state(support)
    model.taken()
    assert support.remove("red/0.mp4") == "removed red/0.mp4"
    assert list(state(support)["red"]) == ["red/1.mp4"]
    assert support.remove("red/1.mp4") == "removed class 'red' with 1 clip"
    assert list(state(support)) == ["blue", "green", "_background"]
    assert support.rename("blue", "SkyDive") == "renamed class 'blue' to 'SkyDive'"
    bank = SupportBank.of(model, support.path)
    assert bank.classes[1].prompts == ("a photo of sky dive",)
    assert [clip.name for clip in bank.classes[1].clips] == ["SkyDive/0.mp4", "SkyDive/1.mp4"]
    assert model.taken()[0] == 0
    same_as_a_folder(support, tmp_path / "anew")
    model.taken()
    assert "joined class 'SkyDive'" in support.rename("SkyDive", "green", join=True)
    assert list(state(support)) == ["green", "_background"]
    assert list(state(support)["green"]) == ["green/0-2.mp4", "green/0.mp4", "green/1-2.mp4", "green/1.mp4"]
    assert model.taken()[0] == 0
    support.undo()
    assert state(support)["SkyDive"] == {
        name.replace("blue", "SkyDive"): digest for name, digest in before["blue"].items()
    }


VERBS: dict[str, Callable[[Support, Path], str]] = {
    "add a class": lambda support, place: support.add("wave", made(place, 1, 2)),
    "add to a class": lambda support, place: support.add("red", made(place, 7, 8, colour="red")),
    "background": lambda support, place: support.background(made(place, 3)),
    "remove a class": lambda support, place: support.remove("green"),
    "remove a clip": lambda support, place: support.remove("green/1.mp4"),
    "rename": lambda support, place: support.rename("red", "crimson"),
    "join": lambda support, place: support.rename("red", "green", join=True),
    "merge": lambda support, place: support.merge(other(place)),
}


def other(place: Path) -> Path:
    """A support folder with a class that others have, too, one that they have not, and a background."""
    if not place.exists():
        made(place / "red", 5, colour="red")
        write_clip(place / "red" / "0.mp4", "red", seed=0)  # in both
        made(place / "wave", 1, 2)
        made(place / "_background", 3)
    return place


@pytest.mark.parametrize("verb", VERBS)
def test_undo_takes_back_the_last_verb_and_makes_it_again(
    verb: str, support: Support, model: Counting, tmp_path: Path
) -> None:
    before = state(support)
    did = VERBS[verb](support, tmp_path / "new")
    after = state(support)
    assert after != before
    model.taken()
    assert support.undo() == f"undone: {did}"
    assert state(support) == before
    assert support.view().last_change == f"undone: {did}"
    assert support.undo() == f"redone: {did}"
    assert state(support) == after
    assert not support.is_file or model.taken()[0] == 0  # a file keeps the features, too
    assert (support.undo(), support.undo()) == (f"undone: {did}", f"redone: {did}")
    support.purge()
    assert state(support) == after
    with pytest.raises(InputError, match=r"nothing to undo|cannot be undone"):
        support.undo()
    same_as_a_folder(support, tmp_path / "anew")


def test_merging_takes_what_is_new(support: Support, model: Counting, tmp_path: Path) -> None:
    source = other(tmp_path / "other")
    SupportBank.of(model, source)
    model.taken()
    assert support.merge(source) == f"merged {source}: 4 new clips, 1 new class"
    assert model.taken()[0] == 0  # both were encoded
    assert list(state(support)) == ["blue", "green", "red", "wave", "_background"]
    assert list(state(support)["red"]) == ["red/0.mp4", "red/1.mp4", "red/5.mp4"]
    assert support.merge(packed(source, model, tmp_path / "other.bank")) == "nothing changed"
    with pytest.raises(InputError, match="with itself"):
        support.merge(support.path)
    slim = packed(source, model, tmp_path / "slim.bank", clips=False)
    shutil.rmtree(source / "red")
    write_clip(source / "other" / "0.mp4", "green", seed=1)
    with pytest.raises(InputError, match="the same clip stands in class 'green'"):
        support.merge(source)
    foreign = Counting(write_bundle(tmp_path / "foreign", short_side=40))
    with pytest.raises(InputError, match="cannot follow"):
        Support(support.path, foreign).merge(slim)
    if not support.is_file:
        with pytest.raises(InputError, match="was packed without its clips"):
            support.merge(slim)


def test_a_folder_goes_to_a_device_and_back(support_dir: Path, model: Counting, tmp_path: Path) -> None:
    folder = Support(support_dir, model)
    folder.background(made(tmp_path, 4))
    gate = Support(packed(support_dir, model, tmp_path / "gate.bank"), model)
    assert gate.unpack(tmp_path / "back") == f"unpacked 3 classes with 6 clips into {tmp_path / 'back'}"
    model.taken()
    back = Support(tmp_path / "back", model)
    assert state(back) == state(folder) and model.taken()[0] == 0  # the bank went along
    assert {path.relative_to(tmp_path / "back") for path in (tmp_path / "back").glob("*/*.mp4")} == {
        path.relative_to(support_dir) for path in support_dir.glob("*/*.mp4")
    }
    for where, problem in ((tmp_path / "back", "something stands there"), (support_dir, "something stands there")):
        with pytest.raises(InputError, match=problem):
            gate.unpack(where)
    with pytest.raises(InputError, match="is no bank file"):
        folder.unpack(tmp_path / "x")
    slim = Support(packed(support_dir, model, tmp_path / "slim.bank", clips=False), model)
    with pytest.raises(InputError, match="packed without its clips"):
        slim.unpack(tmp_path / "x")
    with pytest.raises(InputError, match="not a support bank"):
        folder.pack(support_dir / "red" / "0.mp4")
    assert not (tmp_path / "x").exists() and open_source(support_dir / "red" / "0.mp4").n_frames == 12


NAMES = {
    "emoji": "👋🏽 wave",
    "right to left": "قفز عالي",
    "long": "é" * 127,
    "dots within": "a..b",
    "quotes": 'it\'s "so"',
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_labels_of_any_language(name: str, support: Support, tmp_path: Path) -> None:
    support.add(name, made(tmp_path / "new", 1))
    assert f"{name}/1.mp4" in state(support)[name]
    support.rename(name, "plain")
    support.rename("plain", name)
    support.remove(name)
    assert name not in state(support)


BAD_LABELS = {
    "slash": ("a/b", "cannot be the name of a folder"),
    "up": ("..", "cannot be the name|passed over"),
    "hidden": (".wave", "passed over"),
    "system": ("lost+found", "passed over"),
    "300 characters": ("x" * 300, "300 bytes, at most 255"),
    "128 letters of two bytes": ("é" * 128, "256 bytes"),
    "nothing": ("  ", "needs a label"),
    "spaces around": (" wave", "cannot be the name"),
    "a line's end": ("a\nb", "characters that cannot be written"),
    "no Unicode": ("a\udce9", "characters that cannot be written"),
    "reserved": ("_background", "is no class"),
}


@pytest.mark.parametrize(("label", "problem"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_labels_that_no_folder_can_have(label: str, problem: str, support: Support, tmp_path: Path) -> None:
    before = state(support)
    clip = made(tmp_path / "new", 1)
    for call in (lambda: support.add(label, clip), lambda: support.rename("red", label)):
        with pytest.raises(InputError, match=problem):
            call()
    assert state(support) == before


def test_what_cannot_be_done_changes_nothing(support: Support, support_dir: Path, tmp_path: Path) -> None:
    before = state(support)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    good = made(tmp_path / "new", 1)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: support.remove("nobody"), "no class 'nobody'"),
        (lambda: support.remove("red/gone.mp4"), r"'red' has no clip 'gone\.mp4'"),
        (lambda: support.rename("nobody", "x"), "no class 'nobody'"),
        (lambda: support.rename("red", "green"), "there is a class 'green' already"),
        (lambda: support.rename("red", "x", join=True), "no class 'x' to join"),
        (lambda: support.rename("red", "red"), "is called so already"),
        (lambda: support.add("wave", [*good, tmp_path / "gone.mp4"]), r"gone\.mp4: No such file"),
        (lambda: support.add("wave", [*good, bad]), r"bad\.mp4: "),
        (lambda: support.add("wave", support_dir / "blue" / "0.mp4"), "same clip stands in class 'blue'"),
        (lambda: support.background(support_dir / "blue" / "0.mp4"), "same clip stands in class 'blue'"),
        (lambda: support.add("wave", []), "is given no clip"),
        (lambda: support.undo(), "nothing to undo"),
        (lambda: support.merge(tmp_path / "nowhere"), "no such folder"),
        (lambda: support.view().clips_of("nobody"), "no class 'nobody'"),
    ]
    for call, problem in calls:
        with pytest.raises(InputError, match=problem):
            call()
    assert state(support) == before
    with file_size_limit(1000), pytest.raises(OSError, match="File too large"):
        support.add("wave", good)
    assert state(support) == before


def as_somebody_else(what: Callable[[], object]) -> int:
    """Exit status of a child that may write nothing of ours: 0, or 2 for an error of the file system."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            what()
            code = 0
        except PermissionError:
            code = 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_what_may_not_be_written_is_matched_with_and_not_changed(
    support_dir: Path, model: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SupportBank.of(model, support_dir)
    (clip,) = made(tmp_path / "new", 1)
    with tempfile.TemporaryDirectory() as place:
        monkeypatch.setenv("XDG_CACHE_HOME", str(Path(place, "nowhere")))
        Path(place).chmod(0o755)
        folder = shutil.copytree(support_dir, Path(place, "actions"))
        unseen = shutil.copytree(support_dir, Path(place, "unseen"), ignore=shutil.ignore_patterns(".m2df"))
        gate = packed(support_dir, model, Path(place, "gate.bank"))
        clip = Path(shutil.copy(clip, place))
        everything = [Path(place), *Path(place).rglob("*")]
        for path in everything:
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            for path in (folder, unseen, gate):
                support = Support(path, model)
                verbs = (lambda s=support: s.add("wave", clip), lambda s=support: s.remove("red"), support.purge)
                for verb in (*verbs, lambda s=support: s.rename("red", "x"), lambda s=support: s.background(clip)):
                    assert as_somebody_else(verb) == 2
                assert as_somebody_else(lambda s=support: s.view().classes[0].label == "blue" or 1 / 0) == 0
                assert as_somebody_else(lambda p=path: len(SupportBank.of(model, p).labels) == 3 or 1 / 0) == 0
        finally:
            for path in everything:
                path.chmod(0o755)


def test_a_class_is_found_in_either_unicode_form(support: Support, tmp_path: Path) -> None:
    support.add("cafe\u0301", made(tmp_path, 1))
    support.add("caf\u00e9", made(tmp_path, 2))
    assert list(state(support)["cafe\u0301"]) == ["cafe\u0301/1.mp4", "cafe\u0301/2.mp4"]
    support.remove("caf\u00e9")
    assert "cafe\u0301" not in state(support)


def test_capital_letters_alone_make_no_class(support: Support, tmp_path: Path) -> None:
    before = set(state(support))
    did = support.add("RED", made(tmp_path / "new", 1))
    assert did.startswith("added 1 clip to class 'red'") and did.endswith(
        "'RED' differs from 'red' in capital letters alone"
    )
    assert set(state(support)) == before
    assert "capital" not in support.undo()
    with pytest.raises(ClassTaken, match="there is a class 'blue' already"):
        support.rename("red", "Blue")
    assert support.rename("RED", "Red") == "renamed class 'red' to 'Red'", "of the class itself they are changed"
    assert support.rename("rEd", "BLUE", join=True).startswith("joined class")
    assert set(state(support)) == before - {"red"} and len(state(support)["blue"]) == 4
    with pytest.raises(InputError, match="_background holds clips of nothing"):
        support.add("_Background", made(tmp_path / "new", 2))
    bank = SupportBank.of(support.model, support.path)
    assert bank.add("Green", made(tmp_path / "new", 3)).labels == bank.labels
    support.remove("GREEN")
    assert "green" not in state(support)


def test_classes_that_differ_in_capital_letters_are_two_where_they_lie_so_and_it_is_said(
    masters: dict[str, Path], model: Counting, tmp_path: Path
) -> None:
    folder = shutil.copytree(masters["folder"], tmp_path / "actions")
    shutil.copytree(folder / "red", folder / "Red")
    (line,) = (line for line in list_support(folder).warnings if "capital" in line)
    assert "Red, red; bank rename --join makes two of them one" in line
    support = Support(folder, model)
    assert [support.view().clips_of(label)[0].name for label in ("red", "Red", "RED")] == [
        "red/0.mp4",
        *["Red/0.mp4"] * 2,
    ]
    support.rename("red", "Red", join=True)
    assert not [line for line in list_support(folder).warnings if "capital" in line]


def test_the_only_class_of_a_file_stays_and_a_folder_may_begin_empty(
    support_dir: Path, model: Counting, tmp_path: Path
) -> None:
    new = Support(tmp_path / "actions", model)
    assert new.add("wave", made(tmp_path / "new", 1)).startswith("added class 'wave'")
    gate = Support(packed(tmp_path / "actions", model, tmp_path / "gate.bank"), model)
    with pytest.raises(InputError, match="'wave' is the only class"):
        gate.remove("wave")
    with pytest.raises(InputError, match=r"none\.bank: no such bank file"):
        Support(tmp_path / "none.bank", model).add("wave", made(tmp_path / "new", 1))
    with pytest.raises(InputError, match="no such folder"):
        Support(tmp_path / "nowhere", model).remove("wave")
    new.remove("wave")
    assert new.view().classes == () and not (tmp_path / "nowhere").exists()


def test_frame_folders_are_taught_and_odd_files_are_refused(support: Support, tmp_path: Path) -> None:
    frames = tmp_path / "clip é"
    frames.mkdir()
    for t in range(5):
        Image.new("RGB", (40, 40), (0, 50 * t, 0)).save(frames / f"{t}.png")
    (frames / "notes.txt").write_text("not a frame")
    support.add("walk", frames)
    assert list(state(support)["walk"]) == ["walk/clip é"]
    same_as_a_folder(support, tmp_path / "anew")
    if not support.is_file:
        assert sorted(path.name for path in (support.path / "walk" / "clip é").iterdir()) == [
            f"{t}.png" for t in range(5)
        ]
        for name in (".hidden.mp4", "no ending"):
            odd = shutil.copy(made(tmp_path, 9)[0], tmp_path / name)
            with pytest.raises(ClipError, match="would not be found as a clip"):
                support.add("walk", odd)


def test_a_folder_that_was_changed_by_hand_is_not_undone(support_dir: Path, model: Counting, tmp_path: Path) -> None:
    support = Support(support_dir, model)
    support.rename("red", "crimson")
    (support_dir / "red").mkdir()
    with pytest.raises(InputError, match=r"cannot be undone: .*something stands there"):
        support.undo()
    shutil.rmtree(support_dir / "red")
    shutil.rmtree(support_dir / "crimson")
    with pytest.raises(InputError, match=r"cannot be undone: .*it is gone"):
        support.undo()
    (support_dir / ".m2df" / "last.json").write_text('{"did": "x", "moves": [["red", "../../etc"]]}')
    with pytest.raises(InputError, match=r"last\.json: damaged"):
        support.undo()
    assert support.view().last_change is None


def test_removed_clips_stay_until_purge(support_dir: Path, model: Counting) -> None:
    support = Support(support_dir, model)
    content = (support_dir / "red" / "0.mp4").read_bytes()
    support.remove("red")
    support.remove("green/0.mp4")
    kept = [path for path in (support_dir / ".m2df" / "removed").rglob("*.mp4")]
    assert len(kept) == 3 and content in [path.read_bytes() for path in kept]
    assert support.purge().startswith("purged 3 files, ")
    assert not (support_dir / ".m2df" / "removed").exists()
    assert not [path for path in (support_dir / ".m2df").iterdir() if "removed" in path.name]


def test_readers_finish_what_a_killed_process_began(support_dir: Path, model: Counting) -> None:
    """A change counts once it is written down, whether or not its renames were made."""
    SupportBank.of(model, support_dir)
    change = Change(did="renamed", moves=(("red", "crimson"), ("green", "grass")))
    (support_dir / ".m2df" / "change.json").write_text(change.model_dump_json())
    (support_dir / "red").rename(support_dir / "crimson")  # killed here
    assert SupportBank.of(model, support_dir).labels == ("blue", "crimson", "grass")
    assert Support(support_dir, model).undo() == "undone: renamed"
    assert SupportBank.of(model, support_dir).labels == ("blue", "green", "red")


def test_a_change_that_fails_half_way_is_taken_back(support_dir: Path) -> None:
    (support_dir / "red" / "sub").mkdir()
    moves = [(support_dir / "green", support_dir / "grass"), (support_dir / "red", support_dir / "red" / "sub" / "x")]
    before = sorted(support_dir.rglob("*.mp4"))
    with changing(support_dir), pytest.raises(OSError, match="Invalid argument"):
        commit(support_dir, "nonsense", moves)
    assert sorted(support_dir.rglob("*.mp4")) == before
    assert not (support_dir / ".m2df" / "change.json").exists()


WRITER = """
import sys
from pathlib import Path
from m2df_runtime import Support
from m2df_runtime.backends.model import Model
from m2df_runtime.bundle.bundle import Bundle

support, bundle, clips, name = sys.argv[1:]
model = Model(Bundle.open(bundle), backend="cpu", threads=1)
model.prepare("visual", "text", "support", "query")
print("ready", flush=True)
sys.stdin.readline()
for number, clip in enumerate(sorted(Path(clips).iterdir())):
    Support(support, model).add("both" if number % 2 else f"{name} {number}", clip)
"""


def together(support: Path, bundle: Path, tmp_path: Path, rounds: int, clips_before: int = 6) -> None:
    """Two processes teach one support at the same time; nothing of either is lost."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = []
    for number, name in enumerate(("one", "two")):
        clips = tmp_path / f"clips of {name}"
        made(clips, *range(100 * number, 100 * number + rounds))
        arguments = [sys.executable, "-c", WRITER, str(support), str(bundle), str(clips), name]
        processes.append(subprocess.Popen(arguments, cwd=ROOT, **pipes))
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    found = [process.communicate("go\n") for process in processes]
    assert [process.returncode for process in processes] == [0, 0], found
    bank = SupportBank.of(Counting(bundle), support)
    digests = {clip.digest for entry in bank.classes for clip in entry.clips}
    assert len(digests) == clips_before + 2 * rounds
    assert len(next(entry for entry in bank.classes if entry.label == "both").clips) == 2 * (rounds // 2)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_two_writers_at_once_lose_nothing(
    kind: str, support_dir: Path, tiny_bundle: Path, model: Counting, tmp_path: Path
) -> None:
    support = support_dir if kind == "folder" else packed(support_dir, model, tmp_path / "gate.bank")
    together(support, tiny_bundle, tmp_path, 4)


def test_a_writer_waits_for_the_lock(support: Support, tmp_path: Path) -> None:
    lock = support.path if support.is_file else support.path / ".m2df" / "lock"
    done = threading.Event()
    clips = made(tmp_path, 1)

    def teach() -> None:
        support.add("wave", clips)
        done.set()

    with locked(lock):
        thread = threading.Thread(target=teach)
        thread.start()
        assert not done.wait(0.3)
    thread.join()
    assert done.is_set() and "wave" in state(support)


def write_still_then_moving(path: Path) -> Path:
    """Four seconds at 25 frames a second, of which a square moves from second 1.5 to 2.5."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for t in range(100):
            picture = np.full((96, 128, 3), 40, np.uint8)
            left = 4 * min(max(t - 37, 0), 25)
            picture[30:60, left : left + 28] = (220, 30, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_recorded_clip_has_no_still_ends(support: Support, tmp_path: Path) -> None:
    clip = write_still_then_moving(tmp_path / "a.mp4")
    assert support.record("wave", clip).startswith("added class 'wave' with 1 clip: recorded-")
    (entry,) = [entry for entry in support.view().classes if entry.label == "wave"]
    assert entry.clips[0].seconds is not None and 1.0 <= entry.clips[0].seconds <= 2.4
    support.record("shorter", clip, seconds=1.8)
    (entry,) = [entry for entry in support.view().classes if entry.label == "shorter"]
    assert entry.clips[0].seconds is not None and entry.clips[0].seconds <= 1.1
    still = tmp_path / "still"
    still.mkdir()
    for t in range(20):
        Image.new("RGB", (64, 48), (90, 80, 70)).save(still / f"{t}.png")
    with pytest.raises(InputError, match="nothing moves in it"):
        support.record("x", still)
    support.record("x", still, trim=False)


def test_a_clip_is_recorded_from_a_camera(support_dir: Path, model: Counting) -> None:
    support = Support(support_dir, model)
    shots = film(open_source(support_dir / "red" / "0.mp4").read(range(12)).repeat(3, axis=0))
    with serving(Rtsp(Play(shots, login=True), Play(shots, frames=20))) as server:
        support.record("wave", server.url(LOGIN.replace(" ", "%20")), seconds=0.5, trim=False)
        support.record("cut", server.url(), trim=False)  # what came until it was over
        with pytest.raises(InputError, match="not an address that is read"):
            support.record("x", "file:///etc/passwd")
    lengths = {entry.label: entry.clips[0].seconds for entry in support.view().classes if len(entry.clips) == 1}
    assert lengths == {"wave": pytest.approx(0.5, abs=0.1), "cut": pytest.approx(0.8, abs=0.1)}
    with pytest.raises(ClipError, match=r"rtsp://user:[*]{3}@.*refused") as caught:
        support.record("x", f"rtsp://user:secret@127.0.0.1:{closed_port()}/a")
    assert "secret" not in str(caught.value)
    with pytest.raises(ClipError, match="camera 99: not found"):
        support.record("x", "99")


def test_a_bank_of_another_bundle_is_followed_before_it_is_changed(
    support_dir: Path, model: Counting, tmp_path: Path
) -> None:
    gate = packed(support_dir, model, tmp_path / "gate.bank")
    other_model = Counting(write_bundle(tmp_path / "other", short_side=40))
    Support(gate, model).remove("green")
    taught = Support(gate, other_model)
    taught.add("wave", made(tmp_path / "new", 1))
    assert other_model.taken()[0] == 7  # the bank's six clips, one of which only the state before has, and the new one
    taught.undo()
    same_as_a_folder(taught, tmp_path / "anew")
    slim = packed(support_dir, model, tmp_path / "slim.bank", clips=False)
    with pytest.raises(InputError, match="cannot follow"):
        Support(slim, other_model).remove("red")


def test_damaged_bank_files_are_refused_by_every_verb(support_dir: Path, model: Counting, tmp_path: Path) -> None:
    gate = packed(support_dir, model, tmp_path / "gate.bank")
    good = gate.read_bytes()
    clips = made(tmp_path / "new", 1)
    support, folder = Support(gate, model), Support(support_dir, model)
    calls: list[Callable[[], object]] = [
        lambda: support.add("wave", clips),
        lambda: support.remove("red"),
        lambda: support.undo(),
        lambda: support.purge(),
        lambda: support.view(),
        lambda: support.pack(tmp_path / "x.bank"),
        lambda: support.unpack(tmp_path / "x"),
        lambda: folder.merge(gate),
        lambda: folder.pack(gate),
    ]
    for damage in (good[: len(good) // 2], good[:20] + b"x" + good[21:], b"", good + b"x"):
        gate.write_bytes(damage)
        for call in calls:
            with pytest.raises(InputError, match=r"gate\.bank: "):
                call()
        assert gate.read_bytes() == damage
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.bank").exists()


def test_the_commands_say_what_they_did(command, tiny_bundle: Path, support_dir: Path, tmp_path: Path) -> None:
    clips = made(tmp_path / "new", 1, 2)
    on = ("--support", support_dir, "--bundle", tiny_bundle)

    def bank(*args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = command("bank", *args)
        assert done.returncode == code, done.stderr
        return done

    assert bank("add", *clips, "--label", "wave", *on).stdout == "added class 'wave' with 2 clips: 1.mp4, 2.mp4\n"
    assert SupportBank.of(Counting(tiny_bundle), support_dir).calibration is not None
    assert bank("rename", "wave", "greet", *on).stdout == "renamed class 'wave' to 'greet'\n"
    rows = [json.loads(line) for line in bank("list", "--support", support_dir, "--json").stdout.splitlines()]
    assert [(row["label"], row["clips"]) for row in rows] == [("blue", 2), ("green", 2), ("greet", 2), ("red", 2)]
    assert set(rows[0]) == {"label", "clips", "texts", "closest", "similarity"}
    table = bank("list", "--support", support_dir).stdout.splitlines()
    assert table[0].split() == ["class", "clips", "closest", "class", "text"]
    assert table[-1] == "last change: renamed class 'wave' to 'greet'"
    shown = [json.loads(line) for line in bank("show", "red", "--support", support_dir, "--json").stdout.splitlines()]
    assert [row["clip"] for row in shown] == ["red/0.mp4", "red/1.mp4"] and shown[0]["seconds"] == 0.48
    gate = tmp_path / "gate.bank"
    said = bank("pack", "--out", gate, "--without-clips", *on).stdout
    assert said.startswith(f"packed 4 classes with 8 clips into {gate}; without its clips it cannot follow")
    labels = tmp_path / "labels.csv"
    labels.write_text("class,text\nred,one\nred,two\n")
    bank("pack", "--out", gate, "--labels", labels, *on)
    labels.write_text("class,text\nreed,one\n")
    for verb in (("pack", "--out", tmp_path / "other.bank"), ("lint",)):
        assert "labels.csv: no row is of a class" in bank(*verb, "--labels", labels, *on).stderr
    assert [row["texts"] for row in map(json.loads, bank("list", "--support", gate, "--json").stdout.splitlines())] == [
        ["blue"], ["green"], ["greet"], ["one", "two"]
    ]  # fmt: skip
    said = bank("unpack", "--support", gate, "--out", tmp_path / "back").stdout
    assert said.endswith(f"; its texts are in {tmp_path / 'back' / 'labels.csv'}, for --labels\n")
    assert bank("merge", gate, *on).stdout == "nothing changed\n"
    assert bank("background", write_clip(tmp_path / "n.mp4", "white", seed=9), *on).stdout.startswith("added 1 clip to")
    assert bank("undo", *on).stdout.startswith("undone: added 1 clip to the background")
    assert bank("remove", "greet", *on).stdout == "removed class 'greet' with 2 clips\n"
    assert bank("purge", *on).stdout.startswith("purged 3 files")
    assert bank("record", clips[0], "--label", "x", "--no-trim", *on).stdout.startswith("added class 'x' with 1 clip")
    assert "no class 'nobody'" in bank("remove", "nobody", *on, code=2).stderr
    assert "Missing option '--support'" in bank("list", code=2).stderr
    assert "stand after its verb" in command("--support", support_dir, "bank", "list", "--support", support_dir).stderr
