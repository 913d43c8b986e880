"""The course of a run for TensorBoard, in the run's folder: `tensorboard --logdir runs`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from m2df_train.training.episodic import Update, Validation

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Writes losses, learning rate and accuracies over the number of episodes.

    Args:
        folder: The run's folder. What a stopped run wrote there beyond the point it goes on from is hidden.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def _opened(self, step: int) -> SummaryWriter:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        return self._writer

    def updated(self, update: Update) -> None:
        """Note an update."""
        values = {f"loss/{name}": value for name, value in update.losses.items()}
        values |= {"train/accuracy": update.accuracy, "train/gradient_norm": update.gradient}
        for name, value in (values | {"train/learning_rate": update.rate}).items():
            self._opened(update.done).add_scalar(name, value, update.done)

    def validated(self, done: int, found: Validation) -> None:
        """Note a validation."""
        for shot, value in found.items():
            self._opened(done).add_scalar(f"validation/{shot}-shot", value, done)
        self._opened(done).flush()
