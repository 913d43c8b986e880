"""OpenVINO computes what ONNX Runtime does, from the same files."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import DIM, FRAMES, write_bundle

from m2df_runtime.backends.model import Model, probe_backend
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.shipped import demo_bundle, demo_queries
from m2df_runtime.clips.opening import open_source
from m2df_runtime.errors import InputError
from m2df_runtime.pixels.load import load_clip

if find_spec("openvino") is None:
    pytest.skip("needs OpenVINO: pip install 'm2df[openvino]'", allow_module_level=True)


def test_demo_bundle_gives_what_onnx_runtime_does() -> None:
    """Real clips through all four graphs; the bound is fp16's, as ONNX Runtime really computes in it."""
    bundle = Bundle.open(demo_bundle())
    ours, other = Model(bundle, backend="openvino", threads=1), Model(bundle, backend="cpu", threads=1)
    assert (ours.backend, ours.precision) == ("openvino", "fp16")
    paths = sorted(demo_queries().iterdir())
    clips = np.stack([load_clip(open_source(path), bundle.manifest.clip) for path in paths])
    features, prompts = other.encode_clips(clips), other.encode_texts([path.stem for path in paths])
    close(ours.encode_clips(clips), features, 4e-3)  # fp16 values, rounded elsewhere by each engine
    close(ours.encode_texts([path.stem for path in paths]), prompts, 2e-3)
    prototypes = np.stack([other.prototypes(features[:2], prompt[None]) for prompt in prompts])
    close(np.stack([ours.prototypes(features[:2], prompt[None]) for prompt in prompts]), prototypes, 1e-3)
    for queries in (len(features), 1):
        actual, expected = (s.match(features[:queries], prompts, prototypes) for s in (ours, other))
        close(actual.distances, expected.distances, 3e-4)
        close(actual.logits, expected.logits, 3e-4)
        close(actual.selected, expected.selected, 1e-3)


def test_a_prompt_that_changes_nothing_is_an_input_all_the_same(tmp_path: Path) -> None:
    """OpenVINO drops inputs that nothing reads; a training-free head reads `prompt` and multiplies it by 0."""
    bundle = Bundle.open(write_bundle(tmp_path / "free", support_weight=0.0))
    ours, other = (Model(bundle, backend=name, threads=1) for name in ("openvino", "cpu"))
    rng = np.random.default_rng(0)
    features, prompt = (rng.normal(size=shape).astype(np.float32) for shape in ((2, FRAMES, DIM), (1, DIM)))
    close(ours.prototypes(features, prompt), other.prototypes(features, prompt), 1e-6)
    with pytest.raises(RuntimeError):
        ours._graphs["support"].run({"features": features, "prompt": prompt, "surprise": prompt})


def test_threads_share_a_graph(tiny_bundle: Path) -> None:
    session = Model(Bundle.open(tiny_bundle), backend="openvino", threads=1)
    shape = (4, *session.bundle.manifest.graphs["visual"].inputs[0].shape[1:])
    batches = np.random.default_rng(0).integers(0, 256, (16, 1, *shape), dtype=np.uint8)
    expected = [session.encode_clips(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for actual, wanted in zip(pool.map(session.encode_clips, batches), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)


def test_graph_it_cannot_load_is_refused() -> None:
    from m2df_runtime.backends.openvino import OpenVINOBackend

    with pytest.raises(InputError, match=r"here\.onnx: OpenVINO cannot load the graph"):
        OpenVINOBackend().load(b"not a graph", "here.onnx")


def test_commands_take_it(run_module) -> None:
    done = run_module("m2df_runtime.commands.run", "--backend", "openvino", "--json")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {record["backend"] for record in records} == {"openvino"}
    assert all(Path(record["query"]).stem == record["predictions"][0]["label"] for record in records)
    assert probe_backend("openvino").startswith("OpenVINO ")


def close(actual: np.ndarray, expected: np.ndarray, bound: float) -> None:
    """Within a share of the largest value."""
    assert np.abs(actual - expected).max() <= bound * np.abs(expected).max()
