"""Writes generated recordings as a user would have them: support clips, video files, and a table of what happens when.

    python -m m2df_train.synthetic.recording_files generated --recordings 4 --seconds 300

`actions` has the support clips, `recordings` the videos, `events.csv` what of the taught actions happens in them, and
`untaught.csv` what else does.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.source import FrameSource, Picture, SeenThrough
from m2df_runtime.commands.console import main_entry, progress
from m2df_runtime.errors import InputError
from m2df_runtime.files import atomic_write
from m2df_runtime.sinks.video import write_video
from m2df_train.synthetic.actions import ACTIONS
from m2df_train.synthetic.demo_clips import CLIPS
from m2df_train.synthetic.plan import Performed
from m2df_train.synthetic.recording import BESIDES, SyntheticRecording
from m2df_train.synthetic.render import render_action
from m2df_train.synthetic.table import Action

COLUMNS = ("recording", "start", "end", "label")
_BESIDES_SECONDS = 2.4
_SUPPORT_SEEDS = 1_000_000  # away from those of recordings: other people in other places


class Part(SeenThrough):
    """Some seconds of a clip, read from it anew."""

    def __init__(self, source: FrameSource, start: float, end: float) -> None:
        super().__init__(source)
        self._first, last = np.searchsorted(source.times, (start, end)).tolist()
        self.times = source.times[self._first : last] - source.times[self._first]
        self.n_frames = len(self.times)

    @property
    def duration(self) -> float:
        """See `FrameSource.duration`."""
        return self.n_frames / self.fps

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`."""
        return self._source.pictures(indices + self._first)


def write_support(folder: Path, actions: Sequence[Action], shots: int, seed: int = 0) -> None:
    """Write `<action>/<n>.mp4` under `folder`."""
    for action in actions:
        for number in range(1, shots + 1):
            write_clip(folder / action.name / f"{number}.mp4", render_action(action.name, _clip_seed(seed, number)))


def write_besides(folder: Path, shots: int, seed: int = 0) -> None:
    """Write `standing/<n>.mp4`, `turning/<n>.mp4` and `walking/<n>.mp4` under `folder`, each n of another person.

    To teach what people do besides, so that it is not taken for an action.
    """
    for number in range(1, shots + 1):
        made = SyntheticRecording([ACTIONS["walk"]], [], _clip_seed(seed, number), seconds=60, people=1)
        for label in BESIDES.values():
            inside = [one for one in made.between if one.label == label and one.start > 2 and one.end < 58]
            middle = [(one.start + one.end) / 2 for one in inside]
            start = middle[number % len(middle)] - _BESIDES_SECONDS / 2
            write_clip(folder / label / f"{number}.mp4", Part(made, start, start + _BESIDES_SECONDS))


def write_clip(path: Path, clip: FrameSource) -> None:
    """Write a clip or recording as a video file, frame by frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = clip.pictures(np.arange(clip.n_frames))
    frames = ((float(time), picture.rgb()) for time, picture in zip(clip.times, pictures, strict=True))
    write_video(path, frames, clip.fps)


def write_table(path: Path, rows: Iterable[tuple[str, Performed]]) -> None:
    """Write what happens in recordings, by name, as `m2df-eval --annotations` reads it."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for name, one in rows:
        table.writerow([name, f"{one.start:.2f}", f"{one.end:.2f}", one.label])
    atomic_write(path, text.getvalue().encode())


def _clip_seed(seed: int, number: int) -> int:
    return _SUPPORT_SEEDS + 1000 * seed + number


def _actions(_ctx: click.Context, _parameter: click.Parameter, value: str) -> list[Action]:
    names = [name.strip() for name in value.split(",")]
    unknown = [name for name in names if name not in ACTIONS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(sorted(ACTIONS))}")
    return [ACTIONS[name] for name in names]


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--recordings", type=click.IntRange(1), default=2, help="How many.")
@click.option("--seconds", type=click.FloatRange(10), default=120.0, help="Length of each.")
@click.option("--taught", callback=_actions, default=",".join(CLIPS), help="Actions to teach; others occur, too.")
@click.option("--shots", type=click.IntRange(1), default=3, help="Support clips per action.")
@click.option("--besides", is_flag=True, help="Also write support clips of standing, turning and walking.")
@click.option("--people", type=click.IntRange(1, 2), help="In a scene. [default: 1 or 2]")
@click.option("--width", type=click.IntRange(32, 2048), default=320, help="Pixels; the height is three quarters of it.")
@click.option("--fps", type=click.FloatRange(1, 60), default=15.0, help="Frames per second.")
@click.option("--seed", type=click.IntRange(0, 1 << 40), default=0, help="Of the first recording; others count up.")
def cli(
    folder: Path,
    recordings: int,
    seconds: float,
    taught: list[Action],
    shots: int,
    besides: bool,
    people: int | None,
    width: int,
    fps: float,
    seed: int,
) -> None:
    """Write support clips, recordings and what happens in them to FOLDER."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty", "name a new folder")
    untaught = [action for action in ACTIONS.values() if action.split == "test" and action not in taught]
    write_support(folder / "actions", taught, shots, seed)
    if besides:
        write_besides(folder / "actions", shots, seed)
    truth: list[tuple[str, Performed]] = []
    others: list[tuple[str, Performed]] = []
    with progress("recordings", recordings) as advance:
        for number in range(seed, seed + recordings):
            made = SyntheticRecording(
                taught, untaught, number, seconds=seconds, people=people, size=(width, width * 3 // 4), fps=fps
            )
            name = f"{number:03}.mp4"
            write_clip(folder / "recordings" / name, made)
            truth += [(name, one) for one in made.truth]
            others += [(name, one) for one in made.others]
            advance(1)
    write_table(folder / "events.csv", truth)
    write_table(folder / "untaught.csv", others)


def main() -> None:
    """Entry point of the command."""
    main_entry(cli)


if __name__ == "__main__":
    main()
