"""Inference engines, one file each, behind one small protocol.

A backend turns the bytes or path of a graph into a `Graph` that maps named arrays to named arrays.
Importing this package imports no engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]


class Graph(Protocol):
    """A loaded graph, ready to run."""

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Run once. Keys are the graph's input and output names of the manifest."""
        ...


class Backend(Protocol):
    """An inference engine on this machine.

    `name` is what users ask for and see reported (`cpu`, `cuda`); `description` adds the engine's
    version and the provider really in use.
    """

    name: str
    description: str

    def load(self, model: bytes | Path, label: str) -> Graph:
        """Load a graph; `label` names it in error messages."""
        ...
