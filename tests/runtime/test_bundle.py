"""Opening a bundle, and refusing one that is not what its manifest says."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_bundle import write_bundle

from m2df_runtime.bundle import Bundle, demo_bundle, newest_bundle
from m2df_runtime.errors import InputError
from m2df_runtime.preprocess import PIXELS_VERSION
from m2df_runtime.session import Session

Edit = Callable[[dict], object]


def edit_manifest(bundle: Path, edit: Edit) -> None:
    path = bundle / "manifest.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def graph_entry(data: dict, name: str = "visual") -> dict:
    return data["graphs"][name]["files"]["fp32"]


def test_directory_and_zip_give_the_same_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "tiny"), "zip", tiny_bundle))
    folder, zipped = Bundle.open(tiny_bundle), Bundle.open(archive)
    assert folder.manifest == zipped.manifest
    assert folder.key("visual", "text") == zipped.key("visual", "text")
    info = folder.graph_file("query", "fp32")
    assert folder.read(info) == zipped.read(info)
    assert Session(zipped, backend="cpu").encode_texts(["jump"]).shape == (1, folder.manifest.dim)


def test_a_bundle_trained_on_other_pixels_says_so(bundle_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    for version in (None, PIXELS_VERSION):
        edit_manifest(bundle_copy, lambda m, version=version: m.update(pixels_version=version))
        Bundle.open(bundle_copy)
    assert not caplog.records
    edit_manifest(bundle_copy, lambda m: m.update(pixels_version=PIXELS_VERSION + 1))
    Bundle.open(bundle_copy)
    (record,) = caplog.records
    assert f"version {PIXELS_VERSION + 1}, this m2df makes version {PIXELS_VERSION}" in record.getMessage()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(schema_version=2), "schema version 2, this m2df reads version 1"),
        (lambda m: m.pop("schema_version"), "schema version None"),
        (lambda m: m["graphs"].pop("query"), "missing graph: query"),
        (lambda m: m.update(surprise=1), "surprise: Extra inputs"),
        (lambda m: graph_entry(m).update(path="../visual.onnx"), "leaves the bundle"),
        (lambda m: graph_entry(m).update(path="/etc/passwd"), "leaves the bundle"),
        (lambda m: graph_entry(m).update(path="a/../../b"), "leaves the bundle"),
        (lambda m: graph_entry(m).update(path="C:\\x"), "leaves the bundle"),
        (lambda m: graph_entry(m).update(sha256="0"), "sha256"),
        (lambda m: graph_entry(m).update(bytes=1 << 50), "bytes"),
        (lambda m: m.update(dim=10**9), "dim"),
        (lambda m: m["clip"].update(frames=0), "frames"),
        (lambda m: m["graphs"]["text"].update(files={}), "no precision has all four graphs"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(bundle_copy: Path, edit: Edit, message: str) -> None:
    edit_manifest(bundle_copy, edit)
    with pytest.raises(InputError, match=message) as caught:
        Bundle.open(bundle_copy)
    assert str(bundle_copy) in caught.value.message


def test_graph_of_the_same_size_with_another_hash_is_refused(bundle_copy: Path) -> None:
    path = bundle_copy / "visual.onnx"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    session = Session(Bundle.open(bundle_copy), backend="cpu")
    with pytest.raises(InputError, match=r"visual\.onnx does not match its hash"):
        session.prepare("visual")


def test_graph_that_is_missing_or_cut_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "text.onnx").unlink()
    (bundle_copy / "query.onnx").write_bytes((bundle_copy / "query.onnx").read_bytes()[:-10])
    session = Session(Bundle.open(bundle_copy), backend="cpu")
    with pytest.raises(InputError, match=r"missing text\.onnx"):
        session.prepare("text")
    with pytest.raises(InputError, match="the manifest says"):
        session.prepare("query")


def test_graph_with_the_right_hash_that_is_no_model_is_refused(bundle_copy: Path) -> None:
    from m2df_runtime.bundle import sha256_bytes

    (bundle_copy / "text.onnx").write_bytes(b"nonsense")
    edit_manifest(bundle_copy, lambda m: graph_entry(m, "text").update(sha256=sha256_bytes(b"nonsense"), bytes=8))
    with pytest.raises(InputError, match="cannot load the graph"):
        Session(Bundle.open(bundle_copy), backend="cpu").prepare("text")


def replace_graph(bundle: Path, name: str, data: bytes) -> None:
    from m2df_runtime.bundle import sha256_bytes

    (bundle / f"{name}.onnx").write_bytes(data)
    edit_manifest(bundle, lambda m: graph_entry(m, name).update(sha256=sha256_bytes(data), bytes=len(data)))


@pytest.mark.parametrize("limit", [1_500_000_000, 10])
def test_graph_with_data_outside_the_file_is_refused(
    bundle_copy: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_onnx_file import external_model

    (bundle_copy / "weights.bin").write_bytes(bytes(16))
    replace_graph(bundle_copy, "visual", external_model().SerializeToString())
    monkeypatch.setattr("m2df_runtime.bundle.IN_MEMORY_BYTES", limit)
    with pytest.raises(InputError, match=r"visual\.onnx keeps data outside the file"):
        Session(Bundle.open(bundle_copy), backend="cpu").prepare("visual")


def test_what_was_hashed_is_what_is_used(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(bundle_copy)
    info = bundle.graph_file("visual", "fp32")
    assert bundle.file(info) == (bundle_copy / "visual.onnx").read_bytes()
    monkeypatch.setattr("m2df_runtime.bundle.IN_MEMORY_BYTES", info.bytes - 1)
    assert bundle.file(info) == bundle_copy / "visual.onnx"
    assert bundle.read(info) == (bundle_copy / "visual.onnx").read_bytes()
    Session(bundle, backend="cpu").prepare("visual")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_zip_is_refused(tiny_bundle: Path, tmp_path: Path, method: int) -> None:
    path = tmp_path / "tiny.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in tiny_bundle.iterdir():
            archive.write(file, file.name)
        middle = archive.getinfo("tokenizer.json")
    data = bytearray(path.read_bytes())
    start = middle.header_offset + 80
    data[start : start + 200] = bytes(value ^ 0x5A for value in data[start : start + 200])
    path.write_bytes(bytes(data))
    bundle = Bundle.open(path)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        bundle.read(bundle.manifest.tokenizer)


def test_zip_whose_member_is_larger_than_said_is_refused(bundle_copy: Path, tmp_path: Path) -> None:
    with (bundle_copy / "visual.onnx").open("ab") as file:
        file.write(bytes(1 << 20))
    archive = shutil.make_archive(str(tmp_path / "tiny"), "zip", bundle_copy)
    with pytest.raises(InputError, match=r"visual\.onnx unpacks to"):
        Session(Bundle.open(archive), backend="cpu").prepare("visual")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"PK\x03\x04 broken", b"[" * 100_000])
def test_files_that_are_no_bundle_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    for path in (tmp_path, tmp_path / "manifest.json", tmp_path / "none"):
        with pytest.raises(InputError, match=str(path)):
            Bundle.open(path)


def test_keys_follow_what_they_name(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    other_head = Bundle.open(write_bundle(tmp_path / "head", support_weight=0.5))
    assert bundle.key("visual") == other_head.key("visual")
    assert bundle.key("support") != other_head.key("support")
    moved = bundle.with_clip(bundle.manifest.clip.model_copy(update={"region": (0, 0, 8, 8)}))
    assert bundle.key("visual") != moved.key("visual")


def test_newest_bundle_is_the_one_written_last_else_the_demo(tmp_path: Path) -> None:
    assert newest_bundle(tmp_path / "bundles") == demo_bundle()
    for age, name in enumerate(("b", "a", "c")):
        bundle = write_bundle(tmp_path / "bundles" / name)
        os.utime(bundle / "manifest.json", (1000 - age, 1000 - age))
    (tmp_path / "bundles" / "not a bundle").mkdir()
    write_bundle(tmp_path / "bundles" / ".d.killed.tmp")
    assert newest_bundle(tmp_path / "bundles").name == "b"
