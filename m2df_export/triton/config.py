"""The `config.pbtxt` of every model of the repository, as protobuf text.

Written without protobuf's own writer, which would need Triton's schema at every export: the tests parse each file
with the schema in `tritonclient`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import onnx

from m2df_export.triton.graphs import Interface, TensorSpec
from m2df_runtime.engine_names import Precision
from m2df_runtime.pixels.spec import ClipSpec

# Clips wait this long for others to share a run with. The clips of one visual run come out together, so `bank`
# needs just enough to find them again. Starting points, not measured in a server.
QUEUE_DELAY_US = {"visual": 1000, "bank": 200}
ELEMENTS: Mapping[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
    onnx.TensorProto.STRING: "TYPE_STRING",
}
TUNABLE = "# Written by m2df-export. Yours to tune: later exports leave this file as it is.\n"
OWNED = "# Written by m2df-export, and again by every export that adds a version.\n"

Field: TypeAlias = str | int | Mapping[str, Any] | list[Any]


class Enum(str):
    """A value that stands without quotes."""


@dataclass(frozen=True)
class Target:
    """What the models are configured for.

    Attributes:
        device: Kind of the instances.
        precision: Precision of the graphs.
        max_batch: Most clips of one request, and of one run.
        tensorrt: Let ONNX Runtime build TensorRT engines of the visual graph when the server loads it.
    """

    device: Literal["gpu", "cpu"]
    precision: Precision
    max_batch: int = 16
    tensorrt: bool = False


@dataclass(frozen=True)
class Pins:
    """Versions of the models that a version of the pipeline is made of."""

    visual: int
    bank: int


def visual_config(tensors: Interface, target: Target) -> str:
    """Configuration of `visual`: batched, warmed up with one clip and with the largest batch."""
    fields = _model("visual", tensors, target, batched=True)
    fields["model_warmup"] = [_warm_up(tensors.inputs[0], size) for size in sorted({1, target.max_batch})]
    if target.tensorrt:
        accelerator: dict[str, Field] = {"name": "tensorrt"}
        if target.precision == "fp16":
            accelerator["parameters"] = _entries({"precision_mode": "FP16"})
        fields["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}
    return TUNABLE + render(fields)


def bank_config(tensors: Interface, target: Target) -> str:
    """Configuration of `bank`: batched, any number of classes, so that it holds for every version."""
    return TUNABLE + render(_model("bank", tensors, target, batched=True))


def query_config(tensors: Interface, target: Target) -> str:
    """Configuration of `query`: requests bring their own classes, so they cannot share a run."""
    return TUNABLE + render(_model("query", tensors, target, batched=False))


def pipeline_config(visual: Interface, bank: Interface, pins: Pins, max_batch: int, about: About) -> str:
    """Configuration of `m2df`: clips through one version of `visual` into one version of `bank`."""
    frames, features = visual.inputs[0].name, visual.outputs[0].name
    outputs = [_tensor(tensor, batched=True) for tensor in bank.outputs]
    for tensor, output in zip(bank.outputs, outputs, strict=True):
        if tensor.name == "probabilities":
            output["label_filename"] = about.labels_file
    steps: list[Field] = [
        _step("visual", pins.visual, {frames: frames}, {features: features}),
        _step("bank", pins.bank, {features: features}, {tensor.name: tensor.name for tensor in bank.outputs}),
    ]
    fields: dict[str, Field] = {
        "name": "m2df",
        "platform": "ensemble",
        "max_batch_size": max_batch,
        "version_policy": {"latest": {"num_versions": 1}},
        "input": [_tensor(visual.inputs[0], batched=True)],
        "output": outputs,
        "ensemble_scheduling": {"step": steps},
        "parameters": [
            {"key": key, "value": {"string_value": value}}
            for key, value in (("bundle", about.bundle), ("clip", about.clip.model_dump_json()))
        ],
    }
    return OWNED + render(fields)


@dataclass(frozen=True)
class About:
    """What a client learns from the pipeline's configuration: the bundle's name and how to prepare clips."""

    bundle: str
    clip: ClipSpec
    labels_file: str


def _model(name: str, tensors: Interface, target: Target, *, batched: bool) -> dict[str, Field]:
    fields: dict[str, Field] = {
        "name": name,
        "platform": "onnxruntime_onnx",
        "max_batch_size": target.max_batch if batched else 0,
        "input": [_tensor(tensor, batched=batched) for tensor in tensors.inputs],
        "output": [_tensor(tensor, batched=batched) for tensor in tensors.outputs],
        # The version before the newest stays: until `m2df` itself is loaded again, it is the one in use.
        "version_policy": {"latest": {"num_versions": 2}},
        "instance_group": [{"count": 1, "kind": Enum("KIND_GPU" if target.device == "gpu" else "KIND_CPU")}],
    }
    if batched:
        fields["dynamic_batching"] = {"max_queue_delay_microseconds": QUEUE_DELAY_US[name]}
    return fields


def _tensor(tensor: TensorSpec, *, batched: bool) -> dict[str, Field]:
    dims = tensor.shape[1:] if batched else tensor.shape
    return {"name": tensor.name, "data_type": Enum(ELEMENTS[tensor.element]), "dims": list(dims)}


def _warm_up(tensor: TensorSpec, size: int) -> dict[str, Field]:
    value: dict[str, Field] = {
        "data_type": Enum(ELEMENTS[tensor.element]),
        "dims": list(tensor.shape[1:]),
        "zero_data": True,
    }
    name = f"{size} clip{'s' if size > 1 else ''}"
    return {"name": name, "batch_size": size, "inputs": [{"key": tensor.name, "value": value}]}


def _step(model: str, version: int, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, Field]:
    maps = {"input_map": _entries(inputs), "output_map": _entries(outputs)}
    return {"model_name": model, "model_version": version, **maps}


def _entries(mapping: Mapping[str, str]) -> list[Field]:
    return [{"key": key, "value": value} for key, value in mapping.items()]


def render(fields: Mapping[str, Field]) -> str:
    """Fields of a message as protobuf text; a list of messages is the field repeated."""
    return "\n".join(_lines(fields)) + "\n"


def _lines(fields: Mapping[str, Field], indent: str = "") -> Iterator[str]:
    for name, value in fields.items():
        messages = isinstance(value, list) and all(isinstance(item, Mapping) for item in value)
        for item in value if isinstance(value, list) and messages else [value]:
            if isinstance(item, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(item, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(item)}"


def _scalar(value: str | int | list[Any]) -> str:
    if isinstance(value, list):
        return f"[ {', '.join(map(_scalar, value))} ]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Enum | int):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
