"""Looks through a graph's ONNX file before an engine does: what it takes and gives, and that all its data is inside.

Engines read tensors that a file keeps outside itself from any path it names, or from a memory address, where no
hash covers them. The runtime has no protobuf library and needs none: it walks the messages as ONNX Runtime's parser
does, and refuses what that one would read in another way than it is written.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from m2df_runtime.bundle.wire import BYTES, VARINT, Buffer, Field, fields
from m2df_runtime.errors import InputError

if TYPE_CHECKING:
    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.bundle.manifest import GraphName, TensorInfo
    from m2df_runtime.engine_names import Precision

# Of each message the fields, by number, that hold messages in which a tensor may stand.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_GRAPH, _INPUTS, _OUTPUTS = 7, 11, 12
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_MAX_DEPTH = 100  # protobuf's own limit
_MAX_FIELDS = 500_000  # the largest graph of the shipped model has 5,000; more would only cost time
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}

_Dimension = int | str | None


@dataclass(frozen=True)
class Tensor:
    """An input or output as an ONNX file declares it; axes are sizes, names, or None where nothing is said."""

    name: str
    dtype: str
    shape: tuple[_Dimension, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join('?' if axis is None else str(axis) for axis in self.shape)}]"


@dataclass(frozen=True)
class OnnxFile:
    """What an ONNX file declares."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def __str__(self) -> str:
        takes, gives = ("; ".join(map(str, side)) or "nothing" for side in (self.inputs, self.outputs))
        return f"takes {takes} and gives {gives}"


def graph_model(bundle: Bundle, graph: GraphName, precision: Precision) -> tuple[bytes | Path, str]:
    """A bundle's graph, checked, as an engine loads it, and the name that messages give it.

    Raises:
        InputError: The file is not the one that was exported, is no ONNX graph, keeps data outside itself, or has
            other inputs and outputs than the manifest says.
    """
    info = bundle.graph_file(graph, precision)
    model, label = bundle.file(info), f"{bundle.path}: {info.path}"
    try:
        found = read_onnx(model)
    except ValueError as error:
        raise InputError(f"{label} {error}", "export the bundle again") from None
    expected = bundle.manifest.graphs[graph]
    if not (_same(found.inputs, expected.inputs) and _same(found.outputs, expected.outputs)):
        described = OnnxFile(*(tuple(Tensor(t.name, t.dtype, t.shape) for t in side) for side in (
            expected.inputs, expected.outputs)))  # fmt: skip
        problem = f"{label} is not the {graph} graph of the manifest: it {found}; the manifest says it {described}"
        raise InputError(problem, "export the bundle again")
    return model, label


def _same(found: tuple[Tensor, ...], expected: tuple[TensorInfo, ...]) -> bool:
    """Equal names, types and sizes in any order; an axis that the manifest gives a name must be free in the file."""

    def fits(axis: _Dimension, wanted: int | str) -> bool:
        return axis == wanted if isinstance(wanted, int) else not isinstance(axis, int)

    tensors = {tensor.name: tensor for tensor in found}
    return tensors.keys() == {tensor.name for tensor in expected} and all(
        (mine := tensors[tensor.name]).dtype == tensor.dtype
        and len(mine.shape) == len(tensor.shape)
        and all(map(fits, mine.shape, tensor.shape))
        for tensor in expected
    )


def read_onnx(model: bytes | Path) -> OnnxFile:
    """What an ONNX file declares, once it is known to keep no data outside itself.

    Args:
        model: Its bytes, or its path.

    Raises:
        ValueError: It is no ONNX model, keeps data outside itself, or is written so that parsers may differ.
    """
    if isinstance(model, bytes):
        return _read(model)
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _read(content)


def _read(content: Buffer) -> OnnxFile:
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    graphs = seen = 0
    waiting = [("model", 0, len(content), 0)]
    while waiting:
        kind, start, end, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise ValueError("has graphs nested too deep")
        children = _CHILDREN[kind]
        for number, wire, first, last in fields(content, start, end):
            seen += 1
            if wire == BYTES and number in children:
                waiting.append((children[number], first, last, depth + 1))
                graphs += depth == 0 and number == _GRAPH
            elif kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and first)):
                raise ValueError("keeps data outside the file, where no hash covers it")
            elif kind == "graph" and depth == 1 and wire == BYTES and number in (_INPUTS, _OUTPUTS):
                (inputs if number == _INPUTS else outputs).append(_tensor(content, first, last))
        if seen > _MAX_FIELDS:
            raise ValueError(f"is not an ONNX model: more than {_MAX_FIELDS} fields")
    if graphs != 1:
        raise ValueError(f"is not an ONNX model: {graphs} graphs in it")
    return OnnxFile(tuple(inputs), tuple(outputs))


def _tensor(content: Buffer, start: int, end: int) -> Tensor:
    """A ValueInfoProto: name 1, type 2, in it tensor_type 1 with elem_type 1 and shape 2 of dimensions 1."""
    name, dtype = "", 0
    shape: list[_Dimension] = []
    for number, wire, first, last in fields(content, start, end):
        if number == 1 and wire == BYTES:
            name = _text(content, first, last)
        elif number == 2 and wire == BYTES:
            for each, kind, begin, stop in _inside(content, [(first, last)], 1):
                if each == 1 and kind == VARINT:
                    dtype = begin
                elif each == 2 and kind == BYTES:
                    shape += [_dimension(content, *place) for place in _places(content, begin, stop)]
    return Tensor(name, DTYPES.get(dtype, f"type {dtype}"), tuple(shape))


def _inside(content: Buffer, messages: list[tuple[int, int]], wanted: int) -> Iterator[Field]:
    """The fields of the messages that stand in one field of others."""
    for start, end in messages:
        for number, wire, first, last in fields(content, start, end):
            if number == wanted and wire == BYTES:
                yield from fields(content, first, last)


def _places(content: Buffer, start: int, end: int) -> list[tuple[int, int]]:
    return [(first, last) for number, wire, first, last in fields(content, start, end) if (number, wire) == (1, BYTES)]


def _dimension(content: Buffer, start: int, end: int) -> _Dimension:
    axis: _Dimension = None
    for number, wire, first, last in fields(content, start, end):
        if number == 1 and wire == VARINT:
            axis = first
        elif number == 2 and wire == BYTES:
            axis = _text(content, first, last)
    return axis


def _text(content: Buffer, start: int, end: int) -> str:
    return content[start : min(end, start + 100)].decode(errors="replace")
