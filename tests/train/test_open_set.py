"""Known against unknown queries: measures against closed forms, scikit-learn and slow second ways, and the command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from m2df_runtime.errors import InputError
from m2df_train.evaluation.episode_run import EncodedClips, EpisodePlan
from m2df_train.evaluation.open_set import (
    OpenAnswers,
    auroc,
    false_positives,
    open_answers,
    open_set,
    oscr,
)

T, D = 2, 12


def drawn(ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    known, unknown = rng.normal(size=(30, 4)), rng.normal(0.8, size=(30, 3))
    if ties:
        known, unknown = known.round(), unknown.round()
    return known, rng.random((30, 4)) < 0.7, unknown


@pytest.mark.parametrize("ties", [False, True])
def test_measures_agree_with_scikit_learn_and_with_the_curve_itself(ties: bool) -> None:
    known, right, unknown = drawn(ties)
    truth = np.r_[np.ones(known.size), np.zeros(unknown.size)]
    nearness = -np.r_[known.ravel(), unknown.ravel()]
    assert auroc(known, unknown) == pytest.approx(roc_auc_score(truth, nearness))
    false, recall, _ = roc_curve(truth, nearness, drop_intermediate=False)
    assert false_positives(known, unknown) == pytest.approx(false[recall >= 0.95 - 1e-9].min())
    thresholds = np.r_[-np.inf, np.unique(np.r_[known.ravel(), unknown.ravel()])]
    x = [(unknown <= t).mean() for t in thresholds]
    y = [(right & (known <= t)).mean() for t in thresholds]
    area = sum((x[i] - x[i - 1]) * (y[i] + y[i - 1]) / 2 for i in range(1, len(x)))
    assert oscr(known, right, unknown) == pytest.approx(area)


def test_extremes_have_closed_forms() -> None:
    near, far, right = np.zeros((2, 5)), np.ones((2, 5)), np.array([[True] * 4 + [False]] * 2)
    assert (auroc(near, far), false_positives(near, far), oscr(near, right, far)) == (1, 0, pytest.approx(0.8))
    assert (auroc(far, near), false_positives(far, near), oscr(far, right, near)) == (0, 1, 0)
    found = open_set(OpenAnswers(near, right, far), way=5, unknown=5)
    assert (found.auroc.value, found.oscr.value, found.accuracy.low) == (100, 80, 80)


@dataclass(frozen=True)
class Scores:
    logits: np.ndarray
    distances: np.ndarray


class Nearest:
    """Prototypes are means, distances squared; the logits of the first class of an episode are far too high."""

    def __init__(self, bias: float = 0.0) -> None:
        self.bias = bias

    @contextmanager
    def parallel(self) -> Iterator[int]:
        yield 2

    def batch_prototypes(self, features: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        assert len(features) == len(prompts)
        return features.mean(axis=1)[:, None]  # (B, V, T, D)

    def match(self, features: np.ndarray, prompts: np.ndarray, prototypes: np.ndarray) -> Scores:
        distances = ((features[:, None] - prototypes[None, :, 0]) ** 2).sum(axis=(2, 3))
        logits = -distances
        logits[:, 0] += self.bias
        return Scores(logits, distances[:, None])


def clips(spread: float) -> EncodedClips:
    rng = np.random.default_rng(0)
    centres = np.eye(8, T * D).reshape(8, 1, T, D)
    values = (centres + spread * rng.standard_normal((8, 6, T, D))).reshape(-1, T, D).astype(np.float32)
    return EncodedClips(values, [f"class {c}" for c in range(8) for _ in range(6)], np.zeros((8, D), np.float32))


def test_episodes_ask_known_and_unknown_classes() -> None:
    plan = EpisodePlan(way=3, shot=2, query=2, episodes=40)
    found = open_answers(Nearest(), clips(0.01), plan, 4)  # type: ignore[arg-type]
    assert (found.known.shape, found.right.shape, found.unknown.shape) == ((40, 6), (40, 6), (40, 8))
    assert found.right.all() and found.known.max() < 0.1 and found.unknown.min() > 1.5  # centres are sqrt(2) apart
    biased = open_answers(Nearest(1e9), clips(0.01), plan, 4)  # type: ignore[arg-type]
    assert biased.right.mean() == pytest.approx(1 / 3)  # and the distance is that to the class that was given
    assert np.sort(biased.known.ravel())[80:].min() > 1.5
    assert open_set(found, 3, 4).auroc.value == 100
    with pytest.raises(InputError, match="need 9 classes"):
        open_answers(Nearest(), clips(0.01), plan, 6)  # type: ignore[arg-type]


def test_features_that_say_nothing_are_at_chance() -> None:
    found = open_set(open_answers(Nearest(), clips(100), EpisodePlan(3, 1, 2, 300), 3), 3, 3)  # type: ignore[arg-type]
    assert found.auroc.low < 50 < found.auroc.high + 3
    assert found.oscr.value == pytest.approx(found.accuracy.value * 0.5, abs=8)
