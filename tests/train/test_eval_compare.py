"""The paired comparison: counts by hand, the interval against bootstraps done one draw at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from m2df_train.evaluation.accuracy import summary
from m2df_train.evaluation.compare import ClipChange, compare
from m2df_train.evaluation.episode_run import Answers

NAMES = ("run", "walk", "jump")
CLIPS = ("run/1", "run/2", "walk/1", "walk/2", "jump/1", "jump/2")


def two_way(predicted, classes=((0, 1), (1, 2), (0, 2)), query=(((0,), (2,)), ((3,), (4,)), ((0,), (5,)))) -> Answers:
    arrays = (np.array(value, dtype=np.int64) for value in (classes, query, predicted))
    return Answers(NAMES, *arrays, shot=1, excluded={}, seconds=0.0)


# Episodes: run 1 and walk 1; walk 2 and jump 1; run 1 and jump 2. Right answers are 0 and 1.
A = two_way((((0,), (1,)), ((1,), (1,)), ((1,), (0,))))
B = two_way((((1,), (1,)), ((0,), (1,)), ((0,), (1,))))


def test_counts_gains_and_clips_by_hand():
    found = compare(A, B, CLIPS)
    # A is right on run 1 (first episode), walk 1 and jump 1; B on all but run 1 in the first episode.
    assert (found.both, found.only_a, found.only_b, found.neither) == (2, 1, 3, 0)
    assert found.difference == pytest.approx(100 * (5 / 6 - 3 / 6))
    assert found.gains == pytest.approx({"run": 0.0, "walk": 50.0, "jump": 50.0})
    assert found.clips == (
        ClipChange("jump/2", 1, 0, 1, 1, 0),
        ClipChange("walk/2", 1, 0, 1, 1, 0),
        ClipChange("run/1", 2, 1, 1, 1, 1),
    )


def test_confusion_by_hand():
    assert summary(A).confusion == {
        "run": {"run": 1, "walk": 0, "jump": 1},
        "walk": {"run": 0, "walk": 1, "jump": 1},
        "jump": {"run": 1, "walk": 0, "jump": 1},
    }


def random_answers(share: float, seed: int, episodes: int = 400, same: Answers | None = None) -> Answers:
    """5-way answers, right with a probability that varies from episode to episode; some follow `same`."""
    rng = np.random.default_rng(seed)
    shape = (episodes, 5, 2)
    hard = rng.random((episodes, 1, 1)) ** 2
    right = rng.random(shape) < share * (1 - hard) + hard * 0.2
    wrong = (np.arange(5)[None, :, None] + rng.integers(1, 5, shape)) % 5
    predicted = np.where(right, np.arange(5)[None, :, None], wrong)
    if same is not None:
        predicted = np.where(rng.random(shape) < 0.5, same.predicted, predicted)
    classes = np.tile(np.arange(5), (episodes, 1))
    query = rng.integers(0, 10, shape) if same is None else same.query
    return Answers(tuple("abcde"), classes, query, predicted, shot=1, excluded={}, seconds=0.0)


def test_the_interval_is_that_of_a_plain_bootstrap():
    a = random_answers(0.6, 0)
    b = random_answers(0.8, 1, same=a)
    found = compare(a, b, [f"clip{n}" for n in range(10)], seed=3)
    gains = 100 * (b.right.mean(axis=(1, 2)) - a.right.mean(axis=(1, 2)))
    rng = np.random.default_rng(0)
    means = [gains[rng.integers(0, len(gains), len(gains))].mean() for _ in range(20_000)]
    assert found.difference == pytest.approx(gains.mean())
    # A percentile of 10,000 draws is known to about 2.5 % of the interval's half width; both are random.
    half = 1.96 * gains.std() / np.sqrt(len(gains))
    assert found.interval == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.1 * half)
    assert found.interval == pytest.approx((gains.mean() - half, gains.mean() + half), abs=0.1 * half)
    assert found.both + found.only_a + found.only_b + found.neither == 4000
    assert found == compare(a, b, [f"clip{n}" for n in range(10)], seed=3)


def test_a_model_against_itself():
    a = random_answers(0.6, 0)
    found = compare(a, a, [f"clip{n}" for n in range(10)])
    assert (found.difference, found.interval, found.clips) == (0.0, (0.0, 0.0), ())
    assert set(found.gains.values()) == {0.0}
    assert (found.only_a, found.only_b) == (0, 0)


def test_different_episodes_are_refused():
    with pytest.raises(ValueError, match="different episodes"):
        compare(A, replace(B, query=B.query[:, :, ::-1] + 1), CLIPS)
