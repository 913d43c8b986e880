"""The processes that share a run: one, or as many as `torchrun` or `accelerate launch` start.

An update's episodes are dealt to them. There is no DistributedDataParallel: it would exchange gradients
during every backward pass, a run does several of them per update, and the processes may have different
numbers of episodes. Each sums the gradients of its own episodes and all add theirs up once per update.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from m2df_runtime.errors import EnvironmentMissing, first_line

_log = logging.getLogger(__name__)

T = TypeVar("T")
# Others wait while one process encodes a data set or validates.
_PATIENCE = timedelta(days=7)
# Where launchers say how many processes they started: torchrun, then those of MPI.
_LAUNCHED = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]
_PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Processes:
    """This process among those of the run.

    Args:
        precision: Arithmetic of forward passes.

    Attributes:
        device: Where this process computes.
        index: Number of this process.
        count: How many there are.
        on_machine: How many of them are on this machine.

    Raises:
        EnvironmentMissing: The device cannot compute in that precision.
    """

    def __init__(self, precision: Literal["fp32", "bf16", "fp16"] = "fp32") -> None:
        from accelerate import Accelerator, InitProcessGroupKwargs
        from accelerate.state import AcceleratorState
        from accelerate.utils import get_int_from_env

        AcceleratorState._reset_state()  # a second run in this process may have another precision
        launched = get_int_from_env(_LAUNCHED, 0)
        if not launched and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ:
            _log.warning(
                "accelerate launch started one process alone, as it does on CPUs without MPI (--mpirun_hostfile); "
                "torchrun --nproc_per_node N -m m2df_train.commands.train starts N"
            )
        try:
            self._accelerator = Accelerator(
                mixed_precision=_PRECISIONS[precision],
                # Without being told, Accelerate takes processes that find no GPU for as many runs of one process,
                # and Apple's GPUs for what they are not: they have no float64.
                cpu=not torch.cuda.is_available(),
                kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
            )
        except ValueError as error:
            raise EnvironmentMissing(first_line(error), "take train.precision fp32") from None
        self.device: torch.device = self._accelerator.device
        self.index: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes
        self.on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if self.count != max(launched, 1):
            raise EnvironmentMissing(f"{launched} processes were started and {self.count} found each other")
        if not self.is_main:
            logging.disable(logging.WARNING)  # the main process says the same
        if precision == "fp16" and self.device.type == "cpu":
            raise EnvironmentMissing("train.precision fp16 needs a GPU, there is none", "take bf16 or fp32")

    @property
    def is_main(self) -> bool:
        """Whether this one writes, reports and validates."""
        return self.index == 0

    def share(self, numbers: Sequence[int]) -> Sequence[int]:
        """The part of an update's episodes that is this process's."""
        return numbers[self.index :: self.count]

    def same(self, value: T) -> T:
        """The main process's value, on all of them."""
        from accelerate.utils import broadcast_object_list

        values = [value]
        broadcast_object_list(values)
        return values[0]

    def copy_weights(self, module: nn.Module) -> None:
        """Give a module the main process's weights and buffers, on all of them."""
        from accelerate.utils import broadcast

        if self.count > 1:
            with torch.no_grad():
                for value in module.state_dict().values():
                    value.copy_(broadcast(value.to(self.device).contiguous()))

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """A block that the main process of every machine runs before the others, so that they find its files."""
        with self._accelerator.local_main_process_first():
            yield

    def autocast(self) -> AbstractContextManager[None]:
        """A block of forward passes in the run's precision."""
        context: AbstractContextManager[None] = self._accelerator.autocast()
        return context

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to what its parameters have."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, elementwise."""
        total: Tensor = self._accelerator.reduce(values.to(self.device), reduction="sum")
        return total

    def average(self, values: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the processes."""
        if self.count > 1:
            for value in values:
                value.copy_(self.sum(value) / self.count)

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], clip_norm: float | None
    ) -> float | None:
        """Bound the gradient and take a step.

        Returns:
            The norm of the gradient before it was bounded. None where it is not finite; the weights are then as
            they were. With fp16 that is no error: the step is left out and the next loss has a smaller factor.
        """
        scaler = self.scaler
        if scaler is not None:
            scaler.unscale_(optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, math.inf if clip_norm is None else clip_norm))
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
            return norm
        if not math.isfinite(norm):
            return None
        optimizer.step()
        return norm

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The factor on fp16 losses, which is part of a run's state."""
        return self._accelerator.scaler

    def close(self) -> None:
        """Wait for all processes, then leave their group."""
        self._accelerator.wait_for_everyone()
        self._accelerator.end_training()
