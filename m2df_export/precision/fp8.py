"""FP8 image tower for TensorRT: Q/DQ nodes placed and scaled by NVIDIA's modelopt, the rest in half precision.

modelopt patches ONNX Runtime and logs as it likes, so it works in a process of its own, on the CPU. It needs
older versions of onnx and ONNX Runtime than the rest may have, hence the environment of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from m2df_export.check.process import run_module, scratch
from m2df_export.precision.half import tower_to_half
from m2df_export.precision.optional_packages import MODELOPT, modelopt_missing
from m2df_runtime.errors import CheckFailed, EnvironmentMissing


def write_fp8(source: Path, target: Path, frames: NDArray[np.uint8]) -> None:
    """Quantise the image tower to FP8 (E4M3) where modelopt does so for TensorRT, and write the rest as fp16.

    Scales span the largest value seen: of each channel of weights, of each tensor of activations. Weights stay
    fp16 in the file, with Q/DQ nodes behind them, so it is as large as the fp16 one.

    Args:
        source: fp32 file of the visual graph, opset 18 or later.
        target: File to write; its opset is 19 or later.
        frames: uint8 [N, S, S, 3] that set the ranges.

    Raises:
        EnvironmentMissing: modelopt is not installed, or not completely.
        CheckFailed: modelopt fails on the graph.
    """
    missing = modelopt_missing()
    if missing is not None:
        raise missing
    with scratch() as folder:
        np.save(folder / "frames.npy", frames)
        quantised = folder / "visual.onnx"
        ended = run_module("m2df_export.precision.fp8", source.resolve(), quantised, folder / "frames.npy")
        if ended.code and ended.said.startswith(("ImportError", "ModuleNotFoundError")):
            raise EnvironmentMissing(f"modelopt cannot be used: {ended.said}", MODELOPT)
        if ended.code:
            raise CheckFailed(f"modelopt {ended.failure} on the visual graph", "leave out --fp8")
        model = onnx.load_model(quantised)
    ir.save(tower_to_half(ir.from_proto(onnx.shape_inference.infer_shapes(model))), target)


def _quantise(source: str, target: str, frames: str) -> None:
    """The process's side."""
    from modelopt.onnx.quantization import quantize

    pictures = np.load(frames, allow_pickle=False)
    quantize(
        onnx_path=source,
        output_path=target,
        quantize_mode="fp8",
        calibration_data={"frames": pictures},
        calibration_shapes=f"frames:{'x'.join(map(str, (1, *pictures.shape[1:])))}",  # frames at once
        calibration_method="max",
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",  # tower_to_half knows what must stay so
        log_level="ERROR",
    )


if __name__ == "__main__":
    _quantise(*sys.argv[1:])
