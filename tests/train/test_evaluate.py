"""Episode accuracy: closed forms, independence of workers, groups, bad clips, and the command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from colour_clips import write_colour_folder
from numpy.typing import NDArray

from m2df_runtime.errors import CheckFailed, InputError
from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.data.clips import clip_groups, folder_clips, generated_clips
from m2df_train.data.episodes import EpisodeSampler
from m2df_train.evaluation.accuracy import Accuracy, summary
from m2df_train.evaluation.episode_run import EncodedClips, EpisodePlan, episode_answers
from m2df_train.evaluation.features import encode

Float = NDArray[np.float32]
T, D = 4, 6


@dataclass(frozen=True)
class Nearest:
    """A whole few-shot model in numpy: frames are their mean colours, prototypes means, scores distances."""

    bias: float = 0.0
    """Added to the score of the first class of every episode."""
    merges_after: bool = True
    parts: int = 1

    @dataclass(frozen=True)
    class Result:
        logits: Float

    def encode_clips(self, clips: NDArray[np.uint8]) -> Float:
        return clips.mean(axis=(2, 3)).astype(np.float32)  # (B, T, 3)

    def encode_texts(self, texts: Sequence[str]) -> Float:
        return np.zeros((len(texts), 3), np.float32)

    def prototypes(self, features: Float, prompt: Float) -> Float:
        assert prompt.shape == (1, features.shape[2])
        return features.mean(axis=0)[None]  # (1, T, D)

    def match(self, features: Float, prompts: Float, prototypes: Float) -> Nearest.Result:
        assert prompts.shape == (len(prototypes), features.shape[2])
        logits = -((features[:, None] - prototypes[None, :, 0]) ** 2).sum(axis=(2, 3))  # (Q, C)
        logits[:, 0] += self.bias
        return self.Result(logits)

    @contextmanager
    def parallel(self) -> Iterator[int]:
        yield 2

    def batch_prototypes(self, features: Float, prompts: Float) -> Float:
        return np.stack([self.prototypes(f, p[None]) for f, p in zip(features, prompts, strict=True)])

    def clip_parts(self, features: Float) -> Float:
        return features

    def batch_match(self, parts: Float, prompts: Float, prototypes: Float) -> Float:
        return np.stack([self.match(*one).logits for one in zip(parts, prompts, prototypes, strict=True)])


def make_features(classes: int, clips: int, spread: float, seed: int = 0) -> tuple[Float, list[str], Float]:
    """Clips around class centres one apart; spread 0 makes them equal, a large one hides the class."""
    rng = np.random.default_rng(seed)
    centres = np.eye(classes, T * D).reshape(classes, 1, T, D)
    noise = spread * rng.standard_normal((classes, clips, T, D))
    values = (centres + noise).reshape(-1, T, D).astype(np.float32)
    labels = [f"class{c}" for c in range(classes) for _ in range(clips)]
    return values, labels, np.zeros((classes, D), np.float32)


def without_time(result: Accuracy) -> Accuracy:
    return replace(result, seconds=0.0)


def episode_accuracy(
    scorer: Nearest,
    features: Float,
    labels: Sequence[str],
    prompts: Float,
    *,
    groups: Sequence[str] | None = None,
    workers: int | None = None,
    **plan: int,
) -> Accuracy:
    clips = EncodedClips(features, labels, prompts, groups)
    return summary(episode_answers(scorer, clips, EpisodePlan(**plan), workers=workers))


def test_separable_classes_are_always_right():
    result = episode_accuracy(Nearest(), *make_features(8, 6, spread=0.01), way=5, shot=1, query=2, episodes=100)
    assert (result.accuracy, result.ci95) == (100.0, 0.0)
    assert result.per_class == {f"class{c}": 100.0 for c in range(8)}
    assert (result.way, result.shot, result.episodes) == (5, 1, 100)


def test_random_features_are_at_chance():
    result = episode_accuracy(Nearest(), *make_features(20, 20, spread=100), way=5, shot=1, episodes=3000)
    assert abs(result.accuracy - 20) < 2 * result.ci95
    # five independent queries at chance: 1.96 * sqrt(0.2 * 0.8 / 5 / 3000) = 0.64 points
    assert result.ci95 == pytest.approx(0.64, abs=0.1)


def test_one_answer_for_everything_is_exactly_chance():
    result = episode_accuracy(Nearest(bias=1e9), *make_features(6, 5, spread=1), way=4, shot=2, query=3, episodes=50)
    assert result.accuracy == pytest.approx(25.0)
    assert result.ci95 == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("shot", "merges_after"), [(1, True), (3, True), (3, False)])
def test_agrees_with_a_plain_loop(shot, merges_after):
    features, labels, prompts = make_features(7, 8, spread=0.4)
    options = {"way": 3, "shot": shot, "query": 2, "seed": 5}
    result = episode_accuracy(Nearest(0.0, merges_after), features, labels, prompts, **options, episodes=200)
    sampler = EpisodeSampler(labels, **options)
    accuracies, outcomes = [], {name: [] for name in sampler.classes}
    confusion = {name: dict.fromkeys(sampler.classes, 0) for name in sampler.classes}
    for number in range(200):
        episode, right = sampler.episode(number), []
        prototypes = [features[row].mean(axis=0) for row in episode.support]
        for truth, row in enumerate(episode.query):
            for clip in row:
                distances = [float(((features[clip] - p) ** 2).sum()) for p in prototypes]
                answer = distances.index(min(distances))
                right.append(answer == truth)
                name = sampler.classes[episode.classes[truth]]
                outcomes[name].append(right[-1])
                confusion[name][sampler.classes[episode.classes[answer]]] += 1
        accuracies.append(np.mean(right))
    assert result.accuracy == pytest.approx(100 * np.mean(accuracies))
    assert result.ci95 == pytest.approx(100 * 1.96 * np.std(accuracies) / np.sqrt(200))
    assert result.per_class == pytest.approx({name: 100 * np.mean(hits) for name, hits in outcomes.items()})
    assert result.confusion == confusion
    assert (result.way, result.shot, result.query, result.episodes) == (3, shot, 2, 200)


def test_workers_change_nothing():
    data = make_features(7, 8, spread=0.4)
    results = [
        without_time(episode_accuracy(Nearest(), *data, way=5, shot=1, episodes=150, workers=workers))
        for workers in (1, 3, None)
    ]
    assert results[0] == results[1] == results[2]


def test_a_leak_between_people_disappears_with_groups():
    # Features show which person did which action, and nothing an action has in common: two takes of one
    # person are alike, so drawing both as support and query looks like skill (1 in 5 of 6 clips, 36 %).
    rng = np.random.default_rng(0)
    takes = np.repeat(rng.standard_normal((10, 3, T, D)), 2, axis=1).reshape(-1, T, D).astype(np.float32)
    labels = [f"class{c}" for c in range(10) for _ in range(6)]
    groups = [f"person{p}" for _ in range(10) for p in range(3) for _ in range(2)]
    data = (takes, labels, np.zeros((10, D), np.float32))
    leaked = episode_accuracy(Nearest(), *data, way=5, shot=1, episodes=2000)
    fair = episode_accuracy(Nearest(), *data, way=5, shot=1, episodes=2000, groups=groups)
    assert leaked.accuracy > 33
    assert fair.accuracy < 24


def test_scores_that_are_not_finite_fail_the_check():
    data = make_features(5, 4, spread=0.1)
    with pytest.raises(CheckFailed, match="not finite"):
        episode_accuracy(Nearest(bias=float("nan")), *data, way=5, shot=1, episodes=3)
    with pytest.raises(InputError, match="episodes must be at least 1"):
        episode_accuracy(Nearest(), *data, way=5, shot=1, episodes=0)


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    return write_colour_folder(tmp_path)


def test_clips_are_encoded_once_and_broken_ones_left_out(colours, caplog):
    clips, warnings = folder_clips(colours)
    done: list[int] = []
    features = encode(Nearest(), clips, ClipSpec(frames=4, size=16), workers=2, advance=done.append)
    assert warnings == ()
    assert features.values.shape == (18, 4, 3)
    assert features.skipped == ("red/dora_1.avi",)
    assert "dora_1.avi" in caplog.text
    assert sum(done) == 19
    red = [value for value, label in zip(features.values, features.labels, strict=True) if label == "red"]
    assert np.mean(red, axis=(0, 1)).argmax() == 0
    groups = clip_groups(features.names, "^([a-z]+)_")
    accuracy = episode_accuracy(
        Nearest(), features.values, features.labels, np.zeros((3, 3), np.float32),
        way=3, shot=2, episodes=20, groups=groups,
    )  # fmt: skip
    assert accuracy.accuracy == 100.0


def test_a_folder_without_one_readable_clip_is_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.mp4").write_bytes(b"no video")
    clips, _ = folder_clips(tmp_path)
    with pytest.raises(InputError, match="none of the 2 clips can be read"):
        encode(Nearest(), clips, ClipSpec(frames=4, size=16))


def test_chosen_classes(colours):
    clips, _ = folder_clips(colours, ["green", "dark blue"])
    assert {clip.label for clip in clips} == {"green", "dark blue"}
    with pytest.raises(InputError, match=r"no class 'yellow'.*there are: dark blue, green, red"):
        folder_clips(colours, ["green", "yellow"])


def test_generated_clips_are_the_same_every_time():
    spec = ClipSpec(frames=2, size=16)
    names = list(dict.fromkeys(clip.label for clip in generated_clips(1)))
    clips = generated_clips(2, classes=names[:2])
    assert [clip.name for clip in clips] == [f"{name}/{seed:02d}" for name in names[:2] for seed in (0, 1)]
    first, again = (encode(Nearest(), clips, spec).values for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])


def test_groups_come_from_the_clips_own_name():
    names = ["wave_one/weizmann_ido_wave.mp4", "wave_one/seq07_1.avi"]
    assert clip_groups(names, r"weizmann_([a-z]+)_|(seq\d+)") == ["ido", "seq07"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "not a regular expression"),
        ("anna", "no capture group"),
        ("^person([0-9]+)", "does not match clip red/anna_1.avi"),
    ],
)
def test_group_patterns_that_are_refused(pattern, message):
    with pytest.raises(InputError, match=message):
        clip_groups(["red/anna_1.avi"], pattern)
