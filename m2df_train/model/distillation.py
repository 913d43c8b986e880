"""Mutual distillation between the local and the global view of CLIP-M2DF (method section 2.8).

Per query the view that is surer of itself teaches the other; queries on which text and visual
confidence disagree are left out when both comparisons are on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from m2df_train.model.options import DistilOptions


@dataclass(frozen=True)
class Distillation:
    """The loss and what decided it.

    Attributes:
        loss: Scalar.
        local_teaches: Set A, queries the local view teaches on, bool [Q].
        global_teaches: Set B [Q].
        visual: Visual confidences v of (local, global) [2, Q].
        text: Text confidences t of (local, global) [2, Q].
    """

    loss: Tensor
    local_teaches: Tensor
    global_teaches: Tensor
    visual: Tensor
    text: Tensor


def _one_way(teacher: Tensor, student: Tensor, weights: Tensor, taught: Tensor | None, detach: bool) -> Tensor:
    """KL(teacher || student) of log distributions [Q, W]: weighted mean over the taught, or a plain sum over all."""
    if detach:
        teacher = teacher.detach()
    divergence = (teacher.exp() * (teacher - student)).sum(dim=-1)  # [Q]
    if taught is None:
        return divergence.sum()
    weights = weights * taught
    # A confidence is a largest probability, so an empty set is the only way the sum can be 0.
    return (weights * divergence).sum() / torch.where(taught.any(), weights.sum(), 1.0)


def mutual_distillation(distances: Tensor, text_cosines: Tensor, options: DistilOptions) -> Distillation:
    """Distillation loss between the views.

    Args:
        distances: Of queries to classes in the (local, global) view [2, Q, W].
        text_cosines: Cosines of the text-part tokens of queries and prototypes [2, Q, W].
        options: Direction, conditions and where the gradient stops; ``text_token`` is the caller's affair.

    Returns:
        The loss, the two sets and the confidences.
    """
    log_p = torch.log_softmax(-distances, dim=-1)  # [2, Q, W]
    visual = log_p.exp().amax(dim=-1)  # [2, Q]
    text = torch.softmax(text_cosines, dim=-1).amax(dim=-1)
    local_teaches = torch.ones_like(visual[0], dtype=torch.bool)
    global_teaches = local_teaches
    for name, confidence in (("t", text), ("v", visual)):
        if name in options.conditions:
            local_wins = confidence[0] >= confidence[1]  # a tie favours the local view
            local_teaches, global_teaches = local_teaches & local_wins, global_teaches & ~local_wins
    reliability = visual + text
    if options.detach_weights:
        reliability = reliability.detach()
    local, other = log_p
    always = not options.conditions
    loss = distances.new_zeros(())
    if options.direction in ("mutual", "local_teaches"):
        taught = None if always else local_teaches
        loss = loss + _one_way(local, other, reliability[0], taught, options.detach_teacher)
    if options.direction in ("mutual", "global_teaches"):
        taught = None if always else global_teaches
        loss = loss + _one_way(other, local, reliability[1], taught, options.detach_teacher)
    return Distillation(loss, local_teaches, global_teaches, visual, text)
