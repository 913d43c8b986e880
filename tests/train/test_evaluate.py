"""Episode accuracy: closed forms, independence of workers, groups, bad clips, and the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from m2df_runtime.errors import CheckFailed, InputError
from m2df_runtime.preprocess import ClipSpec
from m2df_train.data.clips import clip_groups, folder_clips, generated_clips
from m2df_train.data.episodes import EpisodeSampler
from m2df_train.evaluate import Accuracy, encode, episode_accuracy

Float = NDArray[np.float32]
T, D = 4, 6


@dataclass(frozen=True)
class Nearest:
    """A whole few-shot model in numpy: frames are their mean colours, prototypes means, scores distances."""

    bias: float = 0.0
    """Added to the score of the first class of every episode."""

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


@pytest.mark.parametrize("shot", [1, 3])
def test_agrees_with_a_plain_loop(shot):
    features, labels, prompts = make_features(7, 8, spread=0.4)
    result = episode_accuracy(Nearest(), features, labels, prompts, way=3, shot=shot, query=2, episodes=200, seed=5)
    sampler = EpisodeSampler(labels, way=3, shot=shot, query=2, seed=5)
    accuracies, outcomes = [], {name: [] for name in sampler.classes}
    for number in range(200):
        episode, right = sampler.episode(number), []
        prototypes = [features[row].mean(axis=0) for row in episode.support]
        for truth, row in enumerate(episode.query):
            for clip in row:
                distances = [float(((features[clip] - p) ** 2).sum()) for p in prototypes]
                right.append(distances.index(min(distances)) == truth)
                outcomes[sampler.classes[episode.classes[truth]]].append(right[-1])
        accuracies.append(np.mean(right))
    assert result.accuracy == pytest.approx(100 * np.mean(accuracies))
    assert result.ci95 == pytest.approx(100 * 1.96 * np.std(accuracies) / np.sqrt(200))
    assert result.per_class == pytest.approx({name: 100 * np.mean(hits) for name, hits in outcomes.items()})


def test_workers_change_nothing():
    data = make_features(7, 8, spread=0.4)
    results = [
        without_time(episode_accuracy(Nearest(), *data, way=5, shot=1, episodes=150, workers=workers))
        for workers in (1, 3)
    ]
    assert results[0] == results[1]


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


def write_clip(path: Path, colour: tuple[int, int, int], frames: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (48, 32))
    for number in range(frames):
        frame = np.full((32, 48, 3), colour[::-1], np.uint8)
        frame[number % 32] = 255
        writer.write(frame)
    writer.release()


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Three classes of one colour each, two clips by each of three people, and one clip that is none."""
    for name, colour in {"red": (200, 0, 0), "green": (0, 200, 0), "dark blue": (0, 0, 200)}.items():
        for person in ("anna", "ben", "carl"):
            for take in (1, 2):
                write_clip(tmp_path / name / f"{person}_{take}.avi", colour)
    (tmp_path / "red" / "dora_1.avi").write_bytes(b"not a video")
    return tmp_path


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


def test_the_command_on_a_bundle(colours, tiny_bundle, run_module):
    options = ("--bundle", tiny_bundle, "--data", colours, "--way", 3, "--shot", "1,2", "--episodes", 60)
    done = run_module("m2df_train.eval_cli", *options, "--groups", "^([a-z]+)_", "--json")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["shot"] for record in records] == [1, 2]
    assert list(records[0]) == [
        "accuracy", "ci95", "per_class", "way", "shot", "episodes", "backend", "precision",
        "encode_seconds", "episode_seconds",
    ]  # fmt: skip
    assert [record["accuracy"] for record in records] == [100.0, 100.0]
    assert set(records[0]["per_class"]) == {"red", "green", "dark blue"}
    assert "dora_1.avi" in done.stderr
    assert done.stderr.count("warning:") == 1
    text = run_module("m2df_train.eval_cli", *options[:-1], 10, "--per-class", "--classes", "red,green", "--way", 2)
    assert text.returncode == 0, text.stderr
    assert "2-way 1-shot, 10 episodes: 100.00 ± 0.00 %" in text.stdout
    assert "green  100.00 %" in text.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--way", 4), "4-way episodes need 4 classes"),
        (("--classes", "red,pink"), "no class 'pink'"),
        (("--groups", "(x"), "not a regular expression"),
        (("--checkpoint", "b"), "exclude each other"),
        (("--shot", "1,many"), "not a number or a list"),
        (("--labels", "missing.csv"), "missing.csv"),
    ],
)
def test_the_command_says_what_is_wrong(options, message, colours, tiny_bundle, run_module):
    done = run_module("m2df_train.eval_cli", "--bundle", tiny_bundle, "--data", colours, "--way", 3, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_checkpoint_and_its_shape_of_scores(colours):
    import torch

    from m2df_runtime.bundle import SourceInfo
    from m2df_train.checkpoint import Checkpoint
    from m2df_train.model.backbone import load_backbone
    from m2df_train.model.heads import build_head
    from m2df_train.torch_scorer import CheckpointScorer

    torch.manual_seed(0)
    backbone = load_backbone("m2df-tiny")
    spec = ClipSpec(frames=4, size=backbone.image_size)
    head = build_head("m2df", backbone.dim, spec.frames)
    checkpoint = Checkpoint(backbone, head, spec, "a photo of {}", {}, SourceInfo(model="m2df-tiny"))
    threads = torch.get_num_threads()
    scorer = CheckpointScorer(checkpoint, "cpu")
    features = encode(scorer, folder_clips(colours)[0], spec)
    prompts = scorer.encode_texts(["a photo of red", "a photo of green", "a photo of blue"])
    assert features.values.shape == (18, 4, backbone.dim)
    assert prompts.shape == (3, backbone.dim)
    prototypes = scorer.prototypes(features.values[:2], prompts[:1])
    assert prototypes.shape == (2, 4, backbone.dim)
    scores = scorer.match(features.values[:5], prompts, np.stack([prototypes] * 3))
    assert scores.logits.shape == (5, 3)
    assert scores.distances.shape == (5, 2, 3)
    assert torch.get_num_threads() == threads
    result = episode_accuracy(scorer, features.values, features.labels, prompts, way=3, shot=1, episodes=5)
    assert 0 <= result.accuracy <= 100
