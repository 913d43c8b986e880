"""Reads checkpoint files of the two public reference implementations (method section 5.1).

They differ in what is around the weights and in the prefixes of the keys; behind this module there are
a head and an image tower under plain names. Files are foreign: nothing in them is executed.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2df_runtime.errors import InputError, shortened
from m2df_train.model.backbone import is_torchscript

# CLIP-M2DF's periodic file and CLIP-FSAR's file; CLIP-M2DF's last file is the bare state.
CONTAINERS = ("model_state_dict", "model_state")
TOWER = "backbone."


@dataclass(frozen=True)
class OfficialWeights:
    """Weights of one official file, float32.

    Attributes:
        head: Head weights under official names, prefixes removed.
        tower: Image tower under open_clip's names of `visual`.
        keys: For every name (the tower's with `backbone.` in front) the key it has in the file.
    """

    head: dict[str, Tensor] = field(default_factory=dict)
    tower: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


def read_official(file: Path) -> OfficialWeights:
    """Read a checkpoint of either repository.

    Raises:
        InputError: Missing or damaged, holds more than weights, or two keys become one without their prefixes.
    """
    weights = OfficialWeights()
    for key, value in _state(file).items():
        name = plain_name(key)
        if name in weights.keys:
            raise InputError(
                f"{file}: keys {weights.keys[name]!r} and {key!r} both name the weight {name!r}",
                "the checkpoint is damaged or edited",
            )
        weights.keys[name] = key
        part = weights.tower if name.startswith(TOWER) else weights.head
        part[name.removeprefix(TOWER)] = value.float() if value.is_floating_point() else value
    return weights


def plain_name(key: str) -> str:
    """A key without the prefixes of data-parallel wrappers and of CLIP-FSAR's outer model."""
    name = key.removeprefix("module.").removeprefix("head.").removeprefix("module.")
    if name.startswith(f"{TOWER}module."):
        name = TOWER + name.removeprefix(f"{TOWER}module.")
    return name


def _state(file: Path) -> dict[str, Tensor]:
    content = _load(file)
    if isinstance(content, Mapping):
        content = next((content[name] for name in CONTAINERS if name in content), content)
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{file}: holds no weights", f"expected a state dict, or one under {' or '.join(CONTAINERS)}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{file}: {key!r} is no weight",
                f"expected a state dict, or a file that holds one under {' or '.join(CONTAINERS)}",
            )
    return dict(content)


def _load(file: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    if not file.is_file():
        raise InputError(f"{file}: no such file", "name a checkpoint of CLIP-MDMF or CLIP-FSAR")
    if is_torchscript(file):
        raise InputError(
            f"{file}: a TorchScript archive, which is a program; m2df reads weights only",
            "name a checkpoint that CLIP-MDMF or CLIP-FSAR wrote; such an archive is a CLIP as OpenAI publishes it",
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{file}: not a PyTorch file of weights alone",
            "it is damaged, or holds objects whose code would run when it is read; m2df reads weights only",
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{file}: not a PyTorch checkpoint: {shortened(reason)}") from None
