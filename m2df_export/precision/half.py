"""From an exported fp32 graph to the same graph in half precision, with every tensor's type explicit.

The types stand in the graph (strongly typed), so every engine computes the same thing. Converting the
exported graph instead of exporting `model.half()` halves the export time, keeps fp32 wherever it
matters in any architecture, and leaves no float16 LayerNormalization, on which ONNX Runtime 1.31
crashes on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from m2df_export.precision.files import TOWERS
from m2df_runtime.bundle.manifest import GraphName
from m2df_runtime.errors import CheckFailed

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
HALF_MAX = float(np.finfo(np.float16).max)

# Sums of squares and exponentials: outlier channels of trained CLIPs overflow float16 (65504) in them.
NORMALISATIONS = frozenset({"LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization"})
SOFTMAXES = frozenset({"Softmax", "LogSoftmax"})
REDUCTIONS = frozenset(
    {"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceLogSum"}
    | {"ReduceLogSumExp", "Pow", "Exp", "Log", "CumSum", "LpNormalization"}
)
# Operators with float arguments or results that have no half form.
FIXED_FLOAT = frozenset({"Range", "Resize", "ConstantOfShape", "EyeLike"})
# A normalisation written out (subtract the mean, divide by the root): what follows a reduction element
# by element stays in fp32 with it, or epsilons of 1e-6 would lose their digits.
ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Sqrt", "Reciprocal", "Neg", "Max", "Min", "Clip", "Abs"})
WEIGHTED = frozenset({"MatMul", "Gemm", "Conv"})


def graph_to_half(model: ir.Model, graph: GraphName) -> ir.Model:
    """A graph in half, in place.

    Raises:
        CheckFailed: It has nodes with bodies of their own, such as loops.
    """
    return tower_to_half(model) if graph in TOWERS else head_to_half(model)


def tower_to_half(model: ir.Model) -> ir.Model:
    """Image or text tower: everything in half but normalisations, softmax and sums of squares."""
    wide: set[ir.Node] = set()
    for node in model.graph:
        producers = {value.producer() for value in node.inputs if value is not None}
        grown = node.op_type in ELEMENTWISE and any(
            producer in wide and producer.op_type in REDUCTIONS | ELEMENTWISE for producer in producers if producer
        )
        if grown or node.op_type in NORMALISATIONS | SOFTMAXES | REDUCTIONS | FIXED_FLOAT:
            wide.add(node)
    return _convert(model, lambda node: node not in wide)


def head_to_half(model: ir.Model) -> ir.Model:
    """Support or query graph: only products with learned weights in half, so all matching stays in fp32."""
    return _convert(model, lambda node: node.op_type in WEIGHTED and _has_weight(node))


def _has_weight(node: ir.Node) -> bool:
    weights = [value for value in node.inputs[:2] if value is not None and value.const_value is not None]
    return any(len(weight.const_value.shape) >= 2 for weight in weights if weight.const_value is not None)


def _convert(model: ir.Model, in_half: Callable[[ir.Node], bool]) -> ir.Model:
    """Retype a model in place: nodes for which `in_half` holds take and give float16."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    casts = _Casts(model.graph)
    for node in list(model.graph):
        if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in _attributes(node)):
            raise CheckFailed(f"fp16 does not cover {node.op_type} nodes, whose bodies are graphs of their own")
        if in_half(node):
            _retype(node, casts)
        else:
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype == HALF:
                    node.replace_input_with(index, casts.to(value, FLOAT, before=node))
    casts.restore_outputs()
    weights = model.graph.initializers
    for name in [name for name, value in weights.items() if not value.uses() and not value.is_graph_output()]:
        del weights[name]
    return model


def _attributes(node: ir.Node) -> Iterator[ir.Attr]:
    yield from node.attributes.values()


def _retype(node: ir.Node, casts: _Casts) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype == FLOAT:
            node.replace_input_with(index, casts.to(value, HALF, before=node))
    if node.op_type == "Cast" and node.attributes["to"].as_int() == FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", HALF)
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == FLOAT:
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(_to_half(attribute.as_tensor().numpy())))
    for output in node.outputs:
        if output.dtype == FLOAT:
            output.type = ir.TensorType(HALF)


class _Casts:
    """Values in another float type: weights converted once, everything else through one Cast node each."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def to(self, value: ir.Value, dtype: ir.DataType, *, before: ir.Node) -> ir.Value:
        key = (value, dtype)
        if key not in self._made:
            self._made[key] = self._weight(value) if value.is_initializer() else self._cast(value, dtype, before)
        return self._made[key]

    def _weight(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None and value.name is not None
        tensor = ir.tensor(_to_half(value.const_value.numpy()), name=f"{value.name}_half")
        half = ir.Value(name=tensor.name, type=ir.TensorType(HALF), shape=value.shape, const_value=tensor)
        self._graph.register_initializer(half)
        return half

    def _cast(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        name = f"{value.name}_{'half' if dtype == HALF else 'float'}"
        cast = ir.node("Cast", [value], {"to": dtype}, name=f"cast_{name}")
        cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = name, ir.TensorType(dtype), value.shape
        self._graph.insert_before(before, cast)
        return cast.outputs[0]

    def restore_outputs(self) -> None:
        """Give graph outputs that became half their fp32 type and name back."""
        for index, output in enumerate(self._graph.outputs):
            if output.dtype == HALF:
                name, output.name = output.name, f"{output.name}_half"
                cast = ir.node("Cast", [output], {"to": FLOAT}, name=f"cast_{name}")
                cast.outputs[0].name, cast.outputs[0].type = name, ir.TensorType(FLOAT)
                cast.outputs[0].shape = output.shape
                self._graph.append(cast)
                self._graph.outputs[index] = cast.outputs[0]


def _to_half(array: NDArray[np.floating]) -> NDArray[np.float16]:
    """float16, with finite values beyond its range (masks written as -3.4e38) held at its ends."""
    clipped = np.where(np.isfinite(array), np.clip(array, -HALF_MAX, HALF_MAX), array)
    return clipped.astype(np.float16)
