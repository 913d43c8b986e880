"""What a few counted things allow to say of all: 95 % upper bounds of a share and of a rate.

Both are exact and found by bisection: the bound is where counting so few becomes as rare as 1 - level.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def share_upper(count: int, trials: int, level: float = 0.95) -> float:
    """One-sided upper bound of a share of which `count` of `trials` were seen (Clopper and Pearson).

    It is the `level` quantile of Beta(count + 1, trials - count), too: of n exchangeable scores the share of others
    that lies above the k-th smallest has the distribution Beta(n + 1 - k, k), and so the bound of n - k in n.
    """
    if count >= trials:
        return 1.0

    def so_few(share: float) -> float:
        logs = math.log(share), math.log1p(-share)
        return sum(math.exp(_choose(trials, k) + k * logs[0] + (trials - k) * logs[1]) for k in range(count + 1))

    return _where(so_few, 1 - level, count / trials, 1.0)


def poisson_upper(count: int, hours: float, level: float = 0.95) -> float:
    """One-sided upper bound of a rate per hour from `count` in `hours`. Of 0 it is 3.0 / hours."""

    def so_few(mean: float) -> float:
        return sum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1))

    return _where(so_few, 1 - level, float(count), count + 10 * math.sqrt(count + 1) + 10) / hours


def _choose(n: int, k: int) -> float:
    """Logarithm of n over k."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _where(falling: Callable[[float], float], value: float, low: float, high: float) -> float:
    """Where a falling function takes a value."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > value else (low, middle)
    return high
