"""The contrastive stage: a small CLIP from nothing, on generated clips and their descriptions.

Three terms at one learned temperature: clips against the batch's texts (CLIP's objective, with all clips
of an action sharing its text), and clips against each other (supervised contrastive), once by the mean of
their frames and once by their frames' best partners. The last two are what few-shot matching on frame
features asks of the image tower, without and with an alignment of frames. The learning rate falls as a cosine, with
warm restarts where there are several cycles (Loshchilov and Hutter, arXiv 1608.03983).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m2df_train.data.generated import Batch, ContrastiveBatches
from m2df_train.data.workers import ordered_map
from m2df_train.interrupt import Interrupted, stoppable
from m2df_train.model.backbone import Backbone, import_open_clip
from m2df_train.recipe.sections import Schedule
from m2df_train.training.batch_augment import PHASES, look_at, vary
from m2df_train.training.schedule import rate_factor, set_rate
from m2df_train.training.state import Part, load_state, save_state

if TYPE_CHECKING:
    from m2df_train.recipe.recipe import Recipe

SAVE_EVERY = 50
SHARPNESS = 10.0  # of the soft choice of a frame's partner: cosines 0.1 apart count 1 : 2.7
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

    Raises:
        Interrupted: Someone asked to stop; the state is written.
    """
    stage = recipe.contrastive
    assert stage is not None
    backbone.train()
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(_groups(backbone, stage.learning_rate, stage.weight_decay))
    parts: dict[str, Part] = {"backbone": backbone, "optimizer": optimizer}
    first = done = int(load_state(state_file, parts).get("done", 0))
    tokenize = import_open_clip().get_tokenizer("ViT-B-32")
    schedule, cycle = Schedule(kind="cosine", warmup=stage.warmup), math.ceil(stage.steps / stage.cycles)
    with closing(_batches(recipe, first)) as batches, stoppable() as stop:
        for step, batch in enumerate(batches, start=first):
            if stop.requested:
                break
            torch.manual_seed(recipe.seed * 1_000_003 + step)
            set_rate(optimizer, rate_factor(schedule, step % cycle, 1, cycle))
            for look in range(stage.looks):
                losses = _losses_of(backbone, recipe, look_at(batch, look), step * stage.looks + look, tokenize)
                _step(backbone, optimizer, losses["text"] + losses["clips"] + losses["frames"])
            done = step + 1
            report(done, {name: value.item() for name, value in losses.items()})
            if done % SAVE_EVERY == 0:
                save_state(state_file, parts, {"done": done})
        if done > first:
            save_state(state_file, parts, {"done": done})
    if done < stage.steps:
        raise Interrupted(f"stopped after {done} of {stage.steps} steps of the contrastive stage")
    backbone.eval()


def _losses_of(
    backbone: Backbone, recipe: Recipe, batch: Batch, update: int, tokenize: Callable[[list[str]], Tensor]
) -> dict[str, Tensor]:
    stage = recipe.contrastive
    assert stage is not None
    clips = torch.from_numpy(batch.clips)
    if stage.varied:
        clips = vary(clips, torch.Generator().manual_seed(recipe.seed * 1_000_003 + update))
    with torch.autocast(backbone.log_scale.device.type, torch.bfloat16, enabled=stage.precision == "bf16"):
        features = backbone.encode_frames(clips, recipe.clip.deployed, like_text=True).float()  # (N, T, D)
        texts = backbone.encode_text(tokenize(list(batch.texts)).to(features.device)).float()  # (P, D + A)
    texts = texts[:, : features.shape[-1]]
    return contrastive_losses(features, texts, torch.from_numpy(batch.classes), backbone.logit_scale)


def _step(backbone: Backbone, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(backbone.parameters(), 5.0)
    optimizer.step()
    with torch.no_grad():
        backbone.log_scale.clamp_(0.0, MAX_LOGIT_SCALE)


def contrastive_losses(features: Tensor, texts: Tensor, classes: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Mean losses of one batch: `text` (clip-text, both ways), `clips` (by mean frames) and `frames` (by partners).

    Args:
        features: Frames of N clips [N, T, D].
        texts: One for each class of the batch [P, D].
        classes: Class 0..P-1 of each clip [N].
        scale: What cosines are multiplied with, a scalar.
    """
    clips = F.normalize(features.mean(dim=1), dim=-1)  # (N, D)
    logits = scale * clips @ F.normalize(texts, dim=-1).T  # (N, P)
    classes = classes.to(features.device)
    member = F.one_hot(classes, len(texts)).to(logits.dtype)  # (N, P)
    text_to_clip = -((member / member.sum(dim=0)) * logits.log_softmax(dim=0)).sum(dim=0).mean()
    return {
        "text": 0.5 * (F.cross_entropy(logits, classes) + text_to_clip),
        "clips": supervised_contrastive(scale * clips @ clips.T, classes),
        "frames": supervised_contrastive(scale * partner_similarities(features), classes),
    }


def partner_similarities(features: Tensor) -> Tensor:
    """Mean cosine of each clip's frames with their best partners in another clip: [N, T, D] -> [N, N], symmetric.

    The best partner is chosen softly, by a log-mean-exp over the other clip's frames.
    """
    count, frames = features.shape[:2]
    unit = F.normalize(features, dim=-1).flatten(0, 1)  # (N * T, D)
    cosines = (unit @ unit.T).unflatten(1, (count, frames)).unflatten(0, (count, frames))  # (N, T, N, T)
    best = ((SHARPNESS * cosines).logsumexp(dim=3) - math.log(frames)) / SHARPNESS  # (N, T, N)
    one_way = best.mean(dim=1)  # (N, N)
    return 0.5 * (one_way + one_way.T)


def supervised_contrastive(similarities: Tensor, classes: Tensor) -> Tensor:
    """Mean negative log-probability of a clip's own class among all other clips.

    Args:
        similarities: Scaled cosines [N, N]; the diagonal is ignored.
        classes: [N]; each class has at least two clips.
    """
    own = torch.eye(len(classes), dtype=torch.bool, device=classes.device)
    log_p = similarities.masked_fill(own, -torch.inf).log_softmax(dim=1)  # (N, N)
    positive = (classes[:, None] == classes[None, :]) & ~own
    return -(log_p.masked_fill(~positive, 0.0).sum(dim=1) / positive.sum(dim=1)).mean()


def _groups(module: torch.nn.Module, rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases, norms, scales and embeddings do not."""
    decayed = [p for n, p in module.named_parameters() if p.ndim > 1 and "embedding" not in n]
    ids = {id(p) for p in decayed}
    rest = [p for p in module.parameters() if id(p) not in ids]
    kinds = ((decayed, weight_decay), (rest, 0.0))
    return [{"params": params, "base_rate": rate, "weight_decay": decay} for params, decay in kinds]


def _batches(recipe: Recipe, first: int) -> Generator[Batch, None, None]:
    """The batches from step `first` on, rendered ahead in a process beside this one."""
    stage = recipe.contrastive
    assert stage is not None
    batches = ContrastiveBatches(
        recipe.clip.deployed.model_copy(update={"frames": PHASES * stage.frames, "sampler": "segment"}),
        classes=stage.classes,
        clips=stage.clips,
        composed=stage.composed,
        seed=recipe.seed,
    )
    return ordered_map(batches, range(first, stage.steps), workers=1)
