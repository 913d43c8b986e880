"""Text-guided frame scores and the probability prompt selector (PPS) of CLIP-M2DF.

A query has no class yet, but the fusion encoder wants a prompt beside its frames: PPS compares the
query's frames with every class text of the episode and picks, draws or mixes one (method 2.2, 2.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from m2df_train.model.alignment import COS_EPS, cosine, widen
from m2df_train.model.options import PromptMode


@dataclass(frozen=True)
class PromptSelection:
    """Prompts of Q queries and how they came about.

    Attributes:
        prompts: Text embeddings [Q, D], in the dtype of the texts.
        probabilities: pi [Q, W].
        best: Class with the largest score [Q], whatever the mode; it guides the frame filter.
        index: Class whose text was taken [Q]; None for ``expectation`` and ``none``.
    """

    prompts: Tensor
    probabilities: Tensor
    best: Tensor
    index: Tensor | None


def frame_cosines(texts: Tensor, frames: Tensor, eps: float = COS_EPS) -> Tensor:
    """Cosine of every text [W, D] with every frame of every video [B, T, D] -> [B, W, T]."""
    return cosine(texts, frames, eps)


def topk_score(cosines: Tensor, k: int = 4) -> Tensor:
    """Mean of the ``min(k, T)`` largest cosines of a video: [..., T] -> [...]."""
    frames = cosines.shape[-1]
    if k >= frames:
        return cosines.mean(dim=-1)
    return cosines.topk(k, dim=-1).values.mean(dim=-1)


def topk_frames(frames: Tensor, cosines: Tensor, k: int = 4) -> tuple[Tensor, Tensor]:
    """Keep the ``min(k, T)`` frames closest to the text, in order of time.

    Args:
        frames: Videos [B, T, D].
        cosines: Of each video's text with its frames [B, T].
        k: Frames to keep.

    Returns:
        Kept frames [B, k, D] and their ascending indices [B, k].
    """
    kept = cosines.topk(min(k, frames.shape[1]), dim=-1).indices.sort(dim=-1).values
    return frames.gather(1, kept.unsqueeze(-1).expand(-1, -1, frames.shape[-1])), kept


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF draw: the first class whose running sum exceeds ``u * total``; [Q, W], [Q] -> int64 [Q]."""
    running = probabilities.detach().double().cumsum(dim=-1)
    exceeded = running > uniforms.to(running).unsqueeze(-1) * running[:, -1:]
    return exceeded.int().argmax(dim=-1)


def select_prompts(
    scores: Tensor,
    texts: Tensor,
    mode: PromptMode,
    *,
    temperature: float = 200.0,
    detach_probs: bool = True,
    uniforms: Tensor | None = None,
) -> PromptSelection:
    """Choose the prompt each query carries into the fusion encoder.

    Args:
        scores: Top-k scores z [Q, W].
        texts: Class texts of the episode [W, D].
        mode: ``sample`` draws from pi, ``argmax`` takes the best class, ``expectation`` mixes the texts by
            pi, ``none`` is a zero prompt.
        temperature: pi = softmax(temperature * z).
        detach_probs: Stop the gradient of ``expectation`` at pi.
        uniforms: One number in [0, 1) per query for ``sample``; drawn from torch's generator when None.

    Returns:
        The prompts with their probabilities.
    """
    probabilities = torch.softmax(temperature * widen(scores), dim=-1)
    best = scores.argmax(dim=-1)
    index: Tensor | None = None
    if mode == "expectation":
        weights = probabilities.detach() if detach_probs else probabilities
        prompts = (weights @ texts.to(weights.dtype)).to(texts.dtype)
    elif mode == "none":
        prompts = torch.zeros_like(texts[:1]).expand(scores.shape[0], -1)
    else:
        if mode == "argmax":
            index = best
        else:
            if uniforms is None:
                uniforms = torch.rand(scores.shape[0], dtype=torch.float64).to(scores.device)
            index = draw(probabilities, uniforms)
        prompts = texts.index_select(0, index)
    return PromptSelection(prompts, probabilities, best, index)
