"""An opset 18 graph in opset 16, which is what the parser of TensorRT 8.5 reads.

The converters of onnx and of the exporter stop at LayerNormalization, which opset 16 does not have, and
leave the reductions' axes as inputs, which it does not know either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from m2df_runtime.errors import CheckFailed

OPSET, SOURCE_OPSET = 16, 18
IR_VERSION = 8
# Axes of these became an input in 18; those of ReduceSum did in 13.
AXES_AS_ATTRIBUTE = frozenset(
    {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"}
    | {"ReduceSumSquare"}
)


def lower_to_opset16(model: ir.Model) -> None:
    """Rewrite a model of opset 18 in place.

    Raises:
        CheckFailed: An operator has no form in opset 16 that is known here.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == "LayerNormalization":
            _write_out_normalisation(graph, node)
        elif node.op_type in AXES_AS_ATTRIBUTE:
            _axes_to_attribute(node)
        elif node.op_type == "Split":
            _even_split(node)
        elif node.op_type == "Gelu":
            raise CheckFailed("Gelu nodes have no form in opset 16", "export with opset 18")
    unused = [name for name, value in graph.initializers.items() if not value.uses() and not value.is_graph_output()]
    for name in unused:
        del graph.initializers[name]
    model.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION


def _axes_to_attribute(node: ir.Node) -> None:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is not None:
        if axes.const_value is None:
            raise CheckFailed(f"{node.op_type} node {node.name!r} computes its axes, which opset 16 does not allow")
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.const_value.numpy().ravel()])
        node.resize_inputs(1)
    node.attributes.pop("noop_with_empty_axes", None)


def _even_split(node: ir.Node) -> None:
    """Without sizes opset 16 splits evenly; opset 18 names the number of parts and lets the last be smaller."""
    parts = node.attributes.pop("num_outputs", None)
    if parts is None:
        return
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    source = node.inputs[0]
    size = source.shape[axis] if source is not None and source.shape is not None else None
    if not isinstance(size, int) or size % len(node.outputs):
        raise CheckFailed(f"Split node {node.name!r} does not split evenly, which opset 16 cannot say without sizes")


def _write_out_normalisation(graph: ir.Graph, node: ir.Node) -> None:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon), an Identity, * scale + bias.

    The Identity ends what half precision keeps in fp32: `half.py` follows a reduction element by element,
    and without it the residual stream behind the first normalisation would stay in fp32. It stands before
    scale and bias because ONNX Runtime 1.31 crashes on a CPU on a cast that feeds a transposed product.
    """
    source, scale, *rest = node.inputs
    assert source is not None
    assert scale is not None
    axes = ir.AttrInt64s("axes", _normalised_axes(node, source))
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    write = _Writer(graph, node.name or f"{node.outputs[0].name}", source)
    small = write.constant(np.array(epsilon, np.float32), "epsilon")
    centred = write.element("Sub", [source, write.row("ReduceMean", [source], "mean", axes)], "centred")
    squares = write.element("Mul", [centred, centred], "squares")
    variance = write.row("ReduceMean", [squares], "variance", axes)
    deviation = write.row("Sqrt", [write.row("Add", [variance, small], "shifted")], "deviation")
    normalised = write.element("Identity", [write.element("Div", [centred, deviation], "quotient")], "normalised")
    value = write.element("Mul", [normalised, scale], "scaled")
    if rest and rest[0] is not None:
        value = write.element("Add", [value, rest[0]], "biased")
    graph.insert_before(node, write.nodes)
    node.outputs[0].replace_all_uses_with(value)
    for index, output in enumerate(graph.outputs):
        if output is node.outputs[0]:
            value.name, output.name = output.name, None
            graph.outputs[index] = value
    graph.remove(node, safe=True)


class _Writer:
    """Makes the nodes of one normalisation; every node and value has a name, type and, where known, shape."""

    def __init__(self, graph: ir.Graph, name: str, source: ir.Value) -> None:
        self._graph, self._name, self._source = graph, name, source
        self.nodes: list[ir.Node] = []

    def constant(self, array: NDArray[np.generic], suffix: str) -> ir.Value:
        """A new initializer."""
        tensor = ir.tensor(array, name=f"{self._name}_{suffix}")
        kind, shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
        value = ir.Value(name=tensor.name, type=kind, shape=shape, const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def row(self, operator: str, inputs: Sequence[ir.Value], suffix: str, *attributes: ir.Attr) -> ir.Value:
        """A node whose result is one number per row."""
        node = ir.node(operator, inputs, name=f"{self._name}/{suffix}")
        for attribute in attributes:
            node.attributes[attribute.name] = attribute
        value = node.outputs[0]
        value.name, value.type = f"{self._name}_{suffix}", self._source.type
        self.nodes.append(node)
        return value

    def element(self, operator: str, inputs: Sequence[ir.Value], suffix: str) -> ir.Value:
        """A node whose result has the shape of the normalised tensor."""
        value = self.row(operator, inputs, suffix)
        value.shape = self._source.shape
        return value


def _normalised_axes(node: ir.Node, source: ir.Value) -> list[int]:
    """The axes from `axis` to the last, counted from the end."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    if axis >= 0:
        if source.shape is None:
            raise CheckFailed(f"the rank of LayerNormalization node {node.name!r} is not known", "export with opset 18")
        axis -= len(source.shape)
    return list(range(axis, 0))
