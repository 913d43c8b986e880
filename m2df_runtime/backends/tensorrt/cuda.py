"""The GPU as TensorRT needs it: memory, pinned host memory, streams, copies and CUDA graphs.

Through pycuda where it is installed, else through cuda-bindings, both on the device's primary context,
which PyTorch and the CUDA runtime share. pycuda has no CUDA graphs, so these need cuda-bindings anyway.
Needs nothing of m2df but its errors, and no OpenCV: TensorRT 8.5 runs on a numpy that OpenCV 5 refuses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.errors import EnvironmentMissing, first_line

Bytes = NDArray[np.uint8]

NO_DRIVER = "install the NVIDIA driver (nvidia-smi shows whether it works)"
NO_PACKAGE = "pip install cuda-bindings, or pip install 'm2df[tensorrt]'"


class CudaDevice(Protocol):
    """One GPU. Streams are integers, as TensorRT takes them."""

    name: str
    capability: tuple[int, int]
    library: str

    def current(self) -> AbstractContextManager[None]:
        """Make the primary context the calling thread's; everything below runs inside of it."""
        ...

    def allocate(self, nbytes: int) -> DeviceMemory:
        """Device memory, freed with the object."""
        ...

    def pinned(self, nbytes: int) -> Bytes:
        """Host memory that copies run from and to at full speed, freed with the array."""
        ...

    def stream(self) -> int:
        """A new stream, which lives as long as the process."""
        ...

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        """Start to copy pinned memory to the device."""
        ...

    def download(self, target: Bytes, address: int, stream: int) -> None:
        """Start to copy device memory to pinned memory."""
        ...

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        ...


class DeviceMemory:
    """A piece of device memory; freeing follows the last reference."""

    def __init__(self, device: CudaDevice, address: int, nbytes: int, free: Callable[[], object]) -> None:
        self.address = address
        self.nbytes = nbytes
        self._device = device
        self._free = free

    def __del__(self) -> None:
        with suppress(Exception), self._device.current():  # the driver may be gone at the end of the process
            self._free()


@lru_cache(maxsize=1)
def open_device() -> CudaDevice:
    """The first GPU (`CUDA_VISIBLE_DEVICES` chooses).

    Raises:
        EnvironmentMissing: No driver, no GPU, or neither pycuda nor cuda-bindings.
    """
    try:
        import pycuda.driver as pycuda
    except Exception:  # not installed, or installed and unable to load the driver; the other says why
        return _BindingsDevice(_import_bindings())
    try:
        pycuda.init()
        return _PycudaDevice(pycuda)
    except Exception as error:  # its exceptions exist only where the driver does
        raise EnvironmentMissing(f"no GPU can be used: {first_line(error)}", NO_DRIVER) from None


def _import_bindings() -> Any:  # noqa: ANN401 - an optional module has no static type
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise EnvironmentMissing(f"neither pycuda nor cuda-bindings can be used: {error}", NO_PACKAGE) from None
    return driver


class _PycudaDevice:
    """pycuda on the primary context. Its context stack must be empty when a thread ends, so every use is one push."""

    def __init__(self, driver: Any) -> None:  # noqa: ANN401
        self._driver = driver
        device = driver.Device(0)
        self._context = device.retain_primary_context()
        self._streams: dict[int, Any] = {}
        self.name: str = device.name()
        major, minor = device.compute_capability()
        self.capability = (int(major), int(minor))
        self.library = "pycuda"

    @contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def allocate(self, nbytes: int) -> DeviceMemory:
        try:
            memory = self._driver.mem_alloc(nbytes)
        except self._driver.MemoryError as error:  # not Python's
            raise MemoryError(first_line(error)) from None
        return DeviceMemory(self, int(memory), nbytes, memory.free)

    def pinned(self, nbytes: int) -> Bytes:
        array: Bytes = self._driver.pagelocked_empty(nbytes, np.uint8)
        return array

    def stream(self) -> int:
        stream = self._driver.Stream()
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        self._driver.memcpy_htod_async(address, source, self._streams[stream])

    def download(self, target: Bytes, address: int, stream: int) -> None:
        self._driver.memcpy_dtoh_async(target, address, self._streams[stream])

    def synchronize(self, stream: int) -> None:
        self._streams[stream].synchronize()


class _BindingsDevice:
    """cuda-bindings: the driver's own functions, each of which returns its error first."""

    def __init__(self, driver: Any) -> None:  # noqa: ANN401
        self._driver = driver
        try:
            self._call("cuInit", 0)
            self._device = self._call("cuDeviceGet", 0)
            self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        except (RuntimeError, MemoryError) as error:  # also where the driver's library is missing
            raise EnvironmentMissing(f"no GPU can be used: {first_line(error)}", NO_DRIVER) from None
        self.name: str = self._call("cuDeviceGetName", 128, self._device).split(b"\0")[0].decode()
        kinds = driver.CUdevice_attribute
        major = self._call("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, self._device)
        minor = self._call("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, self._device)
        self.capability = (int(major), int(minor))
        self.library = "cuda-bindings"

    def _call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401
        return call_driver(self._driver, name, *arguments)

    def current(self) -> AbstractContextManager[None]:
        self._call("cuCtxSetCurrent", self._context)
        return nullcontext()

    def allocate(self, nbytes: int) -> DeviceMemory:
        address = self._call("cuMemAlloc", nbytes)
        return DeviceMemory(self, int(address), nbytes, lambda: self._call("cuMemFree", address))

    def pinned(self, nbytes: int) -> Bytes:
        address = int(self._call("cuMemHostAlloc", nbytes, 0))
        block = (ctypes.c_uint8 * nbytes).from_address(address)
        memory = DeviceMemory(self, address, nbytes, lambda: self._call("cuMemFreeHost", address))
        block.owner = memory  # type: ignore[attr-defined]  # the array keeps the block, and the block its memory
        array: Bytes = np.ctypeslib.as_array(block)
        return array

    def stream(self) -> int:
        return int(self._call("cuStreamCreate", self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING))

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, stream)

    def download(self, target: Bytes, address: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, stream)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)


def call_driver(driver: Any, name: str, *arguments: object) -> Any:  # noqa: ANN401
    """Call a driver function of cuda-bindings and return its result, if it has one.

    Raises:
        MemoryError: The GPU's memory is full.
        RuntimeError: The driver reports another error.
    """
    code, *results = getattr(driver, name)(*arguments)
    if code == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise MemoryError(f"{name}: the GPU's memory is full")
    if code != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{name}: {getattr(code, 'name', code)}")
    return results[0] if results else None


def capture(stream: int, enqueue: Callable[[], bool]) -> Callable[[], object] | None:
    """Record what `enqueue` puts on a stream as a CUDA graph.

    Args:
        stream: The stream; it must be idle.
        enqueue: Queues the work; False means that it could not.

    Returns:
        A function that launches the recorded work on the stream; None where it cannot be recorded, which
        is the case without cuda-bindings too.
    """
    try:
        driver = _import_bindings()
    except EnvironmentMissing:
        return None
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL  # other threads go on allocating
    try:
        call_driver(driver, "cuStreamBeginCapture", stream, mode)
        try:
            queued = enqueue()
        finally:
            # A capture that failed must still be ended, or the stream stays unusable.
            code, graph = driver.cuStreamEndCapture(stream)
        if not queued or code != driver.CUresult.CUDA_SUCCESS:
            return None
        recorded = call_driver(driver, "cuGraphInstantiate", graph, 0)
        call_driver(driver, "cuGraphDestroy", graph)
    except (RuntimeError, MemoryError):
        return None
    return RecordedRun(driver, recorded, stream)


class RecordedRun:
    """A CUDA graph that is ready to run; calling it launches it on its stream."""

    def __init__(self, driver: Any, recorded: Any, stream: int) -> None:  # noqa: ANN401
        self._driver, self._recorded, self._stream = driver, recorded, stream

    def __call__(self) -> None:
        call_driver(self._driver, "cuGraphLaunch", self._recorded, self._stream)

    def __del__(self) -> None:
        with suppress(Exception):  # the driver may be gone at the end of the process
            call_driver(self._driver, "cuGraphExecDestroy", self._recorded)
