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

from m2df_runtime.backends.model import Model
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bank.calibration import Calibration
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
    return SupportBank.of(model, write_support(tmp_path_factory.mktemp("support"), shots=3))


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
    logits = scores.logits[0] / bank.calibration.temperature
    expected = np.exp(logits) / np.exp(logits).sum()
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
    other = replace(bank, classes=tuple(reversed(bank.classes)), calibration=Calibration((-1e9,), 9.0, "cpu", "fp32"))
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
    assert [*record] == ["query", "predictions", "rejected", "threshold", "calibrated", "backend", "timings_ms"]
    assert record["threshold"] == bank.calibration.rejection().threshold and record["calibrated"] is True
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
    assert odd.text().splitlines()[0] == "a\\nb: unknown (nearest: red)"
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


@pytest.mark.parametrize("wrong", [{"reject": -0.1}, {"reject": 1.1}, {"miss_rate": 0.0}, {"miss_rate": 1.0}])
def test_rejection_numbers_are_shares(model: Model, bank: SupportBank, wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"not in \[0, 1\]|not between 0 and 1"):
        Matcher(model, bank, **wrong)


def test_rejection_by_probability(model: Model, bank: SupportBank, query_dir: Path) -> None:
    answer = Matcher(model, bank, reject="off").predict(query_dir / "red.mp4")
    assert not answer.rejected and answer.threshold is None and answer.calibrated
    best = answer.probability
    assert not Matcher(model, bank, reject=best - 0.01).predict(query_dir / "red.mp4").rejected
    strict = Matcher(model, bank, reject=best + 0.01)
    assert strict.predict(query_dir / "red.mp4").rejected
    assert strict.rejection is None and strict.about_rejection == f"below a probability of {best + 0.01:g}"


def test_automatic_rejection_uses_the_calibrated_distance(model: Model, bank: SupportBank, query_dir: Path) -> None:
    clips = sorted(query_dir.iterdir())
    for answer in Matcher(model, bank).predict(clips):
        # 9 scores allow one in ten, not 5 %: a margin beyond the largest, as they are half as many as it takes.
        assert answer.threshold == pytest.approx(bank.calibration.scores[-1] + 0.1 * np.log(2) * bank.calibration.apart)
        assert answer.rejected == (answer.distance > answer.threshold)
        for threshold, rejected in ((answer.distance + 1e-3, False), (answer.distance - 1e-3, True)):
            other = replace(bank, calibration=replace(bank.calibration, scores=(threshold,), apart=0.0))
            assert Matcher(model, other).predict(answer.query).rejected is rejected
            assert not Matcher(model, other, reject="off").predict(answer.query).rejected
    many = Matcher(model, bank, miss_rate=0.5)
    assert many.rejection.threshold == bank.calibration.scores[4]
    uncalibrated = Matcher(model, replace(bank, calibration=None)).predict(clips[0])
    assert (uncalibrated.rejected, uncalibrated.threshold, uncalibrated.calibrated) == (False, None, False)


def test_what_is_lacking_is_said(model: Model, tmp_path: Path) -> None:
    one = write_support(tmp_path / "one", ("red",), shots=2)
    two = write_support(tmp_path / "two", ("red", "blue"))
    for folder, lacks in ((one, "teach a second action"), (two, "teach a second clip")):
        matcher = Matcher(model, SupportBank.of(model, folder))
        assert matcher.rejection is None and matcher.about_rejection == f"not calibrated: {lacks}"
    assert Matcher(model, SupportBank.of(model, two), reject="off").about_rejection == "never, whatever the query"


def test_nearest_clip_is_the_one_most_alike(model: Model, tmp_path: Path) -> None:
    write_clip(tmp_path / "s" / "mixed" / "a.mp4", "red", seed=1)
    write_clip(tmp_path / "s" / "mixed" / "b.mp4", "blue", seed=1)
    bank = SupportBank.of(model, tmp_path / "s")
    query = write_clip(tmp_path / "q.mp4", "blue", seed=1, size=(64, 48), frames=13)
    features = model.encode_clips(load_clip(open_source(query), model.bundle.manifest.clip)[None])[0]
    assert bank.nearest_clip(features, "mixed").name == "mixed/b.mp4"
