"""Opening a bundle, and refusing one that is not what its manifest says."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_bundle import FRAMES, write_bundle

from m2df_runtime.backends.model import Model
from m2df_runtime.bundle.bundle import MAX_MANIFEST_BYTES, Bundle
from m2df_runtime.bundle.shipped import demo_bundle, newest_bundle
from m2df_runtime.engine_names import BackendName
from m2df_runtime.errors import InputError
from m2df_runtime.pixels.spec import PIXELS_VERSION


def available(*backends: BackendName) -> list[BackendName]:
    return [name for name in backends if name != "openvino" or find_spec("openvino")]


Edit = Callable[[dict], object]


def edit_manifest(bundle: Path, edit: Edit) -> None:
    path = bundle / "manifest.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def exchange(values: dict, one: str, other: str) -> None:
    values[one], values[other] = values[other], values[one]


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def graph_entry(data: dict, name: str = "visual") -> dict:
    return data["graphs"][name]["files"]["fp32"]


def test_directory_and_zip_give_the_same_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "tiny"), "zip", tiny_bundle))
    folder, zipped = Bundle.open(tiny_bundle), Bundle.open(archive)
    assert folder.manifest == zipped.manifest
    assert folder.key("visual", "text") == zipped.key("visual", "text")
    info = folder.graph_file("query", "fp32")
    assert folder.read(info) == zipped.read(info)
    assert Model(zipped, backend="cpu").encode_texts(["jump"]).shape == (1, folder.manifest.dim)


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
        (lambda m: m.update(schema_version=1), "schema version 1, this m2df reads version 2"),
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
        (lambda m: m.update(views=1), r"support graph's outputs: prototypes is float32 \[2, 4, 12\], .* \[1, 4, 12\]"),
        (lambda m: m.update(views=8), r"prototypes is float32 \[2, 4, 12\], .* \[8, 4, 12\]"),
        (lambda m: m.update(dim=1), r"visual graph's outputs: features is float32 \[N, 12\], .* \[\?, 1\]"),
        (lambda m: m["clip"].update(frames=7), r"support graph's inputs: features .* \[\?, 7, 12\]"),
        (lambda m: m["clip"].update(size=64), r"frames is uint8 \[N, 32, 32, 3\], .* \[\?, 64, 64, 3\]"),
        (lambda m: exchange(m["graphs"], "visual", "text"), "visual graph's inputs: tokens in place of frames"),
        (lambda m: m["graphs"]["visual"]["inputs"][0].update(dtype="float32"), "frames is float32"),
        (lambda m: m["graphs"]["visual"]["inputs"][0].update(shape=[1, 32, 32, 3]), "frames is uint8"),
        (lambda m: m["graphs"]["query"]["outputs"].pop(), "selected in place of logits, distances, selected, tokens"),
        (lambda m: m["text"].update(context_length=32), "context_length"),
        (lambda m: m["text"].update(prompt="a photo"), "must contain exactly one {}"),
        (lambda m: m["text"].update(prompt="{}" + "x" * 4_000_000), f"at most {MAX_MANIFEST_BYTES} expected"),
        (lambda m: m["text"].update(prompt="{}" + "x" * 80_000), "80002 characters, at most 1000"),
        (lambda m: m["text"].update(labels={"wave": "x" * 1001}), "at most 1000 characters"),
        (lambda m: m.update(name="x" * 501), "name: String should have at most 500"),
        (lambda m: m["clip"].update(frames=100_000), "less than or equal to 256"),
        (lambda m: m["clip"].update(size=20_000), "less than or equal to 1024"),
        (lambda m: m["clip"].update(std=[1, 1, float("nan")]), "finite number"),
        (lambda m: m["head"]["options"].update(a=nested(40)), "nested more than 32 deep"),
        (lambda m: m["head"]["options"].update(a=nested(900)), "nested more than 32 deep|not JSON"),
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
    session = Model(Bundle.open(bundle_copy), backend="cpu")
    with pytest.raises(InputError, match=r"visual\.onnx does not match its hash"):
        session.prepare("visual")


def test_graph_that_is_missing_or_cut_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "text.onnx").unlink()
    (bundle_copy / "query.onnx").write_bytes((bundle_copy / "query.onnx").read_bytes()[:-10])
    session = Model(Bundle.open(bundle_copy), backend="cpu")
    with pytest.raises(InputError, match=r"missing text\.onnx"):
        session.prepare("text")
    with pytest.raises(InputError, match="the manifest says"):
        session.prepare("query")


def test_graph_with_the_right_hash_that_is_no_model_is_refused(bundle_copy: Path) -> None:
    from m2df_runtime.files import sha256_bytes

    (bundle_copy / "text.onnx").write_bytes(b"nonsense")
    edit_manifest(bundle_copy, lambda m: graph_entry(m, "text").update(sha256=sha256_bytes(b"nonsense"), bytes=8))
    with pytest.raises(InputError, match="not an ONNX model"):
        Model(Bundle.open(bundle_copy), backend="cpu").prepare("text")


def replace_graph(bundle: Path, name: str, data: bytes) -> None:
    from m2df_runtime.files import sha256_bytes

    (bundle / f"{name}.onnx").write_bytes(data)
    edit_manifest(bundle, lambda m: graph_entry(m, name).update(sha256=sha256_bytes(data), bytes=len(data)))


@pytest.mark.parametrize("limit", [1_500_000_000, 10])
def test_graph_with_data_outside_the_file_is_refused(
    bundle_copy: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_onnx_file import external_model

    (bundle_copy / "weights.bin").write_bytes(bytes(16))
    replace_graph(bundle_copy, "visual", external_model().SerializeToString())
    monkeypatch.setattr("m2df_runtime.bundle.bundle.IN_MEMORY_BYTES", limit)
    with pytest.raises(InputError, match=r"visual\.onnx keeps data outside the file"):
        Model(Bundle.open(bundle_copy), backend="cpu").prepare("visual")


def test_files_of_graphs_that_are_exchanged_are_refused(bundle_copy: Path) -> None:
    """Each manifest agrees with itself, and every hash is right; the files are not the graphs it describes."""
    edit_manifest(bundle_copy, lambda m: exchange(m["graphs"]["support"], *["files"] * 2))
    edit_manifest(
        bundle_copy,
        lambda m: [graph_entry(m, "support").update(other := dict(graph_entry(m, "query"))), other],
    )
    message = r"query\.onnx is not the support graph of the manifest: it takes features float32 \[Q, 4, 12\]; prompts"
    for backend in available("cpu", "openvino"):
        with pytest.raises(InputError, match=message):
            Model(Bundle.open(bundle_copy), backend=backend).prepare("support")


def test_a_graph_of_other_sizes_than_the_manifest_says_is_refused(bundle_copy: Path) -> None:
    def shrink(manifest: dict) -> None:
        manifest["clip"]["frames"] = 3
        for graph in manifest["graphs"].values():
            for tensor in (*graph["inputs"], *graph["outputs"]):
                tensor["shape"] = [3 if axis == FRAMES else axis for axis in tensor["shape"]]

    edit_manifest(bundle_copy, shrink)
    with pytest.raises(InputError, match=r"gives prototypes float32 \[2, 4, 12\]; the manifest says .* \[2, 3, 12\]"):
        Model(Bundle.open(bundle_copy), backend="cpu").prepare("support")


def test_what_was_hashed_is_what_is_used(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(bundle_copy)
    info = bundle.graph_file("visual", "fp32")
    assert bundle.file(info) == (bundle_copy / "visual.onnx").read_bytes()
    monkeypatch.setattr("m2df_runtime.bundle.bundle.IN_MEMORY_BYTES", info.bytes - 1)
    assert bundle.file(info) == bundle_copy / "visual.onnx"
    assert bundle.read(info) == (bundle_copy / "visual.onnx").read_bytes()
    Model(bundle, backend="cpu").prepare("visual")


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
        Model(Bundle.open(archive), backend="cpu").prepare("visual")


def zeros_zip(tiny_bundle: Path, path: Path, size: int, says: int) -> Path:
    """The tiny bundle with a visual graph of that many zeros, of which its manifest says `says`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        manifest = json.loads((tiny_bundle / "manifest.json").read_text())
        graph_entry(manifest).update(bytes=says)
        archive.writestr("manifest.json", json.dumps(manifest))
        with archive.open("visual.onnx", "w", force_zip64=True) as member:
            for _ in range(size >> 20):
                member.write(bytes(1 << 20))
    return path


@pytest.mark.parametrize(("says", "message"), [(300 << 20, "as no model does"), (1000, "the manifest says 1000")])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(
    tiny_bundle: Path, tmp_path: Path, says: int, message: str
) -> None:
    path = zeros_zip(tiny_bundle, tmp_path / "tiny.zip", 300 << 20, says)
    bundle = Bundle.open(path)
    tracemalloc.start()
    with pytest.raises(InputError, match=message):
        bundle.file(bundle.graph_file("visual", "fp32"))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_zip_of_very_many_files_is_refused_before_they_are_listed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(20_000):
            archive.writestr(f"{number:050d}", b"")
    with pytest.raises(InputError, match="too many files"):
        Bundle.open(tmp_path / "many.zip")


@pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")
def test_threads_share_a_zip_and_nothing_stays_open(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.make_archive(str(tmp_path / "tiny"), "zip", tiny_bundle))
    infos = [graph.files["fp32"] for graph in bundle.manifest.graphs.values()] * 8
    with ThreadPoolExecutor(8) as pool:
        for content, info in zip(pool.map(bundle.read, infos), infos, strict=True):
            assert content == (tiny_bundle / info.path).read_bytes()
    opened = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.exists()]
    assert str(bundle.path) not in opened


def test_a_pipe_in_place_of_a_bundle_does_not_hang(bundle_copy: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.zip")
    (bundle_copy / "manifest.json").unlink()
    os.mkfifo(bundle_copy / "manifest.json")
    for path in (tmp_path / "pipe.zip", bundle_copy):
        with pytest.raises(InputError, match=str(path)):
            Bundle.open(path)


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
