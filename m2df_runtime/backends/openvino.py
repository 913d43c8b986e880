"""OpenVINO on the CPU.

It computes in fp32 whatever a float file holds: left to itself it takes bfloat16 where the processor knows it,
which is further from the model than any precision a bundle was checked in. Where that is asked for, the towers are
computed so, and matching in fp32. The products of calibrated int8 graphs run on int8 kernels all the same.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends import Graph, Tensor, Tensors
from m2df_runtime.bundle.onnx_file import graph_model
from m2df_runtime.cpus import thread_count
from m2df_runtime.errors import EnvironmentMissing, InputError, first_line

if TYPE_CHECKING:
    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.bundle.manifest import GraphName
    from m2df_runtime.engine_names import Precision

DEVICE = "CPU"
INSTALL = "pip install 'm2df[openvino]'"
_TOWERS = ("visual", "text")
_TELEMETRY = "openvino_telemetry"


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Keep a package from loading OpenVINO's telemetry, which writes to the user's home and to the network.

    Importing it fails meanwhile, for which those packages are prepared.
    """
    before = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
        if before is not None:
            sys.modules[_TELEMETRY] = before


def import_openvino() -> Any:  # noqa: ANN401 - an optional module has no static type
    """The `openvino` module.

    Raises:
        EnvironmentMissing: It is not installed, or its libraries do not load.
    """
    try:
        with without_telemetry():
            import openvino
    except ImportError as error:
        raise EnvironmentMissing(f"OpenVINO cannot be used: {first_line(error)}", INSTALL) from None
    return openvino


class OpenVINOGraph:
    """One compiled model; every thread gets its own request, as a request runs once at a time.

    Args:
        compiled: The model.
    """

    def __init__(self, compiled: Any) -> None:  # noqa: ANN401
        self._compiled = compiled
        self._outputs = [output.get_any_name() for output in compiled.outputs]
        self._local = threading.local()

    def run(self, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """See `Graph.run`."""
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        contiguous = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        results = self._local.request.infer(contiguous, share_inputs=True)
        return {name: results[name] for name in self._outputs}

    def run_resident(self, inputs: Tensors) -> dict[str, Tensor]:
        """See `Graph.run_resident`."""
        return dict(self.run(inputs))


class OpenVINOBackend:
    """OpenVINO's CPU device.

    Args:
        threads: Threads it computes on, 1 to 256; None takes the cores this process may use.
        bfloat16: Compute the towers of float graphs in it.

    Raises:
        InputError: That many threads cannot be asked for.
        EnvironmentMissing: OpenVINO is not installed, has no CPU device here, or computes no bfloat16 on this one.
    """

    def __init__(self, threads: int | None = None, *, bfloat16: bool = False) -> None:
        module = import_openvino()
        self.name = "openvino"
        self._core = module.Core()
        try:
            processor = str(self._core.get_property(DEVICE, "FULL_DEVICE_NAME")).strip()
        except RuntimeError as error:
            raise EnvironmentMissing(f"OpenVINO has no CPU device here: {first_line(error)}", INSTALL) from None
        # Asked for all the same, it would compute in fp32 and say nothing.
        if bfloat16 and "BF16" not in self._core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
            raise EnvironmentMissing(f"OpenVINO computes no bf16 on this processor ({processor})", "take fp32 or fp16")
        self._bfloat16 = bfloat16
        version = module.__version__.partition("-")[0]
        self.description = f"OpenVINO {version} {DEVICE} ({processor})"
        self._options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        self._options["INFERENCE_NUM_THREADS"] = thread_count(threads)

    def open(self, bundle: Bundle, graph: GraphName, precision: Precision) -> Graph:
        """See `Backend.open`.

        Raises:
            InputError: The file is not the one that was exported, or OpenVINO refuses it.
        """
        hint = {"INFERENCE_PRECISION_HINT": "bf16"} if self._bfloat16 and graph in _TOWERS else {}
        return self._compiled(*graph_model(bundle, graph, precision), self._options | hint)

    def resident(self, array: NDArray[Any]) -> Tensor:
        """See `Backend.resident`."""
        return array

    def load(self, model: bytes | Path, label: str) -> Graph:
        """Load a graph from its file or bytes; `label` names it in error messages.

        Raises:
            InputError: OpenVINO refuses the graph.
        """
        return self._compiled(model, label, self._options)

    def _compiled(self, model: bytes | Path, label: str, options: dict[str, Any]) -> Graph:
        try:
            read = self._core.read_model(model if isinstance(model, bytes) else os.fspath(model))
            compiled = self._core.compile_model(read, DEVICE, options)
        except Exception as error:  # its errors are RuntimeError mostly, and not by contract
            raise InputError(f"{label}: OpenVINO cannot load the graph: {first_line(error)}") from None
        return OpenVINOGraph(compiled)
