"""What one thread runs a TensorRT engine with: its stream, buffers, contexts and recorded runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends import DeviceTensor, Tensor
from m2df_runtime.backends.tensorrt.cuda import CudaDevice
from m2df_runtime.errors import InputError

Shape = tuple[int, ...]
Key = tuple[tuple[str, Shape, int], ...]  # name, shape and address of every input


class Context:
    """An execution context; where contexts cannot share an optimisation profile, its own is free again with it."""

    def __init__(self, context: Any, free: Callable[[], object]) -> None:  # noqa: ANN401 - TensorRT has no static types
        self.raw = context
        self._free = free

    def __del__(self) -> None:
        self.raw = None  # first: what is free may be taken at once
        self._free()


@dataclass
class Lane:
    """What one thread runs an engine with."""

    device: CudaDevice
    stream: int
    cuda_graphs: bool
    context: Context | None = None
    addresses: dict[str, int] = field(default_factory=dict)
    staging: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    memory: list[object] = field(default_factory=list)
    runs: Counter[Key] = field(default_factory=Counter)
    captured: dict[Key, tuple[Context, Callable[[], object]]] = field(default_factory=dict)

    def reserve(self, name: str, nbytes: int) -> None:
        """Allocate the device and host buffer of one tensor."""
        memory = self.device.allocate(max(nbytes, 1))
        self.memory.append(memory)
        self.addresses[name] = memory.address
        self.staging[name] = self.device.pinned(max(nbytes, 1))

    def place(self, name: str, value: Tensor, dtype: np.dtype[Any]) -> int:
        """Address of an input on the device; an array of the host is copied there."""
        if isinstance(value, DeviceTensor):
            if value.dtype != dtype:
                raise InputError(f"{name} is {value.dtype} on the device, the graph takes {dtype}")
            return value.address
        nbytes = value.size * dtype.itemsize
        staged = self.staging[name][:nbytes]
        np.copyto(staged.view(dtype).reshape(value.shape), value, casting="same_kind")
        self.device.upload(self.addresses[name], staged, self.stream)
        return self.addresses[name]

    def fetch(self, name: str, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Start to copy an output to the host; the array is filled once the stream is idle."""
        staged = self.staging[name][: math.prod(shape) * dtype.itemsize]
        self.device.download(staged, self.addresses[name], self.stream)
        return staged.view(dtype).reshape(shape)
