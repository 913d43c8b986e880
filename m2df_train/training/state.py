"""Training state on disk, so that a stage that was stopped goes on where it was.

Data and randomness of a step depend on its number alone; weights, optimizer and that number are
therefore the whole state.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from m2df_runtime.errors import InputError, first_line
from m2df_runtime.files import atomic_write


class Part(Protocol):
    """Something with a state: a module, an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Take over a state."""
        ...


def save_state(path: Path, parts: Mapping[str, Part], numbers: Mapping[str, float]) -> None:
    """Write the state of all parts and some numbers; the old file survives a kill or a full disk.

    Raises:
        OSError: It cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"parts": {name: part.state_dict() for name, part in parts.items()}, "numbers": dict(numbers)}, buffer)
    atomic_write(path, buffer.getbuffer())


def load_state(path: Path, parts: Mapping[str, Part]) -> dict[str, float]:
    """Restore what `save_state` wrote; returns the numbers, none where there is no file.

    Raises:
        InputError: The file is damaged or belongs to another model.
    """
    if not path.is_file():
        return {}
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        return {str(name): value for name, value in state["numbers"].items()}
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = first_line(error)
        raise InputError(f"{path}: cannot resume from it: {reason}", "delete it to start this stage anew") from None
