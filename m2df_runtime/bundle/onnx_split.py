"""A graph's ONNX file in two: what it works out of some of its inputs alone, and the rest.

Where these inputs come again with every run, as the classes of a bank do, the first part runs once for them. Of what
it could work out only what goes through a sum, mean or other reduction is taken, such as lengths of vectors; copies
and products as large as the inputs would take memory for as long as they are kept, and cost little more than reading.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from m2df_runtime.bundle.onnx_file import DTYPES
from m2df_runtime.bundle.wire import BYTES, VARINT, fields, message, varint

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Fields of ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto and ValueInfoProto.
_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _TYPES = 1, 5, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _OPERATOR, _ATTRIBUTE = 1, 2, 4, 5
_SUBGRAPHS = (6, 11)
_TENSOR_NAME = 8
_ELEMENT_TYPES = {name: number for number, name in DTYPES.items()}


@dataclass(frozen=True)
class _Node:
    raw: bytes
    inputs: tuple[bytes, ...]
    outputs: tuple[bytes, ...]
    reduces: bool


@dataclass(frozen=True)
class OnnxSplit:
    """A graph in two parts.

    Attributes:
        derived: Names of the tensors that the first part gives and the rest takes.
        first: ONNX model from the fixed inputs to these.
    """

    derived: tuple[str, ...]
    first: bytes
    _before: bytes
    _graph: bytes
    _after: bytes

    def rest(self, derived: Mapping[str, NDArray[Any]]) -> bytes:
        """ONNX model from all inputs of the graph and the derived tensors to its outputs.

        Args:
            derived: What the first part gave once: the file need not say what types and axes these have.
        """
        added = (_value(name.encode(), derived[name]) for name in self.derived)
        graph = self._graph + b"".join(message(_INPUT, value) for value in added)
        return self._before + message(_GRAPH, graph) + self._after


def split_onnx(model: bytes, fixed: Collection[str]) -> OnnxSplit | None:
    """Split a graph that `read_onnx` found sound; None where it reduces nothing of the fixed inputs alone.

    Args:
        model: The ONNX file.
        fixed: Names of inputs.
    """
    start = 0
    for number, wire, first, last in fields(model, 0, len(model)):
        if (number, wire) == (_GRAPH, BYTES):
            return _split(model[first:last], {name.encode() for name in fixed}, model[:start], model[last:])
        start = last
    return None


def _split(graph: bytes, fixed: set[bytes], before: bytes, after: bytes) -> OnnxSplit | None:
    parts = [(number, graph[first:last]) for number, wire, first, last in fields(graph, 0, len(graph)) if wire == BYTES]
    order: list[_Node] = []
    for number, raw in parts:
        if number == _NODE:
            node = _node(raw)
            if node is None:
                return None  # a branch or loop, whose body reads what no node lists
            order.append(node)
    inputs = {_first_text(raw, 1) for number, raw in parts if number == _INPUT}
    outputs = {_first_text(raw, 1) for number, raw in parts if number == _OUTPUT}
    derived = _frontier(order, fixed, inputs - fixed) - outputs
    if not derived:
        return None
    names = tuple(sorted(derived))
    once, always = _needed(order, derived, fixed), _needed(order, outputs, inputs | derived)
    takes = [raw for number, raw in parts if number == _INPUT and _first_text(raw, 1) in fixed]
    first = b"".join(message(_INPUT, raw) for raw in takes) + b"".join(message(_OUTPUT, _value(n)) for n in names)
    ends = b"".join(message(number, raw) for number, raw in parts if number in (_INPUT, _OUTPUT))
    return OnnxSplit(
        tuple(name.decode() for name in names),
        before + message(_GRAPH, _body(parts, once) + first) + after,
        before,
        _body(parts, always) + ends,
        after,
    )


def _frontier(nodes: Iterable[_Node], fixed: set[bytes], free: set[bytes]) -> set[bytes]:
    """What is reduced of fixed inputs alone and read together with others."""
    reduced: set[bytes] = set()
    varying, known = set(free), set(fixed)
    frontier: set[bytes] = set()
    for node in nodes:
        reads = set(node.inputs)
        if reads & varying:
            varying.update(node.outputs)
            frontier |= reads & reduced
        elif reads & known:
            known.update(node.outputs)
            if node.reduces or reads & reduced:
                reduced.update(node.outputs)
    return frontier


def _needed(nodes: list[_Node], wanted: set[bytes], given: set[bytes]) -> list[_Node]:
    """The nodes, in their order, that make what is wanted out of what is given and of constants."""
    open_, found = wanted - given, []
    for node in reversed(nodes):
        if open_.intersection(node.outputs):
            found.append(node)
            open_ |= set(node.inputs) - given
    return found[::-1]


def _body(parts: list[tuple[int, bytes]], nodes: list[_Node]) -> bytes:
    """All of a graph but its inputs, outputs and types of tensors, with these nodes and the constants they read."""
    read = {name for node in nodes for name in node.inputs}
    others = [
        (number, raw)
        for number, raw in parts
        if number not in (_NODE, _INPUT, _OUTPUT, _TYPES)
        and not (number == _INITIALIZER and _first_text(raw, _TENSOR_NAME) not in read)
    ]
    return b"".join(message(number, raw) for number, raw in [*((_NODE, node.raw) for node in nodes), *others])


def _node(raw: bytes) -> _Node | None:
    """A node; None if it has a graph inside."""
    inputs, outputs = [], []
    operator = b""
    for number, wire, first, last in fields(raw, 0, len(raw)):
        if wire != BYTES:
            continue
        if number == _NODE_INPUT:
            inputs.append(raw[first:last])
        elif number == _NODE_OUTPUT:
            outputs.append(raw[first:last])
        elif number == _OPERATOR:
            operator = raw[first:last]
        elif number == _ATTRIBUTE and any(each in _SUBGRAPHS for each, *_ in fields(raw, first, last)):
            return None
    named = tuple(filter(None, inputs)), tuple(filter(None, outputs))
    return _Node(raw, *named, operator.startswith(b"Reduce"))


def _first_text(raw: bytes, wanted: int) -> bytes:
    for number, wire, first, last in fields(raw, 0, len(raw)):
        if (number, wire) == (wanted, BYTES):
            return raw[first:last]
    return b""


def _value(name: bytes, like: NDArray[Any] | None = None) -> bytes:
    """ValueInfoProto: name 1, type 2, in it tensor_type 1 with elem_type 1 and shape 2 of dimensions 1, all free."""
    if like is None:
        return message(1, name)
    kind = varint(1 << 3 | VARINT) + varint(_ELEMENT_TYPES[like.dtype.name]) + message(2, message(1, b"") * like.ndim)
    return message(1, name) + message(2, message(1, kind))
