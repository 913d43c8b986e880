"""The contrastive stage: a small CLIP from nothing, on generated clips and their descriptions.

Two terms at one learned temperature: clips against the batch's texts (CLIP's objective, with all clips
of an action sharing its text), and clips against each other (supervised contrastive), which is what
few-shot matching on frame features asks of the image tower.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from m2df_runtime.preprocess import ClipSpec
from m2df_train.data.generated import Batch, ContrastiveBatches, worker_options
from m2df_train.model.backbone import Backbone, import_open_clip
from m2df_train.state import load_state, save_state

if TYPE_CHECKING:
    from m2df_train.recipe import Recipe

SAVE_EVERY = 50
MAX_LOGIT_SCALE = math.log(100.0)  # CLIP's own bound


def train_contrastive(
    backbone: Backbone, recipe: Recipe, state_file: Path, report: Callable[[int, dict[str, float]], None]
) -> None:
    """Train both towers in place; continues from `state_file` where an earlier run stopped.

    Args:
        backbone: Freshly created CLIP.
        recipe: Its `contrastive` section is used.
        state_file: Weights and optimizer are kept here every 50 steps.
        report: Called after every step with the number of finished steps and the losses.
    """
    stage = recipe.contrastive
    backbone.train()
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(_groups(backbone, stage.weight_decay), lr=stage.learning_rate)
    first, _ = load_state(state_file, backbone, optimizer)
    tokenize = import_open_clip().get_tokenizer("ViT-B-32")
    done = first
    try:
        for step, batch in enumerate(_loader(recipe, first), start=first):
            torch.manual_seed(recipe.seed * 1_000_003 + step)
            set_learning_rate(optimizer, cosine_schedule(step, stage.steps, stage.warmup) * stage.learning_rate)
            losses = contrastive_losses(backbone, recipe.clip, batch, tokenize)
            _step(backbone, optimizer, losses["text"] + losses["clips"])
            done = step + 1
            if done % SAVE_EVERY == 0:
                save_state(state_file, done, backbone, optimizer)
            report(done, {name: value.item() for name, value in losses.items()})
    finally:  # also where Ctrl-C stops it
        if done > first:
            save_state(state_file, done, backbone, optimizer)
    backbone.eval()


def _step(backbone: Backbone, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(backbone.parameters(), 5.0)
    optimizer.step()
    with torch.no_grad():
        backbone.log_scale.clamp_(0.0, MAX_LOGIT_SCALE)


def contrastive_losses(
    backbone: Backbone, clip: ClipSpec, batch: Batch, tokenize: Callable[[list[str]], Tensor]
) -> dict[str, Tensor]:
    """Mean losses of one batch: `text` (clip-text, both ways) and `clips` (clip-clip)."""
    frames = torch.from_numpy(batch.clips)
    features = backbone.encode_frames(frames, clip)  # (N, T, D)
    clips = F.normalize(features.mean(dim=1), dim=-1)  # (N, D)
    texts = F.normalize(backbone.encode_text(tokenize(list(batch.texts))), dim=-1)  # (P, D)
    classes = torch.from_numpy(batch.classes)
    scale = backbone.logit_scale
    logits = scale * clips @ texts.T  # (N, P)
    member = F.one_hot(classes, len(batch.texts)).to(logits.dtype)  # (N, P)
    text_to_clip = -((member / member.sum(dim=0)) * logits.log_softmax(dim=0)).sum(dim=0).mean()
    return {
        "text": 0.5 * (F.cross_entropy(logits, classes) + text_to_clip),
        "clips": supervised_contrastive(scale * clips @ clips.T, classes),
    }


def supervised_contrastive(similarities: Tensor, classes: Tensor) -> Tensor:
    """Mean negative log-probability of a clip's own class among all other clips.

    Args:
        similarities: Scaled cosines [N, N]; the diagonal is ignored.
        classes: [N]; each class has at least two clips.
    """
    own = torch.eye(len(classes), dtype=torch.bool)
    log_p = similarities.masked_fill(own, -torch.inf).log_softmax(dim=1)  # (N, N)
    positive = (classes[:, None] == classes[None, :]) & ~own
    return -(log_p.masked_fill(~positive, 0.0).sum(dim=1) / positive.sum(dim=1)).mean()


def cosine_schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up to 1, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameter groups one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases, norms, scales and embeddings do not."""
    decayed = [p for n, p in module.named_parameters() if p.ndim > 1 and "embedding" not in n]
    ids = {id(p) for p in decayed}
    rest = [p for p in module.parameters() if id(p) not in ids]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _loader(recipe: Recipe, first: int) -> DataLoader[Any]:
    stage = recipe.contrastive
    batches = ContrastiveBatches(
        recipe.clip.model_copy(update={"frames": stage.frames, "sampler": "segment"}),
        steps=stage.steps,
        classes=stage.classes,
        clips=stage.clips,
        composed=stage.composed,
        seed=recipe.seed,
    )
    return DataLoader(batches, sampler=range(first, stage.steps), **worker_options())  # type: ignore[arg-type]
