"""Events in recordings: how well they are found, and what a minute of video costs, stage by stage.

    python -m benchmarks.stream --minutes 120

Recordings are generated, of actions that no training has seen. Those of validation actions choose when an event begins
and ends, those of test actions are reported; `--joins DIR --groups REGEX` adds real clips, joined. Beside the cost
stands the usual way: a loop over the decoded frames that prepares and encodes every window with PyTorch. `--minutes 10`
shows in some minutes whether all of it works.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.joined import joined_recordings
from benchmarks.models import random_twin
from benchmarks.record import Machine, write
from benchmarks.ruled import as_options, described, ruled
from m2df_runtime import EventRules, Matcher, SupportBank
from m2df_runtime.backends.model import Model
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.source import ArraySource, FrameSource
from m2df_runtime.commands.console import main_entry, progress
from m2df_runtime.errors import InputError
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.stream.default_window import default_window
from m2df_runtime.stream.events import EventTracker, WindowScores
from m2df_runtime.stream.frames import kept_frames
from m2df_runtime.stream.sources.file import FileFrames
from m2df_runtime.stream.sources.timed import RisingTimes
from m2df_runtime.stream.stream import Stream, scores_of
from m2df_runtime.stream.windows import cut
from m2df_train.evaluation.event_measures import TrueAction
from m2df_train.evaluation.event_tables import MeasuredEvents, record
from m2df_train.evaluation.event_tuning import tune
from m2df_train.evaluation.recordings import ScoredRecording
from m2df_train.synthetic import Action, Split, SyntheticRecording, split_actions
from m2df_train.synthetic.recording import BESIDES
from m2df_train.synthetic.recording_files import Part, write_besides, write_clip, write_support

ALONE = "taught actions alone"
COST_WINDOW, COST_STRIDE, COST_SIZE, COST_FPS = 2.0, 0.5, (640, 480), 15.0
STAGES = ("decode", "reduce", "pixels", "visual", "query", "events")
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
        ScoredRecording(stream.name, source.duration, truth, windows, stream.window, stream.stride).without(
            {*BESIDES.values()}
        )
        for windows in found
    ]


def _made(taught: Sequence[Action], untaught: Sequence[Action], seed: int, settings: Settings) -> SyntheticRecording:
    size = (settings.width, settings.width * 3 // 4)
    return SyntheticRecording(taught, untaught, seed, seconds=settings.length, size=size)


def _result(recordings: Sequence[ScoredRecording], rules: EventRules) -> dict[str, object]:
    measured = MeasuredEvents.of(recordings, rules, ("", "", "", ""))
    return {name: value for name, value in record(measured).items() if value != ""}


def cost(model: Model, actions: Sequence[Action], folder: Path, seconds: float, sample: int) -> dict[str, object]:
    """Processor seconds per minute of one recording, of the stream and of the usual way."""
    taught, untaught = actions[::2], actions[1::2]
    support, path = folder / "support", folder / "recording.mp4"
    write_support(support, taught, 1)
    made = SyntheticRecording(taught, untaught, 1, seconds=seconds, people=2, size=COST_SIZE, fps=COST_FPS)
    write_clip(path, made)
    matcher = Matcher(model, SupportBank.of(model, support))
    minutes = seconds / 60
    # Before PyTorch is here: a process begins with its parent's peak.
    command = _command(model.bundle.path, support, path, minutes)
    spent, windows, still = stages(matcher, path)
    stream = Stream(matcher, path, window=COST_WINDOW, stride=COST_STRIDE)
    for _ in stream:  # an engine's first runs are not the recording's
        break
    begun, cpu = perf_counter(), process_time()
    for _ in stream:
        pass
    wall, cpu = perf_counter() - begun, process_time() - cpu
    usual = None
    try:
        usual = _usual(model.bundle, matcher, path, sample) if sample else None
        left_out = None if sample else "not asked for"
    except InputError as error:
        left_out = str(error)
    return {
        "seconds": seconds,
        "size": list(COST_SIZE),
        "fps": COST_FPS,
        "window": COST_WINDOW,
        "stride": COST_STRIDE,
        "windows": windows,
        "still": still,
        "stage_cpu_per_minute": {name: round(value / minutes, 4) for name, value in spent.items()},
        "stream": {
            "cpu_per_minute": round(cpu / minutes, 3),
            "wall_per_minute": round(wall / minutes, 3),
            "times_real_time": round(seconds / wall, 1),
            "encoded": stream.counts.encoded,
        },
        "command": command,
        "usual_cpu_per_minute": usual
        and {
            "decode": round(spent["decode"] / minutes, 4),
            **{name: round(value * windows / minutes, 4) for name, value in usual.items()},
        },
        "usual_extrapolated_from_windows": usual and sample,
        "usual_left_out": left_out,
    }


def stages(matcher: Matcher, path: Path) -> tuple[dict[str, float], int, int]:
    """Processor seconds of each stage alone, how many windows there are, and in how many of them nothing moves."""
    spent = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        begun = process_time()
        yield
        spent[name] += process_time() - begun

    spec = matcher.model.bundle.manifest.clip
    with stage("decode"):
        for _time, _picture in FileFrames(path).frames():
            pass
    with stage("reduce"):
        for _kept in kept_frames(RisingTimes(FileFrames(path)), spec, "", [None]):
            pass
    spent["reduce"] -= spent["decode"]  # which it does, too
    tracker = EventTracker(EventRules(), COST_WINDOW, COST_STRIDE)
    kept = kept_frames(RisingTimes(FileFrames(path)), spec, "", [None])
    windows = still = 0
    for window in cut(kept, COST_WINDOW, COST_STRIDE, ""):
        windows += 1
        scores, distances = dict.fromkeys(matcher.bank.labels, 0.0), {}
        if window.still:
            still += 1
        else:
            with stage("pixels"):
                pixels = load_clip(window, spec)[None]
            with stage("visual"):
                features = matcher.model.encode_clips(pixels, [window.name])
            with stage("query"):
                (prediction,) = matcher.predict_encoded(features, [window.name])
            scores = scores_of(prediction)
            distances = {one.label: one.distance for one in prediction.classes}
        with stage("events"):
            tracker.step(WindowScores(window.start, window.end, scores, distances))
    return spent, windows, still


def _usual(bundle: Bundle, matcher: Matcher, path: Path, sample: int) -> dict[str, float]:
    """Mean processor seconds of one window whose frames are decoded: PyTorch eager, the model with random weights.

    Raises:
        InputError: open_clip does not know the bundle's model.
    """
    twin = random_twin(bundle)
    from m2df_train.evaluation.torch_scorer import CheckpointScorer

    scorer, spec, source = CheckpointScorer(twin, "cpu"), bundle.manifest.clip, open_source(path)
    rules, bank = matcher.bank.rules, matcher.bank
    prompts = scorer.encode_texts([rules.prompts(label)[0] for label in bank.labels])
    starts = np.linspace(0, source.duration - COST_WINDOW, sample + 1).tolist()
    spent = dict.fromkeys(("pixels", "visual", "query"), 0.0)
    prototypes: NDArray[np.float32] | None = None
    for number, start in enumerate(starts):
        part = Part(source, start, start + COST_WINDOW)
        frames = ArraySource(part.read(np.arange(part.n_frames)), source.fps)
        times = [process_time()]
        pixels = load_clip(frames, spec)[None]
        times.append(process_time())
        features = scorer.encode_clips(pixels)
        times.append(process_time())
        if prototypes is None:
            prototypes = np.stack([scorer.prototypes(features, prompt[None]) for prompt in prompts])
            times[2] = process_time()
        scorer.match(features, prompts, prototypes)
        times.append(process_time())
        if number:  # the first warms up
            for name, begun, ended in zip(spent, times, times[1:], strict=False):
                spent[name] += (ended - begun) / sample
    return spent


def _command(bundle: Path, support: Path, path: Path, minutes: float) -> dict[str, float]:
    """`m2df-run --window` as a process of its own: processor seconds and the most memory it takes."""
    arguments = ("--support", support, "--query", path, *as_options(bundle), "--window", COST_WINDOW)
    command = [sys.executable, "-m", "m2df_runtime.commands.run", *map(str, (*arguments, "--stride", COST_STRIDE))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise InputError(f"m2df-run ended with {process.returncode}", "run it by hand: " + " ".join(command))
    peak = usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return {"cpu_per_minute": round((usage.ru_utime + usage.ru_stime) / minutes, 3), "peak_mib": round(peak, 1)}


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--bundle", "path", type=click.Path(path_type=Path), help="Bundle [newest, else the shipped one].")
@click.option("--minutes", type=click.FloatRange(0.1), default=120.0, help="Of test recordings; as much to choose on.")
@click.option("--length", type=click.FloatRange(10), default=120.0, help="Seconds of each recording.")
@click.option("--shots", type=click.IntRange(2), default=5, help="Support clips of each action.")
@click.option("--width", type=click.IntRange(64, 1024), default=320, help="Pixels of a recording.")
@click.option("--cost", "cost_seconds", type=click.FloatRange(5), default=120.0, help="Seconds whose cost is measured.")
@click.option("--actions", type=click.IntRange(4), help="At most so many of each split. [default: all]")
@click.option("--sample", type=click.IntRange(0), default=20, help="Windows of the usual way, from which all follow.")
@click.option("--joins", type=click.Path(path_type=Path), help="Folder of class folders of real clips, to be joined.")
@click.option("--groups", metavar="REGEX", help="First capture group in a clip's name: clips of one recording.")
@click.option("--classes", help="Only these classes of --joins, separated by commas.")
@click.option("--labels", type=click.Path(path_type=Path), help="CSV with columns class,text for --joins.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/stream.json].")
def cli(
    path: Path | None,
    minutes: float,
    length: float,
    shots: int,
    width: int,
    cost_seconds: float,
    actions: int | None,
    sample: int,
    joins: Path | None,
    groups: str | None,
    classes: str | None,
    labels: Path | None,
    out: Path | None,
) -> None:
    """Measure quality and cost of events on generated recordings."""
    if (joins is None) != (groups is None):
        raise click.UsageError("--joins needs --groups, and the other way round")
    machine = Machine()
    model = ruled(path)
    settings = Settings(minutes, length, shots, width, actions)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cost").mkdir()
        costs = cost(model, split_actions("test")[:actions], Path(folder) / "cost", cost_seconds, sample)
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
        "cost": costs,
    }
    print(write("stream", result, out))


if __name__ == "__main__":
    main_entry(cli)
