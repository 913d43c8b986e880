"""The ONNX files of the repository, edited from the bundle's: nothing is exported again.

Triton batches along one first axis that all inputs and outputs share. The bundle's `visual` counts frames,
not clips, and `query` takes the classes as inputs; both get a form in which that axis is the clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.manifest import GraphName
from m2df_runtime.engine_names import Precision
from m2df_runtime.errors import InputError

FLOAT, STRING, BOOL = ir.DataType.FLOAT, ir.DataType.STRING, ir.DataType.BOOL
BANK_OUTPUTS = ("logits", "probabilities", "distances", "rejected", "classes")


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of an ONNX file: name, ONNX element type, sizes with -1 for dynamic axes."""

    name: str
    element: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of an ONNX file."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def interface(content: bytes) -> Interface:
    """The inputs and outputs of an ONNX file, given as its bytes. Raises ValueError where it is none."""
    try:
        graph = onnx.load_model_from_string(content).graph
    except DecodeError as error:
        raise ValueError(f"not ONNX: {error}") from None
    return Interface(tuple(map(_tensor_spec, graph.input)), tuple(map(_tensor_spec, graph.output)))


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    sizes = (dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    return TensorSpec(value.name, tensor.elem_type, tuple(sizes))


def query_model(bundle: Bundle, precision: Precision) -> bytes:
    """The bundle's `query` graph as it is: features [Q, T, D], prompts [C, D], prototypes [C, V, T, D]."""
    return bundle.read(bundle.graph_file("query", precision))


def visual_model(bundle: Bundle, precision: Precision) -> bytes:
    """`visual` for whole clips: frames uint8 [B, T, H, W, 3] -> features float32 [B, T, D]."""
    model = _load(bundle, "visual", precision)
    graph, clip = model.graph, bundle.manifest.clip
    pixels, features = graph.inputs[0], graph.outputs[0]
    build = _Builder(graph)
    frames = ir.Value(name="frames", type=pixels.type, shape=ir.Shape(["B", clip.frames, clip.size, clip.size, 3]))
    flat = build.add("Reshape", frames, build.ints("frame_shape", [-1, clip.size, clip.size, 3]), of=pixels)
    pixels.replace_all_uses_with(flat)
    pixels.name, graph.inputs[0] = "frames_of_clip", frames
    build.prepend()
    features.name = "features_of_frames"
    shape = build.ints("feature_shape", [-1, clip.frames, bundle.manifest.dim])
    graph.outputs[0] = build.output(
        "features", build.add("Reshape", features, shape), FLOAT, ["B", clip.frames, bundle.manifest.dim]
    )
    build.append()
    return _saved(model)


def bank_model(bundle: Bundle, precision: Precision, bank: SupportBank) -> bytes:
    """`query` with the classes of a bank inside: features [B, T, D] -> `BANK_OUTPUTS`.

    All [B, C]: `logits`, `probabilities` as `m2df-run` says them, `distances` summed over the views, and `classes`, the
    labels in the order of the others. `rejected` bool [B, 1] is what `m2df-run --reject auto` says; never without a
    calibration.

    Raises:
        InputError: A class name that is not Unicode.
    """
    model = _load(bundle, "query", precision)
    graph, manifest, count = model.graph, bundle.manifest, len(bank.classes)
    features, prompts, prototypes = (next(v for v in graph.inputs if v.name == n) for n in _QUERY_INPUTS)
    inside = _Builder(graph)
    # A number of classes the engine cannot foresee. ONNX Runtime would otherwise report it as fixed, and Triton
    # then refuses any configuration that serves versions of several sizes.
    batch = inside.add("Shape", features, start=0, end=1)
    end = inside.add("Add", inside.add("Sub", batch, batch), inside.ints("class_count", [count]))
    first, axis = inside.ints("first_class", [0]), inside.ints("class_axis", [0])
    for value, content in ((prompts, bank.prompts), (prototypes, bank.prototypes)):
        held = inside.constant(f"bank_{value.name}", np.ascontiguousarray(content, np.float32))
        value.replace_all_uses_with(inside.add("Slice", held, first, end, axis, of=value))
    inside.prepend()
    graph.inputs[:] = [features]
    features.shape = ir.Shape(["B", manifest.clip.frames, manifest.dim])
    _add_outputs(graph, bank, batch, end)
    return _saved(model)


_QUERY_INPUTS = ("features", "prompts", "prototypes")


def _add_outputs(graph: ir.Graph, bank: SupportBank, batch: ir.Value, count: ir.Value) -> None:
    logits, distances = (next(v for v in graph.outputs if v.name == name) for name in ("logits", "distances"))
    logits.shape, distances.name = ir.Shape(["B", "C"]), "distances_of_views"
    build = _Builder(graph)
    summed = build.add("ReduceSum", distances, build.ints("view_axis", [1]), keepdims=0)  # [B, V, C] -> [B, C]
    best = build.add("GatherElements", summed, build.add("ArgMax", logits, axis=-1, keepdims=1), axis=-1)  # [B, 1]
    # float32 holds no threshold above a distance it holds, so without one nothing is rejected.
    limit = bank.calibration.rejection().threshold if bank.calibration else np.finfo(np.float32).max
    rejected = build.add("Greater", best, build.constant("threshold", np.asarray(limit, np.float32)))
    temperature = np.asarray(bank.calibration.temperature if bank.calibration else 1.0, np.float32)
    tempered = build.add("Div", logits, build.constant("temperature", temperature))
    labels = build.add("Slice", build.labels("labels", bank.labels), build.ints("first_label", [0]), count)  # [C]
    classes = build.add("Expand", labels, build.add("Concat", batch, count, axis=0))
    graph.outputs[:] = [
        logits,
        build.output("probabilities", build.add("Softmax", tempered, axis=-1), FLOAT, ["B", "C"]),
        build.output("distances", summed, FLOAT, ["B", "C"]),
        build.output("rejected", rejected, BOOL, ["B", 1]),
        build.output("classes", classes, STRING, ["B", "C"]),
    ]
    build.append()


class _Builder:
    """Collects nodes, and constants of a graph, under names that do not meet the graph's own."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._nodes: list[ir.Node] = []

    def add(self, operator: str, *inputs: ir.Value, of: ir.Value | None = None, **attributes: int) -> ir.Value:
        """Output of a new node; `of` lends it type and shape."""
        node = ir.node(operator, inputs, attributes)
        self._nodes.append(node)
        output = node.outputs[0]
        if of is not None:
            output.type, output.shape = of.type, of.shape
        return output

    def output(self, name: str, value: ir.Value, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """Make a value an output of the graph."""
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        return value

    def ints(self, name: str, values: Sequence[int]) -> ir.Value:
        """A vector of int64."""
        return self.constant(name, np.asarray(values, np.int64))

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """An array that the file holds."""
        return self._held(ir.tensor(array, name=f"triton_{name}"), array.shape)

    def labels(self, name: str, labels: Sequence[str]) -> ir.Value:
        """A vector of strings. Raises InputError for one that is not Unicode."""
        try:
            content = [label.encode() for label in labels]
        except UnicodeEncodeError as error:
            raise InputError(f"class {error.object!r}: its name is not Unicode", "rename the class folder") from None
        return self._held(
            ir.StringTensor(content, shape=ir.Shape([len(content)]), name=f"triton_{name}"), [len(labels)]
        )

    def _held(self, tensor: ir.TensorProtocol, shape: Sequence[int]) -> ir.Value:
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def prepend(self) -> None:
        """Put the nodes before the graph's."""
        self._graph.insert_before(self._graph[0], self._nodes)
        self._nodes = []

    def append(self) -> None:
        """Put the nodes after the graph's."""
        self._graph.extend(self._nodes)
        self._nodes = []


def _load(bundle: Bundle, graph: GraphName, precision: Precision) -> ir.Model:
    content = bundle.file(bundle.graph_file(graph, precision))
    if isinstance(content, Path):
        return ir.load(content)
    return ir.from_proto(onnx.load_model_from_string(content))


def _saved(model: ir.Model) -> bytes:
    """The model as bytes, after ONNX's own check with shape inference."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString(deterministic=True)
