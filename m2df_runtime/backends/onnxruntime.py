"""ONNX Runtime on the CPU or through CUDA.

The provider a session really got is compared with the one asked for: ONNX Runtime falls back to the
CPU silently when the CUDA libraries cannot be loaded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends import DeviceTensor, Graph, Tensor, Tensors
from m2df_runtime.bundle.onnx_file import graph_model
from m2df_runtime.cpus import thread_count
from m2df_runtime.errors import EnvironmentMissing, InputError, first_line

if TYPE_CHECKING:
    import onnxruntime

    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.bundle.manifest import GraphName
    from m2df_runtime.engine_names import Precision

NOWHERE = "/dev/null/none"  # a folder that cannot exist
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def import_onnxruntime() -> Any:  # noqa: ANN401 - an optional module has no static type
    """The `onnxruntime` module.

    Raises:
        EnvironmentMissing: It is not installed, or its libraries do not load.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentMissing(
            f"ONNX Runtime cannot be used: {error}", "pip install 'm2df[cpu]', or 'm2df[gpu]' on a CUDA machine"
        ) from None
    onnxruntime.disable_telemetry_events()  # where another package loaded it before ours
    # Without a GPU driver its device discovery writes warnings to stderr; errors still show.
    onnxruntime.set_default_logger_severity(3)
    return onnxruntime


class OnnxRuntimeGraph:
    """One ONNX Runtime session on the CPU."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """See `Graph.run`."""
        values = self._session.run(self._outputs, dict(inputs))
        return dict(zip(self._outputs, values, strict=True))

    def run_resident(self, inputs: Tensors) -> dict[str, Tensor]:
        """See `Graph.run_resident`."""
        return dict(self.run(inputs))


class BoundGraph:
    """One ONNX Runtime session whose tensors may stay on its device between graphs (IO binding).

    Args:
        session: The session.
        device: ONNX Runtime's name of its device.
    """

    def __init__(self, session: onnxruntime.InferenceSession, device: Literal["cuda", "cpu"] = "cuda") -> None:
        self._session = session
        self._device = device
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """See `Graph.run`."""
        values = self._bound_run(inputs, "cpu")
        return {name: value.numpy() for name, value in values.items()}

    def run_resident(self, inputs: Tensors) -> dict[str, Tensor]:
        """See `Graph.run_resident`."""
        values = self._bound_run(inputs, self._device)
        return {name: _device_tensor(value) for name, value in values.items()}

    def _bound_run(self, inputs: Tensors, outputs_on: str) -> dict[str, Any]:
        binding = self._session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, DeviceTensor):
                binding.bind_input(name, self._device, 0, value.dtype.type, value.shape, value.address)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name in self._outputs:
            binding.bind_output(name, outputs_on)
        self._session.run_with_iobinding(binding)
        return dict(zip(self._outputs, binding.get_outputs(), strict=True))


def _device_tensor(value: Any) -> DeviceTensor:  # noqa: ANN401 - an OrtValue; an optional module has no static type
    return DeviceTensor(value.data_ptr(), tuple(value.shape()), np.dtype(np.float32), value)


def _reason(error: Exception) -> str:
    """What ONNX Runtime says, without its error class and the place in its source, which fill a line of their own."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    return first_line(RuntimeError(re.sub(r"/\S+:\d+ \S*onnxruntime::.*\) ", "", text)))


class OnnxRuntimeBackend:
    """ONNX Runtime with one execution provider.

    Args:
        device: `cpu` or `cuda`.
        threads: Threads per operator, 1 to 256; None takes the cores this process may use.

    Raises:
        InputError: That many threads cannot be asked for.
        EnvironmentMissing: ONNX Runtime, or the provider in it, is not installed.
    """

    def __init__(self, device: Literal["cpu", "cuda"] = "cpu", threads: int | None = None) -> None:
        self._ort = import_onnxruntime()
        self.name: str = device
        self._provider = PROVIDERS[device]
        self._threads = thread_count(threads)
        self.description = f"ONNX Runtime {self._ort.__version__} {self._provider}"
        if self._provider not in self._ort.get_available_providers():
            raise EnvironmentMissing(
                f"this ONNX Runtime {self._ort.__version__} has no {self._provider}",
                "pip uninstall onnxruntime, then pip install 'm2df[gpu]'",
            )
        if device == "cuda" and hasattr(self._ort, "preload_dlls"):
            self._ort.preload_dlls()

    def open(self, bundle: Bundle, graph: GraphName, precision: Precision) -> Graph:
        """See `Backend.open`.

        Raises:
            InputError: The file is not the one that was exported, or ONNX Runtime refuses it.
            EnvironmentMissing: The provider asked for could not be initialised.
        """
        return self.load(*graph_model(bundle, graph, precision), basic=precision == "fp8")

    def resident(self, array: NDArray[Any]) -> Tensor:
        """See `Backend.resident`."""
        if self.name == "cpu":
            return array
        value = self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", 0)
        return DeviceTensor(value.data_ptr(), array.shape, array.dtype, value)

    def load(self, model: bytes | Path, label: str, *, basic: bool = False) -> Graph:
        """Load a graph from its file or bytes; `label` names it in error messages.

        `basic` keeps ONNX Runtime from more than basic optimisations: FP8 Q/DQ nodes it moves to where it then
        refuses them (1.24, 1.31).

        Raises:
            InputError: ONNX Runtime refuses the graph.
            EnvironmentMissing: The provider asked for could not be initialised.
        """
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        # Behind `graph_model`'s own look at the file: no other format than ONNX, and outside data from nowhere.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", NOWHERE)
        if basic:
            options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        # Left to itself it pins a thread to every core of the machine, allowed or not.
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        # Waiting threads would take the cores that the next clip is decoded on: a whole query of the shipped model
        # took 129 ms so and takes 44 ms now (medians of 50 in turns, two cores).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        providers = [self._provider] if self.name == "cpu" else [self._provider, PROVIDERS["cpu"]]
        source = model if isinstance(model, bytes) else os.fspath(model)
        try:
            session = self._ort.InferenceSession(source, options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise InputError(
                f"{label}: ONNX Runtime {self._ort.__version__} cannot load the graph: {_reason(error)}"
            ) from None
        if session.get_providers()[0] != self._provider:
            raise EnvironmentMissing(
                f"{self._provider} was asked for, ONNX Runtime fell back to {session.get_providers()[0]}",
                "install the CUDA and cuDNN libraries this ONNX Runtime needs, or use --backend cpu",
            )
        # It keeps the file for a change of provider, which never comes: a second copy of the weights.
        session._model_bytes = None
        return OnnxRuntimeGraph(session) if self.name == "cpu" else BoundGraph(session)
