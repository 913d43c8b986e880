"""`m2df-run --window`: what happens in long recordings, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from m2df_runtime.commands.console import emit, emit_json, report, say
from m2df_runtime.errors import CheckFailed, ClipError, printable

if TYPE_CHECKING:
    from m2df_runtime import Matcher, Stream
    from m2df_runtime.clips.source import Rectangle

LONG = 4  # times the length of the support clips, from which a clip is taken for a recording

Command = TypeVar("Command", bound=Callable[..., Any])


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

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> RecordingOptions | None:
        """The options of recordings out of all options; None where clips are asked about.

        Raises:
            UsageError: One of them without --window.
        """
        own = cls(**{one.name: options.pop(one.name) for one in fields(cls)})
        if own.window is not None:
            return own
        for one in fields(cls):
            if getattr(own, one.name) not in (None, False):
                raise click.UsageError(f"--{one.name.replace('_', '-')} needs --window, for example --window auto")
        return None


def parse_window(ctx: click.Context, param: click.Parameter, value: str | None) -> float | Literal["auto"] | None:
    """`auto`, or seconds. Raises BadParameter."""
    if value is None or value == "auto":
        return "auto" if value else None
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not auto or a number of seconds", ctx, param) from None


def recording_options(command: Command) -> Command:
    """The options of recordings on a click command."""
    seconds = click.FloatRange(0)
    score = click.FloatRange(0, 1)
    added = (
        click.option(
            "--window",
            metavar="auto|SECONDS",
            callback=parse_window,
            help="The query is a recording: look at it through windows, and print what happens when. auto: as long as "
            "the support clips, 1 to 6 s.",
        ),
        click.option("--stride", type=seconds, metavar="SECONDS", help="From one window to the next. [default: 1/4]"),
        click.option("--windows", is_flag=True, help="Print the scores of every window, too."),
        click.option("--enter", type=score, metavar="SCORE", help="Score at which an event begins. [default: 0.6]"),
        click.option("--leave", type=score, metavar="SCORE", help="Score below which it ends. [default: 0.4]"),
        click.option("--min-duration", type=seconds, metavar="SECONDS", help="Leave out shorter events. [default: 0]"),
        click.option("--merge-gap", type=seconds, metavar="SECONDS", help="Join events so close. [default: 0.5]"),
        click.option("--max-duration", type=seconds, metavar="SECONDS", help="End events after this. [default: never]"),
        click.option("--cooldown", type=seconds, metavar="SECONDS", help="Pause after an event. [default: 0]"),
    )
    for option in reversed(added):
        command = option(command)
    return command


def watch(
    queries: Sequence[Path],
    matcher: Matcher,
    options: RecordingOptions,
    *,
    roi: Rectangle | None,
    json: bool,
    topk: int,
) -> None:
    """Print the events of recordings, one recording after the other; a bad one does not stop the rest.

    Raises:
        InputError: The options contradict each other, or the bank has one class.
        ClipError: The only recording cannot be read.
        CheckFailed: Some of several.
    """
    failed = 0
    for query in queries:
        try:
            _watched(query, matcher, options, roi=roi, json=json, topk=topk)
        except ClipError as error:
            if len(queries) == 1:
                raise
            report(error)
            failed += 1
    if failed:
        raise CheckFailed(f"{failed} of {len(queries)} recordings could not be read", "see the errors above")


def say_how_to_watch(name: str, seconds: float, length: float) -> None:
    """Tell of a clip that lasts longer than an action that `--window` finds several in it."""
    say(
        f"{printable(name)} lasts {seconds:.0f} s and got one answer for all of it; "
        f"--window {length:g} tells what happens when"
    )


def _watched(
    query: Path, matcher: Matcher, options: RecordingOptions, *, roi: Rectangle | None, json: bool, topk: int
) -> None:
    from m2df_runtime import EventRules, Stream

    named = {one.name: getattr(options, one.name, None) for one in fields(EventRules)}
    rules = EventRules(**{name: value for name, value in named.items() if value is not None})
    window = None if options.window == "auto" else options.window
    stream = Stream(matcher, query, window=window, stride=options.stride, roi=roi, rules=rules)
    with closing(stream.steps()) as steps:
        for step in steps:
            if options.windows and step.answer:
                emit_json(step.answer.record(topk)) if json else emit(step.answer.text(topk))
            for event in step.events:
                if json:
                    emit_json(event.record())
                elif event.type == "end":
                    emit(event.text())
    _say_what_it_took(stream)


def _say_what_it_took(stream: Stream) -> None:
    counts = stream.counts
    events = f"{counts.events} event{'' if counts.events == 1 else 's'}"
    say(
        f"{printable(stream.name)}: {events} in {counts.windows} windows of {stream.window:g} s, one every "
        f"{stream.stride:g} s; {counts.frames} frames read, {counts.encoded} encoded"
    )
