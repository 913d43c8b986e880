"""Graphs for TensorRT 8.5, whose parser has no LayerNormalization and reads axes only as attributes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from exports import take_graphs

from m2df_export.graphs.onnx import example_inputs, export_onnx
from m2df_export.graphs.opset16 import lower_to_opset16
from m2df_export.graphs.specs import graph_specs
from m2df_export.precision.convert import write_precision
from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend

# What libnvonnxparser 8.5.3 imports of what our graphs use (platform notes, section 4).
READABLE = {
    "Add", "ArgMax", "AveragePool", "Cast", "Clip", "Concat", "Conv", "Div", "Erf", "Exp", "Expand", "Gather",
    "GatherND", "Gemm", "GlobalAveragePool", "Identity", "Log", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "Pow",
    "Range", "ReduceL2", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid", "Slice",
    "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "TopK", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
NEWER_AXES = ("ReduceMean", "ReduceMin", "ReduceL2")


@pytest.fixture(scope="module")
def lowered(exported, tmp_path_factory):
    """All graphs of a ViT with the M2DF head in opset 16, fp32 and fp16."""
    source, specs = exported
    folder = tmp_path_factory.mktemp("opset16")
    for graph in specs:
        model = ir.load(source / f"{graph}.onnx")
        lower_to_opset16(model)
        ir.save(model, folder / f"{graph}.onnx")
        write_precision(folder, graph, "fp16")
    return folder, specs


def test_opset_16_is_an_option_of_the_export(model, pretrained, tmp_path, monkeypatch):
    take_graphs(monkeypatch, pretrained)
    source = model("training-free")
    spec = graph_specs(source.backbone, source.head, source.clip)["support"]
    export_onnx(spec, tmp_path / "support.onnx", opset=16, metadata={})
    proto = onnx.load(tmp_path / "support.onnx")
    assert [item.version for item in proto.opset_import] == [16] and proto.ir_version == 8


@pytest.mark.parametrize("graph", ["visual", "text", "support", "query"])
@pytest.mark.parametrize(("precision", "allowed"), [("", 1e-5), (".fp16", 5e-3)])
def test_graphs_compute_what_their_modules_do(lowered, graph, precision, allowed):
    folder, specs = lowered
    spec = specs[graph]
    batches = [example_inputs(spec, dict.fromkeys("NPKQC", size), seed=size) for size in (1, 3)]
    loaded = OnnxRuntimeBackend("cpu", 1).load(folder / f"{graph}{precision}.onnx", graph)
    for inputs in batches:
        outputs = loaded.run(inputs)
        with torch.no_grad():
            expected = spec.module(*map(torch.from_numpy, inputs.values()))
        for name, value in zip(spec.outputs, expected if isinstance(expected, tuple) else (expected,), strict=True):
            value = value.numpy()
            assert np.abs(outputs[name] - value).max() <= allowed * max(np.abs(value).max(), 1e-6)


def test_files_hold_only_what_the_old_parser_reads(lowered):
    for path in sorted(lowered[0].glob("*.onnx")):
        proto = onnx.load(path)
        assert [item.version for item in proto.opset_import] == [16] and proto.ir_version == 8
        onnx.checker.check_model(proto, full_check=True)
        assert {node.op_type for node in proto.graph.node} <= READABLE, path.name
        assert all(node.name for node in proto.graph.node)
        assert all(len(node.input) == 1 for node in proto.graph.node if node.op_type in NEWER_AXES)


def test_half_precision_computes_normalisations_in_fp32_and_the_rest_in_half(lowered):
    """The fp32 region of a written-out normalisation ends with it, and does not run on along the residual stream."""
    proto = onnx.load(lowered[0] / "visual.fp16.onnx")
    types = {
        info.name: info.type.tensor_type.elem_type for info in onnx.shape_inference.infer_shapes(proto).graph.value_info
    }
    wide = [n for n in proto.graph.node if n.op_type in ("ReduceMean", "Sqrt", "Softmax")]
    assert wide and all(types[node.output[0]] == onnx.TensorProto.FLOAT for node in wide)
    products = [n for n in proto.graph.node if n.op_type in ("MatMul", "Gemm", "Conv")]
    residual = [n for n in proto.graph.node if n.op_type == "Add" and "/" not in n.name]
    half = [node for node in products + residual if types.get(node.output[0]) == onnx.TensorProto.FLOAT16]
    assert len(half) == len(products + residual)


def test_pixels_are_cast_before_anything_else(exported):
    """TensorRT takes uint8 inputs only straight into a cast."""
    proto = onnx.load(exported[0] / "visual.fp16.onnx")
    assert {node.op_type for node in proto.graph.node if "frames" in node.input} <= {"Cast", "Shape"}
