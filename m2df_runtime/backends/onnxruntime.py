"""ONNX Runtime on the CPU or through CUDA.

The provider a session really got is compared with the one asked for: ONNX Runtime falls back to the
CPU silently when the CUDA libraries cannot be loaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends import Arrays
from m2df_runtime.errors import EnvironmentMissing, InputError, first_line

if TYPE_CHECKING:
    import onnxruntime

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
    # Without a GPU driver its device discovery writes warnings to stderr; errors still show.
    onnxruntime.set_default_logger_severity(3)
    return onnxruntime


class OnnxRuntimeGraph:
    """One ONNX Runtime session."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """See `Graph.run`."""
        values = self._session.run(self._outputs, dict(inputs))
        return dict(zip(self._outputs, values, strict=True))


class OnnxRuntimeBackend:
    """ONNX Runtime with one execution provider.

    Args:
        device: `cpu` or `cuda`.
        threads: Threads per operator; None lets ONNX Runtime take the machine's cores.
    """

    def __init__(self, device: Literal["cpu", "cuda"] = "cpu", threads: int | None = None) -> None:
        self._ort = import_onnxruntime()
        self.name: str = device
        self._provider = PROVIDERS[device]
        self._threads = threads
        self.description = f"ONNX Runtime {self._ort.__version__} {self._provider}"
        if self._provider not in self._ort.get_available_providers():
            raise EnvironmentMissing(
                f"this ONNX Runtime {self._ort.__version__} has no {self._provider}",
                "pip uninstall onnxruntime, then pip install 'm2df[gpu]'",
            )
        if device == "cuda" and hasattr(self._ort, "preload_dlls"):
            self._ort.preload_dlls()

    def load(self, model: bytes | Path, label: str) -> OnnxRuntimeGraph:
        """See `Backend.load`.

        Raises:
            InputError: ONNX Runtime refuses the graph.
            EnvironmentMissing: The provider asked for could not be initialised.
        """
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        providers = [self._provider] if self.name == "cpu" else [self._provider, PROVIDERS["cpu"]]
        source = model if isinstance(model, bytes) else os.fspath(model)
        try:
            session = self._ort.InferenceSession(source, options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise InputError(f"{label}: ONNX Runtime cannot load the graph: {first_line(error)}") from None
        if session.get_providers()[0] != self._provider:
            raise EnvironmentMissing(
                f"{self._provider} was asked for, ONNX Runtime fell back to {session.get_providers()[0]}",
                "install the CUDA and cuDNN libraries this ONNX Runtime needs, or use --backend cpu",
            )
        # It keeps the file for a change of provider, which never comes: a second copy of the weights.
        session._model_bytes = None
        return OnnxRuntimeGraph(session)
