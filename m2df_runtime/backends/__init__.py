"""Inference engines, one file each, behind one small protocol.

A backend opens the graphs of a bundle as `Graph`s, which map named tensors to named tensors.
Importing this package imports no engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.bundle.manifest import GraphName
    from m2df_runtime.engine_names import Precision


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor in the memory of a GPU, contiguous, handed from one graph to the next without a copy.

    A graph's own output is good until that graph runs again in the same thread.

    Attributes:
        address: Where it begins in device memory.
        shape: Its shape.
        dtype: Its element type.
        owner: Keeps the memory allocated.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: object = field(repr=False, compare=False)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def reshape(self, *shape: int) -> DeviceTensor:
        """The same memory in another shape; at most one size may be -1.

        Raises:
            ValueError: The number of elements differs.
        """
        known = math.prod(size for size in shape if size >= 0)
        count = math.prod(self.shape)
        full = tuple(count // max(known, 1) if size < 0 else size for size in shape)
        if math.prod(full) != count:
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return replace(self, shape=full)

    def __getitem__(self, rows: slice) -> DeviceTensor:
        """Consecutive rows, as a view."""
        start, stop, _ = rows.indices(len(self))
        size = self.nbytes // max(len(self), 1)
        return replace(self, address=self.address + start * size, shape=(max(stop - start, 0), *self.shape[1:]))


Tensor = NDArray[Any] | DeviceTensor
Tensors = Mapping[str, Tensor]


class Graph(Protocol):
    """A loaded graph, ready to run from any thread. Keys are the input and output names of the manifest."""

    def run(self, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """Run once and bring the outputs to the host."""
        ...

    def run_resident(self, inputs: Tensors) -> dict[str, Tensor]:
        """Run once and leave the outputs where the engine computes them."""
        ...


class Backend(Protocol):
    """An inference engine on this machine.

    `name` is what users ask for and see reported (`cpu`, `cuda`, `tensorrt`); `description` adds the
    engine's version and the device really in use.
    """

    name: str
    description: str

    def open(self, bundle: Bundle, graph: GraphName, precision: Precision) -> Graph:
        """Load one graph of a bundle; its file is verified first."""
        ...

    def resident(self, array: NDArray[Any]) -> Tensor:
        """An input that comes again with every run, kept where the engine computes."""
        ...
