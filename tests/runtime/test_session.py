"""A bundle's graphs on ONNX Runtime, in the runtime's terms."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import DIM, FRAMES, LOGIT_SCALE, SIZE, VIEWS

from m2df_runtime.bundle import PRECISIONS, Bundle, Precision, PrecisionParity
from m2df_runtime.errors import CheckFailed, EnvironmentMissing, InputError
from m2df_runtime.session import Session, default_precision, probe_backend


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Session:
    return Session(Bundle.open(tiny_bundle), backend="cpu", threads=1)


def test_clips_become_features(session: Session) -> None:
    clips = np.random.default_rng(0).integers(0, 256, (2, FRAMES, SIZE, SIZE, 3)).astype(np.uint8)
    features = session.encode_clips(clips)
    half = SIZE // 2
    corner = clips[1, 2, :half, :half].astype(np.float64).mean(axis=(0, 1)) / 255
    assert features.shape == (2, FRAMES, DIM)
    np.testing.assert_allclose(features[1, 2, ::4], corner, rtol=1e-5)


def test_texts_become_embeddings_one_row_each(session: Session) -> None:
    embeddings = session.encode_texts(["jump", "run", "jump"])
    assert embeddings.shape == (3, DIM)
    np.testing.assert_array_equal(embeddings[0], embeddings[2])
    assert not np.array_equal(embeddings[0], embeddings[1])


@pytest.mark.parametrize(("queries", "classes", "shots"), [(1, 1, 1), (3, 5, 2), (1, 40, 5)])
def test_support_and_query_graphs_take_any_way_shot_and_batch(
    session: Session, queries: int, classes: int, shots: int
) -> None:
    rng = np.random.default_rng(1)
    prompts = rng.normal(size=(classes, DIM)).astype(np.float32)
    support = rng.normal(size=(classes, shots, FRAMES, DIM)).astype(np.float32)
    prototypes = np.stack([session.prototypes(support[c], prompts[c : c + 1]) for c in range(classes)])
    scores = session.match(rng.normal(size=(queries, FRAMES, DIM)).astype(np.float32), prompts, prototypes)
    assert prototypes.shape == (classes, VIEWS, FRAMES, DIM)
    assert scores.distances.shape == (queries, VIEWS, classes)
    np.testing.assert_allclose(scores.logits, -LOGIT_SCALE * scores.distances.sum(1), rtol=1e-5)
    np.testing.assert_allclose(scores.selected.sum(1), 1, rtol=1e-5)


def test_backend_that_is_named_is_used_and_described(session: Session) -> None:
    assert session.backend == "cpu"
    assert "CPUExecutionProvider" in session.description
    assert probe_backend("cpu") == session.description


def test_backend_that_is_missing_is_refused(tiny_bundle: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(EnvironmentMissing, match="CUDAExecutionProvider"):
        Session(Bundle.open(tiny_bundle), backend="cuda")
    assert Session(Bundle.open(tiny_bundle), backend="auto").backend == "cpu"


def test_precision_that_is_not_in_the_bundle_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match=r"no fp16 visual graph \(the bundle holds fp32\)"):
        Session(Bundle.open(tiny_bundle), precision="fp16")


def test_graph_that_cannot_take_its_inputs_is_an_error_that_names_it(session: Session) -> None:
    with pytest.raises(InputError, match=r"the fp32 support graph does not run: .+"):
        session.prototypes(np.zeros((1, FRAMES, DIM + 1), np.float32), np.zeros((1, DIM), np.float32))


def test_numbers_that_are_not_finite_fail_the_check(session: Session) -> None:
    features = np.full((1, FRAMES, DIM), np.nan, np.float32)
    with pytest.raises(CheckFailed, match="the fp32 support graph gives numbers that are not finite"):
        session.prototypes(features, np.zeros((1, DIM), np.float32))


@pytest.mark.parametrize(
    ("backend", "milliseconds", "expected"),
    [
        ("cpu", {"fp32": 5.0, "fp16": 9.0, "int8": 2.0}, "int8"),
        ("cpu", {"fp32": 5.0, "fp16": 9.0}, "fp32"),
        ("cuda", {"fp32": 5.0, "fp16": 9.0, "int8": 2.0}, "fp16"),
        ("cuda", {"fp32": 5.0, "int8": 2.0}, "fp32"),
        ("cpu", {}, "fp32"),
        ("openvino", {"fp32": 100.0, "fp16": 90.0, "int8": 40.0}, "fp32"),
        ("openvino", {"fp16": 90.0, "int8": 40.0}, "fp16"),
        ("openvino", {"fp32": 100.0, "int8": 40.0, "int8-static": 60.0}, "int8-static"),
        ("cpu", {"fp32": 100.0, "int8": 40.0, "int8-static": 60.0}, "int8"),
        ("cpu", {"fp32": 100.0, "int8": 90.0, "int8-static": 60.0}, "int8-static"),
        ("cuda", {"fp32": 100.0, "int8-static": 60.0}, "fp32"),
    ],
)
def test_default_precision_suits_the_backend(
    tiny_bundle: Path, backend: str, milliseconds: dict[Precision, float], expected: Precision
) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    graphs = {
        name: info.model_copy(update={"files": dict.fromkeys(PRECISIONS, info.files["fp32"])})
        for name, info in manifest.graphs.items()
    }
    parity = {p: PrecisionParity(passed=p in milliseconds, cpu_ms=milliseconds.get(p, 1.0)) for p in PRECISIONS}
    manifest = manifest.model_copy(update={"graphs": graphs, "parity": parity})
    assert default_precision(Bundle(tiny_bundle, manifest), backend) == expected


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_engines_leave_nothing_in_the_users_home(run_module, tmp_path: Path, backend: str) -> None:
    """ONNX Runtime's telemetry would write a device's id and a database of events, OpenVINO's a client's id."""
    if backend == "openvino" and find_spec("openvino") is None:
        pytest.skip("needs OpenVINO: pip install 'm2df[openvino]'")
    cache = tmp_path / "home" / "cache"
    cache.mkdir(parents=True)
    home = {"HOME": str(cache.parent), "XDG_CACHE_HOME": str(cache), "ORT_DISABLE_TELEMETRY": "0"}
    done = run_module("m2df_runtime.cli", "--backend", backend, "--json", **home)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in cache.parent.iterdir()] == ["cache"]
    assert [path.name for path in cache.iterdir()] == ["m2df"]


def test_openvino_that_is_not_installed_says_what_to_install(run_module, tmp_path) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('not here')")
    done = run_module("m2df_runtime.cli", "--backend", "openvino", PYTHONPATH=str(tmp_path))
    assert done.returncode == 3
    assert "OpenVINO cannot be used: not here (pip install 'm2df[openvino]')" in done.stderr
