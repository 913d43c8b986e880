"""The episodic stage: head and image tower learn to match on episodes.

What an episode holds and all randomness in it follow from the seed and its number, and an update is the
sum over its episodes. So the weights depend neither on how often the run was stopped nor on the number of
processes it was dealt to. Statistics of batches alone, where `bn_mode` lets them move, are averaged over
the processes and do depend on their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch

from m2df_runtime.errors import CheckFailed, EnvironmentMissing
from m2df_train.interrupt import Interrupted, Stop, stoppable
from m2df_train.model.heads import Episode
from m2df_train.model.run_folder import BEST, LAST
from m2df_train.training.episode_source import EpisodeSource
from m2df_train.training.gradients import GradientSum
from m2df_train.training.processes import Processes
from m2df_train.training.schedule import build_optimizer, rate_factor, set_rate
from m2df_train.training.state import Part, load_state, save_state
from m2df_train.training.tuning import TrainedModel

if TYPE_CHECKING:
    from m2df_train.recipe.sections import TrainStage

LOSSES = ("total", "match", "text", "distillation")
_DRAW_RANDOMNESS = 7  # of dropout and sampled prompts, apart from the other randomness of an episode
_SAVE_SECONDS = 600.0

Validation = dict[int, float]  # shots to accuracy, 0 to 1


@dataclass(frozen=True)
class Update:
    """An update that was made.

    Attributes:
        done: Episodes finished.
        losses: Mean over the update's episodes of the losses named in `LOSSES`.
        accuracy: Of its queries, 0 to 1.
        gradient: Norm of its gradient.
        rate: Learning rate of the head.
    """

    done: int
    losses: dict[str, float]
    accuracy: float
    gradient: float
    rate: float


@dataclass(frozen=True)
class Hooks:
    """What the stage leaves to its caller; only the main process calls.

    Attributes:
        validate: Measures the model as it is; may call `stop.requested` and raise Interrupted.
        save: Writes a checkpoint of that file name.
        updated: Told of every update.
        validated: Told of every validation: finished episodes, accuracies, best mean accuracy so far.
    """

    validate: Callable[[Stop], Validation]
    save: Callable[[str], None]
    updated: Callable[[Update], None]
    validated: Callable[[int, Validation, float], None]


class EpisodicStage:
    """Trains a model in place.

    Args:
        model: Head and tower.
        source: The episodes.
        stage: Number of episodes, optimiser.
        processes: Who shares the work.
        hooks: Validation, checkpoints, reports.
        seed: Dropout and sampled prompts follow from it.
        state_file: The state is kept there, at every validation and every ten minutes.
    """

    def __init__(
        self,
        model: TrainedModel,
        source: EpisodeSource,
        stage: TrainStage,
        processes: Processes,
        hooks: Hooks,
        *,
        seed: int,
        state_file: Path,
    ) -> None:
        self._model, self._source, self._stage = model, source, stage
        self._processes, self._hooks = processes, hooks
        self._seed, self._file = seed, state_file
        self._optimizer = build_optimizer(model.head, model.tuned.tower, stage)
        self._gradients = GradientSum(model.parameters)
        self._done, self._validated, self._best = 0, -1, -1.0
        self._saved = time.monotonic()

    def run(self) -> None:
        """Train to the end, from where the state says.

        Raises:
            InputError: The state is damaged or another model's.
            CheckFailed: A loss or gradient is not finite.
            Interrupted: Someone asked to stop; the state is written.
        """
        numbers = load_state(self._file, self._parts())
        self._done = int(numbers.get("done", 0))
        self._validated = int(numbers.get("validated", -1))
        self._best = numbers.get("best", -1.0)
        total, step = self._stage.episodes, self._stage.per_update
        updates = [range(first, min(first + step, total)) for first in range(self._done, total, step)]
        stream = self._source.stream([n for update in updates for n in self._processes.share(update)])
        with stoppable() as stop:
            self._maybe_validate(stop)
            for update in updates:
                made = self._update(update, stream, stop)
                if made is None:
                    self._interrupted()
                if self._processes.is_main:
                    self._hooks.updated(made)
                self._maybe_validate(stop)
                if time.monotonic() - self._saved > _SAVE_SECONDS:
                    self._save()

    def _update(self, update: range, stream: Iterator[Callable[[], Episode]], stop: Stop) -> Update | None:
        """One update, or None where a process was asked to stop; everything is then as it was before."""
        stage, processes = self._stage, self._processes
        factor = rate_factor(stage.schedule, self._done, len(update), stage.episodes)
        set_rate(self._optimizer, factor)
        self._gradients.clear()
        self._model.train(validated=self._done >= stage.validate_every)
        statistics = self._model.tuned.statistics()
        before = [value.clone() for value in statistics]
        table = torch.zeros(len(update) + 1, len(LOSSES) + 1, dtype=torch.float64)  # the last row: who stops
        for number in processes.share(update):
            row = self._episode(number, len(update), stream, stop)
            if row is None:
                table[-1, 0] = 1
                break
            table[number - update.start] = row
        table = processes.sum(table).cpu()
        if table[-1, 0]:
            for value, old in zip(statistics, before, strict=True):
                value.copy_(old)
            return None
        self._check_losses(update, table[:-1, 0])
        self._gradients.finish(processes)
        processes.average(statistics)
        gradient = processes.step(self._optimizer, self._model.parameters, stage.clip_norm)
        if gradient is None:
            raise self._not_finite(f"the gradient of episodes {update.start} to {update.stop - 1} is not finite")
        self._done = update.stop
        *losses, accuracy = table[:-1].mean(dim=0).tolist()
        rate = stage.learning_rate * factor
        return Update(self._done, dict(zip(LOSSES, losses, strict=True)), accuracy, gradient, rate)

    def _episode(
        self, number: int, episodes: int, stream: Iterator[Callable[[], Episode]], stop: Stop
    ) -> torch.Tensor | None:
        """Add the gradients of one of an update's episodes; its losses and accuracy, or None to stop."""
        try:
            prepared = next(stream)
        except EnvironmentMissing:  # the signal reached the workers too
            if stop.requested:
                return None
            raise
        if stop.requested:
            return None
        torch.manual_seed(_draw_seed(self._seed, number))
        with self._processes.autocast():
            episode = prepared()
            output = self._model.head(episode)
        losses = output.losses
        assert losses is not None  # episodes of a source have query labels
        self._processes.backward(losses.total / episodes)
        self._gradients.add()
        right = (output.logits.argmax(dim=1) == episode.query_labels).double().mean()
        parts = [getattr(losses, name).detach().double() for name in LOSSES]
        return torch.stack([*parts, right])

    def _check_losses(self, update: range, totals: torch.Tensor) -> None:
        bad = [number for number, value in zip(update, totals.tolist(), strict=True) if not np.isfinite(value)]
        if bad:
            raise self._not_finite(f"the loss of episode {bad[0]} is not finite")

    def _not_finite(self, what: str) -> Exception:
        # Training goes on from numbers alone, so the same run would come to the same end.
        saved = self._file.with_name(LAST)
        kept = f"the last good weights are in {saved}; " if saved.exists() else ""
        return CheckFailed(what, f"{kept}lower train.learning_rate, set train.clip_norm or take train.precision fp32")

    def _maybe_validate(self, stop: Stop) -> None:
        done, every = self._done, self._stage.validate_every
        due = done in (0, self._stage.episodes) or done % every < self._stage.per_update
        if not due or self._validated == done:
            return
        if not self._processes.same(self._validate(stop)):
            self._interrupted()
        self._validated = done
        self._save()

    def _validate(self, stop: Stop) -> bool:
        """Validate and keep the weights, in the main process; False where that was interrupted."""
        if not self._processes.is_main:
            return True
        try:
            found = self._hooks.validate(stop)
        except Interrupted:
            return False
        mean = float(np.mean(list(found.values())))
        if mean >= self._best:
            self._best = mean
            self._hooks.save(BEST)
        self._hooks.save(LAST)
        self._hooks.validated(self._done, found, self._best)
        return True

    def _interrupted(self) -> NoReturn:
        """Write everything a later run needs, and leave."""
        if self._processes.is_main:
            self._hooks.save(LAST)
        self._save()
        raise Interrupted(f"stopped after {self._done} of {self._stage.episodes} episodes")

    def _save(self) -> None:
        if self._processes.is_main:
            numbers = {"done": self._done, "validated": self._validated, "best": self._best}
            save_state(self._file, self._parts(), numbers)
        self._saved = time.monotonic()

    def _parts(self) -> dict[str, Part]:
        parts: dict[str, Part] = {"model": self._model, "optimizer": self._optimizer}
        if self._processes.scaler is not None:
            parts["scaler"] = self._processes.scaler
        return parts


def _draw_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number, _DRAW_RANDOMNESS]).generate_state(1, np.uint64)[0])
