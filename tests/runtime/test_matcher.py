"""Queries to predictions, and when a query is rejected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import write_bundle, write_clip, write_support

from m2df_runtime.backends.model import Model, QueryScores
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bank.calibration import MIN_QUERIES, Calibration, calibrate, can_calibrate, decide
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.clips.opening import open_source
from m2df_runtime.errors import InputError
from m2df_runtime.match.matcher import Matcher
from m2df_runtime.pixels.load import load_clip


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return Model(Bundle.open(tiny_bundle), backend="cpu", threads=1)


@pytest.fixture(scope="module")
def bank(model: Model, tmp_path_factory: pytest.TempPathFactory) -> SupportBank:
    return SupportBank.build(write_support(tmp_path_factory.mktemp("support"), shots=3), model)


@pytest.mark.parametrize("colour", ["red", "green", "blue"])
def test_query_gets_the_label_of_its_class(model: Model, bank: SupportBank, query_dir: Path, colour: str) -> None:
    prediction = Matcher(model, bank).predict_file(query_dir / f"{colour}.mp4")
    assert prediction.best.label == colour
    assert prediction.query == str(query_dir / f"{colour}.mp4")
    assert sorted(score.label for score in prediction.predictions) == ["blue", "green", "red"]
    probabilities = [score.probability for score in prediction.predictions]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)


def test_paths_may_be_text(model: Model, support_dir: Path, query_dir: Path, tmp_path: Path) -> None:
    bank, _ = SupportBank.update(str(support_dir), model)
    bank.save(str(tmp_path / "a.bank"))
    loaded = SupportBank.load(str(tmp_path / "a.bank"), Bundle.open(str(model.bundle.path)))
    assert loaded.labels == bank.labels == SupportBank.build(str(support_dir), model).labels
    path = query_dir / "red.mp4"
    found = [Matcher(model, loaded).predict_file(each) for each in (str(path), path)]
    assert [each.query for each in found] == [str(path)] * 2
    assert found[0].predictions == found[1].predictions


def test_scores_follow_from_the_graphs(model: Model, bank: SupportBank, query_dir: Path) -> None:
    clip = load_clip(open_source(query_dir / "red.mp4"), model.bundle.manifest.clip)
    scores = model.match(model.encode_clips(clip[None]), bank.prompts, bank.prototypes)
    expected = np.exp(scores.logits[0]) / np.exp(scores.logits[0]).sum()
    for score in Matcher(model, bank).predict(clip).predictions:
        column = bank.labels.index(score.label)
        assert score.probability == pytest.approx(expected[column], rel=1e-5)
        assert score.distance == pytest.approx(scores.distances[0, :, column].sum(), rel=1e-5)


def test_batch_equals_single_queries(model: Model, bank: SupportBank, query_dir: Path) -> None:
    matcher = Matcher(model, bank)
    spec = model.bundle.manifest.clip
    clips = np.stack([load_clip(open_source(path), spec) for path in sorted(query_dir.iterdir())])
    for together, clip in zip(matcher.predict_many(clips), clips, strict=True):
        alone = matcher.predict(clip)
        assert [s.label for s in together.predictions] == [s.label for s in alone.predictions]
        assert together.best.probability == pytest.approx(alone.best.probability, rel=1e-5)


def test_timings_add_up(model: Model, bank: SupportBank, query_dir: Path) -> None:
    timings = Matcher(model, bank).predict_file(query_dir / "red.mp4").timings
    stages = (timings.decode, timings.preprocess, timings.visual, timings.query)
    assert all(stage > 0 for stage in stages)
    assert timings.total == pytest.approx(sum(stages))


def test_bank_of_another_bundle_is_refused(bank: SupportBank, tmp_path: Path) -> None:
    other = Model(Bundle.open(write_bundle(tmp_path / "other", support_weight=0.5)), backend="cpu")
    with pytest.raises(InputError, match="another bundle"):
        Matcher(other, bank)


@pytest.mark.parametrize("reject", [-0.1, 1.1])
def test_rejection_number_is_a_probability(model: Model, bank: SupportBank, reject: float) -> None:
    with pytest.raises(InputError, match="not in"):
        Matcher(model, bank, reject=reject)


def test_rejection_by_probability(model: Model, bank: SupportBank, query_dir: Path) -> None:
    best = Matcher(model, bank, reject="off").predict_file(query_dir / "red.mp4").best.probability
    assert not Matcher(model, bank, reject=best - 0.01).predict_file(query_dir / "red.mp4").rejected
    assert Matcher(model, bank, reject=best + 0.01).predict_file(query_dir / "red.mp4").rejected


def test_automatic_rejection_uses_the_calibrated_distance(model: Model, bank: SupportBank, query_dir: Path) -> None:
    calibrated = bank.with_calibration(model)
    assert calibrated.calibration is not None
    assert calibrated.calibration.queries == 9
    for path in sorted(query_dir.iterdir()):
        prediction = Matcher(model, calibrated).predict_file(path)
        assert prediction.rejected == (prediction.best.distance > calibrated.calibration.threshold)
        strict = SupportBank(bank.classes, bank.keys, Calibration(prediction.best.distance - 1e-3, 9, 1.0))
        assert Matcher(model, strict).predict_file(path).rejected
        assert not Matcher(model, strict, reject="off").predict_file(path).rejected
    assert not Matcher(model, bank).predict_file(query_dir / "red.mp4").rejected


def test_calibration_keeps_every_support_clip(model: Model, bank: SupportBank) -> None:
    calibrated = bank.with_calibration(model)
    matcher = Matcher(model, calibrated)
    for entry in calibrated.classes:
        assert not any(prediction.rejected for prediction in matcher.predict_features(entry.features))


def test_calibration_scores_the_class_a_prediction_would_name() -> None:
    class TextDecides:
        """Logits from the text alone, which prefers class 0; distances are those of frames."""

        def prototypes(self, features: np.ndarray, prompt: np.ndarray) -> np.ndarray:
            return features.mean(axis=0)[None]  # (1, T, D)

        def match(self, features: np.ndarray, prompts: np.ndarray, prototypes: np.ndarray) -> QueryScores:
            distances = np.abs(features[:, None] - prototypes[None, :, 0]).sum(axis=(2, 3))  # (Q, C)
            logits = np.broadcast_to(np.array([3.0, 2.0, 1.0], np.float32), distances.shape)
            return QueryScores(logits, distances[:, None], logits, features[:, None])

    features = [np.full((3, 1, 1), value, np.float32) for value in (0.0, 10.0, 30.0)]
    prototypes = np.stack([clips[:1] for clips in features])  # (C, V, T, D)
    found = calibrate(TextDecides(), features, np.zeros((3, 1), np.float32), prototypes)  # type: ignore[arg-type]
    genuine, unknown = np.repeat([0.0, 10.0, 30.0], 3), np.repeat([10.0, 10.0, 30.0], 3)
    assert found == decide(genuine, unknown)


def test_calibration_needs_several_clips_per_class() -> None:
    assert not can_calibrate([1, 1, 1, 1, 1, 1])
    assert not can_calibrate([8])
    assert not can_calibrate([2, MIN_QUERIES - 3])
    assert can_calibrate([2, 3])
    assert can_calibrate([1, MIN_QUERIES])


def test_threshold_lies_beyond_all_genuine_scores() -> None:
    genuine, unknown = np.array([0.1, 0.2, 0.3]), np.array([0.25, 0.9, 1.3])
    calibration = decide(genuine, unknown)
    assert calibration.threshold == pytest.approx(0.3 + (0.9 - 0.3) / 2)
    assert calibration.unknown_rejected == pytest.approx(2 / 3)
    mixed = decide(genuine, np.array([0.1, 0.2, 0.2]))
    assert mixed.threshold == pytest.approx(0.3 + genuine.std())
    assert mixed.unknown_rejected == 0


def test_nearest_clip_is_the_one_most_alike(model: Model, tmp_path: Path) -> None:
    write_clip(tmp_path / "s" / "mixed" / "a.mp4", "red", seed=1)
    write_clip(tmp_path / "s" / "mixed" / "b.mp4", "blue", seed=1)
    bank = SupportBank.build(tmp_path / "s", model)
    query = write_clip(tmp_path / "q.mp4", "blue", seed=1, size=(64, 48), frames=13)
    features = model.encode_clips(load_clip(open_source(query), model.bundle.manifest.clip)[None])[0]
    assert Matcher(model, bank).nearest_clip(features, "mixed").name == "mixed/b.mp4"
