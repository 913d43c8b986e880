"""Queries to predictions, and when a query is rejected."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import write_bundle, write_clip, write_support

from m2df_runtime.backends.model import Model, QueryScores
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bank.calibration import MIN_QUERIES, Calibration, calibrate, can_calibrate, decide
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.clips.opening import open_source
from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.match.matcher import Matcher
from m2df_runtime.pixels.load import load_clip


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return Model(Bundle.open(tiny_bundle), backend="cpu", threads=1)


@pytest.fixture(scope="module")
def bank(model: Model, tmp_path_factory: pytest.TempPathFactory) -> SupportBank:
    return SupportBank.of(model, write_support(tmp_path_factory.mktemp("support"), shots=3), calibrated=False)


@pytest.mark.parametrize("colour", ["red", "green", "blue"])
def test_query_gets_the_label_of_its_class(model: Model, bank: SupportBank, query_dir: Path, colour: str) -> None:
    prediction = Matcher(model, bank).predict(query_dir / f"{colour}.mp4")
    assert prediction.label == colour
    assert prediction.query == str(query_dir / f"{colour}.mp4")
    assert sorted(score.label for score in prediction.classes) == ["blue", "green", "red"]
    probabilities = [score.probability for score in prediction.classes]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)


def test_paths_may_be_text(model: Model, support_dir: Path, query_dir: Path, tmp_path: Path) -> None:
    bank = SupportBank.of(model, str(support_dir))
    bank.save(str(tmp_path / "a.bank"))
    loaded = SupportBank.of(model, str(tmp_path / "a.bank"))
    assert loaded.labels == bank.labels
    path = query_dir / "red.mp4"
    found = [Matcher(model, loaded).predict(each) for each in (str(path), path)]
    assert found[0] == found[1] and found[0].query == str(path)


def test_scores_follow_from_the_graphs(model: Model, bank: SupportBank, query_dir: Path) -> None:
    clip = load_clip(open_source(query_dir / "red.mp4"), model.bundle.manifest.clip)
    scores = model.match(model.encode_clips(clip[None]), bank.prompts, bank.prototypes)
    expected = np.exp(scores.logits[0]) / np.exp(scores.logits[0]).sum()
    for score in Matcher(model, bank).predict(query_dir / "red.mp4").classes:
        column = bank.labels.index(score.label)
        assert score.probability == pytest.approx(expected[column], rel=1e-5)
        assert score.distance == pytest.approx(scores.distances[0, :, column].sum(), rel=1e-5)


def test_a_list_of_any_clips_is_answered_in_order_as_each_alone(
    model: Model, bank: SupportBank, query_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matcher = Matcher(model, bank)
    source = open_source(query_dir / "green.mp4")
    frames = open_source(query_dir / "blue.mp4")
    every = frames.read(range(frames.n_frames))
    clips = [str(query_dir / "red.mp4"), query_dir / "blue.mp4", source, every]
    runs: list[int] = []
    encode = model.encode_resident
    monkeypatch.setattr(model, "encode_resident", lambda clips, names: runs.append(len(clips)) or encode(clips, names))
    together = matcher.predict(clips)
    assert runs == [4]
    assert [answer.query for answer in together] == [*map(str, clips[:2]), source.name, "clip 4"]
    assert [answer.label for answer in together] == ["red", "blue", "green", "blue"]
    for clip, answer in zip(clips, together, strict=True):
        alone = matcher.predict(clip)
        assert [score.label for score in alone.classes] == [score.label for score in answer.classes]
        assert answer.probability == pytest.approx(alone.probability, rel=1e-5)
    assert together[1].classes == together[3].classes  # frames are sampled and resized as those of a file are
    cut = matcher.predict(clips, roi=(0, 0, 20, 20))
    alone = [matcher.predict(clip, roi=(0, 0, 20, 20)) for clip in clips]
    assert [answer.distance for answer in cut] == pytest.approx([answer.distance for answer in alone], rel=1e-5)
    assert cut[0].distance != pytest.approx(together[0].distance, rel=1e-5)
    assert matcher.predict([]) == []


def test_of_a_list_a_bad_clip_is_raised_or_returned_in_its_place(
    model: Model, bank: SupportBank, query_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    clips = [query_dir / "red.mp4", tmp_path / "bad.mp4", query_dir / "blue.mp4"]
    matcher = Matcher(model, bank)
    with pytest.raises(ClipError) as caught:
        matcher.predict(clips)
    assert caught.value.clip == str(tmp_path / "bad.mp4")
    red, bad, blue = matcher.predict(clips, return_errors=True)
    assert isinstance(bad, ClipError) and bad.clip == str(tmp_path / "bad.mp4")
    assert (red.label, blue.label) == ("red", "blue")
    with pytest.raises(InputError, match=r"frames must be uint8 \[n, H, W, 3\] with n >= 1, not float64 \[3, 4\]"):
        matcher.predict(np.zeros((3, 4)))
    with pytest.raises(InputError, match=r"a clip is a path, .* not int"):
        matcher.predict([1], return_errors=True)


def test_an_answer_never_mixes_two_banks(model: Model, bank: SupportBank, query_dir: Path) -> None:
    """Two banks whose answers differ in every number, exchanged while four threads ask."""
    short = replace(bank, classes=bank.classes[:2])
    other = replace(bank, classes=tuple(reversed(bank.classes)), calibration=Calibration(-1e9, 9, 1.0))
    path, banks = query_dir / "red.mp4", (short, other, bank)
    frames = open_source(path).read([0, 3, 6])
    expected = [Matcher(model, each).predict([frames, frames]) for each in banks]
    matcher = Matcher(model, bank)
    answers: list[object] = []
    done = threading.Event()

    def ask() -> None:
        for _ in range(25):
            answers.append(matcher.predict([frames, frames]))

    def swap() -> None:
        while not done.is_set():
            for each in banks:
                matcher.swap(each)

    with ThreadPoolExecutor(5) as pool:
        swapping = pool.submit(swap)
        asking = [pool.submit(ask) for _ in range(4)]
        for each in asking:
            each.result()
        done.set()
        swapping.result()
    assert len(answers) == 100 and all(answer in expected for answer in answers)
    matcher.swap(short)
    assert matcher.predict([frames, frames]) == expected[0] and matcher.bank is short


def test_an_answer_writes_itself(model: Model, bank: SupportBank, query_dir: Path) -> None:
    answer = Matcher(model, bank).predict(query_dir / "red.mp4")
    record = json.loads(json.dumps(answer.record(topk=2)))
    assert [*record] == ["query", "predictions", "rejected", "backend", "timings_ms"]
    assert [score["label"] for score in record["predictions"]] == [score.label for score in answer.classes[:2]]
    assert record["backend"] == "cpu" and [*record["timings_ms"]] == [
        "decode",
        "preprocess",
        "visual",
        "query",
        "total",
    ]
    assert len(answer.record()["predictions"]) == 3
    lines = answer.text(topk=2).splitlines()
    assert lines[0] == f"{query_dir / 'red.mp4'}: red {answer.probability:.1%}" and len(lines) == 4
    odd = replace(answer, query="a\nb", rejected=True)
    assert odd.text().splitlines()[0].startswith("a\\nb: unknown (nearest: red) ")
    assert answer.features.shape == (model.bundle.manifest.clip.frames, model.bundle.manifest.dim)


def test_timings_add_up(model: Model, bank: SupportBank, query_dir: Path) -> None:
    timings = Matcher(model, bank).predict(query_dir / "red.mp4").timings
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
    best = Matcher(model, bank, reject="off").predict(query_dir / "red.mp4").probability
    assert not Matcher(model, bank, reject=best - 0.01).predict(query_dir / "red.mp4").rejected
    assert Matcher(model, bank, reject=best + 0.01).predict(query_dir / "red.mp4").rejected


def test_automatic_rejection_uses_the_calibrated_distance(model: Model, bank: SupportBank, query_dir: Path) -> None:
    calibrated = bank.calibrated(model)
    assert calibrated.calibration is not None
    assert calibrated.calibration.queries == 9
    for path in sorted(query_dir.iterdir()):
        prediction = Matcher(model, calibrated).predict(path)
        assert prediction.rejected == (prediction.distance > calibrated.calibration.threshold)
        strict = replace(bank, calibration=Calibration(prediction.distance - 1e-3, 9, 1.0))
        assert Matcher(model, strict).predict(path).rejected
        assert not Matcher(model, strict, reject="off").predict(path).rejected
    assert not Matcher(model, bank).predict(query_dir / "red.mp4").rejected


def test_calibration_keeps_every_support_clip(model: Model, tmp_path: Path) -> None:
    support = write_support(tmp_path, shots=3)
    matcher = Matcher(model, SupportBank.of(model, support))
    assert matcher.bank.calibration is not None
    assert not any(answer.rejected for answer in matcher.predict(sorted(support.glob("*/*.mp4"))))


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
    bank = SupportBank.of(model, tmp_path / "s")
    query = write_clip(tmp_path / "q.mp4", "blue", seed=1, size=(64, 48), frames=13)
    features = model.encode_clips(load_clip(open_source(query), model.bundle.manifest.clip)[None])[0]
    assert bank.nearest_clip(features, "mixed").name == "mixed/b.mp4"
