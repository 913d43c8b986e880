"""A stand-in for cuda-bindings' `cuda.bindings.driver`: host memory, streams that are numbers, recorded runs.

Functions return their error first, as the real ones do. With `fake_tensorrt` it makes a machine for commands
in processes of their own; see `install`.
"""

from __future__ import annotations

import ctypes
import enum
import os
from pathlib import Path


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2


class CUdevice_attribute(enum.IntEnum):
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUstream_flags(enum.IntEnum):
    CU_STREAM_NON_BLOCKING = 1


class CUstreamCaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


OK = (CUresult.CUDA_SUCCESS,)
recording: list | None = None  # what TensorRT queues between begin and end of a capture is kept and not run
_memory: dict[int, object] = {}


def cuInit(flags):
    return OK


def cuDeviceGet(number):
    return (*OK, number)


def cuDevicePrimaryCtxRetain(device):
    return (*OK, object())


def cuCtxSetCurrent(context):
    return OK


def cuDeviceGetName(length, device):
    return (*OK, b"NVIDIA Fake".ljust(length, b"\0"))


def cuDeviceGetAttribute(attribute, device):
    digits = os.environ.get("FAKE_CAPABILITY", "90")
    return (*OK, int(digits[attribute - CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR]))


def cuMemAlloc(nbytes):
    block = ctypes.create_string_buffer(nbytes)
    address = ctypes.addressof(block)
    _memory[address] = block
    return (*OK, address)


def cuMemFree(address):
    del _memory[address]
    return OK


def cuMemHostAlloc(nbytes, flags):
    return cuMemAlloc(nbytes)


def cuMemFreeHost(address):
    return cuMemFree(address)


def cuStreamCreate(flags):
    return (*OK, 1)


def cuMemcpyHtoDAsync(target, source, nbytes, stream):
    ctypes.memmove(target, source, nbytes)
    return OK


def cuMemcpyDtoHAsync(target, source, nbytes, stream):
    ctypes.memmove(target, source, nbytes)
    return OK


def cuStreamSynchronize(stream):
    return OK


def cuStreamBeginCapture(stream, mode):
    global recording
    recording = []
    return OK


def cuStreamEndCapture(stream):
    global recording
    graph, recording = recording, None
    return (*OK, graph)


def cuGraphInstantiate(graph, flags):
    return (*OK, list(graph))


def cuGraphDestroy(graph):
    return OK


def cuGraphLaunch(recorded, stream):
    for run in recorded:
        run()
    return OK


def cuGraphExecDestroy(recorded):
    return OK


def install(folder: Path, version: str = "11.4.0.106", **env: str) -> dict[str, str]:
    """Write packages `tensorrt` and `cuda` to a folder; the environment in which a process finds them.

    FAKE_CAPABILITY (two digits) is the GPU's.
    """
    (folder / "cuda" / "bindings").mkdir(parents=True, exist_ok=True)
    (folder / "cuda" / "bindings" / "driver.py").write_text(
        "import sys, fake_cuda\nsys.modules[__name__] = fake_cuda\n"
    )
    (folder / "tensorrt.py").write_text(
        "import os, sys\nfrom fake_tensorrt import fake_tensorrt\nmodule = fake_tensorrt(os.environ['FAKE_TENSORRT'])\n"
        "module.__spec__ = __spec__\nsys.modules[__name__] = module\n"
    )
    paths = os.pathsep.join(map(str, (folder, Path(__file__).parent, Path(__file__).parents[2])))
    return {"PYTHONPATH": paths, "FAKE_TENSORRT": version, "OMP_NUM_THREADS": "1", **env}
