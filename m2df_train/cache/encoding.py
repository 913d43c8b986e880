"""Features of a set of clips as tensors, for episodes that cost no pixels; and embeddings of prompts."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.progress import unseen
from m2df_runtime.user_cache import cache_dir
from m2df_train.cache.features import Encoding, FeatureCache, identity_of
from m2df_train.data.augment import Augmentation, DeployedLoader, TrainingLoader
from m2df_train.data.frame_cache import FrameCache
from m2df_train.data.splits import ClipSet
from m2df_train.data.workers import worker_count
from m2df_train.model.backbone import Backbone, import_open_clip

if TYPE_CHECKING:
    from m2df_train.recipe.recipe import Recipe

_log = logging.getLogger(__name__)

_CPU_BATCH, _GPU_BATCH = 4, 32  # clips; pixels of a batch are 5 and 39 MB at 8 frames of 224 pixels
_PROMPT_BATCH = 256
_GIB = 1 << 30


@dataclass(frozen=True)
class FeaturePool:
    """Frame features of clips and text embeddings of their classes, on the CPU.

    Attributes:
        features: [N, views, T, D]: random variants of a clip for training, one view for evaluation.
        labels: Class name of every clip, N of them; classes in blocks, in the order of `texts`.
        texts: [C, D], one prompt embedding per class in order of first appearance in `labels`.
    """

    features: Tensor
    labels: tuple[str, ...]
    texts: Tensor


def pool_of(
    backbone: Backbone,
    clip_set: ClipSet,
    recipe: Recipe,
    cache: FeatureCache,
    training: bool,
    advance: Callable[[int], None] = unseen,
    *,
    frames: FrameCache | None = None,
) -> FeaturePool:
    """Features of all clips of a set; clips that cannot be read are named in a warning and left out.

    Args:
        backbone: In evaluation mode, on any device.
        clip_set: The clips.
        recipe: Its preprocessing, augmentation, prompt, number of views and seed are used.
        cache: Where features are found and kept.
        training: `tuning.views` random variants of every clip; else one view, as in deployment.
        advance: Called with the number of clips finished since the last call.
        frames: Cache of decoded frames, for clips that are encoded again with other weights.

    Raises:
        InputError: No clip can be read.
    """
    loader: TrainingLoader | DeployedLoader
    made: tuple[str, ...]
    if training:
        options = _encoded_once(recipe)
        loader = TrainingLoader(options, recipe.seed, frames)
        made = ("training", options.identity, str(recipe.seed), "exact" if frames is None else "of cached frames")
    else:
        loader = DeployedLoader(recipe.clip.deployed, frames)
        made = _deployed(recipe.clip.deployed)
    device = next(backbone.parameters()).device
    way = Encoding(
        lambda clips: _encode(backbone, recipe.clip.deployed, clips),
        identity_of(backbone_digest(backbone), *made) if cache.lasting else "",
        loader,
        views=recipe.tuning.views if training else 1,
        batch=_CPU_BATCH if device.type == "cpu" else _GPU_BATCH,
    )
    encoded = cache.encode(way, clip_set.clips, workers=worker_count(), advance=advance)
    labels = tuple(clip_set.clips[number].label for number in encoded.kept)
    prompts = [recipe.prompt.replace("{}", clip_set.texts[name]) for name in dict.fromkeys(labels)]
    return FeaturePool(torch.from_numpy(encoded.values), labels, encode_prompts(backbone, prompts))


def encode_prompts(backbone: Backbone, prompts: Sequence[str]) -> Tensor:
    """Text embeddings [P, D], on the CPU."""
    tokenize = import_open_clip().get_tokenizer("ViT-B-32")
    device = next(backbone.parameters()).device
    with torch.inference_mode():
        parts = [
            backbone.encode_text(tokenize(list(prompts[first : first + _PROMPT_BATCH])).to(device)).float().cpu()
            for first in range(0, len(prompts), _PROMPT_BATCH)
        ]
        joined = torch.cat(parts)
    return joined.clone()


def deployed_identity(backbone: Backbone, spec: ClipSpec) -> str:
    """Identity in a `FeatureCache` of the features that evaluation and deployment have of a clip."""
    return identity_of(backbone_digest(backbone), *_deployed(spec))


def _deployed(spec: ClipSpec) -> tuple[str, ...]:
    return "deployed", spec.model_dump_json()


def backbone_digest(backbone: Backbone) -> str:
    """SHA-256 over the architecture and over all weights and buffers by name.

    The same weights may belong to towers that differ in their activation.
    """
    whole = hashlib.sha256(f"{backbone.clip!r}{json.dumps(backbone.config, sort_keys=True)}".encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        whole.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def feature_cache(recipe: Recipe) -> FeatureCache:
    """The user's cache of features; they have a quarter of `data.cache_gb`."""
    bound = f"a quarter of data.cache_gb, which is {recipe.data.cache_gb:g}"
    return FeatureCache(cache_dir("features"), int(recipe.data.cache_gb * _GIB / 4), bound)


def frame_cache(recipe: Recipe) -> FrameCache | None:
    """The user's cache of decoded frames, which has the rest; None for 0, where every frame is sampled exactly.

    A clip of 8 frames takes 8 MB of it at 256 pixels, 32 frames being kept.
    """
    limit = int(recipe.data.cache_gb * _GIB * 3 / 4)
    return FrameCache(cache_dir("frames"), limit) if limit else None


def _encoded_once(recipe: Recipe) -> Augmentation:
    """The augmentation of clips that serve as support and query alike."""
    data = recipe.data
    if data.query_colour is not None or data.hflip_query not in (None, data.hflip):
        _log.warning("data.query_colour and data.hflip_query do nothing here: clips are encoded for both roles at once")
    return Augmentation.of(recipe.clip.training, recipe.data)


def _encode(backbone: Backbone, spec: ClipSpec, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [B, T, S, S, 3] to [B, T, D]."""
    device = next(backbone.parameters()).device
    with torch.inference_mode():
        return backbone.encode_frames(torch.from_numpy(clips).to(device), spec).float().cpu().numpy()
