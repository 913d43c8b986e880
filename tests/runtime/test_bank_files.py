"""Bank files that travel: the clips inside them, and what follows a new bundle and what cannot."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from full_disk import file_size_limit
from PIL import Image
from safetensors.numpy import load_file
from test_bank import Counting
from tiny_bundle import write_bundle, write_clip

from m2df_runtime import Support
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bank.contents import BankContents, read_stored
from m2df_runtime.bank.file import StripEntry
from m2df_runtime.bank.origin import InBank, Parts
from m2df_runtime.clips.opening import open_source
from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.pixels.thumbnails import to_look_at


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Counting:
    return Counting(tiny_bundle)


@pytest.fixture
def folder(support_dir: Path) -> Path:
    """A support folder with a frame folder among its clips, and clips of nothing."""
    frames = support_dir / "green" / "walk é"
    frames.mkdir()
    for t in range(5):
        Image.new("RGB", (40, 40), (0, 50 * t, 0)).save(frames / f"{t}.png")
    write_clip(support_dir / "_background" / "street.mp4", "white", seed=4)
    return support_dir


@pytest.fixture
def packed(folder: Path, model: Counting, tmp_path: Path) -> Path:
    SupportBank.of(model, folder).save(tmp_path / "gate.bank")
    return tmp_path / "gate.bank"


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_bank_file_answers_as_its_folder_does_and_holds_the_clips(
    folder: Path, packed: Path, model: Counting, tmp_path: Path
) -> None:
    whole = SupportBank.of(model, folder)
    model.taken()
    carried = SupportBank.of(model, packed)
    assert model.taken() == (0, 0, 0)
    assert carried.labels == whole.labels and carried.calibration == whole.calibration is not None
    np.testing.assert_array_equal(carried.prototypes, whole.prototypes)
    np.testing.assert_array_equal(carried.background[0].features, whole.background[0].features)
    for clip in carried.clips.values():
        assert isinstance(clip.origin, InBank)
        restored = clip.origin.restored(tmp_path, clip.digest)
        source = folder / clip.name
        pairs = zip(sorted(source.iterdir()), sorted(restored.iterdir()), strict=True) if source.is_dir() else ()
        assert all(a.read_bytes() == b.read_bytes() for a, b in pairs or [(source, restored)])
    assert set(load_file(packed)) == {"features", "prompts", "prototypes", "bytes"}  # as the library reads it
    before = packed.read_bytes()
    SupportBank.of(model, packed).save(tmp_path / "again.bank")
    assert (tmp_path / "again.bank").read_bytes() == before == packed.read_bytes()


def test_strips_show_the_frames_that_the_model_sees(folder: Path, model: Counting, tmp_path: Path) -> None:
    SupportBank.of(model, folder).save(tmp_path / "slim.bank", clips=False)
    SupportBank.of(model, folder).save(tmp_path / "whole.bank")
    spec = model.bundle.manifest.clip
    for side in (112, 60):
        look = to_look_at(spec, side)
        for name, far in (("slim", 12), ("whole", 0)):
            bank = SupportBank.of(model, tmp_path / f"{name}.bank")
            clip = bank.clips[sha(folder / "red" / "0.mp4")]
            assert clip.origin is not None and clip.origin.has_clip == (name == "whole")
            seen, expected = clip.origin.frames(look), load_clip(open_source(folder / clip.name), look)
            assert seen.shape == expected.shape
            assert np.abs(seen.astype(float) - expected).mean() <= far  # grey levels that JPEG costs
    assert (tmp_path / "slim.bank").stat().st_size < (tmp_path / "whole.bank").stat().st_size


def test_a_bank_with_clips_follows_a_new_bundle_and_one_without_says_that_it_cannot(
    folder: Path, packed: Path, model: Counting, tmp_path: Path
) -> None:
    other = Counting(write_bundle(tmp_path / "other", short_side=40))
    expected = SupportBank.of(other, shutil.copytree(folder, tmp_path / "copy"))
    clips = len(expected.clips)
    other.taken()
    followed = SupportBank.of(other, packed)
    assert other.taken()[0] == clips
    np.testing.assert_array_equal(followed.prototypes, expected.prototypes)
    assert followed.calibration == expected.calibration
    assert SupportBank.of(other, packed).labels == followed.labels and other.taken()[0] == 0  # it was stored

    SupportBank.of(model, folder).save(tmp_path / "slim.bank", clips=False)
    before = (tmp_path / "slim.bank").read_bytes()
    with pytest.raises(InputError, match=r"slim\.bank: .*cannot follow.*without its clips"):
        SupportBank.of(other, tmp_path / "slim.bank")
    assert (tmp_path / "slim.bank").read_bytes() == before


def test_a_bank_that_cannot_be_written_follows_for_the_run(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Counting(write_bundle(tmp_path / "other", short_side=40))
    before = packed.read_bytes()
    with file_size_limit(len(before) // 2):
        assert len(SupportBank.of(other, packed).classes) == 3
    assert packed.read_bytes() == before and [path.name for path in tmp_path.glob("*bank*")] == ["gate.bank"]


def test_a_damaged_clip_is_left_out_when_a_bank_follows_and_matching_does_not_mind(
    packed: Path, model: Counting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = next(iter(read_stored(packed).bank.clips.values()))
    data = bytearray(packed.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    begin = 8 + length + header["bytes"]["data_offsets"][0]
    strip = json.loads(header["__metadata__"]["m2df"])["classes"][0]["clips"][0]["strip"]["bytes"]
    data[begin + strip + 100] ^= 1
    packed.write_bytes(data)
    assert len(SupportBank.of(model, packed).clips) == 8
    with pytest.raises(ClipError, match=r"gate\.bank: blue/0\.mp4: the clip does not match its hash"):
        SupportBank.of(model, packed).clips[clip.digest].origin.restored(tmp_path)
    other = Counting(write_bundle(tmp_path / "other", short_side=40))
    before = packed.read_bytes()
    assert len(SupportBank.of(other, packed).clips) == 7
    assert "blue/0.mp4: the clip does not match its hash" in caplog.text
    assert packed.read_bytes() == before  # nothing is lost by following

    packed.write_bytes(before[:-10])
    with pytest.raises(InputError, match="damaged bank"):
        SupportBank.of(model, packed)


def rewritten(bank: SupportBank, path: Path, name: str, strip: bytes | None = None) -> Path:
    """The bank with another name of its first clip, and perhaps another strip; all of it with right hashes."""
    first = bank.classes[0]
    clip = dataclasses.replace(first.clips[0], name=name)
    if strip is not None:
        origin = clip.origin
        assert origin is not None
        entry = StripEntry(bytes=len(strip), digest=hashlib.sha256(strip).hexdigest())
        clip = dataclasses.replace(clip, origin=Crafted(Parts(entry, (), iter((strip,)))))
    classes = (dataclasses.replace(first, label=name.partition("/")[0], clips=(clip, *first.clips[1:])),)
    contents = BankContents((*classes, *bank.classes[1:]), bank.keys)
    contents.write(path, keep="clips")
    return path


class Crafted(InBank):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def parts(self, keep: object) -> Parts:
        return self._parts


def picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_what_somebody_made_up_is_refused(packed: Path, model: Counting, tmp_path: Path) -> None:
    """Names that lead elsewhere cannot be written into a bank; others are refused where a folder is made of it."""
    bank = SupportBank.of(model, packed)
    for name in ("../x", "blue/../x", "/x", "blue/a/b"):
        with pytest.raises(InputError, match="no name of a file"):
            rewritten(bank, tmp_path / "a.bank", name)
    for name in (".m2df/change.json", "blue/.hidden"):
        path = rewritten(bank, tmp_path / "a.bank", name)
        with pytest.raises(InputError, match=r"passed over|no clip of a folder"):
            Support(path, model).unpack(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    look = to_look_at(model.bundle.manifest.clip, 112)
    for strip in (b"no picture", picture(9000, 1), picture(1, 2000), picture(4, 8), picture(3000, 3000)):
        made = SupportBank.of(model, rewritten(bank, tmp_path / "b.bank", "blue/0.mp4", strip))
        origin = made.classes[0].clips[0].origin
        assert origin is not None and not origin.has_clip
        with pytest.raises(ClipError, match=r"b\.bank: blue/0\.mp4: its strip"):
            origin.frames(look)


def test_a_clip_that_changes_while_a_bank_is_packed_is_said(folder: Path, model: Counting, tmp_path: Path) -> None:
    bank = SupportBank.of(model, folder)
    write_clip(folder / "red" / "0.mp4", "red", seed=77)
    with pytest.raises(ClipError, match="it changed while it was read"):
        bank.save(tmp_path / "a.bank")
    (folder / "red" / "0.mp4").unlink()
    with pytest.raises(ClipError, match=r"red/0\.mp4"):
        bank.save(tmp_path / "a.bank")
    assert not list(tmp_path.glob("*.bank")) and not list(tmp_path.glob(".*tmp"))


def test_texts_stay_with_the_bank_and_rules_go_over_them(folder: Path, model: Counting, tmp_path: Path) -> None:
    from m2df_runtime.bundle.prompt_texts import LabelRules

    SupportBank.of(model, folder, LabelRules("a clip of {}", {"red": ("one", "two")})).save(tmp_path / "a.bank")
    assert SupportBank.of(model, tmp_path / "a.bank").classes[2].prompts == ("a clip of one", "a clip of two")
    rules = LabelRules("a film of {}", {"red": "three"})
    assert SupportBank.of(model, tmp_path / "a.bank", rules).classes[2].prompts == ("a film of three",)
    other = Counting(write_bundle(tmp_path / "other", short_side=40))
    assert SupportBank.of(other, tmp_path / "a.bank").classes[2].prompts == ("a photo of one", "a photo of two")


def test_a_file_that_is_no_bank_is_refused_without_harm(tmp_path: Path, model: Counting) -> None:
    clip = write_clip(tmp_path / "a.mp4")
    with pytest.raises(InputError, match="not a support bank") as caught:
        SupportBank.of(model, clip)
    assert "delete" not in str(caught.value)


def test_pictures_and_recordings_take_a_bank_file(
    command, tiny_bundle: Path, folder: Path, model: Counting, query_dir: Path, tmp_path: Path
) -> None:
    for name, clips in (("whole", True), ("slim", False)):
        SupportBank.of(model, folder).save(tmp_path / f"{name}.bank", clips=clips)
        bank = ("--bundle", tiny_bundle, "--support", tmp_path / f"{name}.bank", "--reject", "off")
        common = (*bank, "--query", query_dir / "red.mp4")
        picture = tmp_path / f"{name}.png"
        done = command(*common, "--picture", picture)
        assert (done.returncode, done.stderr) == (0, f"written: {picture}\n") and ": red " in done.stdout
        assert command(*common, "--window", "0.2", "--windows").returncode == 0
    shown = [np.asarray(Image.open(tmp_path / f"{name}.png"), float) for name in ("whole", "slim")]
    assert np.abs(shown[0] - shown[1]).mean() < 3
