"""Training state on disk, so that a stage that was stopped goes on where it was.

Data and randomness of a step depend on its number alone; weights, optimizer and that number are
therefore the whole state.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from m2df_runtime.errors import InputError, first_line
from m2df_runtime.files import atomic_write


@dataclass(frozen=True)
class Best:
    """Weights that validated best so far, and their validation accuracy (0 to 1)."""

    accuracy: float
    weights: dict[str, torch.Tensor]


def save_state(
    path: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, best: Best | None = None
) -> None:
    """Write weights, optimizer, the number of finished steps and the best weights; the old file survives a kill."""
    state = {"step": step, "module": module.state_dict(), "optimizer": optimizer.state_dict()}
    if best is not None:
        state["best"] = {"accuracy": best.accuracy, "weights": best.weights}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    atomic_write(path, buffer.getvalue())


def load_state(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, Best | None]:
    """Restore what `save_state` wrote: the number of finished steps (0 without a file) and the best weights.

    Raises:
        InputError: The file is damaged or belongs to another model.
    """
    if not path.is_file():
        return 0, None
    try:
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        best = Best(**state["best"]) if "best" in state else None
        return int(state["step"]), best
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = first_line(error)
        raise InputError(f"{path}: cannot resume from it: {reason}", "delete it to start this stage anew") from None
