"""`m2df-run --window`: what happens in long recordings, and when."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from m2df_runtime.clips.folder_entries import named
from m2df_runtime.commands.console import emit, emit_json, report, say
from m2df_runtime.commands.options import Command, with_options
from m2df_runtime.errors import CheckFailed, ClipError, InputError, printable

if TYPE_CHECKING:
    from m2df_runtime import EventRules, Matcher, Stream
    from m2df_runtime.clips.source import FrameSource, Rectangle
    from m2df_runtime.commands.outlets import Outlets
    from m2df_runtime.sinks.clips import ClipFolder
    from m2df_runtime.stream.sources.timed import TimedFrames
    from m2df_runtime.stream.stream import Step

_ROLL = 1.0  # seconds of a clip before and after its event
_OF_A_CAMERA = ("window", "stride", "enter", "leave", "min_duration", "merge_gap", "max_duration", "cooldown")
LONG = 4  # times the length of the support clips, from which a clip is taken for a recording


@dataclass(frozen=True)
class RecordingOptions:
    """How m2df-run looks at recordings; None takes the default of `Stream` and `EventRules`."""

    window: float | Literal["auto"] | None
    stride: float | None
    windows: bool
    enter: float | None
    leave: float | None
    min_duration: float | None
    merge_gap: float | None
    max_duration: float | None
    cooldown: float | None
    save_video: Path | None
    save_clips: Path | None
    before: float | None
    after: float | None
    keep: int | None
    mqtt: str | None
    webhook: str | None
    metrics_port: int | None
    metrics_host: str | None

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> RecordingOptions | None:
        """The options of recordings out of all options; None where clips are asked about.

        Raises:
            UsageError: One of them without --window, or beside --cameras one that stands in its file.
        """
        own = cls(**{one.name: options.pop(one.name) for one in fields(cls)})
        if options["cameras"] is not None:
            for name in _OF_A_CAMERA:
                if getattr(own, name) is not None:
                    option = name.replace("_", "-")
                    raise click.UsageError(f"--{option} is of --query: write {name} into the file of --cameras")
            return own
        if own.window is not None:
            return own
        for one in fields(cls):
            if getattr(own, one.name) not in (None, False):
                raise click.UsageError(f"--{one.name.replace('_', '-')} needs --window, for example --window auto")
        return None

    def __post_init__(self) -> None:
        for name in ("before", "after", "keep"):
            if getattr(self, name) is not None and self.save_clips is None:
                raise click.UsageError(f"--{name} needs --save-clips DIR")
        if self.metrics_host is not None and self.metrics_port is None:
            raise click.UsageError("--metrics-host needs --metrics-port PORT")


def parse_window(ctx: click.Context, param: click.Parameter, value: str | None) -> float | Literal["auto"] | None:
    """`auto`, or seconds. Raises BadParameter."""
    if value is None or value == "auto":
        return "auto" if value else None
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not auto or a number of seconds", ctx, param) from None


def parse_keep(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes. Raises BadParameter."""
    if value is None:
        return None
    from m2df_runtime.sinks.clips import parse_size

    try:
        return parse_size(value)
    except InputError as error:
        raise click.BadParameter(str(error), ctx, param) from None


SECONDS = click.FloatRange(0)
EVENT_OPTIONS = (
    click.option(
        "--enter", type=click.FloatRange(0, 1), metavar="SCORE", help="Score at which an event begins. [default: 0.7]"
    ),
    click.option(
        "--leave", type=click.FloatRange(0, 1), metavar="SCORE", help="Score below which it ends. [default: 0.5]"
    ),
    click.option(
        "--min-duration", type=SECONDS, metavar="SECONDS", help="Leave out shorter events. [default: two windows]"
    ),
    click.option("--merge-gap", type=SECONDS, metavar="SECONDS", help="Join events so close. [default: 0.5]"),
    click.option("--max-duration", type=SECONDS, metavar="SECONDS", help="End events after this. [default: never]"),
    click.option("--cooldown", type=SECONDS, metavar="SECONDS", help="Pause after an event. [default: 0]"),
)
"""The fields of `EventRules` that commands let users set; None takes their default."""


def event_rules(options: object) -> EventRules:
    """When windows become an event, of a command's options: its attributes of the names of `EVENT_OPTIONS`.

    Raises:
        InputError: They contradict each other.
    """
    from m2df_runtime import EventRules

    named = {one.name: getattr(options, one.name, None) for one in fields(EventRules)}
    return EventRules(**{name: value for name, value in named.items() if value is not None})


def recording_options(command: Command) -> Command:
    """The options of recordings on a click command."""
    path = click.Path(path_type=Path)
    added = (
        click.option(
            "--window",
            metavar="auto|SECONDS",
            callback=parse_window,
            help="The query is a recording: look at it through windows, and print what happens when. auto: as long as "
            "the support clips, 1 to 6 s.",
        ),
        click.option("--stride", type=SECONDS, metavar="SECONDS", help="From one window to the next. [default: 1/4]"),
        click.option("--windows", is_flag=True, help="Print the scores of every window, too."),
        *EVENT_OPTIONS,
        click.option("--save-clips", type=path, metavar="DIR", help="Write a clip of every event into a folder."),
        click.option("--before", type=SECONDS, metavar="SECONDS", help="Begin a clip so early. [default: 1]"),
        click.option("--after", type=SECONDS, metavar="SECONDS", help="Let a clip go on so long. [default: 1]"),
        click.option(
            "--keep",
            metavar="SIZE",
            callback=parse_keep,
            help="Remove the oldest clips of events beyond this size, such as 2GB. [default: keep all]",
        ),
        click.option(
            "--mqtt",
            metavar="URL",
            help="Publish every event at a broker: mqtt://user:${VARIABLE}@host/prefix, mqtts:// for TLS.",
        ),
        click.option("--webhook", metavar="URL", help="Post every event to http:// or https://."),
        click.option(
            "--metrics-port", type=click.IntRange(1, 65535), metavar="PORT", help="Serve metrics for Prometheus."
        ),
        click.option("--metrics-host", metavar="HOST", help="Serve them there. [default: 127.0.0.1]"),
        click.option("--save-video", type=path, metavar="MP4", help="Write a copy with the answers below the picture."),
    )
    return with_options(command, added)


@dataclass(frozen=True)
class Output:
    """How answers are printed and drawn: the options that clips have, too."""

    json: bool
    topk: int
    picture: Path | None
    explain: Path | None


def watch(
    queries: Sequence[Path],
    matcher: Matcher,
    options: RecordingOptions,
    output: Output,
    roi: Rectangle | None,
    outlets: Outlets,
) -> None:
    """Print the events of recordings, one recording after the other; a bad one does not stop the rest.

    Raises:
        InputError: The options contradict each other, or the bank has one class.
        ClipError: The only recording cannot be read.
        OSError: A picture, page, clip or video cannot be written.
        CheckFailed: Some of several recordings cannot be read.
    """
    failed = 0
    for number, query in enumerate(queries, 1):
        several = number if len(queries) > 1 else None
        try:
            _watched(query, matcher, options, output, roi, several, outlets)
        except ClipError as error:
            if len(queries) == 1:
                raise
            report(error)
            failed += 1
    if failed:
        raise CheckFailed(f"{failed} of {len(queries)} recordings could not be read", "see the errors above")


def opened_stream(
    source: FrameSource | TimedFrames,
    matcher: Matcher,
    options: RecordingOptions,
    roi: Rectangle | None,
    outlets: Outlets,
) -> Stream:
    """A recording or camera, looked at as the options say; the outlets tell of its frames.

    Raises:
        InputError: The options contradict each other, or the bank has one class.
    """
    from m2df_runtime import Stream

    window = None if options.window == "auto" else options.window
    stream = Stream(matcher, source, window=window, stride=options.stride, roi=roi, rules=event_rules(options))
    outlets.watch(stream)
    return stream


def say_how_to_watch(name: str, seconds: float, length: float) -> None:
    """Tell of a clip that lasts longer than an action that `--window` finds several in it."""
    say(
        f"{printable(name)} lasts {seconds:.0f} s and got one answer for all of it; "
        f"--window {length:g} tells what happens when"
    )


def say_written(paths: Sequence[Path]) -> None:
    """Name the files that were written, of many the first."""
    if paths:
        say(f"written: {named(map(str, paths))}")


def numbered(path: Path, number: int | None) -> Path:
    """The path of one of several files, such as `match-2.png`."""
    return path if number is None else path.with_name(f"{path.stem}-{number}{path.suffix}")


def _watched(
    query: Path,
    matcher: Matcher,
    options: RecordingOptions,
    output: Output,
    roi: Rectangle | None,
    number: int | None,
    outlets: Outlets,
) -> None:
    """One recording, the `number`-th of several."""
    from m2df_runtime.clips.opening import open_source

    recording = open_source(query)
    stream = opened_stream(recording, matcher, options, roi, outlets)
    files = _Files(recording, stream.rules, options, output, number)
    with closing(stream.steps(every=options.windows)) as steps:
        for step in steps:
            tell(step, options, output)
            outlets.step(step)
            files.add(step)
    files.write(matcher, roi)
    say_what_it_took(stream)


def tell(step: Step, options: RecordingOptions, output: Output) -> None:
    """Print what one window said."""
    if options.windows and step.answer:
        emit_json(step.answer.record(output.topk)) if output.json else emit(step.answer.text(output.topk))
    for event in step.events:
        if output.json:
            emit_json(event.record())
        elif event.type == "end":
            emit(event.text())


def clip_folder(options: RecordingOptions) -> ClipFolder | None:
    """Where clips of events are kept, if they are."""
    if options.save_clips is None:
        return None
    from m2df_runtime.sinks.clips import ClipFolder

    before, after = (_ROLL if roll is None else roll for roll in (options.before, options.after))
    return ClipFolder(options.save_clips, before, after, options.keep)


class _Files:
    """What is written of one recording besides standard output."""

    def __init__(
        self,
        recording: FrameSource,
        rules: EventRules,
        options: RecordingOptions,
        output: Output,
        number: int | None,
    ) -> None:
        self._recording = recording
        self._picture = output.picture and numbered(output.picture, number)
        self._explain = output.explain and numbered(output.explain, number)
        self._video = options.save_video and numbered(options.save_video, number)
        if self._picture or self._explain:
            from m2df_runtime.show.timeline import Timeline

            self._timeline = Timeline(recording.name, rules)
        if self._video:
            from m2df_runtime.sinks.overlay import AnnotatedVideo

            self._annotated = AnnotatedVideo()
        self._clips = clip_folder(options)

    def add(self, step: Step) -> None:
        if self._picture or self._explain:
            self._timeline.add(step.answer, step.events)
        if self._video:
            self._annotated.add(step.answer, step.events)
        for event in step.events:
            if self._clips and event.type == "end":
                self._clips.save(event, self._recording)

    def write(self, matcher: Matcher, roi: Rectangle | None) -> None:
        if self._picture:
            import numpy as np

            from m2df_runtime.show.filmstrip import save_picture

            times = self._recording.times
            places = [int(np.searchsorted(times, at, side="right")) - 1 for at in self._timeline.moments]
            save_picture(self._picture, self._timeline.draw([*self._recording.read(places)] if places else []))
        if self._explain:
            from m2df_runtime.files import atomic_write
            from m2df_runtime.show.explain_recording import explain_recording

            page = explain_recording(self._timeline, self._recording, matcher, roi)
            atomic_write(self._explain, page.encode())
        if self._video:
            self._annotated.write(self._video, self._recording)
        say_written([path for path in (self._picture, self._explain, self._video) if path])


def say_what_it_took(stream: Stream) -> None:
    """Tell how much was read, answered and dropped."""
    counts = stream.counts
    events, windows = (
        f"{count} {what}{'' if count == 1 else 's'}"
        for count, what in ((counts.events, "event"), (counts.windows, "window"))
    )
    causes = ", ".join(f"{count} {cause}" for cause, count in counts.dropped.items())
    dropped = f", {sum(counts.dropped.values())} dropped ({causes})" if causes else ""
    skipped = f"; {counts.skipped} skipped" if counts.skipped else ""
    still = f"nothing moves in {counts.still}; " if counts.still else ""
    say(
        f"{printable(stream.name)}: {events} in {windows} of {stream.window:g} s, one every "
        f"{stream.stride:g} s{skipped}; {still}{counts.frames} frames read, {counts.encoded} encoded{dropped}"
    )
