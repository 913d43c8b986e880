"""Bounds against tables, closed forms and scipy."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from m2df_runtime.bounds import poisson_upper, share_upper


def test_the_bound_of_a_rate_is_the_one_of_the_tables() -> None:
    """95 % one-sided Poisson limits: 2.996, 4.744, 6.296, 9.154 and 16.962 for 0, 1, 2, 4 and 10 counts."""
    for count, limit in ((0, 2.996), (1, 4.744), (2, 6.296), (4, 9.154), (10, 16.962)):
        assert poisson_upper(count, 1.0) == pytest.approx(limit, abs=6e-4)
        assert poisson_upper(count, 4.0) == pytest.approx(limit / 4, abs=6e-4)
    assert poisson_upper(0, 1.0) == pytest.approx(-math.log(0.05))
    assert 1050 < poisson_upper(1000, 1.0) < 1056


@pytest.mark.parametrize(("count", "trials"), [(0, 1), (0, 23), (1, 6), (5, 6), (3, 40), (100, 2000), (1999, 2000)])
def test_the_bound_of_a_share_is_a_quantile_of_beta(count: int, trials: int) -> None:
    for level in (0.5, 0.95):
        expected = stats.beta.ppf(level, count + 1, trials - count)
        assert share_upper(count, trials, level) == pytest.approx(expected, rel=1e-9)


def test_bounds_of_all_or_none_have_closed_forms() -> None:
    for trials in (1, 10, 500):
        assert share_upper(0, trials) == pytest.approx(1 - 0.05 ** (1 / trials), rel=1e-9)
        assert share_upper(trials, trials) == 1.0
