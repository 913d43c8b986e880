"""What a minute of a recording costs, stage by stage, of a camera that stands and of one that shakes.

    python -m benchmarks.stream

Beside it stands the usual way: a loop over the decoded frames that prepares and encodes every window with PyTorch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import av
import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.models import random_twin
from benchmarks.record import Machine, write
from benchmarks.ruled import as_options, described, ruled
from m2df_runtime import EventRules, Matcher, SupportBank
from m2df_runtime.backends.model import Model
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.source import ArraySource
from m2df_runtime.commands.console import main_entry, progress
from m2df_runtime.errors import InputError
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.stream.events import EventTracker, WindowScores
from m2df_runtime.stream.frames import kept_frames
from m2df_runtime.stream.sources.file import FileFrames
from m2df_runtime.stream.sources.timed import RisingTimes
from m2df_runtime.stream.stream import Stream, scores_of
from m2df_runtime.stream.windows import cut
from m2df_train.synthetic import Action, SyntheticRecording, split_actions
from m2df_train.synthetic.recording_files import Part, write_support

COST_WINDOW, COST_STRIDE, COST_SIZE, COST_FPS = 2.0, 0.5, (640, 480), 15.0
BIT_RATE = 1_000_000  # as cameras of this size are set
STAGES = ("decode", "reduce", "pixels", "visual", "query", "events")
CAMERAS = {"a camera that stands": False, "a camera that shakes": True}


def film(path: Path, actions: Sequence[Action], seconds: float, *, shaking: bool, keyframes: float = 2.0) -> None:
    """Write a recording of two people, half of whose actions are taught, as cameras encode it.

    At a constant bit rate, every frame from those before it, with a keyframe every so many seconds.
    """
    made = SyntheticRecording(
        actions[::2], actions[1::2], 1, seconds=seconds, people=2, size=COST_SIZE, fps=COST_FPS, shaking=shaking
    )
    with av.open(str(path), "w") as container:
        gop = str(round(keyframes * COST_FPS))
        options = {"preset": "veryfast", "tune": "zerolatency", "g": gop, "keyint_min": gop, "sc_threshold": "0"}
        options |= {"nal-hrd": "cbr", "maxrate": str(BIT_RATE), "minrate": str(BIT_RATE), "bufsize": str(BIT_RATE)}
        stream = container.add_stream("libx264", rate=round(COST_FPS), options=options)
        stream.width, stream.height = COST_SIZE
        stream.pix_fmt, stream.bit_rate = "yuv420p", BIT_RATE
        for number, picture in enumerate(made.pictures(np.arange(made.n_frames))):
            frame = av.VideoFrame.from_ndarray(picture.rgb(), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def costs(model: Model, actions: Sequence[Action], folder: Path, seconds: float, sample: int) -> dict[str, Any]:
    """Processor seconds per minute of one recording of each kind of camera, of the stream and of the usual way."""
    support = folder / "support"
    write_support(support, actions[::2], 1)
    paths = {camera: folder / f"{number}.mp4" for number, camera in enumerate(CAMERAS)}
    for camera, path in paths.items():
        film(path, actions, seconds, shaking=CAMERAS[camera])
    matcher = Matcher(model, SupportBank.of(model, support))
    # All of these before PyTorch is here: a process begins with its parent's peak.
    commands = {camera: _command(model.bundle.path, support, path, seconds / 60) for camera, path in paths.items()}
    found = {}
    with progress("cameras", len(paths)) as advance:
        for camera, path in paths.items():
            found[camera] = {"command": commands[camera], **_cost(matcher, path, seconds, sample)}
            advance(1)
    return found


def _cost(matcher: Matcher, path: Path, seconds: float, sample: int) -> dict[str, object]:
    minutes = seconds / 60
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
        usual = _usual(matcher.model.bundle, matcher, path, sample) if sample else None
        left_out = None if sample else "not asked for"
    except InputError as error:
        left_out = str(error)
    return {
        "windows": windows,
        "still": still,
        "stage_cpu_per_minute": {name: round(value / minutes, 4) for name, value in spent.items()},
        "stream": {
            "cpu_per_minute": round(cpu / minutes, 3),
            "wall_per_minute": round(wall / minutes, 3),
            "times_real_time": round(seconds / wall, 1),
            "encoded": stream.counts.encoded,
        },
        "usual_cpu_per_minute": usual
        and {
            "decode": round(spent["decode"] / minutes, 4),
            **{name: round(value * windows / minutes, 4) for name, value in usual.items()},
        },
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
@click.option("--seconds", type=click.FloatRange(5), default=120.0, help="Length of the recordings.")
@click.option("--actions", type=click.IntRange(4), help="At most so many. [default: all]")
@click.option("--sample", type=click.IntRange(0), default=20, help="Windows of the usual way, from which all follow.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/stream.json].")
def cli(path: Path | None, seconds: float, actions: int | None, sample: int, out: Path | None) -> None:
    """Measure what a minute of a recording costs: 640x480 at 15 frames a second, windows of 2 s every 0.5 s."""
    machine = Machine()
    model = ruled(path)
    with tempfile.TemporaryDirectory() as folder:
        found = costs(model, split_actions("test")[:actions], Path(folder), seconds, sample)
    result = {
        "environment": machine.environment(),
        "model": described(model),
        "settings": {
            "seconds": seconds,
            "size": list(COST_SIZE),
            "fps": COST_FPS,
            "bit_rate": BIT_RATE,
            "window": COST_WINDOW,
            "stride": COST_STRIDE,
            "usual_extrapolated_from_windows": sample,
        },
        "target_times_real_time": 30,
        "cameras": found,
    }
    print(write("stream", result, out))


if __name__ == "__main__":
    main_entry(cli)
