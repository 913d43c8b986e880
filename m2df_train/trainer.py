"""A training run from recipe to checkpoint: contrastive stage, feature pools, episodic stage, report.

Each stage keeps its state in the run directory, so the same command with `--resume` goes on where a
stopped run was. The head is chosen on validation actions; test actions are read once, at the end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from m2df_runtime.bundle import SourceInfo
from m2df_runtime.errors import InputError, first_line
from m2df_runtime.files import atomic_write
from m2df_train.checkpoint import BEST, Checkpoint, save_checkpoint
from m2df_train.contrastive import train_contrastive
from m2df_train.data.features import FeaturePool, encode_actions
from m2df_train.data.generated import pool_actions
from m2df_train.data.synthetic import Action, split_actions
from m2df_train.episodic import train_head
from m2df_train.evaluate import Accuracy, episode_accuracy
from m2df_train.model.backbone import Backbone, load_backbone
from m2df_train.model.heads import Head, build_head
from m2df_train.recipe import dump_recipe
from m2df_train.torch_scorer import CheckpointScorer

if TYPE_CHECKING:
    from m2df_train.recipe import Evaluation, Recipe

VALIDATION_POOL, TRAINING_POOL, TEST_POOL = 101, 102, 103


class Progress(Protocol):
    """How a run reports: one stage at a time, each a context that gives `advance(done, note)`."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Callable[[int, str], None]]:
        """Begin a stage of `total` steps."""
        ...


@dataclass(frozen=True)
class Result:
    """Outcome of a run: the checkpoint file and, per shot, accuracy on unseen actions of both heads."""

    checkpoint: Path
    trained: list[Accuracy]
    training_free: list[Accuracy]
    chance: float
    seconds: float


def train(recipe: Recipe, folder: Path, progress: Progress) -> Result:
    """Run a recipe in `folder`; stages that are finished or begun there are continued.

    Raises:
        InputError: Weights cannot be had, pictures or head do not fit them, or the state in `folder` belongs to
            another model.
    """
    started = time.monotonic()
    torch.manual_seed(recipe.seed)
    backbone = load_backbone(recipe.model, recipe.pretrained)
    _check_fit(backbone, recipe)
    atomic_write(folder / "recipe.yaml", dump_recipe(recipe).encode())
    if recipe.pretrained is None:
        _contrastive(backbone, recipe, folder, progress)
    head = build_head(recipe.head.name, backbone.dim, recipe.clip.frames, recipe.head.options)
    if any(True for _ in head.parameters()):
        _episodic(backbone, head, recipe, folder, progress)
    result = _evaluate(backbone, head, recipe, folder, progress, started)
    atomic_write(folder / "metrics.json", json.dumps(measured(result), indent=2).encode())
    return result


def _check_fit(backbone: Backbone, recipe: Recipe) -> None:
    """Refuse before anything is trained what only the model can tell of a recipe."""
    if backbone.image_size != recipe.clip.size:
        raise InputError(
            f"clip.size is {recipe.clip.size}, the image tower of {recipe.model} takes {backbone.image_size}"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # the head that is trained starts from the same numbers
            build_head(recipe.head.name, backbone.dim, recipe.clip.frames, recipe.head.options)
    except ValueError as error:
        raise InputError(f"head {recipe.head.name}: {first_line(error)}") from None


def _contrastive(backbone: Backbone, recipe: Recipe, folder: Path, progress: Progress) -> None:
    with progress.stage("image and text towers", recipe.contrastive.steps) as advance:
        train_contrastive(
            backbone,
            recipe,
            folder / "contrastive.pt",
            lambda done, losses: advance(done, "  ".join(f"{name} {value:.3f}" for name, value in losses.items())),
        )


def _pool(
    backbone: Backbone, recipe: Recipe, split: Literal["train", "validation", "test"], progress: Progress
) -> FeaturePool:
    actions: Callable[[], list[Action]]
    spec = recipe.clip
    if split == "train":
        actions = partial(pool_actions, recipe.episodic.composed, recipe.seed)
        clips, seed = recipe.episodic.clips, TRAINING_POOL
        spec = spec.model_copy(update={"sampler": recipe.episodic.sampler or spec.sampler})
    elif split == "validation":
        actions, clips, seed = partial(split_actions, "val"), recipe.evaluation.clips, VALIDATION_POOL
    else:
        actions, clips, seed = partial(split_actions, "test"), recipe.evaluation.clips, TEST_POOL
    with progress.stage(f"{split} clips", len(actions())) as advance:
        return encode_actions(
            backbone,
            spec,
            recipe.prompt,
            actions,
            clips=clips,
            seed=seed,
            random_frames=split == "train",
            report=lambda done: advance(done, ""),
        )


def _episodic(backbone: Backbone, head: Head, recipe: Recipe, folder: Path, progress: Progress) -> None:
    pool = _pool(backbone, recipe, "train", progress)
    validation = _pool(backbone, recipe, "validation", progress)
    best = 0.0
    with progress.stage("head", recipe.episodic.episodes) as advance:

        def report(done: int, loss: float, measured: float | None) -> None:
            nonlocal best
            best = max(best, measured or 0.0)
            advance(done, f"loss {loss:.3f}  best validation {100 * best:.1f} %")

        train_head(
            head,
            pool,
            validation,
            recipe.episodic,
            recipe.evaluation,
            seed=recipe.seed,
            state_file=folder / "episodic.pt",
            report=report,
        )


def _evaluate(
    backbone: Backbone, head: Head, recipe: Recipe, folder: Path, progress: Progress, started: float
) -> Result:
    pool = _pool(backbone, recipe, "test", progress)
    free = build_head("training-free", backbone.dim, recipe.clip.frames)
    trained, training_free = (
        _accuracies(_checkpoint(backbone, candidate, recipe, {}), pool, recipe.evaluation, recipe.seed)
        for candidate in (head, free)
    )
    result = Result(folder / BEST, trained, training_free, 1 / recipe.evaluation.way, time.monotonic() - started)
    save_checkpoint(result.checkpoint, _checkpoint(backbone, head, recipe, measured(result)))
    return result


def _accuracies(checkpoint: Checkpoint, pool: FeaturePool, evaluation: Evaluation, seed: int) -> list[Accuracy]:
    """Accuracy of a model on test episodes, for every number of shots."""
    scorer = CheckpointScorer(checkpoint, "cpu")
    return [
        episode_accuracy(
            scorer,
            pool.features.numpy(),
            pool.labels,
            pool.texts.numpy(),
            way=evaluation.way,
            shot=shot,
            query=evaluation.queries,
            episodes=evaluation.test_episodes,
            seed=seed,
        )
        for shot in evaluation.shots
    ]


def measured(result: Result) -> dict[str, object]:
    """Accuracy on unseen generated actions, in percent, as it is recorded with the checkpoint."""

    def rows(values: list[Accuracy]) -> dict[str, dict[str, float]]:
        return {
            f"{a.way}-way {a.shot}-shot": {"accuracy": round(a.accuracy, 2), "ci95": round(a.ci95, 2)} for a in values
        }

    return {"generated": rows(result.trained), "generated_training_free": rows(result.training_free)}


def _checkpoint(backbone: Backbone, head: Head, recipe: Recipe, measured: dict[str, object]) -> Checkpoint:
    return Checkpoint(
        backbone=backbone.eval(),
        head=head.eval(),
        clip=recipe.clip,
        prompt=recipe.prompt,
        labels={action.name: action.text for action in split_actions("train")},
        source=SourceInfo(
            model=recipe.model,
            pretrained=recipe.pretrained,
            recipe=recipe.name,
            seed=recipe.seed,
            measured=measured,
        ),
    )
