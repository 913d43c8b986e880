"""The sum of the gradients of an update's episodes, the same whoever computes which of them.

It is kept in float64. In float32 the order of a sum shows in its last digits, and Adam, which divides by
the gradient's size, makes steps of full length out of the last digits of a gradient that is 0 but for
rounding (that of a bias of attention keys): 24 episodes on two processes moved such a bias by 1e-3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from m2df_train.training.processes import Processes


class GradientSum:
    """Collects gradients of some parameters over episodes and processes.

    Args:
        parameters: All on one device.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        sizes = [p.numel() for p in parameters]
        # Behind the gradients stands for each parameter how often it had one.
        self._flat = torch.zeros(sum(sizes) + len(sizes), dtype=torch.float64, device=parameters[0].device)
        *parts, self._count = self._flat.split([*sizes, len(sizes)])
        self._sums = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]

    def clear(self) -> None:
        """Begin a new sum."""
        self._flat.zero_()
        self._drop()

    def add(self) -> None:
        """Add the gradients that the parameters have, and take them away."""
        for number, (parameter, total) in enumerate(zip(self._parameters, self._sums, strict=True)):
            if parameter.grad is not None:
                total += parameter.grad
                self._count[number] += 1
        self._drop()

    def finish(self, processes: Processes) -> None:
        """Give every parameter the sum over all processes; those without a gradient in any episode get none."""
        if processes.count > 1:
            self._flat.copy_(processes.sum(self._flat))
        for parameter, total, count in zip(self._parameters, self._sums, self._count.tolist(), strict=True):
            parameter.grad = total.to(parameter.dtype) if count else None

    def _drop(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
