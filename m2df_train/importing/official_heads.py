"""Renames the head weights of the two public reference implementations to m2df's names.

Pure renaming (method sections 5.2 and 5.3): no tensor is transposed or folded. `official_files.py` reads
the files, `official_towers.py` their image towers, `importing.py` makes checkpoints of both.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from m2df_runtime.errors import InputError

logger = logging.getLogger(__name__)

_FUSION_PARTS = {
    "0.norm": "norm",
    "0.fn.to_q": "attn.q",
    "0.fn.to_k": "attn.k",
    "0.fn.to_v": "attn.v",
    "0.fn.to_out.0": "attn.out",
    "1.net.0": "ffn.fc1",
    "1.net.3": "ffn.fc2",
}
_FUSION = re.compile(r"(context2|context_local)\.layers\.(\d+)\.(.+)\.(weight|bias)")
_LOCAL_CONV = re.compile(r"context_conv([12])\.(weight|bias)")
_UNUSED_CONV = re.compile(r"context_conv(11|22)\.(weight|bias)")
_TCN = re.compile(r"tcn\.network\.(\d+)\.(conv1|conv2|net\.0|net\.4)\.(.+)")
_TCN_ALIASES = {"net.0": "conv1", "net.4": "conv2"}  # the same modules registered twice
_WEIGHT_NORM = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
    "parametrizations.weight.original0": "parametrizations.weight.original0",
    "parametrizations.weight.original1": "parametrizations.weight.original1",
    "bias": "bias",
}


@dataclass(frozen=True)
class HeadKeys:
    """Head weights under m2df's names, and what became of every official key.

    Attributes:
        weights: m2df's name to tensor.
        used: Official key to m2df's name.
        duplicates: The same for second copies of a weight, checked to be equal to the first.
        unused: Keys of weights that the official code holds and never uses.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    duplicates: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


def is_m2df(state: Mapping[str, Tensor]) -> bool:
    """Whether official head weights are CLIP-M2DF's (two views) rather than CLIP-FSAR's."""
    return any(key.startswith(("tcn.", "context_local.")) for key in state)


def _renamed(key: str, m2df: bool) -> str | None:
    """New name of an official key; None for a key that is not part of the head."""
    if key == "scale":
        return "text_scale"
    if match := _FUSION.fullmatch(key):
        encoder, layer, part, kind = match.groups()
        if part in _FUSION_PARTS and (m2df or encoder == "context2"):
            # context_local is the encoder of the *global* view in the public code.
            view = {"context2": "local_view.", "context_local": "global_view."}[encoder] if m2df else ""
            return f"{view}fusion.layers.{layer}.{_FUSION_PARTS[part]}.{kind}"
    if m2df and (match := _LOCAL_CONV.fullmatch(key)):
        return f"local_view.context.conv{match[1]}.{match[2]}"
    if (match := _TCN.fullmatch(key)) and match[3] in _WEIGHT_NORM:
        conv = _TCN_ALIASES.get(match[2], match[2])
        return f"global_view.context.blocks.{match[1]}.{conv}.{_WEIGHT_NORM[match[3]]}"
    return None


def read_head_keys(state: Mapping[str, Tensor]) -> HeadKeys:
    """Translate official head weights to the names of ``M2dfHead`` or ``ClipFsarHead``, and account for every key.

    Args:
        state: Head weights under official names, prefixes (``head.``, ``module.``) and backbone removed.

    Returns:
        The same tensors under m2df's names; aliases merged, never-used convolutions left out.

    Raises:
        InputError: Keys of another head, or two copies of one weight that differ.
    """
    m2df = is_m2df(state)
    names = {key: _renamed(key, m2df) for key in state if not _UNUSED_CONV.fullmatch(key)}
    foreign = [key for key, name in names.items() if name is None]
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise InputError(
            f"weight {foreign[0]!r}{more} belongs to no known head",
            "only CLIP-M2DF and CLIP-FSAR checkpoints can be imported",
        )
    keys = HeadKeys(unused=[key for key in state if key not in names])
    for key, name in names.items():
        assert name is not None  # foreign keys were refused
        if name not in keys.weights:
            keys.weights[name] = state[key]
            keys.used[key] = name
        elif torch.equal(keys.weights[name], state[key]):
            keys.duplicates[key] = name
        else:
            raise InputError(f"two copies of weight {name!r} differ", "the checkpoint is damaged or edited")
    if keys.unused:
        logger.debug("never used by the official code, left out: %s", ", ".join(keys.unused))
    return keys
