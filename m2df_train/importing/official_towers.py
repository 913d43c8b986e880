"""Puts the image tower of an official checkpoint into an open_clip CLIP (method section 5.4).

Both repositories name the tower as OpenAI and open_clip do, so nothing is renamed; its architecture is
read from the shapes. The text tower is in no checkpoint, it was never trained: it comes from a CLIP.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from m2df_runtime.errors import InputError, shortened
from m2df_train.importing.official_files import TOWER
from m2df_train.model.backbone import Backbone, import_open_clip, load_backbone, rebuild_backbone

HEAD_WIDTH = 64  # of the attention in every tower of OpenAI's, whatever its size
RN_STRIDE = 32
OPENAI_TAG = "openai"
OPENAI_MODELS = (
    "ViT-B-16", "ViT-B-32", "ViT-L-14", "ViT-L-14-336", "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64",
)  # fmt: skip
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")
_COUNTER = ".num_batches_tracked"  # read by nothing in evaluation, and left out by some tools


@dataclass(frozen=True)
class Tower:
    """Architecture of an image tower: features D, and open_clip's `vision_cfg`."""

    dim: int
    vision: dict[str, Any]

    @property
    def image_size(self) -> int:
        """Side of the square it takes, in pixels."""
        return int(self.vision["image_size"])

    @property
    def model(self) -> str | None:
        """open_clip's name of the OpenAI model of this architecture, if there is one."""
        get_config = import_open_clip().get_model_config
        for name in (f"{model}-quickgelu" for model in OPENAI_MODELS):
            config = get_config(name)
            if config and config["embed_dim"] == self.dim and _same(config["vision_cfg"], self.vision):
                return name
        return None

    @property
    def description(self) -> str:
        """For a person to read: the OpenAI model, or the sizes."""
        if self.model:
            return self.model
        layers = self.vision["layers"]
        kind = f"RN-{'-'.join(map(str, layers))}" if isinstance(layers, list) else f"ViT-{layers}"
        return f"{kind}-w{self.vision['width']}-{self.image_size}px"


def _same(config: Mapping[str, Any], vision: Mapping[str, Any]) -> bool:
    sizes = ("image_size", "layers", "width", "patch_size")
    return all(config.get(name) == vision.get(name) for name in sizes) and config.get("head_width", 64) == HEAD_WIDTH


def tower_of(weights: Mapping[str, Tensor]) -> Tower:
    """Architecture of an image tower from its weights, under open_clip's names of `visual`.

    Raises:
        InputError: Neither a ViT nor a ResNet as OpenAI's CLIP has them.
    """
    if "class_embedding" in weights:
        return _vit(weights)
    if any(key.startswith("attnpool.") for key in weights):
        return _resnet(weights)
    raise InputError(
        "its backbone is no image tower of CLIP" if weights else "it holds no backbone",
        "only checkpoints trained on CLIP's ViT or ResNet towers can be imported",
    )


def _vit(weights: Mapping[str, Tensor]) -> Tower:
    width, _, patch, _ = _shape(weights, "conv1.weight", 4)
    tokens, _ = _shape(weights, "positional_embedding", 2)
    _, dim = _shape(weights, "proj", 2)
    hidden, _ = _shape(weights, "transformer.resblocks.0.mlp.c_fc.weight", 2)
    layers = {match[1] for key in weights if (match := _BLOCK.match(key))}
    vision = {
        "image_size": _side(tokens, "positional_embedding") * patch,
        "layers": len(layers),
        "width": width,
        "head_width": _head_width(width),
        "patch_size": patch,
        "mlp_ratio": hidden / width,
    }
    return Tower(dim, vision)


def _resnet(weights: Mapping[str, Tensor]) -> Tower:
    width = _shape(weights, "layer1.0.conv1.weight", 4)[0]
    tokens, channels = _shape(weights, "attnpool.positional_embedding", 2)
    dim, _ = _shape(weights, "attnpool.c_proj.weight", 2)
    blocks = [
        len({match[1] for key in weights if (match := re.match(rf"layer{stage}\.(\d+)\.", key))})
        for stage in (1, 2, 3, 4)
    ]
    # open_clip gives the attention pool width * 32 / head_width heads, of a width of 32 * width.
    _head_width(channels)
    vision = {
        "image_size": _side(tokens, "attnpool.positional_embedding") * RN_STRIDE,
        "layers": blocks,
        "width": width,
        "head_width": HEAD_WIDTH,
        "patch_size": None,
    }
    return Tower(dim, vision)


def _shape(weights: Mapping[str, Tensor], key: str, axes: int) -> tuple[int, ...]:
    if key not in weights:
        raise InputError(f"weight backbone.{key} is missing", "the checkpoint is incomplete")
    if weights[key].ndim != axes:
        raise InputError(f"weight backbone.{key} has shape {tuple(weights[key].shape)}, {axes} axes expected")
    return tuple(weights[key].shape)


def _side(tokens: int, key: str) -> int:
    side = math.isqrt(max(tokens - 1, 0))
    if side * side != tokens - 1 or side < 1:
        raise InputError(f"weight backbone.{key} has {tokens} rows: no square picture has that many patches")
    return side


def _head_width(width: int) -> int:
    if width % HEAD_WIDTH:
        raise InputError(f"the tower's attention is {width} wide, heads of {HEAD_WIDTH} do not divide it")
    return HEAD_WIDTH


def text_tower(model: str, pretrained: str | None) -> Backbone:
    """The CLIP that gives the text tower.

    Raises:
        InputError: It cannot be had, or its text tower is not built as OpenAI's.
    """
    try:
        clip = load_backbone(model, pretrained)
    except InputError as error:
        given = pretrained is not None and Path(pretrained).is_file()
        raise InputError(
            f"the text tower is in no checkpoint and cannot be had: {error.message}",
            error.hint
            if given
            else "without a network, give the CLIP's folder or its weights: --text-model local-dir:PATH, or "
            "--text-pretrained FILE",
        ) from None
    if not clip.config.get("quick_gelu"):
        raise InputError(
            f"{model}: its text tower has another activation than OpenAI's, which both repositories use",
            f"take a quickgelu model: --text-model {'ViT-B-16' if ':' in model else model}-quickgelu",
        )
    return clip


def joined(tower: Tower, weights: Mapping[str, Tensor], text: Backbone) -> tuple[Backbone, list[str]]:
    """One CLIP of an image tower's weights and another CLIP's text tower.

    Returns:
        The CLIP, and the names of weights that were missing and are not needed.

    Raises:
        InputError: The towers' embedding sizes differ, or weights are missing, left over or of a wrong shape.
    """
    if text.dim != tower.dim:
        raise InputError(
            f"the checkpoint's tower has {tower.dim} features, the text tower of {text.name} has {text.dim}",
            "name the CLIP it was trained from with --text-model",
        )
    config = {**text.config, "embed_dim": tower.dim, "quick_gelu": True, "vision_cfg": tower.vision}
    backbone = rebuild_backbone(tower.model or tower.description, config)
    state = {key: value for key, value in text.clip.state_dict().items() if not key.startswith("visual.")}
    state |= {f"visual.{key}": value for key, value in weights.items()}
    own = backbone.clip.state_dict()
    missing = [key.replace("visual.", TOWER, 1) for key in own if key not in state]
    extra = [key.replace("visual.", TOWER, 1) for key in state if key not in own]
    needed = [key for key in missing if not key.endswith(_COUNTER)]
    if needed or extra:
        what = f"lacks {', '.join(needed[:5])}" if needed else f"has {', '.join(extra[:5])}, which no such tower has"
        raise InputError(f"its backbone ({tower.description}) {what}", "the checkpoint is incomplete or edited")
    try:
        backbone.clip.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(f"its backbone does not fit: {shortened(' '.join(str(error).split()))}") from None
    return backbone, missing
