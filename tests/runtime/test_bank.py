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
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image
from test_files import file_size_limit
from tiny_bundle import DIM, FRAMES, write_bundle, write_clip

from m2df_runtime.backends.model import Model
from m2df_runtime.bank.bank import BankReport, SupportBank, bank_paths
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.labels import LabelRules
from m2df_runtime.errors import InputError
from m2df_runtime.user_cache import cache_dir

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return Model(Bundle.open(tiny_bundle), backend="cpu", threads=1)


def update(folder: Path, model: Model, **options) -> BankReport:
    return SupportBank.update(folder, model, **options)[1]


def counts(report: BankReport) -> tuple[int, ...]:
    return report.encoded, report.reused, report.removed, report.prompts, report.prototypes


def test_first_use_encodes_and_the_second_does_nothing(support_dir: Path, model: Model) -> None:
    bank, report = SupportBank.update(support_dir, model)
    assert counts(report) == (6, 0, 0, 3, 3)
    assert bank.labels == ("blue", "green", "red")
    assert bank.prototypes.shape == (3, 2, FRAMES, DIM)
    assert report.path is not None
    assert report.path.parent == support_dir / ".m2df"
    written = report.path.stat().st_mtime_ns
    again, report = SupportBank.update(support_dir, model)
    assert counts(report) == (0, 6, 0, 0, 0)
    assert report.path.stat().st_mtime_ns == written
    np.testing.assert_array_equal(again.prototypes, bank.prototypes)
    np.testing.assert_array_equal(again.prompts, bank.prompts)


def test_only_changed_clips_are_encoded_and_only_their_class_is_rebuilt(support_dir: Path, model: Model) -> None:
    before = SupportBank.update(support_dir, model)[0]
    write_clip(support_dir / "red" / "0.mp4", "red", seed=77)
    after, report = SupportBank.update(support_dir, model)
    assert counts(report) == (1, 5, 1, 0, 1)
    np.testing.assert_array_equal(after.prototypes[:2], before.prototypes[:2])
    assert not np.array_equal(after.prototypes[2], before.prototypes[2])
    np.testing.assert_array_equal(after.prototypes, SupportBank.build(support_dir, model).prototypes)


def test_new_time_with_the_same_content_is_not_encoded_again(support_dir: Path, model: Model) -> None:
    update(support_dir, model)
    os.utime(support_dir / "red" / "0.mp4", (1, 1))
    assert counts(update(support_dir, model)) == (0, 6, 0, 0, 0)


def test_content_changed_behind_size_and_time_is_noticed(support_dir: Path, model: Model) -> None:
    clip, other = support_dir / "red" / "0.mp4", support_dir / "green" / "0.mp4"
    before = SupportBank.update(support_dir, model)[0]
    times = clip.stat()
    data = bytearray(clip.read_bytes())
    data[-1] ^= 1  # the last byte of the index: the same pictures in another file
    clip.write_bytes(data)
    os.utime(clip, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert SupportBank.update(support_dir, model)[1].encoded == 1
    for path in (clip, other):  # two clips of one size and time change places
        path.write_bytes(path.read_bytes().ljust(1 << 16, b"\0"))
        os.utime(path, ns=(0, 0))
    update(support_dir, model)
    clip.rename(support_dir / "third")
    other.rename(clip)
    (support_dir / "third").rename(other)
    after, report = SupportBank.update(support_dir, model)
    assert counts(report)[:3] == (0, 6, 0)
    assert report.prototypes == 2
    digests = {clip.name: clip.digest for entry in after.classes for clip in entry.clips}
    assert digests["red/0.mp4"] == hashlib.sha256(clip.read_bytes()).hexdigest()
    assert before.labels == after.labels


def test_classes_are_added_removed_and_renamed_without_encoding_the_others(support_dir: Path, model: Model) -> None:
    update(support_dir, model)
    write_clip(support_dir / "white" / "a.mp4", "white")
    assert counts(update(support_dir, model)) == (1, 6, 0, 1, 1)
    shutil.rmtree(support_dir / "green")
    assert counts(update(support_dir, model)) == (0, 5, 2, 0, 0)
    (support_dir / "red").rename(support_dir / "crimson_tide")
    bank, report = SupportBank.update(support_dir, model)
    assert counts(report) == (0, 5, 0, 1, 1)
    assert bank.labels == ("blue", "crimson_tide", "white")
    assert bank.classes[1].prompt == "a photo of crimson tide"


def test_new_prompt_recomputes_no_features(support_dir: Path, model: Model) -> None:
    update(support_dir, model)
    rules = LabelRules("a clip of {}", {"red": "something red"})
    bank, report = SupportBank.update(support_dir, model, rules)
    assert counts(report) == (0, 6, 0, 3, 3)
    assert [entry.prompt for entry in bank.classes] == ["a clip of blue", "a clip of green", "a clip of something red"]


def test_new_head_reuses_the_features(support_dir: Path, model: Model, tmp_path: Path) -> None:
    before = SupportBank.update(support_dir, model)[0]
    head = Model(Bundle.open(write_bundle(tmp_path / "head", support_weight=0.5)), backend="cpu")
    bank, report = SupportBank.update(support_dir, head)
    assert counts(report) == (0, 6, 0, 0, 3)
    assert not np.array_equal(bank.prototypes, before.prototypes)


class Counting(Model):
    """Counts the clips it encodes."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(Bundle.open(bundle), backend="cpu", threads=1)
        self.encoded = 0

    def encode_clips(self, clips: np.ndarray, names: object = None) -> np.ndarray:
        self.encoded += len(clips)
        return super().encode_clips(clips, names)


def test_heads_of_one_encoder_share_a_folder_whatever_their_views(support_dir: Path, tmp_path: Path) -> None:
    heads = [Counting(write_bundle(tmp_path / str(views), views=views, support_weight=views)) for views in (1, 2)]
    alone = [SupportBank.build(support_dir, head) for head in heads]
    assert [bank.prototypes.shape[1] for bank in alone] == [1, 2]
    for head in heads:
        head.encoded = 0
    for round_ in range(2):
        for head, expected in zip(heads, alone, strict=True):
            bank, report = SupportBank.update(support_dir, head, calibrated=True)
            np.testing.assert_array_equal(bank.prototypes, expected.prototypes)
            assert bank.calibration is not None and report.encoded == (6 if head is heads[0] and round_ == 0 else 0)
            assert SupportBank.load(report.path, head.bundle).keys == bank.keys
            other = heads[head is heads[0]].bundle
            with pytest.raises(InputError, match="prototypes were made with another bundle"):
                SupportBank.load(report.path, other)
    write_clip(support_dir / "red" / "new.mp4", "red", seed=5)
    assert [SupportBank.update(support_dir, head)[1].encoded for head in heads] == [1, 0]
    assert [head.encoded for head in heads] == [7, 0]


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
    bank, report = SupportBank.update(Path(sys.argv[1]), model)
    print(*bank.labels, report.path.name, len(bank.classes[0].clips), flush=True)
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
    (path,) = (support_dir / ".m2df").iterdir()
    assert {line for out, _ in found for line in out.splitlines()} == {f"blue green red {path.name} 2"}
    for bundle in bundles:
        assert counts(update(support_dir, Model(Bundle.open(bundle), backend="cpu")))[:2] == (0, 6)


def test_a_clip_with_features_that_are_not_finite_is_left_out(
    support_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Counting(write_bundle(tmp_path / "bundle", blue=float("nan")))
    write_clip(support_dir / "red" / "blue one.mp4", "blue", seed=3)
    (support_dir / "green" / "broken.mp4").write_bytes(b"no video")
    bank = SupportBank.update(support_dir, model)[0]
    assert [(entry.label, len(entry.clips)) for entry in bank.classes] == [("green", 2), ("red", 2)]
    assert np.isfinite(bank.prototypes).all()
    text = warned(caplog)
    for part in ("blue/0.mp4: ", "blue/1.mp4: ", "red/blue one.mp4: ", "not finite", "broken.mp4"):
        assert part in text
    assert f"{support_dir}: 4 of 8 clips are left out" in text
    shutil.rmtree(support_dir / "green")
    shutil.rmtree(support_dir / "red")
    with pytest.raises(InputError, match="no clip in it can be read"):
        SupportBank.update(support_dir, model)


def test_a_class_without_finite_prototypes_is_left_out(
    support_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Features that are finite, and whose sum is not."""
    model = Counting(write_bundle(tmp_path / "bundle", blue=3e38))
    bank = SupportBank.update(support_dir, model, calibrated=True)[0]
    assert bank.labels == ("green", "red") and np.isfinite(bank.prototypes).all()
    assert f"{support_dir / 'blue'}: " in warned(caplog) and "class left out" in warned(caplog)
    for label in ("green", "red"):
        shutil.rmtree(support_dir / label)
    with pytest.raises(InputError, match="no class in it can be used"):
        SupportBank.update(support_dir, model)


def test_other_preprocessing_has_a_bank_of_its_own(support_dir: Path, model: Model) -> None:
    first = update(support_dir, model)
    clip = model.bundle.manifest.clip.model_copy(update={"region": (0, 0, 32, 32)})
    cropped = Model(model.bundle.with_clip(clip), backend="cpu")
    second = update(support_dir, cropped)
    assert counts(second) == (6, 0, 0, 3, 3)
    assert first.path != second.path
    assert counts(update(support_dir, model)) == (0, 6, 0, 0, 0)


def test_folder_that_cannot_be_written_keeps_its_bank_in_the_cache(support_dir: Path, model: Model) -> None:
    (support_dir / ".m2df").write_text("in the way")
    report = update(support_dir, model)
    assert report.path is not None
    assert report.path.is_relative_to(cache_dir())
    assert counts(update(support_dir, model)) == (0, 6, 0, 0, 0)


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
    kind: str, level: str, support_dir: Path, model: Model, caplog: pytest.LogCaptureFixture
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
        bank, report = SupportBank.update(support_dir, model)
        assert len(bank.classes) == 3 and report.encoded == encoded
        assert report.path is not None and report.path.is_relative_to(cache_dir())
        (record,) = [record for record in caplog.records if str(place) in record.getMessage()]
        assert f"{place}: {name}" in record.getMessage()
    assert (place.lstat().st_mode, place.lstat().st_ino) == (before.st_mode, before.st_ino)


def test_a_bank_behind_a_link_is_used_and_the_link_stays(support_dir: Path, model: Model, tmp_path: Path) -> None:
    path = update(support_dir, model).path
    assert path is not None
    path.rename(tmp_path / "elsewhere.bank")
    path.symlink_to(tmp_path / "elsewhere.bank")
    shutil.rmtree(support_dir / "red")
    assert counts(update(support_dir, model)) == (0, 4, 2, 0, 0)
    assert path.is_symlink() and SupportBank.load(tmp_path / "elsewhere.bank", model.bundle).labels == (
        "blue",
        "green",
    )


def test_a_full_disk_costs_the_bank_and_not_the_answer(
    support_dir: Path, model: Model, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    # `capsys` takes output in memory; a file for it would meet the limit too.
    with file_size_limit(1000):
        bank, report = SupportBank.update(support_dir, model)
    assert report.path is None and len(bank.classes) == 3
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().endswith(".bank: File too large")
    for path in bank_paths(support_dir, model.bundle):
        assert not list(path.parent.glob("*" if path.parent.name == ".m2df" else path.name))
    assert counts(update(support_dir, model)) == (6, 0, 0, 3, 3)


def test_without_any_place_to_write_the_bank_lives_for_the_run(
    support_dir: Path,
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (support_dir / ".m2df").write_text("in the way")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    bank, report = SupportBank.update(support_dir, model)
    assert report.path is None
    assert len(bank.classes) == 3
    assert "the support bank is not kept" in caplog.text


def test_frame_folders_unicode_and_spaces(tmp_path: Path, model: Model) -> None:
    folder = tmp_path / "mes actions"
    write_clip(folder / "跳ぶ" / "a clip é.mp4", "red")
    frames = folder / "two words" / "clip 1"
    frames.mkdir(parents=True)
    for t in range(5):
        Image.new("RGB", (40, 40), (0, 50 * t, 0)).save(frames / f"{t}.png")
    bank, report = SupportBank.update(folder, model)
    assert set(bank.labels) == {"跳ぶ", "two words"}
    assert report.encoded == 2
    assert counts(update(folder, model)) == (0, 2, 0, 0, 0)
    Image.new("RGB", (40, 40), (255, 0, 0)).save(frames / "4.png")
    assert counts(update(folder, model))[:3] == (1, 1, 1)
    (frames / "0.png").rename(frames / "9.png")  # another order: neither sizes nor times of the frames change
    assert counts(update(folder, model))[:3] == (1, 1, 1)


def test_names_that_are_not_unicode_work_without_a_file(
    support_dir: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    label = os.fsdecode(b"\xe9lan")
    try:
        (support_dir / "red").rename(support_dir / label)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    bank, report = SupportBank.update(support_dir, model)
    assert label in bank.labels
    assert report.path is None
    assert "a class or clip has a name that is not Unicode" in caplog.text


def test_thousand_classes(tmp_path: Path, model: Model) -> None:
    master = write_clip(tmp_path / "master.mp4", "red", frames=2, size=(32, 32)).read_bytes()
    for number in range(1000):
        path = tmp_path / "support" / f"class {number}" / "a.mp4"
        path.parent.mkdir(parents=True)
        path.write_bytes(master + struct.pack("<II", number, 0))  # trailing bytes make another content
    bank, report = SupportBank.update(tmp_path / "support", model)
    assert counts(report) == (1000, 0, 0, 1000, 1000)
    assert bank.labels[:3] == ("class 0", "class 1", "class 2")
    assert counts(update(tmp_path / "support", model)) == (0, 1000, 0, 0, 0)


def warned(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


def test_oddities_get_a_warning_that_names_them(
    support_dir: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    (support_dir / "empty").mkdir()
    (support_dir / "red" / "notes.txt").write_text("x")
    (support_dir / "green" / "broken.mp4").write_bytes(b"no video")
    (support_dir / "only broken").mkdir()
    (support_dir / "only broken" / "zero.mp4").write_bytes(b"")
    (support_dir / "green" / "gone.mp4").symlink_to("nowhere.mp4")
    shutil.copy(support_dir / "blue" / "0.mp4", support_dir / "blue" / "copy.mp4")
    shutil.copy(support_dir / "blue" / "0.mp4", support_dir / "loose.mp4")
    bank, report = SupportBank.update(support_dir, model)
    assert bank.labels == ("blue", "green", "red")
    assert report.encoded == 6
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


def test_one_class_works_with_a_warning(support_dir: Path, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    for label in ("red", "green"):
        shutil.rmtree(support_dir / label)
    assert SupportBank.update(support_dir, model)[0].labels == ("blue",)
    assert "only one class (blue)" in warned(caplog)


def test_same_clip_in_two_classes_is_an_error_that_names_both(support_dir: Path, model: Model) -> None:
    shutil.copy(support_dir / "blue" / "0.mp4", support_dir / "red" / "x.mp4")
    with pytest.raises(InputError, match="the same clip") as caught:
        update(support_dir, model)
    assert str(support_dir / "red" / "x.mp4") in caught.value.message
    assert str(support_dir / "blue" / "0.mp4") in caught.value.message


def test_folders_without_a_class_are_errors_that_name_them(tmp_path: Path, model: Model) -> None:
    with pytest.raises(InputError, match="no such folder"):
        update(tmp_path / "none", model)
    clip = write_clip(tmp_path / "clips" / "a.mp4")
    with pytest.raises(InputError, match="is a file"):
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


def test_calibration_is_stored_and_forgotten_when_classes_change(support_dir: Path, model: Model) -> None:
    assert SupportBank.update(support_dir, model)[0].calibration is None
    calibrated, report = SupportBank.update(support_dir, model, calibrated=True)
    assert calibrated.calibration is not None
    assert calibrated.calibration.queries == 6
    assert report.path is not None
    assert SupportBank.load(report.path, model.bundle).calibration == calibrated.calibration
    assert SupportBank.update(support_dir, model)[0].calibration == calibrated.calibration
    shutil.rmtree(support_dir / "red")
    assert SupportBank.update(support_dir, model, calibrated=True)[0].calibration is None


def test_calibration_is_forgotten_when_the_query_graph_changes(
    support_dir: Path, model: Model, bundle_copy: Path
) -> None:
    assert SupportBank.update(support_dir, model, calibrated=True)[0].calibration is not None
    query = (bundle_copy / "query.onnx").read_bytes() + b"\x32\x05other"  # another doc_string, hence another hash
    (bundle_copy / "query.onnx").write_bytes(query)
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["graphs"]["query"]["files"]["fp32"].update(sha256=hashlib.sha256(query).hexdigest(), bytes=len(query))
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    other = Model(Bundle.open(bundle_copy), backend="cpu")
    bank, report = SupportBank.update(support_dir, other)
    assert counts(report) == (0, 6, 0, 0, 0)
    assert bank.calibration is None


@pytest.fixture
def bank_file(support_dir: Path, model: Model) -> Path:
    path = update(support_dir, model).path
    assert path is not None
    return path


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


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h, i: i.update(version=1), "bank version 1, this m2df reads version 2"),
        (lambda h, i: i["keys"].update(visual="0" * 64), "another bundle"),
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
        (lambda h, i: i["classes"][0].update(text="x" * 3000), "at most 2000 characters"),
        (lambda h, i: i["classes"][0].update(label="x" * 300), "at most 255 characters"),
        (lambda h, i: i["classes"][0]["clips"][0].update(size=1 << 70), "size"),
        (lambda h, i: i["keys"].update(text="x" * 10**6), "keys.text"),
        (lambda h, i: i.update(version="x" * 10**6), "bank version x{20}, this"),
        (lambda h, i: i.pop("sha256"), "not a support bank"),
    ],
)
def test_bank_that_does_not_fit_is_refused(
    bank_file: Path, model: Model, edit: Callable[[Header, Header], object], message: str
) -> None:
    edit_bank(bank_file, edit)
    with pytest.raises(InputError, match=message) as caught:
        SupportBank.load(bank_file, model.bundle)
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
    model: Model,
    support_dir: Path,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    good = bank_file.read_bytes()
    bank_file.write_bytes(damage(good))
    with pytest.raises(InputError, match=str(bank_file)):
        SupportBank.load(bank_file, model.bundle)
    assert counts(update(support_dir, model)) == (6, 0, 0, 3, 3)
    assert "building it again" in warned(caplog)
    assert bank_file.read_bytes() == good


def nested(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def indexed(**index: object) -> bytes:
    inner = json.dumps({"sha256": "0", "version": 2, **index})
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
    tmp_path: Path, model: Model, write: Callable[[BinaryIO], object]
) -> None:
    path = tmp_path / "large.bank"
    with path.open("wb") as file:
        write(file)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"not a support bank|index is wrong"):
            SupportBank.load(path, model.bundle)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_a_sparse_tail_is_refused_by_its_size(bank_file: Path, model: Model) -> None:
    os.truncate(bank_file, 3 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"damaged bank: 3\d+ bytes of numbers, \d+ expected"):
            SupportBank.load(bank_file, model.bundle)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_load_refuses_prototypes_of_another_head(bank_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prototypes were made with another bundle"):
        SupportBank.load(bank_file, Bundle.open(write_bundle(tmp_path / "head", support_weight=0.5)))


def test_bank_paths_are_hidden_and_differ_by_folder(tmp_path: Path, model: Model) -> None:
    beside, cached = bank_paths(tmp_path / "a", model.bundle)
    assert beside.parent == tmp_path / "a" / ".m2df"
    assert cached != bank_paths(tmp_path / "b", model.bundle)[1]
    assert bank_paths(tmp_path / "a", model.bundle, in_cache=True) == [cached]
