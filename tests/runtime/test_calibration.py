"""Calibration: which clips are left out, which threshold follows, what is claimed, how sure a probability is."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, stats
from tiny_bundle import write_clip, write_support

from m2df_runtime.backends.model import Model, QueryScores
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bank.calibration import Calibration, calibrate, fit_temperature, what_lacks
from m2df_runtime.bank.contents import BankClip, encode
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.match.matcher import Matcher


def of(*scores: float, background: tuple[float, ...] = (), apart: float = 0.0) -> Calibration:
    return Calibration(tuple(sorted(scores)), 1.0, "cpu", "fp32", background, apart)


def test_the_claim_holds_exactly_for_exchangeable_scores() -> None:
    """Every order of n + 1 scores is equally likely: the share of orders whose last is rejected is the miss rate."""
    for n in (1, 2, 4, 6):
        for wished in (0.05, 0.2, 0.3, 0.5, 0.9):
            missed = [order[-1] > of(*order[:-1]).rejection(wished).threshold for order in permutations(range(n + 1))]
            share = Fraction(sum(missed), len(missed))
            rejection = of(*range(n)).rejection(wished)
            assert share == Fraction(rejection.miss_rate).limit_denominator(n + 1)
            assert share <= max(Fraction(wished), Fraction(1, n + 1)) < share + Fraction(1, n + 1)


def test_too_few_clips_for_a_wish_move_the_threshold_beyond_all_of_them() -> None:
    """By a tenth of `apart` for every factor e, and so by nothing where they are just enough."""
    for n, wished, lacks in (
        (4, 0.2, 0.0),
        (4, 0.2 / np.e, 1.0),
        (4, 0.05, np.log(4)),
        (19, 0.05, 0.0),
        (2, 0.3, 0.105),
    ):
        rejection = of(*range(n), apart=30.0).rejection(wished)
        assert rejection.threshold == pytest.approx(n - 1 + 3 * lacks, abs=1e-2)
        assert rejection.miss_rate == pytest.approx(max(wished, 1 / (n + 1)) if n < 19 else 0.05)
    assert of(*range(40), apart=30.0).rejection(0.05) == of(*range(40)).rejection(0.05)


def test_how_far_a_bank_may_miss_more_follows_from_beta() -> None:
    """The mass above the k-th smallest of n uniform scores is 1 - Beta(k, n + 1 - k)."""
    for n, wished in ((23, 0.05), (19, 0.05), (100, 0.05), (100, 0.2), (7, 0.5), (3, 0.05)):
        k = min(int(np.ceil((n + 1) * (1 - wished) - 1e-9)), n)
        rejection = of(*range(n)).rejection(wished)
        assert rejection.threshold == k - 1
        assert rejection.at_most == pytest.approx(1 - stats.beta.ppf(0.05, k, n + 1 - k))


def test_a_rejection_says_what_it_is() -> None:
    assert of(*range(23)).rejection().text() == (
        "about 4 % of taught actions rejected, if queries resemble the support clips (23 clips; for this bank up to "
        "12 % is plausible); false alarms: not measured"
    )
    few = of(*range(10), background=(3.0, 8.0, 12.0, 13.0)).rejection()
    assert (few.answered, few.background) == (2, 4)
    assert few.text() == (
        "at most about 9 % of taught actions rejected, if queries resemble the support clips (10 clips; 5 % takes 19; "
        "for this bank up to 26 % is plausible); false alarms: 2 of 4 background clips answered (up to 90 % is "
        "plausible)"
    )


class TextDecides:
    """Logits from the text alone, which prefers class 0; distances are those of frames."""

    backend, precision = "cpu", "fp32"

    def prototypes(self, features: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        return features.mean(axis=0)[None]  # (1, T, D)

    def match(self, features: np.ndarray, prompts: np.ndarray, prototypes: np.ndarray) -> QueryScores:
        distances = np.abs(features[:, None] - prototypes[None, :, 0]).sum(axis=(2, 3))  # (Q, C)
        logits = np.broadcast_to(np.array([3.0, 2.0, 1.0], np.float32), distances.shape)
        return QueryScores(logits, distances[:, None], logits, features[:, None])


def test_scores_are_of_the_class_that_a_prediction_would_name() -> None:
    features = [np.asarray(values, np.float32)[:, None, None] for values in ((0, 3, 9), (10, 12), (30,))]
    prototypes = np.stack([clips.mean(axis=0)[None] for clips in features])  # (C, V, T, D)
    prompts, strange = np.zeros((3, 1), np.float32), [np.full((1, 1), value, np.float32) for value in (50, 4)]
    found = calibrate(TextDecides(), features, prompts, prototypes, strange)  # type: ignore[arg-type]
    # Class 0 is best: from 0 to the mean of 3 and 9, from 3 to that of 0 and 9, and so on; from 10 to the first.
    assert found.scores == tuple(sorted([6.0, 1.5, 7.5, 10 - 6.0, 12 - 4.5])) and found.background == (0.0, 46.0)
    assert (found.backend, found.precision) == ("cpu", "fp32")
    # To the nearest class that is not their own: 12, 7 and 2, then 4 and 7.5.
    assert found.apart == 7.0 - 6.0


def test_left_out_clips_are_matched_as_queries_are(model: Model, tmp_path: Path) -> None:
    """A second way to the same scores: a bank without the first clips, which are its queries; then the second ones."""
    folder = write_support(tmp_path / "all", shots=3)
    (folder / "red" / "2.mp4").unlink()
    bank = SupportBank.of(model, folder)
    scores = []
    for number in range(3):
        paths = sorted(folder.glob(f"*/{number}.mp4"))
        apart = [path.rename(tmp_path / f"{path.parent.name}.mp4") for path in paths]
        others = SupportBank.of(model, folder)
        scores += [answer.distance for answer in Matcher(model, others).predict(apart)]
        for path, place in zip(paths, apart, strict=True):
            place.rename(path)
    assert len(scores) == 8 and bank.calibration.scores == pytest.approx(sorted(scores), rel=1e-4)


def test_large_banks_leave_out_some_clips_in_runs_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    features = [rng.normal(size=(2, 1, 1)).astype(np.float32) for _ in range(300)]
    prompts, prototypes = np.zeros((300, 1), np.float32), np.stack([clips.mean(axis=0)[None] for clips in features])
    runs: list[tuple[int, int]] = []

    class Counting(TextDecides):
        def match(self, features: np.ndarray, prompts: np.ndarray, prototypes: np.ndarray) -> QueryScores:
            runs.append((len(features), int((prototypes != before).any(axis=(1, 2, 3)).sum())))
            distances = np.abs(features[:, None, 0, 0] - prototypes[None, :, 0, 0, 0])
            return QueryScores(-distances, distances[:, None], distances, features[:, None])

    before = prototypes.copy()
    found = calibrate(Counting(), features, prompts, prototypes)  # type: ignore[arg-type]
    assert len(found.scores) == sum(queries for queries, _ in runs) == 333  # 100,000 pairs of 600 clips and 300 classes
    assert all(queries == changed <= 33 for queries, changed in runs)
    np.testing.assert_array_equal(prototypes, before)


def test_background_clips_are_counted_and_calibrated_anew(model: Model, tmp_path: Path) -> None:
    bank = SupportBank.of(model, write_support(tmp_path / "all", shots=3))
    paths = [write_clip(tmp_path / "red.mp4", "red", seed=0), write_clip(tmp_path / "white.mp4", "white")]
    clips = tuple(BankClip(path.name, "0" * 64, bank.classes[0].clips[0].stamp, *encode(path, model)) for path in paths)
    beside = replace(bank, background=clips, calibration=None).calibrated(model)
    assert beside.calibration.scores == bank.calibration.scores
    answers = Matcher(model, bank).predict(paths)
    assert beside.calibration.background == pytest.approx(sorted(answer.distance for answer in answers), rel=1e-4)
    rejection = Matcher(model, beside).rejection
    assert (rejection.answered, rejection.background) == (sum(not answer.rejected for answer in answers), 2)


@pytest.mark.parametrize(("shots", "lacks"), [([3], "action"), ([1, 1, 1], "clip"), ([2, 1], None), ([9, 9], None)])
def test_a_second_clip_is_needed(shots: list[int], lacks: str | None) -> None:
    assert what_lacks(shots) == (lacks and f"teach a second {lacks}")


def test_the_temperature_is_the_most_likely_one() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(40, 6)).astype(np.float32) * 9
    labels = np.where(rng.random(40) < 0.7, logits.argmax(axis=1), rng.integers(0, 6, 40))

    def loss(temperature: float) -> float:
        logs = logits / temperature - np.log(np.exp(logits / temperature).sum(axis=1, keepdims=True))
        return float(-logs[np.arange(40), labels].sum() - stats.gamma.logpdf(1 / temperature, a=9, scale=1 / 8))

    expected = optimize.minimize_scalar(loss, bounds=(0.3, 100), method="bounded", options={"xatol": 1e-6}).x
    assert fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-3) and expected > 2


def test_few_clips_leave_the_models_own_temperature_and_many_overrule_it() -> None:
    def fitted(gap: float, right: int, wrong: int = 0) -> float:
        logits = np.tile(np.array([[gap, 0.0]], np.float32), (right + wrong, 1))
        return fit_temperature(logits, np.repeat([0, 1], [right, wrong]))

    assert fitted(16.0, right=4) == pytest.approx(1, abs=1e-3)  # what is clear says nothing
    assert 0.9 < fitted(2.0, right=4) < 1 < fitted(2.0, right=2, wrong=2) < 2
    # Three of four right, very often: the probability that says so.
    assert 1 / (1 + np.exp(-5 / fitted(5.0, right=30_000, wrong=10_000))) == pytest.approx(0.75, abs=1e-3)


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return Model(Bundle.open(tiny_bundle), backend="cpu", threads=1)
