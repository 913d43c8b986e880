"""The optimiser of a run and its learning rate over the episodes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from m2df_train.recipe.sections import Schedule, TrainStage

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def rate_factor(schedule: Schedule, done: int, step: int, total: int) -> float:
    """Share of the learning rate an update has.

    The rise of the warm-up is read at the end of the update and the fall at its beginning, so that
    neither the first nor the last update is one of rate 0.

    Args:
        schedule: The rule.
        done: Episodes before the update.
        step: Episodes of the update.
        total: Episodes of the run.
    """
    rise = min(1.0, (done + step) / schedule.warmup) if schedule.warmup else 1.0
    factor = schedule.start + (1.0 - schedule.start) * rise
    if schedule.kind == "steps":
        return factor * schedule.factor ** sum(done >= milestone for milestone in schedule.milestones)
    if schedule.kind == "cosine" and done > schedule.warmup:
        return factor * 0.5 * (1.0 + math.cos(math.pi * (done - schedule.warmup) / max(1, total - schedule.warmup)))
    return factor


def build_optimizer(head: nn.Module, tower: nn.Module | None, stage: TrainStage) -> torch.optim.Optimizer:
    """Adam or AdamW over what is trained: head and image tower at their own rates, norms without weight decay.

    Args:
        head: The head.
        tower: The image tower; those of its parameters that require gradients are trained.
        stage: Optimiser, rates and weight decay.
    """
    groups = _groups(head, stage.learning_rate, stage.weight_decay)
    if tower is not None:
        groups += _groups(tower, stage.learning_rate * stage.backbone_rate, stage.weight_decay)
    kind = torch.optim.AdamW if stage.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=stage.learning_rate)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every parameter group its own learning rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor


def _groups(module: nn.Module, rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters to train as one group that decays and one that does not; empty groups are left out."""
    of_norms = {id(p) for part in module.modules() if isinstance(part, NORMS) for p in part.parameters(recurse=False)}
    trained = [p for p in module.parameters() if p.requires_grad]
    kinds: Iterable[tuple[list[nn.Parameter], float]] = (
        ([p for p in trained if id(p) not in of_norms], weight_decay),
        ([p for p in trained if id(p) in of_norms], 0.0),
    )
    return [{"params": ps, "base_rate": rate, "weight_decay": decay} for ps, decay in kinds if ps]
