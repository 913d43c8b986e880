"""A training run from recipe to checkpoint: contrastive stage, clips, episodic stage, report.

Each stage keeps its state in the run directory, so the same command with `--resume` goes on where a
stopped run was. Weights are chosen on validation classes; test classes are read once, at the end.
"""

from __future__ import annotations

import json
import shlex
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from m2df_runtime.bundle.manifest import SourceInfo
from m2df_runtime.errors import CheckFailed, InputError, first_line
from m2df_runtime.files import atomic_write
from m2df_runtime.progress import Progress, silent
from m2df_train.cache.encoding import encode_prompts, frame_cache
from m2df_train.data.augment import Augmentation
from m2df_train.data.episode_clips import EpisodeClips
from m2df_train.data.episodes import EpisodeSampler
from m2df_train.data.splits import ClipSet, Splits, keep_division, load_splits
from m2df_train.data.workers import worker_count
from m2df_train.interrupt import Interrupted, Stop
from m2df_train.model.backbone import Backbone, load_backbone
from m2df_train.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from m2df_train.model.heads import TrainingFreeOptions, build_head
from m2df_train.model.run_folder import BEST, RECIPE
from m2df_train.public_benchmarks import Spelling
from m2df_train.recipe.places import model_name, weights_name
from m2df_train.recipe.recipe import Recipe, dump_recipe
from m2df_train.synthetic import split_actions
from m2df_train.training.contrastive import train_contrastive
from m2df_train.training.episode_source import EpisodeSource, FeatureEpisodes, PixelEpisodes
from m2df_train.training.episodic import EpisodicStage, Hooks, Update, Validation
from m2df_train.training.run_features import Pools
from m2df_train.training.run_log import RunLog
from m2df_train.training.run_report import Result, SplitResult, measured
from m2df_train.training.split_accuracy import possible_way
from m2df_train.training.tuning import TrainedModel, TunedBackbone

if TYPE_CHECKING:
    from m2df_train.training.processes import Processes

CONTRASTIVE_STATE, EPISODIC_STATE = "contrastive.pt", "episodic.pt"
VALIDATION_SEED = 1


def train(recipe: Recipe, folder: Path, progress: Progress, processes: Processes) -> Result | None:
    """Run a recipe in `folder`; stages that are finished or begun there are continued.

    Args:
        recipe: The recipe.
        folder: The run's folder, the same in all processes.
        progress: Told by the main process alone.
        processes: Who shares the work.

    Returns:
        The result; None in all processes but the main one.

    Raises:
        InputError: Weights or clips cannot be had, pictures or head do not fit them, or the state in `folder`
            belongs to another model.
        CheckFailed: A loss is not finite.
        Interrupted: Someone asked to stop; the state is written.
        SystemExit: Either of these two in a process that is not the main one, which has said it.
    """
    try:
        return _Run(recipe, folder, progress if processes.is_main else silent, processes).run()
    except Interrupted as error:
        stopped = Interrupted(error.message, f"go on with: {resume_command(folder)}")
        raise (stopped if processes.is_main else SystemExit(stopped.exit_code)) from None
    except CheckFailed as error:
        if processes.is_main:
            raise
        raise SystemExit(error.exit_code) from None


def resume_command(folder: Path) -> str:
    """The command line that goes on with a run."""
    return shlex.join(["m2df-train", "--recipe", str(folder / RECIPE), "--out", str(folder), "--resume"])


class _Run:
    def __init__(self, recipe: Recipe, folder: Path, progress: Progress, processes: Processes) -> None:
        self._recipe, self._folder, self._progress, self._processes = recipe, folder, progress, processes
        self._started = time.monotonic()
        self._splits: Splits = load_splits(recipe, folder)
        self._pools = Pools(recipe, processes.device, progress)

    def run(self) -> Result | None:
        recipe, processes = self._recipe, self._processes
        with processes.main_first():  # it downloads, the others find the file
            torch.manual_seed(recipe.seed)
            backbone = load_backbone(recipe.model, recipe.pretrained).to(processes.device)
        backbone.name = model_name(recipe.model)  # as it goes with the weights
        _check_fit(backbone, recipe)
        if processes.is_main:
            atomic_write(self._folder / RECIPE, dump_recipe(recipe).encode())
            keep_division(self._splits, self._folder)
        if recipe.contrastive is not None:
            self._contrastive(backbone)
        torch.manual_seed(recipe.seed)  # whatever the stage before drew, or did not draw because it was finished
        head = build_head(recipe.head.name, backbone.dim, recipe.clip.frames, recipe.head.options)
        model = TrainedModel(head.to(processes.device), TunedBackbone(backbone, recipe.tuning))
        if model.parameters:
            self._episodic(model)
        elif processes.is_main:
            self._save(model, BEST)
        return self._report() if processes.is_main else None

    def _contrastive(self, backbone: Backbone) -> None:
        stage, processes = self._recipe.contrastive, self._processes
        assert stage is not None
        if processes.is_main:
            with self._progress("image and text towers", stage.steps) as advance:
                shown = 0

                def report(done: int, losses: dict[str, float]) -> None:
                    nonlocal shown
                    steps, shown = done - shown, done
                    advance(steps, "  ".join(f"{name} {value:.3f}" for name, value in losses.items()))

                train_contrastive(backbone, self._recipe, self._folder / CONTRASTIVE_STATE, report)
        processes.copy_weights(backbone)

    def _episodic(self, model: TrainedModel) -> None:
        recipe = self._recipe
        source = self._source(model)
        if model.tuned.tower is None and self._processes.is_main:  # here and not later, to show how far it is
            self._pools.of(model.tuned.backbone, self._splits.validation, "validation")
        with ExitStack() as stack:
            advance = stack.enter_context(self._progress("episodes", recipe.train.episodes))
            log = stack.enter_context(RunLog(self._folder))
            finished, note, best = 0, "", ""

            def validate(stop: Stop) -> Validation:
                advance(0, "validation")
                return self._validate(model, stop)

            def updated(update: Update) -> None:
                nonlocal finished, note
                steps, finished = update.done - finished, update.done
                note = f"loss {update.losses['total']:.3f}  accuracy {100 * update.accuracy:.0f} %"
                log.updated(update)
                advance(steps, note + best)

            def validated(done: int, found: Validation, highest: float) -> None:
                nonlocal best
                best = f"  best validation {100 * highest:.1f} %"
                log.validated(done, found)
                advance(0, note + best)

            hooks = Hooks(validate, lambda name: self._save(model, name), updated, validated)
            state = self._folder / EPISODIC_STATE
            EpisodicStage(model, source, recipe.train, self._processes, hooks, seed=recipe.seed, state_file=state).run()

    def _source(self, model: TrainedModel) -> EpisodeSource:
        recipe, processes, training, backbone = self._recipe, self._processes, self._splits.train, model.tuned.backbone
        shuffled = recipe.train.shuffled_prompts
        if model.tuned.tower is None:
            with processes.main_first():  # it encodes, the others find the features
                pool = self._pools.training(backbone, training)
            return FeatureEpisodes(pool, self._samplers(pool.labels), shuffled, processes.device)
        clips = EpisodeClips(
            training.clips,
            self._samplers(training.labels),
            Augmentation.of(recipe.clip.training, recipe.data),
            cache=frame_cache(recipe),
            workers=max(1, worker_count() // processes.on_machine),
        )
        texts = encode_prompts(backbone, [recipe.prompt.replace("{}", text) for text in training.texts.values()])
        return PixelEpisodes(clips, backbone, recipe.clip.deployed, texts, shuffled, recipe.seed)

    def _samplers(self, labels: tuple[str, ...]) -> list[EpisodeSampler]:
        stage = self._recipe.train
        return [
            EpisodeSampler(
                labels,
                way=possible_way(labels, stage.way, shot, stage.queries, "training"),
                shot=shot,
                query=stage.queries,
                seed=self._recipe.seed,
            )
            for shot in stage.shots
        ]

    def _validate(self, model: TrainedModel, stop: Stop) -> Validation:
        """Accuracy of the model as it is now."""
        pool = self._pools.of(model.tuned.backbone, self._splits.validation, "validation", stop)
        episodes = self._recipe.evaluation.validation_episodes
        found = self._pools.measure(model.head, pool, "validation", episodes=episodes, seed=VALIDATION_SEED, stop=stop)
        return {result.shot: result.accuracy / 100 for result in found}

    def _save(self, model: TrainedModel, name: str) -> None:
        recipe = self._recipe
        shared = _shared(recipe)
        source = SourceInfo(
            model=shared["model"],
            pretrained=shared["pretrained"],
            recipe=recipe.name,
            seed=recipe.seed,
            training={"recipe": shared},
        )
        checkpoint = Checkpoint(
            model.tuned.plain(), model.head, recipe.clip.deployed, recipe.prompt, self._texts(), source
        )
        save_checkpoint(self._folder / name, checkpoint)

    def _texts(self) -> dict[str, str]:
        """Texts of the training classes. Composed actions have numbers for names, which say nothing to a user."""
        texts = self._splits.train.texts
        if self._recipe.data.root is not None:
            return texts
        named = {action.name for action in split_actions("train")}
        return {name: text for name, text in texts.items() if name in named}

    def _report(self) -> Result:
        """Measure what was saved as best, and write what was measured beside it."""
        recipe, path = self._recipe, self._folder / BEST
        best = load_checkpoint(path)
        best.backbone.to(self._processes.device)
        options = TrainingFreeOptions(appearance=best.head.options.appearance)
        free = build_head("training-free", best.backbone.dim, recipe.clip.frames, options)
        found: dict[str, SplitResult] = {}
        sets: dict[str, ClipSet] = {"validation": self._splits.validation, "test": self._splits.test}
        for split, clips in sets.items():
            if clips.clips:
                pool = self._pools.of(best.backbone, clips, split)
                episodes = recipe.evaluation.test_episodes
                found[split] = SplitResult(
                    *(
                        self._pools.measure(head, pool, split, episodes=episodes, seed=recipe.seed)
                        for head in (best.head, free)
                    )
                )
        values = measured(found)
        save_checkpoint(path, replace(best, source=best.source.model_copy(update={"measured": values})))
        atomic_write(self._folder / "metrics.json", json.dumps(values, indent=2).encode())
        return Result(path, found, time.monotonic() - self._started)


def _shared(recipe: Recipe) -> dict[str, Any]:
    """A recipe as it goes with the weights wherever they go: without the places of files on this machine."""
    values = recipe.model_dump(mode="json", exclude={"data": {"root", "split_files"}})
    if values["data"]["labels"] not in get_args(Spelling):
        del values["data"]["labels"]
    values["model"] = model_name(recipe.model)
    values["pretrained"] = recipe.pretrained and weights_name(recipe.pretrained)
    return values


def _check_fit(backbone: Backbone, recipe: Recipe) -> None:
    """Refuse before anything is trained what only the model can tell of a recipe."""
    problem = backbone.clip_problem(recipe.clip.deployed)
    if problem is not None:
        raise InputError(problem)
    try:
        head = build_head(recipe.head.name, backbone.dim, recipe.clip.frames, recipe.head.options)
    except ValueError as error:
        raise InputError(f"head {recipe.head.name}: {first_line(error)}") from None
    if head.options.appearance.dim != backbone.appearance_dim:
        raise InputError(
            f"head.options.appearance.dim is {head.options.appearance.dim}, "
            f"the image tower of {recipe.model} gives {backbone.appearance_dim} numbers of appearance"
        )
