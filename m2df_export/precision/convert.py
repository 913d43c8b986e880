"""From an fp32 ONNX file to the same graph in another precision."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from m2df_export.graphs.onnx import check_model
from m2df_export.precision.files import file_name, stored_as
from m2df_export.precision.fp8 import write_fp8
from m2df_export.precision.half import graph_to_half
from m2df_export.precision.static_int8 import Calibration, write_static_int8
from m2df_runtime.bundle.manifest import GraphName
from m2df_runtime.engine_names import Precision

MIN_ROWS = 4096  # smaller tables are not worth the extra nodes


def write_precision(
    folder: Path, graph: GraphName, precision: Precision, calibration: Calibration | None = None
) -> Path:
    """Write one graph of `folder` in another precision beside its fp32 file.

    Args:
        folder: Holds the fp32 file of the graph.
        graph: Which graph.
        precision: fp32 does nothing, its file is the source.
        calibration: What int8-static and fp8 are made with; the others need none.

    Returns:
        The file of that precision.

    Raises:
        EnvironmentMissing: int8-static without NNCF, fp8 without modelopt.
        CheckFailed: The graph cannot be converted, or the result is not valid ONNX.
    """
    source, target = folder / file_name(graph, "fp32"), folder / file_name(graph, precision)
    if target.exists():
        return target  # the source itself, or a file that precisions share
    stored = stored_as(graph, precision)
    if stored == "fp16":
        _write_half(source, target, graph)
    elif stored == "int8":
        _write_int8(source, target)
    else:
        assert calibration is not None  # whoever asks for int8-static or fp8 brings it
        if stored == "fp8":
            write_fp8(source, target, calibration.frames)
        else:
            write_static_int8(source, target, calibration)
    _stamp(target, source, stored)
    check_model(target, graph)
    return target


def _write_half(source: Path, target: Path, graph: GraphName) -> None:
    model = ir.load(source)
    ir.save(graph_to_half(model, graph), target)


def _write_int8(source: Path, target: Path) -> None:
    """Dynamic quantisation of products with weights: QInt8 per channel, activations at run time.

    Measured on ViT-B/16 with ONNX Runtime on 2 VNNI cores: 1.9x faster than fp32, where QUInt8 per
    tensor was not faster at all. Convolutions stay in fp32, since ConvInteger is slower than Conv there.
    Weights use 7 of the 8 bits: without VNNI the 16-bit sums of full-range products saturate (a small
    ViT's cosine fell to 0.990 on AVX2 alone, 0.9998 so), and a bundle does not know its machine.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = ir.load(source)
    _quantise_embeddings(model)
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]  # the quantiser transposes weights of Gemm and trips over their old shapes
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises on preprocessing through the root logger
    try:
        quantize_dynamic(
            proto,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        root.setLevel(level)


def _quantise_embeddings(model: ir.Model) -> None:
    """Store embedding tables as int8 with one scale per row (per tensor, one outlier token coarsens all).

    Rows are scaled back after they are looked up, so only the file changes: 101 MB to 25 for CLIP's.
    """
    graph = model.graph
    for node in [node for node in graph if node.op_type == "Gather"]:
        table, rows = node.inputs
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        weights = table.const_value.numpy() if table is not None and table.const_value is not None else None
        if weights is None or weights.ndim != 2 or weights.shape[0] < MIN_ROWS or weights.dtype != np.float32 or axis:
            continue
        assert table is not None and table.name is not None
        scale = np.maximum(np.abs(weights).max(axis=1, keepdims=True) / 127.0, np.finfo(np.float32).tiny)  # [V, 1]
        quantised = _initializer(graph, f"{table.name}_int8", np.rint(weights / scale).astype(np.int8))
        scales = _initializer(graph, f"{table.name}_scale", scale.astype(np.float32))
        codes = ir.node("Gather", [quantised, rows], name=f"{node.name}_codes")
        wide = ir.node("Cast", [codes.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{node.name}_float")
        scale_rows = ir.node("Gather", [scales, rows], name=f"{node.name}_scales")
        product = ir.node("Mul", [wide.outputs[0], scale_rows.outputs[0]], name=f"{node.name}_rows")
        product.outputs[0].shape, product.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        graph.insert_before(node, [codes, wide, scale_rows, product])
        node.outputs[0].replace_all_uses_with(product.outputs[0])
        graph.remove(node, safe=True)
        if not table.uses():
            del graph.initializers[table.name]


def _initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def _stamp(path: Path, source: Path, precision: Precision) -> None:
    """Give a file the metadata of the fp32 file it was made from, with its own precision."""
    model = onnx.load_model(path)
    properties = {item.key: item.value for item in onnx.load_model(source).metadata_props}
    onnx.helper.set_model_props(model, {**properties, "precision": precision})
    model.producer_name = "m2df"
    onnx.save_model(model, path)
