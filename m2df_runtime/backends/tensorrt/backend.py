"""TensorRT 8.5 to 11: finds out whether it works here, and opens a bundle's engines.

The first thing that fails without a driver is making a `Runtime` or a `Builder`: pybind11 then says
"factory function returned nullptr". The API differs between versions; everything used here and in
m2df_export exists in all of them or is asked for first, which a contract test checks.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends import DeviceTensor
from m2df_runtime.backends.tensorrt.cuda import CudaDevice, open_device
from m2df_runtime.backends.tensorrt.engine_files import EngineUnusable, Machine, find_engine, version_tuple
from m2df_runtime.backends.tensorrt.graph import GraphSignature, TensorRTGraph
from m2df_runtime.backends.tensorrt.lane import Lane
from m2df_runtime.errors import EnvironmentMissing, first_line

if TYPE_CHECKING:
    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.bundle.manifest import GraphName
    from m2df_runtime.engine_names import Precision

OLDEST = (8, 5)
SHARES_PROFILES = (8, 6)  # before, two execution contexts could not use one optimisation profile
KEPT_MESSAGES = 20
CUDA_GRAPHS = "M2DF_CUDA_GRAPHS"
HOST_CODE = "M2DF_ENGINE_HOST_CODE"
INSTALL = "pip install 'm2df[tensorrt]' on a machine with an NVIDIA GPU"


@dataclass(frozen=True)
class TensorRT:
    """The module, the GPU, what it says, and both together as what engines must fit."""

    module: Any
    device: CudaDevice
    log: MessageLog
    machine: Machine

    def create(self, factory: Callable[[Any], Any]) -> Any:  # noqa: ANN401 - TensorRT has no static types
        """A `Runtime` or `Builder`, in the current CUDA context.

        Raises:
            EnvironmentMissing: The driver is missing or too old for this TensorRT.
        """
        try:
            return factory(self.log.logger)
        except TypeError as error:
            reason = self.log.last_error() or first_line(error)
            raise EnvironmentMissing(
                f"TensorRT {self.machine.tensorrt} cannot use this machine's NVIDIA driver: {reason}",
                "install a driver as new as this TensorRT's CUDA, or a TensorRT as old as the driver",
            ) from None


class MessageLog:
    """TensorRT's log: errors for our messages, and every line for whoever listens (the build log)."""

    def __init__(self, trt: Any) -> None:  # noqa: ANN401
        self._errors: deque[str] = deque(maxlen=KEPT_MESSAGES)
        self.listener: Callable[[str, str], None] | None = None
        log = self

        class Logger(trt.ILogger):  # type: ignore[misc]  # the base is known only at run time
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
                log.add(severity.name, message)

        self.logger = Logger()

    def add(self, severity: str, message: str) -> None:
        """Take one message."""
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._errors.append(message)
        if self.listener is not None:
            self.listener(severity, message)

    def last_error(self) -> str | None:
        """The newest error as one short line; it and those before it are then forgotten."""
        newest = first_line(RuntimeError(self._errors[-1])) if self._errors else None
        self._errors.clear()
        return newest


def import_tensorrt() -> Any:  # noqa: ANN401
    """The `tensorrt` module.

    Raises:
        EnvironmentMissing: Not installed, too old, or a library it needs does not load.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise EnvironmentMissing(f"TensorRT cannot be used: {first_line(error)}", INSTALL) from None
    except Exception as error:  # its package loads libraries itself and fails in several ways
        raise EnvironmentMissing(f"TensorRT does not load: {first_line(error)}", f"reinstall it: {INSTALL}") from None
    if version_tuple(tensorrt.__version__) < OLDEST:
        raise EnvironmentMissing(f"TensorRT {tensorrt.__version__} is too old, m2df needs 8.5 or later", INSTALL)
    return tensorrt


@lru_cache(maxsize=1)
def open_tensorrt() -> TensorRT:
    """TensorRT on this machine's GPU.

    Raises:
        EnvironmentMissing: TensorRT, the driver or the GPU is missing, or they do not fit each other.
    """
    module = import_tensorrt()
    device = open_device()
    return TensorRT(
        module, device, MessageLog(module), Machine(device.name, device.capability, str(module.__version__))
    )


_host_code = ContextVar("host_code", default=False)


@contextmanager
def host_code_allowed() -> Iterator[None]:
    """Let engines that hold host code run, because this very process has built them."""
    token = _host_code.set(True)
    try:
        yield
    finally:
        _host_code.reset(token)


class TensorRTBackend:
    """Runs engines that were built for this GPU and this TensorRT. Threads each get their own stream and contexts.

    Args:
        cuda_graphs: Replay repeated runs as CUDA graphs; None: yes, unless M2DF_CUDA_GRAPHS=0.

    Raises:
        EnvironmentMissing: TensorRT cannot be used here.
    """

    def __init__(self, *, cuda_graphs: bool | None = None) -> None:
        self._trt = open_tensorrt()
        device, machine = self._trt.device, self._trt.machine
        with device.current():
            self._runtime = self._trt.create(self._trt.module.Runtime)
        self.name = "tensorrt"
        self.description = f"TensorRT {machine.tensorrt} on {machine.gpu} ({device.library})"
        self._cuda_graphs = os.environ.get(CUDA_GRAPHS, "1") != "0" if cuda_graphs is None else cuda_graphs
        self._local = threading.local()

    @property
    def machine(self) -> Machine:
        """What an engine must fit."""
        return self._trt.machine

    def check(self, bundle: Bundle, precision: Precision) -> None:
        """Raise EngineUnusable unless every graph of the bundle has an engine that fits."""
        for graph in bundle.manifest.graphs:
            find_engine(bundle, graph, precision, self.machine)

    def open(self, bundle: Bundle, graph: GraphName, precision: Precision) -> TensorRTGraph:
        """See `Backend.open`.

        Raises:
            EngineUnusable: No engine fits, its file is damaged, or TensorRT refuses it.
        """
        found = find_engine(bundle, graph, precision, self.machine)
        return self.load(found.read(), bundle.manifest.graphs[graph], str(found.path), host_code=found.host_code)

    def load(self, engine: bytes, signature: GraphSignature, label: str, *, host_code: bool = False) -> TensorRTGraph:
        """A graph from a verified engine.

        Args:
            engine: The plan as TensorRT built it.
            signature: Inputs and outputs of the graph.
            label: Names the engine in error messages.
            host_code: The plan holds code for the host's processor, as version-compatible ones do.

        Raises:
            EngineUnusable: TensorRT refuses it, or it is another graph's.
        """
        if host_code:
            self._allow_host_code(label)
        with self._trt.device.current():
            loaded = self._runtime.deserialize_cuda_engine(engine)
        if loaded is None:
            reason = self._trt.log.last_error() or "no reason given"
            raise EngineUnusable(f"{label}: TensorRT refuses the engine: {reason}", "build the engines again")
        shares = version_tuple(self.machine.tensorrt) >= SHARES_PROFILES
        return TensorRTGraph(
            loaded, signature, label, self._new_lane, lambda: self._trt.log.last_error(), shares_profiles=shares
        )

    def _allow_host_code(self, label: str) -> None:
        if os.environ.get(HOST_CODE, "") in ("", "0") and not _host_code.get():
            raise EngineUnusable(
                f"{label}: a version-compatible engine holds code that would run on this machine",
                f"set {HOST_CODE}=1 if you built it yourself",
            )
        if hasattr(self._runtime, "engine_host_code_allowed"):
            self._runtime.engine_host_code_allowed = True

    def _new_lane(self) -> Lane:
        """The calling thread's lane; its stream is that of all graphs, so they run in the order they are called."""
        if not hasattr(self._local, "stream"):
            with self._trt.device.current():
                self._local.stream = self._trt.device.stream()
        return Lane(self._trt.device, self._local.stream, self._cuda_graphs)

    def resident(self, array: NDArray[Any]) -> DeviceTensor:
        """See `Backend.resident`."""
        source = np.ascontiguousarray(array)
        device, lane = self._trt.device, self._new_lane()
        with device.current():
            memory = device.allocate(max(source.nbytes, 1))
            staging = device.pinned(max(source.nbytes, 1))
            staging[: source.nbytes] = source.reshape(-1).view(np.uint8)
            device.upload(memory.address, staging[: source.nbytes], lane.stream)
            device.synchronize(lane.stream)
        return DeviceTensor(memory.address, source.shape, source.dtype, memory)
