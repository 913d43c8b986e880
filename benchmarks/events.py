"""Events in recordings: how well they are found, and how often one is told that is none.

    python -m benchmarks.events --minutes 120

Recordings are generated, of actions that no training has seen. Those of validation actions choose when an event begins
and ends, those of test actions are reported; `--joins DIR --groups REGEX` adds real clips, joined. `--minutes 10` shows
in some minutes whether all of it works.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.joined import joined_recordings
from benchmarks.record import Machine, write
from benchmarks.ruled import described, ruled
from m2df_runtime import EventRules, Matcher, SupportBank
from m2df_runtime.backends.model import Model
from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.source import FrameSource
from m2df_runtime.commands.console import main_entry, progress
from m2df_runtime.stream.default_window import default_window
from m2df_runtime.stream.events import WindowScores
from m2df_runtime.stream.stream import Stream, scores_of
from m2df_train.evaluation.event_measures import TrueAction
from m2df_train.evaluation.event_tables import MeasuredEvents, record
from m2df_train.evaluation.event_tuning import tune
from m2df_train.evaluation.recordings import ScoredRecording
from m2df_train.synthetic import Action, Split, SyntheticRecording, split_actions
from m2df_train.synthetic.recording import BESIDES
from m2df_train.synthetic.recording_files import write_besides, write_clip, write_support

ALONE = "taught actions alone"
_SEEDS: dict[Split, int] = {"val": 10_000, "test": 20_000}


@dataclass(frozen=True)
class Settings:
    """What the quality is measured on."""

    minutes: float
    length: float  # seconds of each recording
    shots: int
    width: int
    actions: int | None  # at most, of each split; None for all


def quality(model: Model, settings: Settings, folder: Path) -> dict[str, Any]:
    """Rules chosen on validation actions, and what they and the defaults give on test actions, of each kind of bank."""
    kinds = {ALONE: False, "with standing, turning and walking taught, too": True}
    seen = {split: _seen(model, split, settings, folder / split, list(kinds.values())) for split in _SEEDS}
    found: dict[str, Any] = {}
    for name, with_rest in kinds.items():
        validation, test = (seen[split][with_rest] for split in ("val", "test"))
        with progress(f"tuning, {name}") as _:
            chosen = tune(validation, EventRules()).best.rules
        found[name] = {
            "chosen": {one: getattr(chosen, one) for one in ("enter", "leave", "min_duration", "merge_gap")},
            "validation": {"defaults": _result(validation, EventRules()), "chosen": _result(validation, chosen)},
            "test": {"defaults": _result(test, EventRules()), "chosen": _result(test, chosen)},
        }
    return found


def _seen(
    model: Model, split: Split, settings: Settings, folder: Path, kinds: Sequence[bool]
) -> dict[bool, list[ScoredRecording]]:
    """Scores of the recordings of one split, from banks without and with classes of what people do besides.

    Half of the actions are taught and the others only occur; in every second recording it is the other way round.
    """
    actions = split_actions(split)[: settings.actions]
    halves = (actions[::2], actions[1::2])
    banks = {}
    for half, taught in enumerate(halves):
        support = folder / f"support-{half}"
        write_support(support, taught, settings.shots, _SEEDS[split])
        for with_rest in kinds:
            if with_rest:
                write_besides(support, settings.shots, _SEEDS[split])
            banks[half, with_rest] = Matcher(model, SupportBank.of(model, support, in_cache=False))
    found: dict[bool, list[ScoredRecording]] = {with_rest: [] for with_rest in kinds}
    count = max(2, round(60 * settings.minutes / settings.length))
    # Windows of one length in all recordings, as rules in seconds are chosen for it.
    window = default_window(banks[0, kinds[0]].bank)
    with progress(f"{split} recordings", count) as advance:
        for number in range(count):
            half = number % 2
            made = _made(halves[half], halves[1 - half], _SEEDS[split] + number, settings)
            path = folder / "recording.mp4"
            write_clip(path, made)
            truth = [TrueAction(one.start, one.end, one.label) for one in made.truth]
            matchers = [banks[half, with_rest] for with_rest in kinds]
            for with_rest, seen in zip(kinds, _scored(matchers, open_source(path), truth, window), strict=True):
                found[with_rest].append(seen)
            advance(1)
    return found


def _scored(
    matchers: Sequence[Matcher], source: FrameSource, truth: Sequence[TrueAction], window: float
) -> list[ScoredRecording]:
    """What each bank makes of a recording, whose windows are encoded once; without what people do besides."""
    stream = Stream(matchers[0], source, window=window)
    found: list[list[WindowScores]] = [[] for _ in matchers]
    with closing(stream.steps()) as steps:
        answers = [step.answer for step in steps if step.answer]
    for answer in answers:
        for matcher, windows in zip(matchers, found, strict=True):
            scores: dict[str, float] = {}
            distances: dict[str, float] = {}
            if answer.prediction is not None and answer.prediction.features is not None and not answer.still:
                (prediction,) = matcher.predict_encoded(answer.prediction.features[None], [stream.name])
                scores = scores_of(prediction)
                distances = {one.label: one.distance for one in prediction.classes}
            windows.append(WindowScores(answer.start, answer.end, scores, distances))
    return [
        ScoredRecording(stream.name, source.duration, truth, windows, stream.window, stream.stride).called(
            {label: label for label in matcher.bank.labels if label not in BESIDES.values()}
        )
        for matcher, windows in zip(matchers, found, strict=True)
    ]


def _made(taught: Sequence[Action], untaught: Sequence[Action], seed: int, settings: Settings) -> SyntheticRecording:
    size = (settings.width, settings.width * 3 // 4)
    return SyntheticRecording(taught, untaught, seed, seconds=settings.length, size=size)


def _result(recordings: Sequence[ScoredRecording], rules: EventRules) -> dict[str, object]:
    measured = MeasuredEvents.of(recordings, rules, ("", "", "", ""))
    return {name: value for name, value in record(measured).items() if value != ""}


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--bundle", "path", type=click.Path(path_type=Path), help="Bundle [newest, else the shipped one].")
@click.option("--minutes", type=click.FloatRange(0.1), default=120.0, help="Of test recordings; as much to choose on.")
@click.option("--length", type=click.FloatRange(10), default=120.0, help="Seconds of each recording.")
@click.option("--shots", type=click.IntRange(2), default=5, help="Support clips of each action.")
@click.option("--width", type=click.IntRange(64, 1024), default=320, help="Pixels of a recording.")
@click.option("--actions", type=click.IntRange(4), help="At most so many of each split. [default: all]")
@click.option("--joins", type=click.Path(path_type=Path), help="Folder of class folders of real clips, to be joined.")
@click.option("--groups", metavar="REGEX", help="First capture group in a clip's name: clips of one recording.")
@click.option("--classes", help="Only these classes of --joins, separated by commas.")
@click.option("--labels", type=click.Path(path_type=Path), help="CSV with columns class,text for --joins.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/events.json].")
def cli(
    path: Path | None,
    minutes: float,
    length: float,
    shots: int,
    width: int,
    actions: int | None,
    joins: Path | None,
    groups: str | None,
    classes: str | None,
    labels: Path | None,
    out: Path | None,
) -> None:
    """Measure quality of events on generated recordings."""
    if (joins is None) != (groups is None):
        raise click.UsageError("--joins needs --groups, and the other way round")
    machine = Machine()
    model = ruled(path)
    settings = Settings(minutes, length, shots, width, actions)
    with tempfile.TemporaryDirectory() as folder:
        found = quality(model, settings, Path(folder))
        joined = None
        if joins and groups:
            only = classes.split(",") if classes else None
            seen = joined_recordings(model, joins, groups, only, shots, Path(folder), labels)
            chosen = EventRules(**found[ALONE]["chosen"])
            joined = {"defaults": _result(seen, EventRules()), "chosen": _result(seen, chosen)}
    result = {
        "environment": machine.environment(),
        "model": described(model),
        "settings": asdict(settings),
        "quality": found,
        "joined": joined,
    }
    print(write("events", result, out))


if __name__ == "__main__":
    main_entry(cli)
