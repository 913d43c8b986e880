"""`m2df-run bank`: teach, correct and forget actions, in a support folder or in a bank file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2df_runtime.commands.console import emit, emit_json, progress, report
from m2df_runtime.commands.options import Command, EngineOptions, TextOptions, engine_options, text_options
from m2df_runtime.errors import InputError, printable

if TYPE_CHECKING:
    from m2df_runtime import Support


_LONGEST_TEXT = 60  # characters of a table's column

EPILOG = """
\b
Examples:
  m2df-run bank add --support actions --label wave a.mp4 b.mp4
  m2df-run bank record --support actions --label wave rtsp://camera/1 --seconds 3
  m2df-run bank rename --support actions wave greet
  m2df-run bank remove --support actions greet/a.mp4
  m2df-run bank undo --support actions
  m2df-run bank list --support actions
  m2df-run bank lint --support actions
  m2df-run bank pack --support actions --out gate.bank
  m2df-run bank background --support actions empty-room.mp4

--support names a support folder, or a bank file that `bank pack` wrote. A folder is the truth as long as there is
one: it gets copies of what is added, and keeps what is removed in .m2df/removed until `bank purge`.
"""


@click.group("bank", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
def bank() -> None:
    """Teach, correct and forget actions. Each verb says in one line what it changed, and undo takes it back."""


def _support_option(command: Command) -> Command:
    return click.option(
        "--support",
        type=click.Path(path_type=Path),
        metavar="DIR|FILE",
        required=True,
        help="The support folder, or a bank file.",
    )(command)


def _json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")(command)


_label_option = click.option("--label", required=True, metavar="CLASS", help="The class, which may be new.")
_clips_argument = click.argument("clips", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CLIP...")


def _support(options: dict[str, Any]) -> Support:
    """What a verb works on; takes its options out of all. The bundle is opened once it is needed."""
    from m2df_runtime import Support

    return Support(options.pop("support"), EngineOptions.taken_from(options).load, progress=progress)


def _described(options: dict[str, Any]) -> Support:
    """What a verb reads, with the texts that were asked for; takes its options out of all."""
    from m2df_runtime import Support

    texts, model = TextOptions.taken_from(options), EngineOptions.taken_from(options).load()
    support = Support(options.pop("support"), model, texts.rules(model), progress=progress)
    texts.warn_unmatched(entry.label for entry in support.view().classes)
    return support


def _say(support: Support, did: str) -> None:
    """Tell what was done; then calibrate, so that the next to match needs not."""
    from m2df_runtime import SupportBank

    emit(printable(did))
    try:
        SupportBank.of(support.model, support.path, progress=progress)
    except InputError as error:  # of what was there before: the verb itself is done
        report(error)


@bank.command()
@_clips_argument
@_label_option
@_support_option
@engine_options
def add(clips: tuple[Path, ...], label: str, **options: Any) -> None:  # noqa: ANN401 - click's options by name
    """Add clips to a class, which may be new. Only these clips are encoded."""
    support = _support(options)
    _say(support, support.add(label, clips))


@bank.command()
@click.argument("source")
@click.option("--seconds", type=click.FloatRange(0.1), help="So much of it. [default: all of a file, 3 of a camera]")
@click.option("--no-trim", is_flag=True, help="Keep still ends.")
@_label_option
@_support_option
@engine_options
def record(source: str, seconds: float | None, no_trim: bool, label: str, **options: Any) -> None:  # noqa: ANN401
    """Record a clip from a file, a camera's address or number, cut off its still ends, and add it to a class."""
    support = _support(options)
    _say(support, support.record(label, source, seconds=seconds, trim=not no_trim))


@bank.command()
@_clips_argument
@_support_option
@engine_options
def background(clips: tuple[Path, ...], **options: Any) -> None:  # noqa: ANN401
    """Add clips of nothing: what belongs to no class."""
    support = _support(options)
    _say(support, support.background(clips))


@bank.command()
@click.argument("name", metavar="CLASS|CLASS/CLIP")
@_support_option
@engine_options
def remove(name: str, **options: Any) -> None:  # noqa: ANN401
    """Remove a class, or one of its clips."""
    emit(printable(_support(options).remove(name)))


@bank.command()
@click.argument("old")
@click.argument("new")
@click.option("--join", is_flag=True, help="NEW is a class that is there: the two become one.")
@_support_option
@engine_options
def rename(old: str, new: str, join: bool, **options: Any) -> None:  # noqa: ANN401
    """Give the class OLD the name NEW."""
    emit(printable(_support(options).rename(old, new, join=join)))


@bank.command()
@click.argument("other", type=click.Path(path_type=Path), metavar="DIR|FILE")
@_support_option
@engine_options
def merge(other: Path, **options: Any) -> None:  # noqa: ANN401
    """Take over what another support folder or bank file holds, which stays as it is."""
    support = _support(options)
    _say(support, support.merge(other))


@bank.command()
@_support_option
@engine_options
def undo(**options: Any) -> None:  # noqa: ANN401
    """Take the last change back; once more makes it again."""
    emit(printable(_support(options).undo()))


@bank.command()
@_support_option
@engine_options
def purge(**options: Any) -> None:  # noqa: ANN401
    """Delete what was removed. It cannot be undone."""
    emit(printable(_support(options).purge()))


@bank.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The bank file.")
@click.option("--without-clips", is_flag=True, help="A smaller file, which cannot follow a new model.")
@text_options
@_support_option
@engine_options
def pack(out: Path, without_clips: bool, **options: Any) -> None:  # noqa: ANN401
    """Write one file that travels: the bank with its clips."""
    support = _described(options)
    said = "; without its clips it cannot follow a new model or pixel version" if without_clips else ""
    emit(printable(support.pack(out, clips=not without_clips) + said))


@bank.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The new folder.")
@_support_option
@engine_options
def unpack(out: Path, **options: Any) -> None:  # noqa: ANN401
    """Write a support folder with the clips of a bank file."""
    emit(printable(_support(options).unpack(out)))


@bank.command("list")
@_json_option
@_support_option
def list_(as_json: bool, support: Path) -> None:
    """List the classes: clips, the class that looks most alike, texts."""
    from m2df_runtime.teaching.overview import view_of

    view = view_of(support)
    if as_json:
        for entry in view.classes:
            emit_json(entry.record())
        return
    rows = [("class", "clips", "closest class", "text")]
    for entry in view.classes:
        closest = f"{entry.closest} ({entry.similarity:.2f})" if entry.closest else "not encoded yet"
        rows.append((entry.label, str(len(entry.clips)), closest, "; ".join(entry.texts)))
    emit(_table(rows))
    if view.background:
        emit(f"background: {len(view.background)} clips")
    if view.last_change:
        emit(printable(f"last change: {view.last_change}"))


@bank.command()
@click.argument("name", metavar="CLASS")
@_json_option
@_support_option
def show(name: str, as_json: bool, support: Path) -> None:
    """List the clips of a class; of _background, those of nothing."""
    from m2df_runtime.teaching.overview import view_of

    clips = view_of(support).clips_of(name)
    if as_json:
        for clip in clips:
            emit_json(clip.record())
        return
    rows = [("clip", "seconds", "kB")]
    for clip in clips:
        rows.append((clip.name, "" if clip.seconds is None else f"{clip.seconds:.2f}", f"{clip.bytes / 1000:.0f}"))
    emit(_table(rows))


@bank.command()
@_json_option
@text_options
@_support_option
@engine_options
def lint(as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Look for mistakes: wrong labels, a clip twice, classes that look alike, clips of nothing."""
    from m2df_runtime import SupportBank
    from m2df_runtime.bank.lint import lint as findings_in

    support = _described(options)
    looked_at = SupportBank.of(support.model, support.path, support.rules, progress=progress)
    findings = findings_in(looked_at, progress)
    for finding in findings:
        if as_json:
            emit_json(finding.record())
        else:
            emit(f"{finding.kind}: {finding.text()}")
    if not findings and not as_json:
        emit(f"nothing looks wrong in {len(looked_at.clips)} clips of {len(looked_at.classes)} classes")


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of cells below each other, the first of them the heading."""
    cells = [[printable(cell)[:_LONGEST_TEXT] for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)
