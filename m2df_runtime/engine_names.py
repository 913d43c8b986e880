"""Names of inference backends and precisions: once, and light enough for the options of a command."""

from __future__ import annotations

from typing import Literal, get_args

EngineName = Literal["tensorrt", "cuda", "openvino", "cpu"]

BackendName = Literal["auto", EngineName]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
ON_CPU = ("cpu", "openvino")

Precision = Literal["fp32", "fp16", "int8", "int8-static", "fp8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# What an engine computes in: bf16 has no graphs of its own, OpenVINO computes float ones in it.
RunPrecision = Literal["fp32", "fp16", "bf16", "int8", "int8-static", "fp8"]
RUN_PRECISIONS: tuple[RunPrecision, ...] = get_args(RunPrecision)
