"""OTAM taken apart: where its soft minimum goes, what that costs, and how undecided it is between the ways to go.

The same recursion as in the query graph, in float64, cell by cell. Every path through the table has the probability
exp(-cost / lambda) / Z; the soft minimum is the expected cost of a path minus lambda times their entropy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Wide = NDArray[np.float64]
_Cell = tuple[int, int]


@dataclass(frozen=True)
class SoftPath:
    """One OTAM problem of R rows and N columns.

    Attributes:
        value: The soft minimum, which the graph computes.
        visits: Probability that a path visits a cell [R, N]; the gradient of `value`.
        cost: Expected cost of a path, the sum of visits times costs.
        entropy: Of the paths, in nats; `value` is `cost - lam * entropy`.
        hard: Cells of the cheapest path, in its order.
    """

    value: float
    visits: Wide
    cost: float
    entropy: float
    hard: tuple[_Cell, ...]


def soft_path(costs: Wide, lam: float) -> SoftPath:
    """Solve OTAM with everything that explains it.

    Args:
        costs: Of aligning each row with each column [R, N]; columns carry a zero column on each side.
        lam: Smoothing of the soft minimum, above 0.
    """
    rows, columns = costs.shape
    padded = np.pad(costs, ((0, 0), (1, 1)))
    every = [(row, column) for row in range(rows) for column in range(1, columns + 2)]
    soft, hard = np.zeros_like(padded), np.zeros_like(padded)
    for cell in every:
        before = _before(cell, columns)
        soft[cell] = padded[cell] + _softmin([float(soft[one]) for one in before], lam)
        hard[cell] = padded[cell] + min(hard[one] for one in before)
    end = (rows - 1, columns + 1)
    visits, entropy = np.zeros_like(padded), 0.0
    visits[end] = 1.0
    for cell in reversed(every):
        before = _before(cell, columns)
        low = min(float(soft[one]) for one in before)
        shares = [math.exp((low - float(soft[one])) / lam) for one in before]
        for one, share in zip(before, shares, strict=True):
            chosen = share / sum(shares)
            visits[one] += visits[cell] * chosen
            entropy -= visits[cell] * chosen * (math.log(chosen) if chosen else 0.0)
    real = visits[:, 1:-1]
    return SoftPath(float(soft[end]), real, float((real * costs).sum()), float(entropy), _cheapest(hard, end))


def _before(cell: _Cell, columns: int) -> Sequence[_Cell]:
    """The cells that a path may come from."""
    row, column = cell
    if row == 0:
        return [(0, column - 1)]
    before = [(row - 1, column - 1), (row, column - 1)]
    return [*before, (row - 1, column)] if column in (1, columns + 1) else before


def _softmin(values: Sequence[float], lam: float) -> float:
    low = min(values)
    return low - lam * math.log(sum(math.exp((low - value) / lam) for value in values))


def _cheapest(table: Wide, end: _Cell) -> tuple[_Cell, ...]:
    columns = table.shape[1] - 2
    path, cell = [], end
    while cell[1] > 0:
        if cell[1] <= columns:
            path.append((cell[0], cell[1] - 1))
        cell = min(_before(cell, columns), key=lambda one: float(table[one]))
    return tuple(reversed(path))
