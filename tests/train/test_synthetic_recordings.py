"""Generated recordings: what happens in them, when, and that nobody jumps."""

from __future__ import annotations

import csv
from itertools import pairwise

import numpy as np
import pytest

from m2df_runtime import InputError
from m2df_runtime.clips.opening import open_source
from m2df_train.synthetic import ACTIONS, SyntheticRecording, split_actions
from m2df_train.synthetic.kinematics import INDEX, POSITION_CHANNELS, solve
from m2df_train.synthetic.performance import Performance
from m2df_train.synthetic.plan import Floor, plan
from m2df_train.synthetic.recording_files import cli, write_besides, write_clip

TAUGHT = [ACTIONS[name] for name in ("clap", "fall_down", "high_knees", "punch_person")]
OTHERS = split_actions("val")


@pytest.mark.parametrize("people", [1, 2])
def test_a_frame_does_not_depend_on_what_was_read_before(people: int) -> None:
    whole = SyntheticRecording(TAUGHT, OTHERS, 4, seconds=40, people=people, size=(96, 72))
    start, end = (round(15 * second) for second in (whole.truth[0].start - 1, whole.truth[0].end + 1))
    streamed = [picture.rgb() for picture in whole.pictures(np.arange(start, end))]
    again = SyntheticRecording(TAUGHT, OTHERS, 4, seconds=40, people=people, size=(96, 72))
    assert (again.truth, again.others, again.n_frames) == (whole.truth, whole.others, 600)
    for index in (end - 1, start, start + 17):
        assert np.array_equal(again.read([index])[0], streamed[index - start])


def test_a_camera_stands_or_shakes_as_it_is_told() -> None:
    made = [SyntheticRecording(TAUGHT, OTHERS, 1, seconds=4, shaking=told) for told in (False, True, None)]
    first, last = (np.stack([one.read([index])[0] for one in made]).astype(int) for index in (0, 59))
    still, shaking, _ = np.abs(first - last)[:, :40, :40].mean(axis=(1, 2, 3))  # where nobody is
    assert still < shaking
    assert np.array_equal(first[0], first[2]) and np.array_equal(last[0], last[2])  # as most do


def test_truth_is_in_order_inside_the_recording_and_of_what_is_asked_for() -> None:
    seen = set()
    for seed in range(6):
        made = SyntheticRecording(TAUGHT, OTHERS, seed, seconds=180)
        assert {one.label for one in made.truth} <= {action.name for action in TAUGHT}
        assert {one.label for one in made.others} <= {action.name for action in OTHERS}
        everything = sorted([*made.truth, *made.others], key=lambda one: one.start)
        assert len(everything) >= 5
        assert everything[0].start > 0 and everything[-1].end < 180
        for one, after in pairwise(everything):
            assert one.start + 0.5 < one.end < after.start
        if made.people == 1:
            assert not {"punch_person", "dance_together"} & {one.label for one in everything}
        seen |= {one.label for one in everything}
    assert len(seen) > 10


def test_what_happens_between_actions_is_told_and_can_be_taught(tmp_path) -> None:
    made = SyntheticRecording(TAUGHT, OTHERS, 3, seconds=60, people=1)
    everything = sorted([*made.truth, *made.others, *made.between], key=lambda one: one.start)
    assert {one.label for one in made.between} == {"standing", "turning", "walking"}
    assert everything[0].start == 0 and everything[-1].end == 60
    assert all(one.end == pytest.approx(after.start) for one, after in pairwise(everything))
    write_besides(tmp_path, 1)
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.mp4"))
    assert written == ["standing/1.mp4", "turning/1.mp4", "walking/1.mp4"]
    assert open_source(tmp_path / written[0]).n_frames == 36


def test_walking_about_is_an_action_where_walking_is_taught() -> None:
    made = SyntheticRecording([ACTIONS["walk"]], OTHERS, 0, seconds=120)
    assert [one.start for one in made.truth] == sorted(one.start for one in made.truth)
    assert len(made.truth) > 5 and {one.label for one in made.truth} == {"walk"}


def test_nobody_jumps_between_what_they_do() -> None:
    """Between actions no joint is faster than the fastest of a sprint's feet, about 10 body heights per second."""
    times = np.arange(0, 60, 0.02)
    groups = (list(ACTIONS.values())[::2], list(ACTIONS.values())[1::2])
    for seed in range(2):
        persons, performed = plan(np.random.default_rng(seed), groups, 0.5, 2, Floor(1.2, 0.3), 60.0)
        inside = np.zeros(len(times), dtype=bool)
        for one in [*performed[0], *performed[1]]:
            if one.label != "walk":
                inside |= (times > one.start - 0.02) & (times < one.end + 0.02)
        for person in persons:
            track = Performance(person.stretches, person.sway).track(times)
            joints = solve(track).joints
            speed = np.linalg.norm(np.diff(joints, axis=0), axis=-1).max(axis=1) / 0.02
            assert speed[~inside[1:]].max() < 10
            assert speed.max() > 1
            assert track.pose.q.shape == (len(times), len(INDEX))
            assert person.sway.shape == (3, len(INDEX) - POSITION_CHANNELS)


def test_an_action_in_a_recording_is_the_action() -> None:
    """Feet leave the ground during a jump, and never while somebody stands or walks."""
    floor = Floor(1.2, 0.3)
    persons, (performed, _) = plan(np.random.default_rng(3), [[ACTIONS["jumping_jack"]], []], 1.0, 1, floor, 60.0)
    times = np.arange(0, 60, 0.04)
    (person,) = persons
    lowest = solve(Performance(person.stretches, person.sway).track(times)).joints[..., 1].min(axis=1)
    for one in performed:
        assert lowest[(times > one.start) & (times < one.end)].max() > 0.02
    away = np.all([(times < one.start - 2) | (times > one.end + 2) for one in performed], axis=0)
    assert len(performed) > 3 and lowest[away].max() < 0.03


def test_the_command_writes_what_the_evaluation_reads(tmp_path, run_here) -> None:
    folder = tmp_path / "made"
    wanted = ("--recordings", 2, "--seconds", 20, "--shots", 1, "--width", 96, "--taught", "clap,squat", "--seed", 7)
    assert run_here(cli, folder, *wanted).returncode == 0
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.mp4")) == [
        *("actions/clap/1.mp4", "actions/squat/1.mp4", "recordings/007.mp4", "recordings/008.mp4")
    ]
    source = open_source(folder / "recordings" / "007.mp4")
    assert (source.n_frames, source.fps) == (300, 15)
    assert source.read([5]).shape == (1, 72, 96, 3)
    with (folder / "events.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and set(rows[0]) == {"recording", "start", "end", "label"}
    assert {row["label"] for row in rows} <= {"clap", "squat"}
    refused = run_here(cli, folder, *wanted)
    assert refused.returncode == 2 and "is not empty" in refused.stderr


def test_recordings_of_any_size_and_length_are_written_without_holding_them(tmp_path) -> None:
    made = SyntheticRecording(TAUGHT, [], 1, seconds=1200, size=(656, 400), fps=60)
    assert made.n_frames == 72_000 and len(made.truth) > 50
    assert made.read([71_999]).shape == (1, 400, 656, 3)
    write_clip(tmp_path / "short.mp4", SyntheticRecording(TAUGHT, [], 1, seconds=1, size=(33, 35)))
    assert open_source(tmp_path / "short.mp4").n_frames == 15


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(InputError, match="1 people can perform none of the actions"):
        SyntheticRecording([ACTIONS["hug"]], [], 0, people=1)
    with pytest.raises(InputError, match="at least 1 s"):
        SyntheticRecording(TAUGHT, [], 0, seconds=0)
