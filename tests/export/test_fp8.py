"""FP8: what modelopt's graph becomes, where it may run, and an export without modelopt."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from tiny_bundle import FRAMES, SIZE, write_bundle

from m2df_export.check.verify import engines
from m2df_export.pipeline import ExportOptions, export_bundle
from m2df_export.tensorrt.build import check_fp8
from m2df_runtime.backends.model import Model
from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend
from m2df_runtime.backends.precisions import default_precision
from m2df_runtime.backends.tensorrt.engine_files import Machine
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.manifest import PrecisionParity
from m2df_runtime.errors import EnvironmentMissing, InputError
from m2df_runtime.parity import GATES

needs_modelopt = pytest.mark.skipif(
    find_spec("modelopt") is None, reason="needs modelopt, in an environment of its own: pip install m2df[fp8]"
)


@needs_modelopt
@pytest.mark.slow
def test_exported_fp8_passes_its_gates_and_shares_the_half_files(model, tmp_path):
    result = export_bundle(model("training-free"), ExportOptions(tmp_path / "bundle", ("fp32", "fp8")))
    bundle = Bundle.open(tmp_path / "bundle")
    assert result.reports["fp8"].graphs["visual"].cosine >= GATES["fp8"].cosine
    assert bundle.manifest.precisions == ("fp32", "fp8") and "nvidia-modelopt" in bundle.manifest.versions
    names = [info.files["fp8"].path for info in bundle.manifest.graphs.values()]
    assert names == ["visual.fp8.onnx", "text.fp16.onnx", "support.fp16.onnx", "query.fp16.onnx"]
    visual = onnx.load(tmp_path / "bundle" / "visual.fp8.onnx")
    assert next(each.version for each in visual.opset_import if not each.domain) >= 19
    types = {weight.name: weight.data_type for weight in visual.graph.initializer}
    codes = [node for node in visual.graph.node if node.op_type == "QuantizeLinear"]
    assert len(codes) > 8 and {types[node.input[2]] for node in codes} == {onnx.TensorProto.FLOAT8E4M3FN}
    assert {types[node.input[1]] for node in codes} == {onnx.TensorProto.FLOAT16}
    clips = np.random.default_rng(0).integers(0, 256, (1, 4, 32, 32, 3)).astype(np.uint8)
    exact, coarse = (Model(bundle, backend="cpu", precision=p).encode_clips(clips) for p in ("fp32", "fp8"))
    assert 1e-4 < np.abs(coarse - exact).max() / np.abs(exact).max() < 0.2


def test_without_modelopt_the_export_ends_before_it_begins(run_module, tmp_path):
    if find_spec("modelopt") is not None:
        pytest.skip("modelopt is here")
    done = run_module("m2df_export.commands.export", "--model", "ViT-B-32", "--fp8", "--out", tmp_path / "bundle")
    assert done.returncode == 3
    assert done.stderr.strip().splitlines() == [
        "error: FP8 needs NVIDIA's modelopt, which is not installed (in an environment of its own, for it brings "
        "onnxruntime-gpu: pip install 'm2df[fp8]')"
    ]
    assert not (tmp_path / "bundle").exists()


def test_fp8_of_graphs_for_tensorrt_8_is_refused(run_module):
    done = run_module("m2df_export.commands.export", "--model", "ViT-B-32", "--fp8", "--opset", "16")
    assert done.returncode == 2 and "--fp8 needs --opset 18 or later" in done.stderr


@pytest.mark.parametrize(
    ("capability", "version", "compatible", "error", "reason"),
    [
        ((8, 9), "8.6.1", False, EnvironmentMissing, r"need TensorRT 10, this is 8\.6\.1"),
        ((8, 6), "10.3.0.26", False, EnvironmentMissing, r"GPU \(sm86\) has no FP8"),
        ((9, 0), "11.4.0.106", True, InputError, "for Ampere too"),
    ],
)
def test_engines_are_refused_where_there_is_no_fp8(capability, version, compatible, error, reason):
    check_fp8(Machine("GPU", (8, 9), "10.0.1"), False)
    with pytest.raises(error, match=reason):
        check_fp8(Machine("GPU", capability, version), compatible)


@pytest.fixture
def bundle(tmp_path):
    """The tiny bundle, said to hold fp8 that passed and is fastest."""
    write_bundle(tmp_path / "bundle")
    manifest = Bundle.open(tmp_path / "bundle").manifest
    graphs = {
        name: info.model_copy(update={"files": dict.fromkeys(("fp32", "fp8"), info.files["fp32"])})
        for name, info in manifest.graphs.items()
    }
    parity = {"fp32": PrecisionParity(passed=True, cpu_ms=9.0), "fp8": PrecisionParity(passed=True, cpu_ms=1.0)}
    return Bundle(tmp_path / "bundle", manifest.model_copy(update={"graphs": graphs, "parity": parity}))


def test_fp8_runs_only_where_it_is_asked_for(bundle):
    assert {default_precision(bundle, name) for name in ("cpu", "openvino", "cuda", "tensorrt")} == {"fp32"}
    with pytest.raises(InputError, match="the fp8 graphs are for TensorRT"):
        Model(bundle, precision="fp8")
    clips = np.zeros((1, FRAMES, SIZE, SIZE, 3), np.uint8)
    assert np.isfinite(Model(bundle, backend="cpu", precision="fp8").encode_clips(clips)).all()


def test_verify_takes_fp8_through_tensorrt_and_its_imitation_alone(bundle):
    assert engines(bundle, ["cpu", "auto"]) == [("cpu", "fp32"), ("cpu", "fp8"), ("auto", "fp32")]


def test_onnxruntime_loads_fp8_before_a_transpose():
    node, tensor = onnx.helper.make_node, onnx.helper.make_tensor
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["code"]),
        node("DequantizeLinear", ["code", "scale", "zero"], ["wide"]),
        node("Transpose", ["wide"], ["y"], perm=[1, 0]),
    ]
    weights = [
        tensor("scale", onnx.TensorProto.FLOAT, [], [0.5]),
        tensor("zero", onnx.TensorProto.FLOAT8E4M3FN, [], [0.0]),
    ]
    value = onnx.helper.make_tensor_value_info
    x, y = value("x", onnx.TensorProto.FLOAT, [2, 3]), value("y", onnx.TensorProto.FLOAT, [3, 2])
    graph = onnx.helper.make_graph(nodes, "fp8", [x], [y], weights)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    inputs = np.float32([[0.5, 1, 8.6], [-3, 0, 300]])  # in units of the scale: 1, 2, 17.2, -6, 0, 600
    found = OnnxRuntimeBackend("cpu", 1).load(proto.SerializeToString(), "fp8", basic=True).run({"x": inputs})["y"]
    # E4M3 has steps of 2 from 16 to 32, and ends at 448.
    np.testing.assert_array_equal(found, np.float32([[0.5, 1, 9], [-3, 0, 224]]).T)
