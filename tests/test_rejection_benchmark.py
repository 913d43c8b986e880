"""The benchmark of rejection as a command, and on scores that are exchangeable in closed form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import write_clip

from benchmarks.rejection import Draw, Said, draw, summary
from m2df_runtime.backends.model import QueryScores
from m2df_train.data.episodes import EpisodeSampler
from m2df_train.evaluation.features import Features


class FirstNumber:
    """A clip's distance to every class is its own first number: the scores of clips that are drawn alike are alike."""

    backend, precision = "cpu", "fp32"

    def prototypes(self, features: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        return features[:1]  # (V, T, D)

    def match(self, features: np.ndarray, prompts: np.ndarray, prototypes: np.ndarray) -> QueryScores:
        distances = np.repeat(features[:, None, :1, 0], len(prompts), axis=2)  # (Q, V, C)
        return QueryScores(-distances[:, 0], distances, distances[:, 0], features[:, None])


def test_exchangeable_scores_are_missed_as_often_as_is_claimed() -> None:
    """Mean of Beta: with n = 10 scores 1 in 11, 1 in 11 and 2 in 11 lie beyond, and so on average over 400 banks."""
    rng = np.random.default_rng(0)
    labels = [f"class {c}" for c in range(4) for _ in range(400)]
    values = rng.normal(size=(len(labels), 1, 2)).astype(np.float32)
    features = Features(values, tuple(labels), tuple(labels), (), 0.0)
    sampler = EpisodeSampler(labels, way=4, shot=5, query=20)
    draws = [draw(FirstNumber(), features, np.zeros((4, 2), np.float32), e, 2) for e in sampler.episodes(400)]  # type: ignore[arg-type]
    measured = summary(draws)
    assert measured["auroc"][0] == pytest.approx(50, abs=3)  # nothing tells known from unknown
    # All logits are alike: of two classes each has a half, whatever the temperature.
    assert measured["said"] == measured["untempered"] == {"sure": [50.0] * 3, "surprise": [0.693] * 3}
    for rate, share in (("0.05", 1 / 11), ("0.1", 1 / 11), ("0.2", 2 / 11)):
        found = measured["miss_rates"][rate]
        assert found["claimed"] == pytest.approx(100 * share, abs=0.01)
        mean, low, high = found["missed"]
        assert low - 1 < 100 * share < high + 1 and low < mean < high
        assert found["unknown_answered"][0] == pytest.approx(100 * (1 - share), abs=3)  # nothing tells them apart


def test_intervals_are_over_draws() -> None:
    one = Draw(*(np.full(3, 0.25),) * 3, auroc=0.5, accuracy=1.0, said=Said(0.5, 0.1234), untempered=Said(0.75, 2.0))
    found = summary([one] * 7)
    assert found["miss_rates"]["0.1"] == {"claimed": 25.0, "missed": [25.0] * 3, "unknown_answered": [25.0] * 3}
    assert (found["accuracy"], found["untempered"]["sure"]) == ([100.0] * 3, [75.0] * 3)
    assert found["said"]["surprise"] == [0.123] * 3


def test_the_command_files_what_it_finds(tiny_bundle: Path, tmp_path: Path, run_module) -> None:
    for colour in ("red", "green", "blue", "white"):
        for seed in range(4):
            write_clip(tmp_path / "clips" / colour / f"{seed}.mp4", colour, seed=seed)
    out = tmp_path / "rejection.json"
    done = run_module(
        "benchmarks.rejection", "--bundle", tiny_bundle, "--data", tmp_path / "clips", "--name", "colours",
        "--way", 2, "--unknown", 2, "--shot", "2,3", "--query", 1, "--draws", 5, "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())["colours"]
    claimed = {size: found["miss_rates"]["0.05"]["claimed"] for size, found in record["results"].items()}
    assert claimed == {"2-way 2-shot": 20.0, "2-way 3-shot": 14.29}  # one in five, of four clips and a query; in seven
    assert (record["settings"]["clips"], len(record["data_sha256"])) == (16, 64)
    assert str(tmp_path) not in out.read_text()
