"""The accuracy benchmark as a command on generated clips, and its descriptors on drawn ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import accuracy
from benchmarks.descriptors import describe, euclidean, hog, mean_cosine, motion_history, otam
from m2df_train.synthetic import render_action
from m2df_train.synthetic.demo_clips import encode_mp4

DESCRIPTORS = {"motion history", "HOG, OTAM", "HOG, mean cosine", "HOG, mean cosine, centred"}
SUBJECTS = {"bundle", "its tower, training-free head", "frozen EfficientNet-Lite0"} | DESCRIPTORS


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes; all clips of one have the same bytes."""
    folder = tmp_path_factory.mktemp("clips")
    for label, action in (("same", "clap"), ("other", "squat")):
        (folder / label).mkdir()
        clip = render_action(action, 1)
        encode_mp4(folder / label / "a_p1.mp4", clip.read(np.arange(30)), clip.fps)
        for person in (2, 3):
            (folder / label / f"a_p{person}.mp4").write_bytes((folder / label / "a_p1.mp4").read_bytes())
    return folder


def test_copies_of_the_support_clips_are_recognised_by_every_subject(clips: Path, tmp_path: Path, run_module) -> None:
    out = tmp_path / "accuracy.json"
    out.write_text('{"earlier": {}}')
    done = run_module(
        "benchmarks.accuracy", "--data", clips, "--groups", "_(p[0-9])", "--way", 2, "--shot", "1", "--episodes", 6,
        "--name", "copies", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = json.loads(out.read_text())
    assert set(records) == {"earlier", "copies"}  # results on other data stay
    record = records["copies"]
    subjects = record["results"]["2-way 1-shot"]
    assert set(subjects) == SUBJECTS
    for name, values in subjects.items():
        assert (values["accuracy"], values["ci95"]) == (100.0, 0.0), name
        assert name == "bundle" or values["bundle_leads_by"] == {"accuracy": 0.0, "ci95": 0.0}
    assert record["settings"]["clips"] == 6
    assert len(record["data_sha256"]) == len(record["bundle"]["sha256"]) == 64
    assert str(clips.parent) not in record["command"]


def test_unknown_actions_are_told_apart_where_they_differ(clips: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "a.json"
    for label in ("same", "other"):
        shutil.copytree(clips / label, data / label)
    (data / "third").mkdir()
    clip = render_action("walk", 5)
    encode_mp4(data / "third" / "1.mp4", clip.read(np.arange(30)), clip.fps)
    shutil.copy(data / "third" / "1.mp4", data / "third" / "2.mp4")
    options = ("--data", data, "--way", 2, "--open-set", 1, "--shot", 1, "--episodes", 12, "--out", out)
    accuracy.cli.main([*map(str, options)], standalone_mode=False)
    record = json.loads(out.read_text())["data"]
    assert record["settings"]["unknown"] == 1
    subjects = record["results"]["2-way 1-shot"]
    assert set(subjects) == SUBJECTS
    for name, values in subjects.items():  # known queries have the very bytes of a support clip
        measured = values["open_set"]
        found = (values["accuracy"], measured["auroc"][0], measured["false_positives"][0], measured["oscr"][0])
        assert found == (100, 100, 0, 100), name


def test_clips_that_are_all_the_same_are_told_apart_by_nobody(clips: Path, tmp_path: Path) -> None:
    for label in ("one", "two"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in (1, 2):
            copy = tmp_path / "data" / label / f"{number}.mp4"
            copy.write_bytes((clips / "same" / "a_p1.mp4").read_bytes())
    out = tmp_path / "accuracy.json"
    labels = tmp_path / "labels.csv"
    labels.write_text("class,text\none,a person\ntwo,a person\n")
    arguments = (
        "--data",
        tmp_path / "data",
        "--way",
        2,
        "--shot",
        1,
        "--episodes",
        8,
        "--out",
        out,
        "--labels",
        labels,
    )
    accuracy.cli.main([*map(str, arguments)], standalone_mode=False)
    subjects = json.loads(out.read_text())["data"]["results"]["2-way 1-shot"]
    assert {values["accuracy"] for values in subjects.values()} == {50.0}


def test_refuses_a_file_that_is_not_its_own(clips: Path, tmp_path: Path, run_module) -> None:
    out = tmp_path / "notes.json"
    out.write_text("[1]")
    done = run_module("benchmarks.accuracy", "--data", clips, "--way", 2, "--shot", 1, "--episodes", 1, "--out", out)
    assert done.returncode == 2 and "no results of this benchmark" in done.stderr and out.read_text() == "[1]"


def test_hog_of_slopes_has_its_closed_form() -> None:
    slope = np.tile(np.arange(64, dtype=np.uint8) * 2, (64, 1))  # every gradient points along the row: direction 0
    blocks = hog(slope).reshape(4, 9, 7, 7)
    inner = blocks[:, :, :, 1:-1]  # the picture's edge has no gradient
    np.testing.assert_allclose(inner[:, 0], 0.5, atol=1e-4)  # four equal cells in a block of length 1
    np.testing.assert_allclose(inner[:, 1:], 0, atol=1e-6)
    turned = hog(np.ascontiguousarray(slope.T)).reshape(4, 9, 7, 7)[:, :, 1:-1]
    np.testing.assert_allclose(turned[:, [4, 5]], 0.5 / np.sqrt(2), atol=1e-3)  # 90 degrees, between two bins
    assert not hog(np.full((64, 64), 77, dtype=np.uint8)).any()


def test_motion_history_is_the_time_of_the_last_movement() -> None:
    changes = np.full((4, 64, 64), 128, dtype=np.uint8)
    changes[0, :20], changes[3, 40:] = 200, 60
    history = motion_history(changes).reshape(64, 64)
    np.testing.assert_allclose([history[10, 30], history[30, 30], history[50, 30]], [0.25, 0.0, 1.0], atol=1e-6)


def test_distances_have_their_closed_form() -> None:
    rng = np.random.default_rng(0)
    query, classes = (rng.normal(size=(n, 8, 5)).astype(np.float32) for n in (3, 2))
    means = [v.mean(axis=1).astype(np.float64) for v in (query, classes)]
    norms = np.linalg.norm(means[0], axis=1)[:, None] * np.linalg.norm(means[1], axis=1)[None]
    expected = 16 * (1 - means[0] @ means[1].T / (norms + 0.01))  # 8 frames, two directions
    np.testing.assert_allclose(mean_cosine(query, classes), expected, rtol=1e-4)
    np.testing.assert_allclose(euclidean(query, query).diagonal(), 0)
    assert otam(query, query).argmin(axis=1).tolist() == [0, 1, 2]


def test_centring_removes_what_all_clips_share() -> None:
    pixels: NDArray[np.uint8] = np.full((2, 8, 64, 64, 3), 90, dtype=np.uint8)
    for clip, x in zip(pixels, (16, 44), strict=True):
        for frame in clip:
            grey = np.full((64, 64), 90, dtype=np.uint8)
            cv2.rectangle(grey, (2, 2), (60, 60), 200, 2)  # in both
            cv2.circle(grey, (x, 32), 6, 200, -1)
            frame[..., 0] = grey
    described = describe(pixels, pixels)
    plain, centred = (described[f"HOG, mean cosine{end}"] for end in ("", ", centred"))
    apart = [float(d.distances(d.clips[:1], d.clips[1:])[0, 0]) for d in (plain, centred)]
    assert 0 < apart[0] < 8 < 16 < apart[1]  # 16 is orthogonal
