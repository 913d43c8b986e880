"""Encoded clips of a run: training clips that are encoded once, and clips that a model is measured on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2df_runtime.progress import Progress, silent
from m2df_train.cache.encoding import FeaturePool, feature_cache, frame_cache, pool_of
from m2df_train.cache.features import FeatureCache
from m2df_train.data.splits import ClipSet
from m2df_train.evaluation.accuracy import Accuracy
from m2df_train.evaluation.torch_scorer import HeadScorer
from m2df_train.interrupt import Interrupted, Stop
from m2df_train.model.backbone import Backbone
from m2df_train.model.heads import Head
from m2df_train.training.split_accuracy import accuracies

if TYPE_CHECKING:
    import torch

    from m2df_train.recipe.recipe import Recipe


class Pools:
    """Encodes clips with a backbone; where that is not trained, every set once for the run, on disk for later runs.

    A backbone that is trained encodes them anew each time, and nothing of that is kept but decoded frames.

    Args:
        recipe: The recipe.
        device: Where heads run.
        progress: Told of encoding that happens outside of the training of episodes.
    """

    def __init__(self, recipe: Recipe, device: torch.device, progress: Progress) -> None:
        self._recipe, self._device, self._progress = recipe, device, progress
        self._fixed = recipe.tuning.strategy == "frozen"
        self._cache = feature_cache(recipe) if self._fixed else FeatureCache(None, 0)
        self._frames = None if self._fixed else frame_cache(recipe)
        self._kept: dict[str, FeaturePool] = {}

    def training(self, backbone: Backbone, clips: ClipSet) -> FeaturePool:
        """Random variants of training clips [N, views, T, D], for a backbone that is not trained.

        Raises:
            InputError: No clip can be read.
        """
        return self._encoded(backbone, clips, "training", None)

    def of(self, backbone: Backbone, clips: ClipSet, split: str, stop: Stop | None = None) -> FeaturePool:
        """Clips of another split as deployment sees them, one view each.

        Raises:
            InputError: No clip can be read.
            Interrupted: `stop` was requested.
        """
        if split not in self._kept:
            pool = self._encoded(backbone, clips, split, stop)
            if not self._fixed:
                return pool
            self._kept[split] = pool
        return self._kept[split]

    def measure(
        self, head: Head, pool: FeaturePool, split: str, *, episodes: int, seed: int, stop: Stop | None = None
    ) -> list[Accuracy]:
        """Accuracy of a head on a split, for every number of shots; it is in evaluation mode afterwards.

        Raises:
            CheckFailed: The head gives scores that are not finite.
            Interrupted: `stop` was requested.
        """
        return accuracies(
            HeadScorer(head, self._device),
            pool,
            self._recipe.evaluation,
            split=split,
            episodes=episodes,
            seed=seed,
            advance=lambda count: _leave_if(stop),
        )

    def _encoded(self, backbone: Backbone, clips: ClipSet, split: str, stop: Stop | None) -> FeaturePool:
        recipe = self._recipe
        # Where there is a `stop`, the bar of the episodes is on the screen.
        progress = self._progress if stop is None else silent
        with progress(f"{split} clips", len(clips.clips)) as advance:

            def report(steps: int) -> None:
                _leave_if(stop)
                advance(steps)

            training = split == "training"
            return pool_of(backbone.eval(), clips, recipe, self._cache, training, report, frames=self._frames)


def _leave_if(stop: Stop | None) -> None:
    if stop is not None and stop.requested:
        raise Interrupted("stopped")
