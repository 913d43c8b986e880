"""The clips `m2df-eval` draws its episodes from: a folder, splits of a benchmark or of a run, or generated actions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m2df_runtime.errors import InputError
from m2df_runtime.progress import Progress, silent
from m2df_train.data.benchmark_clips import find_clips
from m2df_train.data.clips import LabelledClip, chosen_classes, clip_groups, folder_clips, generated_clips
from m2df_train.evaluation.episode_run import EpisodePlan
from m2df_train.model.run_folder import RECIPE
from m2df_train.public_benchmarks import BenchmarkName, Split, benchmark

SPLIT_NAMES: dict[str, Split] = {"train": "train", "validation": "val", "test": "test"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitClips:
    """Labelled clips, the split they are (None where all of a folder is taken), and texts known of their classes."""

    split: str | None
    clips: Sequence[LabelledClip]
    texts: Mapping[str, str]


@dataclass(frozen=True)
class EpisodeOptions:
    """How episodes are drawn; `groups` is the regular expression that names a clip's group, or None."""

    way: int
    shots: tuple[int, ...]
    query: int
    episodes: int
    seed: int
    groups: str | None

    def plan(self, shot: int, episodes: int | None = None) -> EpisodePlan:
        """The episodes of this number of support clips; so many instead of all."""
        return EpisodePlan(self.way, shot, self.query, self.episodes if episodes is None else episodes, self.seed)

    def groups_of(self, names: Sequence[str]) -> list[str] | None:
        """Group of every clip. Raises InputError where the expression does not fit."""
        return None if self.groups is None else clip_groups(names, self.groups)

    def check(self, labels: Sequence[str], names: Sequence[str]) -> None:
        """Refuse impossible episodes before minutes of encoding, and say which classes are not drawn.

        Raises:
            InputError: Fewer than `way` classes have clips enough, or a group expression that does not fit.
        """
        groups = self.groups_of(names)
        for shot in self.shots:
            sampler = self.plan(shot).sampler(labels, groups)
            if sampler.excluded:
                few = ", ".join(f"{name} ({count})" for name, count in sampler.excluded.items())
                _log.warning("%d-shot: classes with too few clips are not drawn: %s", shot, few)


def folder_sets(data: Path | None, classes: Sequence[str] | None) -> list[SplitClips]:
    """All clips of a folder of class folders; without one, the generated test actions.

    Raises:
        InputError: No such folder, no clip in it, or a class that is not in it.
    """
    if data is None:
        return [SplitClips("test", generated_clips(classes=classes), {})]
    clips, warnings = folder_clips(data, classes)
    for warning in warnings:
        _log.warning("%s", warning)
    return [SplitClips(None, clips, {})]


def benchmark_sets(
    data: Path,
    dataset: BenchmarkName,
    splits: Sequence[str],
    split_files: Path | None,
    classes: Sequence[str] | None,
    progress: Progress = silent,
) -> list[SplitClips]:
    """The clips of splits of a benchmark, with the texts of its classes; arguments as in `find_clips`.

    Raises:
        InputError: No download, no list or no clip of a split, or a class that is not in it.
    """
    texts = benchmark(dataset).texts()
    sets = []
    for split in splits:
        with progress(f"listing {split} clips of {data}"):
            found = find_clips(data, dataset, SPLIT_NAMES[split], split_files, classes)
        sets.append(SplitClips(split, found, texts))
    return sets


def run_sets(run: Path, data: Path | None, splits: Sequence[str], classes: Sequence[str] | None) -> list[SplitClips]:
    """The clips of splits as a training run divided them, by the recipe beside its checkpoint.

    Args:
        run: Run directory, or a checkpoint in it.
        data: Where the recipe's clips are now, if not in their place.
        splits: Names of `SPLIT_NAMES`.
        classes: Only these classes; None for all.

    Raises:
        InputError: No recipe, clips that are not there, a split without classes, or a class that is not in it.
    """
    from m2df_train.data.splits import load_splits
    from m2df_train.recipe.recipe import load_recipe

    folder = run if run.is_dir() else run.parent
    file = folder / RECIPE
    if not file.is_file():
        raise InputError(f"{run}: --split follows the recipe of a run, and there is no {file}", "or name --dataset")
    recipe = load_recipe(str(file))
    if data is not None:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": str(data)})})
    divided = load_splits(recipe, folder)
    sets = []
    for split in splits:
        found = getattr(divided, split)
        if not found.clips:
            raise InputError(f"{file}: the run keeps no {split} classes")
        chosen = set(chosen_classes(list(found.texts), classes, f"{file}, {split}"))
        sets.append(SplitClips(split, [clip for clip in found.clips if clip.label in chosen], found.texts))
    return sets
