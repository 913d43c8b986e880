"""The support bank: what is encoded again and what is not, and which files are refused."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from full_disk import file_size_limit
from PIL import Image
from tiny_bundle import DIM, FRAMES, write_bundle, write_clip

from m2df_runtime.backends.model import Model
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bank.update import bank_paths
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.prompt_texts import LabelRules
from m2df_runtime.errors import ClipError, InputError

ROOT = Path(__file__).parents[2]


class Counting(Model):
    """Counts the clips it encodes, the prompts it embeds and the prototypes it makes: of a class once, and once for
    each of its clips that calibration leaves out."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(Bundle.open(bundle), backend="cpu", threads=1)
        self.counts = Counter[str]()

    def encode_clips(self, clips: np.ndarray, names: object = None) -> np.ndarray:
        self.counts["clips"] += len(clips)
        return super().encode_clips(clips, names)

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        self.counts["prompts"] += len(texts)
        return super().encode_texts(texts)

    def prototypes(self, features: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        self.counts["prototypes"] += 1
        return super().prototypes(features, prompt)

    def taken(self) -> tuple[int, int, int]:
        """Clips encoded, prompts embedded and prototypes made since the last call."""
        found = self.counts["clips"], self.counts["prompts"], self.counts["prototypes"]
        self.counts.clear()
        return found


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Counting:
    return Counting(tiny_bundle)


def of(folder: Path, model: Model, *rules: LabelRules) -> SupportBank:
    return SupportBank.of(model, folder, *rules)


def update(folder: Path, model: Counting, *rules: LabelRules) -> tuple[int, int, int]:
    """Clips encoded, prompts embedded and prototypes made to bring the folder's bank up to date."""
    model.taken()
    of(folder, model, *rules)
    return model.taken()


def anew(folder: Path, model: Model, place: Path) -> SupportBank:
    """The bank of a copy of the folder that was never seen."""
    copy = shutil.copytree(folder, place, ignore=shutil.ignore_patterns(".m2df"))
    return of(copy, model)


def only_file(folder: Path) -> Path:
    (path,) = (folder / ".m2df").glob("*.bank")
    return path


def test_first_use_encodes_and_the_second_does_nothing(support_dir: Path, model: Counting) -> None:
    model.taken()
    bank = of(support_dir, model)
    assert model.taken() == (6, 3, 3 + 6)
    assert bank.labels == ("blue", "green", "red")
    assert bank.prototypes.shape == (3, 2, FRAMES, DIM)
    written = only_file(support_dir).stat().st_mtime_ns
    again = of(support_dir, model)
    assert model.taken() == (0, 0, 0)
    assert only_file(support_dir).stat().st_mtime_ns == written
    assert {clip.seconds for entry in again.classes for clip in entry.clips} == {12 / 25}
    np.testing.assert_array_equal(again.prototypes, bank.prototypes)
    np.testing.assert_array_equal(again.prompts, bank.prompts)


def test_only_changed_clips_are_encoded_and_only_their_class_is_rebuilt(
    support_dir: Path, model: Counting, tmp_path: Path
) -> None:
    before = of(support_dir, model)
    write_clip(support_dir / "red" / "0.mp4", "red", seed=77)
    model.taken()
    after = of(support_dir, model)
    assert model.taken() == (1, 0, 1 + 6)
    np.testing.assert_array_equal(after.prototypes[:2], before.prototypes[:2])
    assert not np.array_equal(after.prototypes[2], before.prototypes[2])
    np.testing.assert_array_equal(after.prototypes, anew(support_dir, model, tmp_path / "anew").prototypes)


def test_new_time_with_the_same_content_is_not_encoded_again(support_dir: Path, model: Counting) -> None:
    update(support_dir, model)
    os.utime(support_dir / "red" / "0.mp4", (1, 1))
    assert update(support_dir, model) == (0, 0, 0)


def test_content_changed_behind_size_and_time_is_noticed(support_dir: Path, model: Counting) -> None:
    clip, other = support_dir / "red" / "0.mp4", support_dir / "green" / "0.mp4"
    before = of(support_dir, model)
    times = clip.stat()
    data = bytearray(clip.read_bytes())
    data[-1] ^= 1  # the last byte of the index: the same pictures in another file
    clip.write_bytes(data)
    os.utime(clip, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert update(support_dir, model)[0] == 1
    for path in (clip, other):  # two clips of one size and time change places
        path.write_bytes(path.read_bytes().ljust(1 << 16, b"\0"))
        os.utime(path, ns=(0, 0))
    update(support_dir, model)
    clip.rename(support_dir / "third")
    other.rename(clip)
    (support_dir / "third").rename(other)
    model.taken()
    after = of(support_dir, model)
    assert model.taken() == (0, 0, 2 + 6)
    digests = {clip.name: clip.digest for entry in after.classes for clip in entry.clips}
    assert digests["red/0.mp4"] == hashlib.sha256(clip.read_bytes()).hexdigest()
    assert before.labels == after.labels


def test_classes_are_added_removed_and_renamed_without_encoding_the_others(support_dir: Path, model: Counting) -> None:
    update(support_dir, model)
    write_clip(support_dir / "white" / "a.mp4", "white")
    assert update(support_dir, model) == (1, 1, 1 + 6)
    shutil.rmtree(support_dir / "green")
    assert update(support_dir, model) == (0, 0, 0 + 4)
    (support_dir / "red").rename(support_dir / "crimson_tide")
    model.taken()
    bank = of(support_dir, model)
    assert model.taken() == (0, 1, 1 + 4)
    assert bank.labels == ("blue", "crimson_tide", "white")
    assert bank.classes[1].prompts == ("a photo of crimson tide",)


def test_new_prompt_recomputes_no_features(support_dir: Path, model: Counting) -> None:
    update(support_dir, model)
    rules = LabelRules("a clip of {}", {"red": "something red"})
    model.taken()
    bank = of(support_dir, model, rules)
    assert model.taken() == (0, 3, 3 + 6)
    assert [entry.prompts for entry in bank.classes] == [
        ("a clip of blue",),
        ("a clip of green",),
        ("a clip of something red",),
    ]


def test_new_head_reuses_the_features(support_dir: Path, model: Counting, tmp_path: Path) -> None:
    before = of(support_dir, model)
    head = Counting(write_bundle(tmp_path / "head", support_weight=0.5))
    bank = of(support_dir, head)
    assert head.taken() == (0, 0, 3 + 6)
    assert not np.array_equal(bank.prototypes, before.prototypes)


def test_heads_of_one_encoder_share_a_folder_whatever_their_views(support_dir: Path, tmp_path: Path) -> None:
    heads = [Counting(write_bundle(tmp_path / str(views), views=views, support_weight=views)) for views in (1, 2)]
    alone = [anew(support_dir, head, tmp_path / f"anew {number}") for number, head in enumerate(heads)]
    assert [bank.prototypes.shape[1] for bank in alone] == [1, 2]
    for head in heads:
        head.taken()
    for round_ in range(2):
        for head, expected in zip(heads, alone, strict=True):
            bank = SupportBank.of(head, support_dir)
            np.testing.assert_array_equal(bank.prototypes, expected.prototypes)
            assert bank.calibration is not None and head.taken()[0] == (6 if head is heads[0] and round_ == 0 else 0)
            assert SupportBank.of(head, only_file(support_dir)).keys == bank.keys
            carried = shutil.copy(only_file(support_dir), tmp_path / "carried.bank")
            other = head is heads[0]
            np.testing.assert_array_equal(SupportBank.of(heads[other], carried).prototypes, alone[other].prototypes)
            assert heads[other].taken()[0] == 0
    write_clip(support_dir / "red" / "new.mp4", "red", seed=5)
    assert [update(support_dir, head)[0] for head in heads] == [1, 0]


TOGETHER = """
import sys
from pathlib import Path
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.backends.model import Model

model = Model(Bundle.open(sys.argv[2]), backend="cpu", threads=1)
model.prepare("visual", "text", "support")
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    bank = SupportBank.of(model, sys.argv[1])
    print(*bank.labels, len(bank.classes[0].clips), flush=True)
"""


def test_processes_of_two_heads_update_one_folder_at_once(support_dir: Path, tmp_path: Path) -> None:
    bundles = [write_bundle(tmp_path / str(views), views=views, support_weight=views) for views in (1, 2)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, "-c", TOGETHER, str(support_dir), str(bundle)], cwd=ROOT, **pipes)
        for bundle in bundles
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    found = [process.communicate("go\n") for process in processes]
    assert [process.returncode for process in processes] == [0, 0] and [err for _, err in found] == ["", ""]
    assert only_file(support_dir)
    assert {line for out, _ in found for line in out.splitlines()} == {"blue green red 2"}
    for bundle in bundles:
        assert update(support_dir, Counting(bundle))[0] == 0


def test_a_clip_with_features_that_are_not_finite_is_left_out(
    support_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Counting(write_bundle(tmp_path / "bundle", blue=float("nan")))
    write_clip(support_dir / "red" / "blue one.mp4", "blue", seed=3)
    (support_dir / "green" / "broken.mp4").write_bytes(b"no video")
    bank = of(support_dir, model)
    assert [(entry.label, len(entry.clips)) for entry in bank.classes] == [("green", 2), ("red", 2)]
    assert np.isfinite(bank.prototypes).all()
    text = warned(caplog)
    for part in ("blue/0.mp4: ", "blue/1.mp4: ", "red/blue one.mp4: ", "not finite", "broken.mp4"):
        assert part in text
    assert f"{support_dir}: 4 of 8 clips are left out" in text
    shutil.rmtree(support_dir / "green")
    shutil.rmtree(support_dir / "red")
    with pytest.raises(InputError, match="no clip in it can be read"):
        of(support_dir, model)


def test_a_class_without_finite_prototypes_is_left_out(
    support_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Features that are finite, and whose sum is not."""
    model = Counting(write_bundle(tmp_path / "bundle", blue=3e38))
    bank = SupportBank.of(model, support_dir)
    assert bank.labels == ("green", "red") and np.isfinite(bank.prototypes).all()
    assert f"{support_dir / 'blue'}: " in warned(caplog) and "class left out" in warned(caplog)
    for label in ("green", "red"):
        shutil.rmtree(support_dir / label)
    with pytest.raises(InputError, match="no class in it can be used"):
        of(support_dir, model)


def test_adding_clips_encodes_them_alone_and_gives_what_the_folder_would(
    support_dir: Path, model: Counting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    white = [write_clip(tmp_path / "new" / f"{seed}.mp4", "white", seed=seed) for seed in (1, 2)]
    red = write_clip(tmp_path / "new" / "9.mp4", "red", seed=9)
    bank, before = SupportBank.of(model, support_dir), sorted(support_dir.rglob("*"))
    model.taken()
    taught = bank.add("white", [str(white[0]), white[1]]).add("red", red)
    assert model.taken()[:2] == (3, 1)
    assert bank.labels == ("blue", "green", "red") and sorted(support_dir.rglob("*")) == before
    for path, label in ((white[0], "white"), (white[1], "white"), (red, "red")):
        (support_dir / label).mkdir(exist_ok=True)
        shutil.copy(path, support_dir / label)
    model.taken()
    folder = SupportBank.of(model, support_dir)
    assert model.taken()[0] == 3  # the folder's own bank knew nothing of them
    assert taught.labels == folder.labels == ("blue", "green", "red", "white")
    np.testing.assert_array_equal(taught.prototypes, folder.prototypes)
    np.testing.assert_array_equal(taught.prompts, folder.prompts)
    assert taught.calibration == folder.calibration and len(taught.calibration.scores) == 9
    assert taught.calibration != bank.calibration

    again = taught.add("red", [red, red])
    assert again is taught and model.taken()[0] == 0
    assert f"{red}: class 'red' has this clip already" in warned(caplog)
    taught.save(tmp_path / "taught.bank")
    assert SupportBank.of(model, tmp_path / "taught.bank").add("white", white[0]).labels == taught.labels


def test_a_class_keeps_its_prompt_when_clips_are_added(support_dir: Path, model: Counting, tmp_path: Path) -> None:
    of(support_dir, model, LabelRules("a clip of {}", {"red": "something red"})).save(tmp_path / "a.bank")
    bank = SupportBank.of(model, tmp_path / "a.bank")
    model.taken()
    taught = bank.add("red", write_clip(tmp_path / "9.mp4", "red", seed=9))
    assert model.taken()[:2] == (1, 0)
    assert [entry.prompts for entry in taught.classes] == [entry.prompts for entry in bank.classes]
    assert taught.classes[2].texts == ("something red",) and len(taught.classes[2].clips) == 3
    assert taught.add("white", write_clip(tmp_path / "w.mp4", "white")).classes[3].prompts == ("a photo of white",)


def test_what_cannot_be_added_is_refused_and_the_bank_stays(support_dir: Path, model: Counting, tmp_path: Path) -> None:
    bank = of(support_dir, model)
    with pytest.raises(ClipError, match=r"gone\.mp4: No such file"):
        bank.add("red", tmp_path / "gone.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(ClipError, match=r"bad\.mp4"):
        bank.add("red", [tmp_path / "bad.mp4"])
    with pytest.raises(InputError, match="the same clip stands in class 'blue'"):
        bank.add("red", support_dir / "blue" / "0.mp4")
    with pytest.raises(InputError, match="class 'new' is given no clip"):
        bank.add("new", [])
    with pytest.raises(InputError, match="needs a label"):
        bank.add(" ", support_dir / "blue" / "0.mp4")
    assert bank.labels == ("blue", "green", "red")


def test_other_preprocessing_has_a_bank_of_its_own(support_dir: Path, model: Counting) -> None:
    update(support_dir, model)
    clip = model.bundle.manifest.clip.model_copy(update={"region": (0, 0, 32, 32)})
    cropped = Counting(model.bundle.path)
    cropped.bundle = model.bundle.with_clip(clip)
    second = update(support_dir, cropped)
    assert second == (6, 3, 3 + 6)
    assert len(list((support_dir / ".m2df").glob("*.bank"))) == 2
    assert update(support_dir, model) == (0, 0, 0)


def test_folder_that_cannot_be_written_keeps_its_bank_in_the_cache(support_dir: Path, model: Counting) -> None:
    (support_dir / ".m2df").write_text("in the way")
    update(support_dir, model)
    assert bank_paths(support_dir, model.bundle)[1].is_file()
    assert update(support_dir, model) == (0, 0, 0)


def put_folder(place: Path) -> None:
    (place / "mine").mkdir(parents=True)


IN_THE_WAY = {
    "folder": (put_folder, "a folder"),
    "pipe": (os.mkfifo, "a pipe"),
    "dangling link": (lambda place: place.symlink_to("nowhere"), "a link that leads nowhere"),
    "loop": (lambda place: place.symlink_to(place), "a link that leads nowhere"),
    "device": (lambda place: place.symlink_to("/dev/zero"), "a device"),
    "file": (lambda place: place.write_text("mine"), "a file"),
}


OBSTACLES = [(kind, level) for kind in IN_THE_WAY for level in ("bank", "its folder")]
NONE = [("file", "bank"), ("folder", "its folder")]


@pytest.mark.parametrize(("kind", "level"), [place for place in OBSTACLES if place not in NONE])
def test_what_stands_where_the_bank_would_be_is_named_and_left(
    kind: str, level: str, support_dir: Path, model: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    place = bank_paths(support_dir, model.bundle)[0]
    if level == "its folder":
        place = place.parent
    place.parent.mkdir(exist_ok=True)
    put, name = IN_THE_WAY[kind]
    put(place)
    before = place.lstat()
    for encoded in (6, 0):
        caplog.clear()
        assert update(support_dir, model)[0] == encoded
        assert bank_paths(support_dir, model.bundle)[1].is_file()
        (record,) = [record for record in caplog.records if str(place) in record.getMessage()]
        assert f"{place}: {name}" in record.getMessage()
    assert (place.lstat().st_mode, place.lstat().st_ino) == (before.st_mode, before.st_ino)


def test_a_bank_behind_a_link_is_used_and_the_link_stays(support_dir: Path, model: Counting, tmp_path: Path) -> None:
    update(support_dir, model)
    path = only_file(support_dir)
    path.rename(tmp_path / "elsewhere.bank")
    path.symlink_to(tmp_path / "elsewhere.bank")
    shutil.rmtree(support_dir / "red")
    assert update(support_dir, model) == (0, 0, 0 + 4)
    assert path.is_symlink() and SupportBank.of(model, tmp_path / "elsewhere.bank").labels == (
        "blue",
        "green",
    )


def test_a_full_disk_costs_the_bank_and_not_the_answer(
    support_dir: Path, model: Counting, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    # `capsys` takes output in memory; a file for it would meet the limit too.
    with file_size_limit(1000):
        assert len(of(support_dir, model).classes) == 3
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().endswith(".bank: File too large")
    for path in bank_paths(support_dir, model.bundle):
        assert not list(path.parent.glob("*.bank" if path.parent.name == ".m2df" else path.name))
    assert update(support_dir, model) == (6, 3, 3 + 6)


def test_without_any_place_to_write_the_bank_lives_for_the_run(
    support_dir: Path,
    model: Counting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (support_dir / ".m2df").write_text("in the way")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(of(support_dir, model).classes) == 3
    assert "the support bank is not kept" in caplog.text


def test_frame_folders_unicode_and_spaces(tmp_path: Path, model: Counting) -> None:
    folder = tmp_path / "mes actions"
    write_clip(folder / "跳ぶ" / "a clip é.mp4", "red")
    frames = folder / "two words" / "clip 1"
    frames.mkdir(parents=True)
    for t in range(5):
        Image.new("RGB", (40, 40), (0, 50 * t, 0)).save(frames / f"{t}.png")
    model.taken()
    assert set(of(folder, model).labels) == {"跳ぶ", "two words"}
    assert model.taken()[0] == 2
    assert update(folder, model) == (0, 0, 0)
    Image.new("RGB", (40, 40), (255, 0, 0)).save(frames / "4.png")
    assert update(folder, model)[0] == 1
    (frames / "0.png").rename(frames / "9.png")  # another order: neither sizes nor times of the frames change
    assert update(folder, model)[0] == 1


def test_names_that_are_not_unicode_work_without_a_file(
    support_dir: Path, model: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    label = os.fsdecode(b"\xe9lan")
    try:
        (support_dir / "red").rename(support_dir / label)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    assert label in of(support_dir, model).labels
    assert not list((support_dir / ".m2df").glob("*.bank"))
    assert "a class or clip has a name that is not Unicode" in caplog.text


def test_hundreds_of_classes(tmp_path: Path, model: Counting) -> None:
    master = write_clip(tmp_path / "master.mp4", "red", frames=2, size=(32, 32)).read_bytes()
    for number in range(300):
        path = tmp_path / "support" / f"class {number}" / "a.mp4"
        path.parent.mkdir(parents=True)
        path.write_bytes(master + struct.pack("<II", number, 0))  # trailing bytes make another content
    model.taken()
    bank = of(tmp_path / "support", model)
    assert model.taken() == (300, 300, 300)
    assert bank.labels[:3] == ("class 0", "class 1", "class 2")
    assert update(tmp_path / "support", model) == (0, 0, 0)


def warned(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


def test_oddities_get_a_warning_that_names_them(
    support_dir: Path, model: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    (support_dir / "empty").mkdir()
    (support_dir / "red" / "notes.txt").write_text("x")
    (support_dir / "green" / "broken.mp4").write_bytes(b"no video")
    (support_dir / "only broken").mkdir()
    (support_dir / "only broken" / "zero.mp4").write_bytes(b"")
    (support_dir / "green" / "gone.mp4").symlink_to("nowhere.mp4")
    shutil.copy(support_dir / "blue" / "0.mp4", support_dir / "blue" / "copy.mp4")
    shutil.copy(support_dir / "blue" / "0.mp4", support_dir / "loose.mp4")
    model.taken()
    assert of(support_dir, model).labels == ("blue", "green", "red")
    assert model.taken()[0] == 6
    text = warned(caplog)
    for part in (
        "empty: no clips",
        "notes.txt",
        "broken.mp4",
        "gone.mp4",
        "only broken: no readable clip",
        "used once",
        "loose.mp4",
    ):
        assert part in text


def test_one_class_works_with_a_warning(support_dir: Path, model: Counting, caplog: pytest.LogCaptureFixture) -> None:
    for label in ("red", "green"):
        shutil.rmtree(support_dir / label)
    assert of(support_dir, model).labels == ("blue",)
    assert "only one class (blue)" in warned(caplog)


def test_clips_of_the_background_are_kept_beside_the_classes_and_are_none(
    support_dir: Path, model: Counting, tmp_path: Path
) -> None:
    plain = SupportBank.of(model, support_dir)
    nothing = write_clip(support_dir / "_background" / "street.mp4", "white", seed=4)
    model.taken()
    bank = SupportBank.of(model, support_dir)
    assert model.taken()[0] == 1
    assert bank.labels == plain.labels and [clip.name for clip in bank.background] == ["_background/street.mp4"]
    np.testing.assert_array_equal(bank.prototypes, plain.prototypes)
    kept = SupportBank.of(model, only_file(support_dir))
    np.testing.assert_array_equal(kept.background[0].features, bank.background[0].features)
    assert update(support_dir, model) == (0, 0, 0)
    with pytest.raises(InputError, match="the same clip stands in class '_background'"):
        bank.add("white", nothing)
    shutil.copy(nothing, support_dir / "red" / "x.mp4")
    with pytest.raises(InputError, match="the same clip stands in class"):
        of(support_dir, model)
    for label in plain.labels:
        shutil.rmtree(support_dir / label)
    with pytest.raises(InputError, match="the folder is empty"):
        of(support_dir, model)


def test_same_clip_in_two_classes_is_an_error_that_names_both(support_dir: Path, model: Counting) -> None:
    shutil.copy(support_dir / "blue" / "0.mp4", support_dir / "red" / "x.mp4")
    with pytest.raises(InputError, match="the same clip") as caught:
        update(support_dir, model)
    assert str(support_dir / "red" / "x.mp4") in caught.value.message
    assert str(support_dir / "blue" / "0.mp4") in caught.value.message


def test_folders_without_a_class_are_errors_that_name_them(tmp_path: Path, model: Counting) -> None:
    with pytest.raises(InputError, match="no such folder"):
        update(tmp_path / "none", model)
    clip = write_clip(tmp_path / "clips" / "a.mp4")
    with pytest.raises(InputError, match="not a support bank"):
        update(clip, model)
    with pytest.raises(InputError, match="clips: 1 clip directly in it, no class folders") as caught:
        update(tmp_path / "clips", model)
    assert "one sub-folder per class" in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="the folder is empty"):
        update(tmp_path / "empty", model)
    (tmp_path / "empty" / "jump").mkdir()
    with pytest.raises(InputError, match="none of its class folders holds a clip: jump"):
        update(tmp_path / "empty", model)
    Image.new("RGB", (8, 8)).save(tmp_path / "empty" / "jump" / "0.png")
    with pytest.raises(InputError, match="frames of one clip belong in a folder of their own"):
        update(tmp_path / "empty", model)
    (tmp_path / "empty" / "jump" / "a.mp4").write_bytes(b"x")
    with pytest.raises(InputError, match="no clip in it can be read"):
        update(tmp_path / "empty", model)


def test_calibration_is_kept_until_classes_change(support_dir: Path, model: Counting) -> None:
    calibration = of(support_dir, model).calibration
    assert calibration is not None and len(calibration.scores) == 6
    model.taken()
    assert of(only_file(support_dir), model).calibration == calibration
    assert of(support_dir, model).calibration == calibration
    assert model.taken() == (0, 0, 0)
    shutil.rmtree(support_dir / "red")
    assert len(of(support_dir, model).calibration.scores) == 4
    for label in ("green", "blue"):
        (support_dir / label / "1.mp4").unlink()
    assert of(support_dir, model).calibration is None


def test_another_engine_query_graph_or_rule_calibrates_anew(
    support_dir: Path, model: Counting, bundle_copy: Path, tmp_path: Path
) -> None:
    bank = of(support_dir, model)
    for other in ({"precision": "int8"}, {"version": 1}):
        foreign = replace(bank, calibration=replace(bank.calibration, **other, scores=(1.0,)))
        foreign.save(tmp_path / "foreign.bank")
        model.taken()
        for taken in (6, 0):  # once, and then it is kept
            assert of(tmp_path / "foreign.bank", model).calibration == bank.calibration
            assert model.taken() == (0, 0, taken)
    query = (bundle_copy / "query.onnx").read_bytes() + b"\x32\x05other"  # another doc_string, hence another hash
    (bundle_copy / "query.onnx").write_bytes(query)
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["graphs"]["query"]["files"]["fp32"].update(sha256=hashlib.sha256(query).hexdigest(), bytes=len(query))
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    changed = Counting(bundle_copy)
    assert of(support_dir, changed).calibration == bank.calibration
    assert changed.taken() == (0, 0, 6)


@pytest.fixture
def bank_file(support_dir: Path, model: Counting) -> Path:
    of(support_dir, model)
    return only_file(support_dir)


Header = dict


def edit_bank(path: Path, edit: Callable[[Header, Header], object]) -> None:
    """Rewrite the header of a bank: `edit` gets the safetensors header and the index in it."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    index = json.loads(header["__metadata__"]["m2df"])
    edit(header, index)
    header["__metadata__"]["m2df"] = json.dumps(index)
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])


def past_of(index: Header, row: int) -> Header:
    """A state before, of one class with one clip."""
    label, texts, prompts = (index["classes"][0][name] for name in ("label", "texts", "prompts"))
    clips = [{"name": f"{label}/0.mp4", "row": row}]
    return {"did": "something", "classes": [{"label": label, "texts": texts, "prompts": prompts, "clips": clips}]}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h, i: i.update(version=1), "bank version 1, this m2df reads version 5"),
        (lambda h, i: i["keys"].update(visual="0" * 64), "own hash"),
        (lambda h, i: i["classes"][0]["clips"][0].update(name="blue/.."), "no name of a file"),
        (lambda h, i: i["classes"][0].update(label="../blue"), "no name of a file"),
        (lambda h, i: i.update(removed=i["classes"][0]["clips"]), "without a state before"),
        (lambda h, i: i.update(past=past_of(i, row=99)), "that is not here"),
        (lambda h, i: i["classes"][0]["clips"][0].update(files=[{"bytes": 5}]), "unexpected tensors"),
        (lambda h, i: i.update(extra=1), "extra"),
        (lambda h, i: i.update(classes=[]), "classes"),
        (lambda h, i: i["classes"][0].update(label="other"), "own hash"),
        (lambda h, i: i["classes"].pop(), "tensor features"),
        (lambda h, i: h["features"].update(shape=[10**9, FRAMES, DIM]), "tensor features"),
        (lambda h, i: h["prompts"].update(dtype="F64"), "tensor prompts"),
        (lambda h, i: h["prototypes"].update(data_offsets=[0, 1 << 40]), "damaged bank"),
        (lambda h, i: h.pop("prototypes"), "tensor prototypes"),
        (lambda h, i: h["prototypes"]["shape"].__setitem__(1, 10**6), "tensor prototypes"),
        (lambda h, i: h["prototypes"]["shape"].__setitem__(1, 1), "damaged bank"),
        (lambda h, i: h["prompts"].pop("data_offsets"), "damaged bank"),
        (lambda h, i: h["prompts"].update(data_offsets=[-4, 8]), "damaged bank"),
        (lambda h, i: h.update(more=h["prompts"]), "unexpected tensors"),
        (lambda h, i: i["classes"][0].update(texts=["x" * 3000]), "at most 2000 characters"),
        (lambda h, i: i["classes"][0].update(texts=["x"] * 33), "at most 32 items"),
        (lambda h, i: i["classes"][0].update(label="x" * 300), "at most 255 characters"),
        (lambda h, i: i["classes"][0]["clips"][0].update(size=1 << 70), "size"),
        (lambda h, i: i["classes"][0]["clips"][0].update(seconds=0), "seconds"),
        (lambda h, i: i["keys"].update(text="x" * 10**6), "keys.text"),
        (lambda h, i: i.update(version="x" * 10**6), "bank version x{20}, this"),
        (lambda h, i: i.pop("sha256"), "not a support bank"),
    ],
)
def test_bank_that_does_not_fit_is_refused(
    bank_file: Path, model: Counting, edit: Callable[[Header, Header], object], message: str
) -> None:
    edit_bank(bank_file, edit)
    with pytest.raises(InputError, match=message) as caught:
        SupportBank.of(model, bank_file)
    assert str(bank_file) in caught.value.message


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"x" * 100,
        lambda data: struct.pack("<Q", 1 << 60) + data[8:],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"more",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:-4] + struct.pack("<f", float("nan")),
    ],
)
def test_damaged_bank_is_refused_and_built_again(
    bank_file: Path,
    model: Counting,
    support_dir: Path,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    good = bank_file.read_bytes()
    bank_file.write_bytes(damage(good))
    with pytest.raises(InputError, match=str(bank_file)):
        SupportBank.of(model, bank_file)
    assert update(support_dir, model) == (6, 3, 3 + 6)
    assert "building it again" in warned(caplog)
    assert bank_file.read_bytes() == good


def nested(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def indexed(**index: object) -> bytes:
    inner = json.dumps({"sha256": "0", "version": 5, **index})
    return nested(json.dumps({"__metadata__": {"m2df": inner}}).encode())


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda file: file.write(nested(b"[" + b"[]," * (20 << 20) + b"[]]")), id="20 million lists"),
        pytest.param(lambda file: file.write(nested(b"[" + b"[]," * (5 << 20) + b"[]]")), id="5 million lists"),
        pytest.param(lambda file: file.write(nested(b"[" * 900_000)), id="deep"),
        pytest.param(lambda file: file.write(indexed(classes=[[]] * 490_000)), id="490,000 wrong classes"),
        pytest.param(lambda file: file.write(indexed(keys=dict.fromkeys(map(str, range(300_000))))), id="many keys"),
        pytest.param(lambda file: (file.write(nested(b"{}")), file.truncate(3 << 30)), id="3 GB of nothing"),
        pytest.param(
            lambda file: (file.write(struct.pack("<Q", 2 << 30)), file.truncate(3 << 30)), id="2 GB of header"
        ),
    ],
)
def test_a_bank_is_refused_before_it_costs_memory(
    tmp_path: Path, model: Counting, write: Callable[[BinaryIO], object]
) -> None:
    path = tmp_path / "large.bank"
    with path.open("wb") as file:
        write(file)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"not a support bank|index is wrong"):
            SupportBank.of(model, path)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_a_sparse_tail_is_refused_by_its_size(bank_file: Path, model: Counting) -> None:
    os.truncate(bank_file, 3 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"damaged bank: 3\d+ bytes of data, \d+ expected"):
            SupportBank.of(model, bank_file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_bank_paths_are_hidden_and_differ_by_folder(tmp_path: Path, model: Counting) -> None:
    beside, cached = bank_paths(tmp_path / "a", model.bundle)
    assert beside.parent == tmp_path / "a" / ".m2df"
    assert cached != bank_paths(tmp_path / "b", model.bundle)[1]
    assert bank_paths(tmp_path / "a", model.bundle, in_cache=True) == [cached]
