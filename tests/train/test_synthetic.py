"""Behaviour of the synthetic clip generator through its public names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from m2df_train.synthetic import (
    ACTIONS,
    SyntheticClip,
    composed_action,
    render_action,
    sample_action,
    split_actions,
)
from m2df_train.synthetic.kinematics import JOINT, solve_scene
from m2df_train.synthetic.motion import Style


@pytest.mark.parametrize("name", list(ACTIONS))
def test_every_named_action_renders_people_that_move(name: str) -> None:
    clip = render_action(name, seed=5)
    frames = clip.read(np.linspace(0, clip.n_frames - 1, 8).astype(int).tolist())
    assert frames.dtype == np.uint8
    assert frames.shape == (8, clip.height, clip.width, 3)
    changes = np.abs(np.diff(frames.astype(np.int16), axis=0)).max(axis=(0, 3))
    assert (changes > 12).sum() > 20
    assert frames[0].std() > 1.0


@pytest.mark.parametrize("seed", range(6))
def test_a_frame_does_not_depend_on_what_was_read_before(seed: int) -> None:
    action = composed_action(seed)
    whole = SyntheticClip(action, seed).read([0, 7, 3, 29, 7])
    again = SyntheticClip(action, seed)
    for position, index in [(3, 29), (0, 0), (2, 3), (1, 7), (4, 7)]:
        assert np.array_equal(again.read([index])[0], whole[position])


def test_clip_describes_its_frames() -> None:
    for seed in range(20):
        clip = render_action("walk", seed)
        assert 30 <= clip.n_frames <= 120
        assert clip.times.shape == (clip.n_frames,)
        assert np.allclose(np.diff(clip.times), 1 / clip.fps)
        assert 25 <= clip.fps <= 30
        assert 112 <= clip.width <= 192 and 96 <= clip.height <= 156


def test_reading_outside_the_clip_is_refused() -> None:
    clip = render_action("clap", 0)
    with pytest.raises(IndexError, match=r"frame indices 30\.\.30 outside 0\.\.29"):
        clip.read([clip.n_frames])


def test_seeds_give_different_clips_of_one_action() -> None:
    first, second = render_action("squat", 1), render_action("squat", 2)
    a, b = first.read([0])[0], second.read([0])[0]
    assert a.shape != b.shape or np.abs(a.astype(int) - b).mean() > 2


def test_splits_are_disjoint_balanced_and_cover_every_action() -> None:
    names = {split: {a.name for a in split_actions(split)} for split in ("train", "val", "test")}
    assert sum(map(len, names.values())) == len(set().union(*names.values())) == len(ACTIONS) >= 44
    assert len(names["val"]) >= 8
    assert len(names["test"]) >= 10
    assert 0.5 < len(names["train"]) / len(ACTIONS) < 0.7
    for split in ("val", "test"):
        kinds = {a.kind for a in split_actions(split)}
        assert {"arm", "leg", "travel", "pair"} <= kinds


def test_named_actions_have_unique_texts_and_the_stated_number_of_people() -> None:
    assert len({a.text for a in ACTIONS.values()}) == len(ACTIONS)
    times = np.linspace(0, 1, 10)
    for action in ACTIONS.values():
        assert len(action.program(times, Style(np.random.default_rng(0)))) == action.people


def test_mirrorable_actions_are_shown_both_ways_round_and_others_are_not() -> None:
    action = ACTIONS["walk"]

    def ways(mirrorable: bool) -> set[bool]:
        shown = replace(action, mirrorable=mirrorable)
        return {SyntheticClip(shown, seed).mirrored for seed in range(12)}

    assert ways(True) == {False, True}
    assert ways(False) == {False}


def test_composed_actions_are_determined_by_their_index() -> None:
    for index in (0, 3, 1 << 40, (1 << 62) + 5):
        first, second = composed_action(index), composed_action(index)
        assert first.name == second.name == f"composed_{index}"
        assert first == second
        a = SyntheticClip(first, 9).read([4])
        assert np.array_equal(a, SyntheticClip(second, 9).read([4]))


def test_composed_actions_differ_and_belong_to_training() -> None:
    actions = [composed_action(i) for i in range(400)]
    assert len({a.text for a in actions}) > 360
    assert len({a.program for a in actions}) == len(actions)
    assert {a.split for a in actions} == {"train"}
    assert {a.people for a in actions} == {1, 2}
    assert not {a.text for a in actions} & {a.text for a in ACTIONS.values()}


def test_composed_actions_render() -> None:
    rng = np.random.default_rng(0)
    for index in range(40):
        clip = sample_action(composed_action(index), rng)
        frames = clip.read([0, clip.n_frames // 2])
        assert np.isfinite(frames).all()
        assert not np.array_equal(frames[0], frames[1])


def test_walking_feet_stay_on_the_ground_and_travel_does_not_slide() -> None:
    phase = np.linspace(0, 2, 200)
    for seed in range(5):
        joints = solve_scene(ACTIONS["walk"].program(phase, Style(np.random.default_rng(seed))))[0].joints
        feet = joints[:, [JOINT[f"{side}_{part}"] for side in "rl" for part in ("toe", "heel")]]
        assert np.all(feet[..., 1] > -1e-9)
        assert np.all(feet[..., 1].min(axis=1) < 0.03)
        ankle = joints[:, JOINT["r_ankle"], 0]
        stance = (phase > 1.12) & (phase < 1.38)
        assert np.ptp(ankle[stance]) < 0.08 < np.ptp(ankle)
