from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest

from m2df_export.graphs.onnx import example_inputs, signature
from m2df_export.precision.convert import write_precision
from m2df_export.precision.files import file_name
from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend
from m2df_runtime.parity import drift, worst

GRAPHS = ("visual", "text", "support", "query")
HALF = onnx.TensorProto.FLOAT16
SIZES = {"N": 3, "P": 3, "K": 2, "Q": 2, "C": 4}


def _types(path):
    """Element type of every tensor of a file, by name."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {weight.name: weight.data_type for weight in graph.initializer}


def _nodes(path, op_type):
    return [node for node in onnx.load(path).graph.node if node.op_type == op_type]


def _cosine(folder, specs, graph, precision):
    inputs = example_inputs(specs[graph], SIZES)
    exact, coarse = (run(folder / file_name(graph, name), inputs) for name in ("fp32", precision))
    return worst(drift(coarse[name], exact[name]) for name in specs[graph].outputs).cosine


def run(path, inputs):
    return OnnxRuntimeBackend("cpu", 1).load(path, path.name).run(inputs)


@pytest.mark.parametrize("graph", GRAPHS)
def test_half_graphs_stay_within_their_gate(exported, graph):
    assert _cosine(*exported, graph, "fp16") >= 0.9995


@pytest.mark.parametrize("graph", ["visual", "text"])
def test_int8_towers_stay_within_their_gate(exported, graph):
    assert _cosine(*exported, graph, "int8") >= 0.995


@pytest.mark.parametrize("graph", GRAPHS)
def test_half_graphs_keep_their_signature_in_float32(exported, graph):
    folder, _ = exported
    assert signature(folder / f"{graph}.fp16.onnx") == signature(folder / f"{graph}.onnx")


@pytest.mark.parametrize("graph", GRAPHS)
def test_normalisation_and_softmax_stay_in_float32(exported, graph):
    path = exported[0] / f"{graph}.fp16.onnx"
    types = _types(path)
    for op_type in ("LayerNormalization", "Softmax"):
        for node in _nodes(path, op_type):
            assert all(types[name] != HALF for name in [*node.input, *node.output])


@pytest.mark.parametrize("graph", ["visual", "text"])
def test_products_of_the_towers_are_in_half(exported, graph):
    path = exported[0] / f"{graph}.fp16.onnx"
    types = _types(path)
    products = [node for op_type in ("MatMul", "Gemm", "Conv") for node in _nodes(path, op_type)]
    assert products
    assert all(types[node.output[0]] == HALF for node in products)
    # Half the weights' bytes: nothing of size stays wide.
    assert path.stat().st_size < 0.6 * (exported[0] / f"{graph}.onnx").stat().st_size


def test_matching_stays_in_float32(exported):
    path = exported[0] / "query.fp16.onnx"
    types = _types(path)
    for op_type in ("Exp", "Log", "Clip", "Sqrt", "ArgMax"):
        nodes = _nodes(path, op_type)
        assert nodes, op_type
        assert all(types[name] != HALF for node in nodes for name in node.input)
    products = _nodes(path, "MatMul")
    halves = [node for node in products if types[node.output[0]] == HALF]
    weights = {initializer.name for initializer in onnx.load(path).graph.initializer}
    assert halves  # the encoders'
    assert all(weights & set(node.input) for node in halves)  # and nothing but the encoders'


def test_int8_quantises_the_towers_and_shares_the_heads_files(exported):
    folder, _ = exported
    for graph in ("visual", "text"):
        path = folder / f"{graph}.int8.onnx"
        assert _nodes(path, "MatMulInteger")
        assert path.stat().st_size < 0.5 * (folder / f"{graph}.onnx").stat().st_size
    assert all(node.op_type != "ConvInteger" for node in onnx.load(folder / "visual.int8.onnx").graph.node)
    assert file_name("query", "int8") == file_name("query", "fp32") == "query.onnx"


def test_int8_embedding_has_a_scale_per_row(exported):
    weights = {w.name: w for w in onnx.load(exported[0] / "text.int8.onnx").graph.initializer}
    table = [w for w in weights.values() if list(w.dims) == [49408, 64]]
    assert [w.data_type for w in table] == [onnx.TensorProto.INT8]
    assert any(list(w.dims) == [49408, 1] for w in weights.values())


def test_int8_covers_towers_with_rectangular_projections(tower_file, tmp_path):
    original, spec = tower_file("test-rn")
    shutil.copy(original, tmp_path)
    for precision, gate in (("fp16", 0.9995), ("int8", 0.995)):
        path = write_precision(tmp_path, "visual", precision)
        assert _cosine(tmp_path, {"visual": spec}, "visual", precision) >= gate
        assert {item.key: item.value for item in onnx.load(path).metadata_props} == {
            "graph": "visual", "precision": precision
        }  # fmt: skip


def test_values_beyond_half_are_held_at_its_ends(tmp_path):
    import onnx_ir as ir

    from m2df_export.precision.half import tower_to_half

    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "mask"], ["y"], name="add")],
        "masked",
        [onnx.helper.make_tensor_value_info("x", floats, [3])],
        [onnx.helper.make_tensor_value_info("y", floats, [3])],
        [onnx.numpy_helper.from_array(np.array([-3.4e38, -np.inf, 0], np.float32), "mask")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path / "masked.onnx"
    ir.save(tower_to_half(ir.from_proto(onnx.shape_inference.infer_shapes(proto))), path)
    onnx.checker.check_model(path, full_check=True)
    out = run(path, {"x": np.zeros(3, np.float32)})["y"]
    assert out.tolist() == [-65504, -np.inf, 0]
