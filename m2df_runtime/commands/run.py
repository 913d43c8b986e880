"""`m2df-run`: classify query clips with the classes of a support folder.

Engines and decoders load only once there is work, so that `--help` is instant.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import click
from click.core import ParameterSource

from m2df_runtime.commands.bulk import Asked, BulkOptions, answer_all, bulk_options
from m2df_runtime.commands.console import M2dfGroup, emit, emit_json, main_entry, progress, report, say
from m2df_runtime.commands.options import (
    Reject,
    TextOptions,
    check_miss_rate,
    engine_options,
    reject_options,
    say_engine,
    text_options,
)
from m2df_runtime.commands.recordings import (
    LONG,
    Output,
    RecordingOptions,
    numbered,
    recording_options,
    say_how_to_watch,
    say_written,
    watch,
)
from m2df_runtime.cpus import available_cpus
from m2df_runtime.engine_names import BackendName, RunPrecision
from m2df_runtime.errors import CheckFailed, ClipError, InputError

if TYPE_CHECKING:
    from m2df_runtime import Matcher, Prediction
    from m2df_runtime.commands.queries import Query
    from m2df_runtime.pixels.spec import ClipSpec
    from m2df_runtime.stream.camera_file import Camera

Region = Literal["full", "motion"] | tuple[int, int, int, int]

_LONGEST_PATH = 1 << 14  # characters; Linux takes 4,096 bytes

EXAMPLES = """
\b
Examples:
  m2df-run                                          the demo clips shipped with m2df
  m2df-run --window auto                            the demo recording shipped with m2df
  m2df-run --support actions --query clip.mp4       classify one clip
  m2df-run --support actions --query 'new/*.mp4' --json
  find . -name '*.mp4' | m2df-run --support actions --query - --topk 1
  m2df-run --support actions --query clip.mp4 --picture strip.png --explain why.html
  m2df-run --support actions --query new/ --out results.jsonl    thousands of clips, and go on after a stop
  m2df-run --support actions --query long.mp4 --window 2    what happens when in a recording
  m2df-run --support actions --query rtsp://camera/1 --query 0 --window 2   before two cameras
  m2df-run --support actions --cameras cameras.yaml    before the cameras that a file describes
  m2df-run bank add --support actions --label wave a.mp4 b.mp4    teach an action
  m2df-run serve --support actions                  teach and try on a page, with a browser's camera

--support names a folder with one sub-folder per class and one to five clips in each:

\b
  actions/jump/a.mp4
  actions/wave/b.mp4

What is computed from it is kept in actions/.m2df (in the user's cache folder where that cannot be
written); later runs encode new and changed clips only.

Exit codes: 0 done, 1 some queries failed, 2 bad input, 3 missing engine. M2DF_DEBUG=1 shows tracebacks.
"""


def parse_region(ctx: click.Context, param: click.Parameter, value: str | None) -> Region | None:
    """`full`, `motion`, or a rectangle in pixels. Raises BadParameter."""
    if value is None or value in ("full", "motion"):
        return cast("Literal['full', 'motion'] | None", value)
    try:
        x, y, width, height = (int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not full, motion, or x,y,width,height", ctx, param) from None
    if min(x, y) < 0 or min(width, height) < 1:
        raise click.BadParameter(f"{value!r} is not a rectangle inside a picture", ctx, param)
    return x, y, width, height


@dataclass(frozen=True)
class RunOptions:
    """The options of m2df-run, checked."""

    support: Path | None
    queries: tuple[str, ...]
    cameras: Path | None
    bundle: Path | None
    backend: BackendName
    precision: RunPrecision | None
    topk: int
    json: bool
    reject: Reject
    miss_rate: float | None
    texts: TextOptions
    roi: Region | None
    picture: Path | None
    explain: Path | None
    threads: int | None
    recording: RecordingOptions | None
    bulk: BulkOptions | None

    @property
    def rectangle(self) -> tuple[int, int, int, int] | None:
        """What is cut out of queries first."""
        return self.roi if isinstance(self.roi, tuple) else None

    def __post_init__(self) -> None:
        if self.queries and self.support is None:
            raise click.UsageError("--query needs --support DIR: a folder with one sub-folder of clips per class")
        if self.cameras is not None and self.queries:
            raise click.UsageError("--cameras stands instead of --query: name recordings in its file, too")
        if self.cameras is not None and self.support is None:
            raise click.UsageError("--cameras needs --support DIR: a folder with one sub-folder of clips per class")
        if self.cameras is not None and self.rectangle:
            raise click.UsageError("--roi X,Y,W,H is of --query: write zones into the file of --cameras")
        if self.support is not None and not self.queries and self.cameras is None:
            raise click.UsageError("--support needs --query: a clip, a folder of clips, a glob, or - for stdin")
        check_miss_rate(self.miss_rate, self.reject)
        for name, asked in (("--window", self.recording), ("--picture", self.picture), ("--explain", self.explain)):
            if self.bulk is not None and asked is not None:
                raise click.UsageError(f"--out takes one answer per clip, and {name} is for another job")


SUBCOMMANDS = {"bank": "m2df_runtime.commands.bank:bank", "serve": "m2df_runtime.commands.serve:serve"}


@click.group("m2df-run", cls=M2dfGroup, subcommands=SUBCOMMANDS, epilog=EXAMPLES)
@click.option(
    "--support",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE",
    help="Folder with one sub-folder per class, or a bank file.",
)
@click.option(
    "--query",
    "queries",
    multiple=True,
    metavar="CLIP",
    help="Clip, folder, glob, camera, or - for paths on stdin; repeatable.",
)
@click.option(
    "--cameras", type=click.Path(path_type=Path), metavar="YAML", help="Watch the cameras that a file describes."
)
@click.option("--topk", type=click.IntRange(1), default=5, show_default=True, help="Classes to list per query.")
@click.option("--json", is_flag=True, help="One JSON object per query and line.")
@reject_options
@text_options
@click.option(
    "--roi",
    metavar="full|motion|X,Y,W,H",
    callback=parse_region,
    help="Part of the picture to look at: all, or what moves [default: the bundle's]; a rectangle in pixels is cut "
    "out of the query first and leaves the support clips as they are.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    metavar="PNG",
    help="Write a filmstrip of each prediction, or the time line of a recording.",
)
@click.option(
    "--explain",
    type=click.Path(path_type=Path),
    metavar="HTML",
    help="Write a page that shows why, for each query or for the events of a recording.",
)
@recording_options
@bulk_options
@engine_options
def cli(**options: Any) -> None:  # noqa: ANN401 - click hands over every option by name
    """Classify query clips, or find events in recordings, with one to five example clips per class."""
    context = click.get_current_context()
    if context.invoked_subcommand is not None:
        given = [name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if given:
            raise click.UsageError(f"options of {context.invoked_subcommand} stand after its verb")
        return
    texts = TextOptions.taken_from(options)
    recording, bulk = RecordingOptions.taken_from(options), BulkOptions.taken_from(options)
    run(RunOptions(**options, texts=texts, recording=recording, bulk=bulk))


def run(options: RunOptions) -> None:
    """Do the job of m2df-run.

    Raises:
        InputError: Support folder, bundle or a single query cannot be used.
        CheckFailed: Some queries of a batch could not be read.
    """
    from m2df_runtime import Matcher, SupportBank, load
    from m2df_runtime.bundle.shipped import demo_bundle, demo_queries, demo_recording, demo_support
    from m2df_runtime.commands.queries import expand_queries

    demo = options.support is None
    support = options.support or demo_support()
    if demo and not support.is_dir():
        raise InputError("this installation has no demo clips", "use --support DIR --query CLIP")
    shipped = demo_queries() if options.recording is None else demo_recording()
    queries: Sequence[Query | Camera]
    if options.cameras is not None:
        from m2df_runtime.stream.camera_file import read_cameras

        queries = read_cameras(options.cameras)
    else:
        queries = expand_queries(options.queries or (str(shipped),), _lines(sys.stdin))
    clips = [query for query in queries if isinstance(query, Path)]
    if len(clips) == len(queries) == 1 and not (os.path.exists(clips[0]) or "%" in clips[0].name):
        raise InputError(f"{clips[0]}: no such file", "check the path given to --query")
    if len(clips) < len(queries) and options.recording is None:
        raise click.UsageError("a camera needs --window, for example --window 2")
    path = options.bundle or (demo_bundle() if demo else None)
    region = options.roi if isinstance(options.roi, str) else None
    # Cameras are answered side by side. Operators that split their work took 1.2 times the processor time on two cores.
    threads = 1 if len(queries) - len(clips) >= available_cpus() else None
    model = load(path, options.backend, options.precision, options.threads or threads, region=region)
    say_engine(model)
    rules = options.texts.rules(model)
    taught = SupportBank.of(model, support, rules, in_cache=demo, progress=progress)
    options.texts.warn_unmatched(taught.labels)
    matcher = Matcher(model, taught, reject=options.reject, miss_rate=options.miss_rate)
    cameras = len(clips) < len(queries)
    if cameras:  # they do not end
        _say_how_it_rejects(matcher, options)
    if options.bulk is not None:
        _say_how_it_rejects(matcher, options)  # before the summary, which is the last that it says
        answer_all(clips, matcher, options.bulk, _asked(options))
    elif options.recording is None:
        _classify(clips, matcher, options)
    else:
        from m2df_runtime.commands.outlets import Outlets

        output = Output(options.json, options.topk, options.picture, options.explain)
        with Outlets(options.recording, matcher, clips=cameras) as outlets:
            if cameras:
                from m2df_runtime import SupportWatch
                from m2df_runtime.commands.cameras import watch_cameras

                with SupportWatch(matcher, support, rules):
                    watch_cameras(queries, matcher, options.recording, output, options.rectangle, outlets)
            else:
                watch(clips, matcher, options.recording, output, options.rectangle, outlets)
    if not cameras and options.bulk is None:
        _say_how_it_rejects(matcher, options)
        if demo:
            _say_what_the_demo_shows(options.recording is not None)


def _asked(options: RunOptions) -> Asked:
    return Asked(options.topk, options.rectangle, options.reject, options.miss_rate, options.threads, options.json)


def _say_how_it_rejects(matcher: Matcher, options: RunOptions) -> None:
    if options.reject == "auto":
        say(f"rejection: {matcher.about_rejection}")


def _say_what_the_demo_shows(recording: bool) -> None:
    """Let a newcomer judge the answers to what is shipped."""
    from m2df_runtime.bundle.shipped import RECORDED
    from m2df_runtime.stream.events import clock

    if recording:
        happens = ", ".join(f"{label} from {clock(start)} to {clock(end)}" for label, start, end in RECORDED)
        say(
            f"what happens in it: {happens}; any other event is a mistake: the person stands, turns and walks, "
            "which no support clip shows"
        )
    else:
        say("each of these queries is named after the action that it shows")


def _lines(stream: TextIO) -> Iterator[str]:
    """Lines of a stream; of one that is longer than any path the rest is dropped, whatever its length."""
    while line := stream.readline(_LONGEST_PATH):
        rest = line
        while len(rest) == _LONGEST_PATH and not rest.endswith("\n"):
            rest = stream.readline(_LONGEST_PATH)
        yield line


def _classify(queries: Sequence[Path], matcher: Matcher, options: RunOptions) -> None:
    """Classify and print one query after the other; in a batch a bad one does not stop the rest.

    Raises:
        ClipError: The only query cannot be read, or the clip drawn below it.
        OSError: The only picture or page cannot be written.
        CheckFailed: Some of several.
    """
    from m2df_runtime.stream.default_window import default_window

    failed = undrawn = 0
    length, said = default_window(matcher.bank), False
    look = _look(matcher) if options.picture or options.explain else None
    written: list[Path] = []
    for number, query in enumerate(queries, 1):
        try:
            prediction = matcher.predict(query, roi=options.rectangle, look=look)
        except ClipError as error:
            if len(queries) == 1:
                raise
            report(error)
            failed += 1
            continue
        if options.json:
            emit_json(prediction.record(options.topk))
        else:
            emit(prediction.text(options.topk))
        if prediction.seconds and prediction.seconds > LONG * length and not said:
            say_how_to_watch(prediction.query, prediction.seconds, length)
            said = True
        if look:
            try:
                several = number if len(queries) > 1 else None
                if options.picture:
                    written.append(_draw(numbered(options.picture, several), prediction, matcher, look))
                if options.explain:
                    written.append(_explain(numbered(options.explain, several), prediction, matcher))
            except (ClipError, OSError) as error:
                if len(queries) == 1:
                    raise
                report(error)
                undrawn += 1
    say_written(written)
    counts = ((failed, "could not be read"), (undrawn, "were answered without a picture or page"))
    problems = [f"{count} of {len(queries)} queries {what}" for count, what in counts if count]
    if problems:
        raise CheckFailed("; ".join(problems), "see the errors above")


def _look(matcher: Matcher) -> ClipSpec:
    from m2df_runtime.show.filmstrip import display_spec

    return display_spec(matcher.model.bundle.manifest.clip)


def _draw(path: Path, prediction: Prediction, matcher: Matcher, look: ClipSpec) -> Path:
    from m2df_runtime.show.filmstrip import filmstrip, save_picture

    assert prediction.features is not None and prediction.frames is not None  # `look` asked for them
    nearest = matcher.bank.nearest_clip(prediction.features, prediction.label)
    assert nearest.origin is not None  # of a clip that was encoded or read
    save_picture(path, filmstrip(prediction.frames, nearest.origin.frames(look), prediction, nearest.name))
    return path


def _explain(path: Path, prediction: Prediction, matcher: Matcher) -> Path:
    from m2df_runtime import explain
    from m2df_runtime.files import atomic_write

    atomic_write(path, explain(prediction, matcher).encode())
    return path


def main() -> None:
    """Entry point of m2df-run."""
    main_entry(cli)


if __name__ == "__main__":
    main()
