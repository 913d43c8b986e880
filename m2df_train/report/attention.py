"""What the fusion encoders attend to: their attention weights while a head encodes one clip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m2df_train.model.fusion import Attention
from m2df_train.model.heads import ClipFsarHead, Head, M2dfHead, deterministic_head

Float = NDArray[np.float32]

PROMPT = "text"  # name of the prompt's token
VIEWS = {"local_view": "local view", "global_view": "global view"}


@dataclass(frozen=True)
class AttentionMap:
    """Attention of one layer, averaged over its heads.

    Attributes:
        title: Which encoder, and which layer where it has several.
        rows: Names of the tokens that attend.
        columns: Names of the tokens attended to.
        weights: float32 [rows, columns]; every row sums to 1.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    weights: Float


@torch.inference_mode()
def fusion_attention(head: Head, features: Float, prompts: Float, own: int) -> list[AttentionMap]:
    """Attention of a head's fusion encoders for one clip.

    CLIP-M2DF encodes support and query clips alike: the clip is shown as a query, with the prompt the
    selector gives it. CLIP-FSAR has one encoder and gives text to support clips alone, so the clip is
    shown as both.

    Args:
        head: A head in evaluation mode.
        features: Frame features [T, D].
        prompts: Text embeddings of the episode's classes [W, D].
        own: Class of the clip, a row of `prompts`.

    Returns:
        One map per encoder and layer; none for a head without fusion.
    """
    device = next((p.device for p in head.parameters()), torch.device("cpu"))
    clip = torch.from_numpy(np.ascontiguousarray(features)).to(device).unsqueeze(0)  # (1, T, D)
    texts = torch.from_numpy(np.ascontiguousarray(prompts)).to(device)  # (W, D)
    frames = tuple(str(number) for number in range(1, clip.shape[1] + 1))
    head = deterministic_head(head)
    if isinstance(head, M2dfHead):
        selection = head.select(clip, texts, head.options.pps.eval)
        with _recorded(head) as found:
            head.tokens(clip, selection.prompts)
        return _maps(found, (PROMPT, *frames))
    if isinstance(head, ClipFsarHead):
        with _recorded(head) as as_query:
            head.fusion(clip)
        with _recorded(head) as as_support:
            head.encode_support(clip, texts[own : own + 1])
        return [*_maps(as_query, frames, "as a query"), *_maps(as_support, (*frames, PROMPT), "as a support clip")]
    return []


@contextmanager
def _recorded(head: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Collect (name, weights [B, H, N, M]) of every attention that runs in the block."""
    found: list[tuple[str, Tensor]] = []

    def listen(name: str, module: Attention) -> torch.utils.hooks.RemovableHandle:
        return module.register_forward_hook(lambda _, inputs, __: found.append((name, module.weights(*inputs))))

    hooks = [listen(name, module) for name, module in head.named_modules() if isinstance(module, Attention)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _maps(found: list[tuple[str, Tensor]], tokens: tuple[str, ...], title: str = "") -> list[AttentionMap]:
    """Name what was recorded: `local_view.fusion.layers.0.attn` is layer 1 of the local view."""
    several = any(".layers.1." in name for name, _ in found)
    maps = []
    for name, weights in found:
        path = name.split(".")
        layer = f", layer {int(path[path.index('layers') + 1]) + 1}" if several else ""
        mean = weights[0].mean(dim=0).float().cpu().numpy()  # (N, M)
        maps.append(AttentionMap((title or VIEWS[path[0]]) + layer, tokens, tokens, mean))
    return maps
