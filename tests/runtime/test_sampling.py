"""Frame sampling: the conformance values of the method's specification and the rules' edges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from m2df_runtime.clips.sampling import Sampler, sample_indices

RULES: tuple[Sampler, ...] = ("uniform", "segment", "segment_center", "linspace", "dense_clip", "grid")


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (9, [0, 1, 2, 3, 4, 5, 6, 8]),
        (10, [0, 1, 2, 3, 5, 6, 7, 9]),
        (11, [1, 2, 3, 4, 5, 6, 7, 9]),
        (30, [1, 4, 8, 12, 16, 20, 24, 28]),
        (100, [1, 14, 28, 42, 56, 70, 84, 98]),
        (300, [1, 43, 85, 128, 170, 213, 255, 298]),
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_linspace_matches_the_method(n: int, expected: list[int]) -> None:
    assert sample_indices("linspace", n, 8).tolist() == expected


@pytest.mark.parametrize(
    ("n", "fps", "expected"),
    [
        (300, 30.0, [2, 39, 77, 114, 151, 188, 226, 263]),
        (250, 25.0, [1, 31, 62, 92, 123, 153, 184, 214]),
        (60, 30.0, [2, 5, 8, 11, 14, 17, 20, 23]),
        (20, 30.0, [1, 3, 5, 7, 9, 11, 13, 15]),  # too short: segment centres
    ],
)
def test_dense_clip_matches_the_method(n: int, fps: float, expected: list[int]) -> None:
    assert sample_indices("dense_clip", n, 8, fps=fps).tolist() == expected


def test_segment_center_and_short_clips() -> None:
    assert sample_indices("segment_center", 20, 8).tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert sample_indices("segment_center", 3, 8).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert sample_indices("segment", 3, 8, rng=np.random.default_rng(0)).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_segment_draws_one_frame_per_segment_and_reaches_all() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([sample_indices("segment", 43, 8, rng=rng) for _ in range(400)])
    assert (drawn // 5 == np.arange(8)).all()
    assert set(drawn.ravel().tolist()) == set(range(40))


def test_linspace_in_training_moves_both_ends() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([sample_indices("linspace", 30, 8, rng=rng) for _ in range(300)])
    assert set(drawn[:, 0].tolist()) == set(range(6))
    assert set(drawn[:, -1].tolist()) == set(range(24, 30))


def test_dense_clip_in_training_starts_anywhere() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([sample_indices("dense_clip", 400, 8, fps=12.0, rng=rng) for _ in range(300)])
    assert drawn[:, 0].min() < 10 and drawn[:, 0].max() > 100
    assert drawn.max() <= 399


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 39, 40, 41, 250])
@pytest.mark.parametrize("frames", [1, 8, 16])
@pytest.mark.parametrize("fps", [1.0, 29.97, 240.0])
def test_every_rule_works_for_every_length(rule: Sampler, n: int, frames: int, fps: float) -> None:
    for rng in (None, np.random.default_rng(1)):
        if rule == "segment" and rng is None:
            continue
        chosen = sample_indices(rule, n, frames, fps=fps, rng=rng)
        assert chosen.shape == (frames,) and chosen.dtype == np.int64
        assert chosen.min() >= 0 and chosen.max() < n
        assert (np.diff(chosen) >= 0).all()


@pytest.mark.parametrize("n", [3, 8, 61, 250, 1001])
@pytest.mark.parametrize("rate", [12.0, 25.0, 30000 / 1001, 240.0])
def test_uniform_by_time_is_uniform_by_index_at_a_constant_rate(n: int, rate: float) -> None:
    exact = np.arange(n) / rate
    by_index = sample_indices("uniform", n, 8)
    assert by_index.tolist() == [int((i + 0.5) * n / 8) for i in range(8)]
    for times in (exact, np.round(exact, 3)):  # Matroska rounds to milliseconds
        assert sample_indices("uniform", n, 8, times=times).tolist() == by_index.tolist()


def test_uniform_takes_the_frame_on_screen_at_a_variable_rate() -> None:
    # 10 frames in the first second, then one frame that stays for the other second.
    times = np.concatenate([np.arange(10) * 0.1, [1.9]])
    chosen = sample_indices("uniform", 11, 4, times=times)
    duration = 1.9 + 0.19
    expected = [int(np.flatnonzero(times <= (i + 0.5) * duration / 4)[-1]) for i in range(4)]
    assert chosen.tolist() == expected == [2, 7, 9, 9]


@pytest.mark.parametrize("rate", [12.0, 25.0, 30000 / 1001, 240.0])
def test_grid_is_uniform_at_a_constant_rate_and_windows_share_its_frames(rate: float) -> None:
    times = np.arange(1000) / rate
    for shown in (times, np.round(times, 3)):
        assert sample_indices("grid", 1000, 8, fps=rate, times=shown).tolist() == [
            1000 * (2 * i + 1) // 16 for i in range(8)
        ]
        part, step = 2.0, 2.0 / 8
        seen = []
        for start in np.arange(4) * 3 * step:
            inside = np.flatnonzero((shown >= start) & (shown < start + part))
            chosen = sample_indices("grid", len(inside), 8, times=shown[inside] - start, duration=part)
            seen.append(inside[chosen].tolist())
        assert all(before[3:] == after[:-3] for before, after in itertools.pairwise(seen))


def test_grid_takes_the_frame_on_screen_in_a_window_with_a_gap() -> None:
    times = np.asarray([0.3, 0.4, 0.5, 1.6])  # of a window that begins 0.3 s before its first frame
    assert sample_indices("grid", 4, 4, times=times, duration=2.0).tolist() == [0, 2, 2, 3]


def test_refusals_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="needs rng; 'segment_center' is its fixed form"):
        sample_indices("segment", 10, 8)
    with pytest.raises(ValueError, match="unknown sampling rule 'random'"):
        sample_indices("random", 10, 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        sample_indices("uniform", 0, 8)
