"""A graph that is given what depends on some of its inputs alone, worked out once for many runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends import Graph, Tensors
from m2df_runtime.bundle.onnx_split import OnnxSplit


class SplitGraph:
    """The two parts of a split graph.

    Args:
        split: The parts as ONNX models.
        load: Loads a model into an engine.
    """

    def __init__(self, split: OnnxSplit, load: Callable[[bytes], Graph]) -> None:
        self._split = split
        self._load = load
        self._rest: Graph | None = None

    def derive(self, inputs: Tensors) -> Tensors:
        """What depends on these inputs, the fixed ones, alone.

        The engine lets go of the memory it takes for that, which may be as much as the inputs take.
        """
        derived = {name: np.array(value) for name, value in self._load(self._split.first).run(inputs).items()}
        if self._rest is None:
            self._rest = self._load(self._split.rest(derived))
        return derived

    def run(self, inputs: Tensors, derived: Tensors) -> dict[str, NDArray[np.float32]]:
        """Run once with what `derive` gave."""
        assert self._rest is not None  # it is there once something was derived
        return self._rest.run({**inputs, **derived})
