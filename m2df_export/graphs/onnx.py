"""One graph module to one ONNX file: export, stamp, check, and prove that its axes are dynamic."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from m2df_export.graphs.opset16 import OPSET as OLD_OPSET
from m2df_export.graphs.opset16 import SOURCE_OPSET, lower_to_opset16
from m2df_export.graphs.specs import GraphSpec
from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend
from m2df_runtime.bundle.manifest import GraphName, TensorInfo
from m2df_runtime.errors import CheckFailed, InputError

if TYPE_CHECKING:
    import onnx_ir

DEFAULT_OPSET = 18
# A protobuf message cannot be larger; the margin is for the nodes beside the weights.
MAX_WEIGHT_BYTES = (2 << 30) - (16 << 20)

logger = logging.getLogger(__name__)


class TooLarge(InputError):
    """A graph whose weights do not fit into one ONNX file."""


def export_onnx(
    spec: GraphSpec,
    path: Path,
    *,
    opset: int = DEFAULT_OPSET,
    metadata: Mapping[str, str],
    to_half: Callable[[onnx_ir.Model, GraphName], object] | None = None,
) -> None:
    """Export one graph to a single ONNX file and check it.

    Args:
        spec: The graph.
        path: File to write.
        opset: ONNX opset, 18 or later as the exporter writes it, or 16 for TensorRT 8.
        metadata: Written to the model's metadata properties.
        to_half: Types the graph in half precision before it is written, for weights that fit into a file only so.

    Raises:
        TooLarge: The weights do not fit into one ONNX file.
        CheckFailed: The file is not valid ONNX of that opset, or an axis that must be dynamic is not.
    """
    model = _trace(spec, SOURCE_OPSET if opset == OLD_OPSET else opset)
    if opset == OLD_OPSET:
        lower_to_opset16(model)
    if model.opset_imports[""] != opset:
        raise CheckFailed(f"the {spec.name} graph cannot be written in opset {opset}", f"use --opset {DEFAULT_OPSET}")
    if to_half is not None:
        to_half(model, spec.name)
    weight_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if weight_bytes > MAX_WEIGHT_BYTES:
        raise TooLarge(
            f"the {spec.name} graph has {weight_bytes / 1e9:.1f} GB of weights in fp{16 if to_half else 32}, one ONNX "
            "file holds at most 2 GB",
            "take a smaller model" if to_half else "add --fp16, which halves them",
        )
    save_model(model, path, metadata)
    check_model(path, spec.name)
    _check_dynamic(spec, path)


def _trace(spec: GraphSpec, opset: int) -> onnx_ir.Model:
    names = {name for axes in spec.dynamic.values() for name in axes.values()}
    dims = {name: torch.export.Dim(name) for name in names}
    shapes = tuple({axis: dims[name] for axis, name in spec.dynamic[key].items()} for key in spec.inputs)
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            spec.module,
            tuple(spec.inputs.values()),
            dynamo=True,
            dynamic_shapes=shapes,
            opset_version=opset,
            input_names=list(spec.inputs),
            output_names=list(spec.outputs),
            verbose=False,
        )
    assert program is not None  # it is None only for the exporter that dynamo=True replaces
    _ask_sizes_of_floats(program.model.graph)
    return program.model


def _ask_sizes_of_floats(graph: onnx_ir.Graph) -> None:
    """Take the number of frames from what they are cast to: TensorRT takes an input of 8 bits into a cast alone."""
    import onnx_ir

    for value in graph.inputs:
        if value.dtype == onnx_ir.DataType.UINT8:
            cast = next(user for user, _ in value.uses() if user.op_type == "Cast")
            for user, place in tuple(value.uses()):
                if user.op_type == "Shape":
                    user.replace_input_with(place, cast.outputs[0])
    graph.sort()


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's own progress and deprecation notes off the user's terminal; failures still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def save_model(model: onnx_ir.Model, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a model as one file, without the exporter's traces of source lines (they name the build machine)."""
    import onnx_ir.passes.common as passes

    passes.ClearMetadataAndDocStringPass()(model)
    proto = onnx_ir_to_proto(model)
    onnx.helper.set_model_props(proto, dict(metadata))
    proto.producer_name, proto.producer_version = "m2df", metadata.get("m2df", "")
    onnx.save_model(proto, path)


def onnx_ir_to_proto(model: onnx_ir.Model) -> onnx.ModelProto:
    """The protobuf form of a model."""
    import onnx_ir

    return onnx_ir.to_proto(model)


def check_model(path: Path, graph: str) -> None:
    """Run the ONNX checker with shape inference on a file.

    Raises:
        CheckFailed: The checker refuses the file.
    """
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailed(f"the {graph} graph is not valid ONNX: {str(error).splitlines()[0]}") from error


def signature(path: Path) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Inputs and outputs of an ONNX file, dynamic axes by name."""
    graph = onnx.load_model(path, load_external_data=False).graph
    return tuple(map(_tensor_info, graph.input)), tuple(map(_tensor_info, graph.output))


def _tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return TensorInfo(name=value.name, dtype=dtype, shape=shape)


def example_inputs(spec: GraphSpec, sizes: Mapping[str, int], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random inputs of a graph with the given sizes of its dynamic axes."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, example in spec.inputs.items():
        shape = [sizes.get(spec.dynamic[name].get(axis, ""), size) for axis, size in enumerate(example.shape)]
        if example.is_floating_point():
            arrays[name] = rng.standard_normal(shape, dtype=np.float32)
        else:
            arrays[name] = rng.integers(0, 256, shape).astype(example.numpy().dtype)
    return arrays


def _check_dynamic(spec: GraphSpec, path: Path) -> None:
    """Run the file with sizes the exporter has not seen, size 1 among them.

    Raises:
        CheckFailed: An axis was fixed by the export.
    """
    names = sorted({name for axes in spec.dynamic.values() for name in axes.values()})
    graph = OnnxRuntimeBackend("cpu").load(path, path.name)
    for sizes in ({name: 1 for name in names}, {name: 4 + index for index, name in enumerate(names)}):
        try:
            outputs = graph.run(example_inputs(spec, sizes))
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            reason = str(error).splitlines()[0]
            raise CheckFailed(f"the {spec.name} graph does not run with {sizes}: {reason}") from error
        for name, axes in zip(spec.outputs, spec.axes, strict=True):
            expected = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in axes)
            if outputs[name].shape != expected:
                raise CheckFailed(f"the {spec.name} graph returns {name} {outputs[name].shape}, expected {expected}")
