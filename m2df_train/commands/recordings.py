"""`m2df-eval --recordings`: how well events are found in long recordings whose actions are known."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from m2df_runtime.commands.console import emit, emit_json, progress, report
from m2df_runtime.commands.options import SHARE, Command, Reject, check_miss_rate, parse_reject, with_options
from m2df_runtime.commands.recordings import EVENT_OPTIONS, SECONDS, event_rules, parse_window
from m2df_runtime.engine_names import BackendName, RunPrecision
from m2df_runtime.errors import CheckFailed, ClipError, InputError

if TYPE_CHECKING:
    from m2df_runtime import EventRules, Matcher
    from m2df_runtime.backends.model import Model
    from m2df_runtime.clips.source import FrameSource
    from m2df_train.evaluation.event_measures import TrueAction
    from m2df_train.evaluation.event_tables import MeasuredEvents
    from m2df_train.evaluation.recordings import ScoredRecording

SHARED = ("bundle", "compare", "labels", "backend", "precision", "as_json", "report")  # with evaluation by episodes


@dataclass(frozen=True)
class RecordingOptions:
    """How m2df-eval looks at recordings; None takes the default of `Stream`, `EventRules` and `Matcher`."""

    recordings: Path
    annotations: Path | None
    support: Path | None
    tune: bool
    ignore: tuple[str, ...]
    window: float | Literal["auto"] | None
    stride: float | None
    reject: Reject | None
    miss_rate: float | None
    enter: float | None
    leave: float | None
    min_duration: float | None
    merge_gap: float | None
    max_duration: float | None
    cooldown: float | None

    @classmethod
    def taken_from(cls, context: click.Context, options: dict[str, Any]) -> RecordingOptions | None:
        """The options of recordings out of all options; None where episodes are asked for.

        Raises:
            UsageError: Options of both, or recordings without support clips.
        """
        own = {one.name: options.pop(one.name) for one in fields(cls)}
        given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        if own["recordings"] is None:
            if strangers := sorted(given & own.keys()):
                raise click.UsageError(f"--{strangers[0].replace('_', '-')} needs --recordings DIR")
            return None
        if own["annotations"] is None and own["tune"]:
            raise click.UsageError("--tune needs --annotations CSV: columns recording,start,end,label")
        if own["support"] is None and options["compare"] is None:
            raise click.UsageError("--recordings needs --support DIR: a folder with one sub-folder of clips per class")
        if strangers := sorted(given - own.keys() - {*SHARED}):
            name = {"shots": "shot", "splits": "split"}.get(strangers[0], strangers[0])
            raise click.UsageError(f"--{name.replace('_', '-')} does not go with --recordings")
        check_miss_rate(own["miss_rate"], own["reject"])
        return cls(**own)


@dataclass(frozen=True)
class Models:
    """What the banks are made with: the shared options of the command."""

    bundle: Path | None
    compare: tuple[Path, Path] | None
    labels: Path | None
    backend: BackendName
    precision: RunPrecision | None


def recording_options(command: Command) -> Command:
    """The options of recordings on a click command."""
    path = click.Path(path_type=Path)
    added = (
        click.option(
            "--recordings", type=path, metavar="DIR", help="Long recordings: measure the events that are found in them."
        ),
        click.option(
            "--annotations",
            type=path,
            metavar="CSV",
            help="What happens in them: recording,start,end,label. [nothing: every event is a false alarm]",
        ),
        click.option("--support", type=path, metavar="DIR", help="Support clips, as of m2df-run, or a bank's file."),
        click.option("--tune", is_flag=True, help="Propose options of events, with recall against false alarms."),
        click.option(
            "--ignore",
            metavar="LABELS",
            callback=lambda _ctx, _param, value: tuple(part.strip() for part in value.split(",")) if value else (),
            help="Classes taught for what else is seen, separated by commas: their events are left out.",
        ),
        click.option("--window", metavar="auto|SECONDS", callback=parse_window, help="As of m2df-run. [auto]"),
        click.option("--stride", type=SECONDS, metavar="SECONDS", help="As of m2df-run. [1/4 window]"),
        click.option(
            "--reject",
            metavar="auto|off|NUMBER",
            callback=lambda ctx, param, value: None if value is None else parse_reject(ctx, param, value),
            help="As of m2df-run. [auto]",
        ),
        click.option("--miss-rate", type=SHARE, metavar="SHARE", help="As of m2df-run. [0.05]"),
        *EVENT_OPTIONS,
    )
    return with_options(command, added)


@dataclass(frozen=True)
class _Bank:
    """One bank under evaluation."""

    model: str
    name: str
    matcher: Matcher


@dataclass(frozen=True)
class _Annotated:
    """A recording that can be opened, and what happens in it."""

    name: str
    source: FrameSource
    truth: Sequence[TrueAction]


def evaluate_recordings(options: RecordingOptions, models: Models, *, as_json: bool, report_file: Path | None) -> None:
    """Look at every recording once with each bank, then measure, compare or tune.

    Raises:
        EnvironmentMissing: A package of the report is not installed.
        InputError: A bank, the table or its rows cannot be used.
        CheckFailed: Some recordings could not be read.
    """
    from m2df_train.evaluation.event_compare import compare_events
    from m2df_train.evaluation.event_tables import comparison_lines, comparison_record
    from m2df_train.report.check import check_report

    if not options.recordings.is_dir():
        raise InputError(f"{options.recordings}: not a folder", "--recordings names the folder that holds them")
    if report_file:
        if models.compare is not None:
            raise click.UsageError("--report is about one bank, and --compare about two")
        check_report(report_file)
    rules = event_rules(options)
    banks = _banks(options, models)
    names = _class_names(options, banks)
    annotated, failed = _annotated(options, names.values())
    seen = [_scored(bank, annotated, options, names) for bank in banks]
    # What one bank could not read is not held against the other.
    readable = set.intersection(*({one.name for one in recordings} for recordings in seen))
    seen = [[one for one in recordings if one.name in readable] for recordings in seen]
    if not readable:
        raise InputError(f"{options.recordings}: no recording could be read", "see the errors above")
    results = [_measured(bank, recordings, rules) for bank, recordings in zip(banks, seen, strict=True)]
    if len(results) == 2:
        (a, b), (of_a, of_b) = results, ([one.outcome(rules) for one in recordings] for recordings in seen)
        found = compare_events(of_a, of_b)
        if as_json:
            emit_json(comparison_record(a, b, found))
        else:
            _emit_all(comparison_lines(a, b, found))
    else:
        _report(results[0], seen[0], tune=options.tune, as_json=as_json)
        if report_file:
            from m2df_train.report.recordings import report_on_recordings

            report_on_recordings(
                report_file, results[0], seen[0], {one.name: one.source for one in annotated}, progress
            )
            if not as_json:
                emit(f"report: {report_file}")
    failed += len(annotated) - len(readable)
    if failed:
        raise CheckFailed(f"{failed} of {len(readable) + failed} recordings could not be read", "see the errors above")


def _report(result: MeasuredEvents, recordings: Sequence[ScoredRecording], *, tune: bool, as_json: bool) -> None:
    """Print what one bank finds, and what else it could."""
    from m2df_train.evaluation.event_tables import lines, record, tuned_lines, tuned_record
    from m2df_train.evaluation.event_tuning import candidates
    from m2df_train.evaluation.event_tuning import tune as tuned_on

    tuned = None
    if tune:
        with progress("tuning", len(candidates(result.window, result.rules))) as advance:
            tuned = tuned_on(recordings, result.rules, advance)
    if as_json:
        emit_json({**record(result), **(tuned_record(tuned) if tuned else {})})
    else:
        _emit_all(lines(result))
        if tuned:
            _emit_all(tuned_lines(tuned, result))


def _emit_all(found: Iterable[str]) -> None:
    for line in found:
        emit(line)


def _banks(options: RecordingOptions, models: Models) -> list[_Bank]:
    """The bank, or the two that are compared. Raises InputError and UsageError."""
    from m2df_runtime import load
    from m2df_runtime.bundle.manifest import MANIFEST_NAME

    def is_bundle(path: Path) -> bool:
        return path.suffix == ".zip" or (path / MANIFEST_NAME).is_file()

    if models.compare is None:
        assert options.support is not None  # see `RecordingOptions.taken_from`
        model = load(models.bundle, models.backend, models.precision)
        return [_bank(model, options.support, options, models.labels)]
    first, second = models.compare
    if options.tune:
        raise click.UsageError("--tune is about one bank, and --compare about two")
    for path in (first, second):
        if not path.exists():
            raise InputError(f"{path}: no such bundle or support folder", "check the paths given to --compare")
    kinds = [is_bundle(path) for path in models.compare]
    if all(kinds):
        if models.bundle is not None:
            raise click.UsageError("--bundle and two bundles to compare exclude each other")
        if options.support is None:
            raise click.UsageError("two bundles are compared on one --support DIR")
        opened = (load(path, models.backend, models.precision) for path in models.compare)
        return [_bank(model, options.support, options, models.labels) for model in opened]
    if any(kinds):
        raise click.UsageError("--compare takes two bundles or two support folders, not one of each")
    if options.support is not None:
        raise click.UsageError(f"{first} and {second} are no bundles: as support folders they need no --support")
    model = load(models.bundle, models.backend, models.precision)
    return [_bank(model, path, options, models.labels) for path in models.compare]


def _bank(model: Model, support: Path, options: RecordingOptions, labels: Path | None) -> _Bank:
    from m2df_runtime import Matcher, SupportBank
    from m2df_runtime.bundle.prompt_texts import read_labels, warn_unmatched

    reject: Reject = "auto" if options.reject is None else options.reject
    texts = read_labels(labels) if labels else {}
    rules = model.bundle.manifest.text.rules.over(texts) if texts else None
    bank = SupportBank.of(model, support, rules, progress=progress)
    if labels:
        warn_unmatched(labels, texts, bank.labels)
    matcher = Matcher(model, bank, reject=reject, miss_rate=options.miss_rate)
    return _Bank(str(model.bundle.path), str(support), matcher)


def _class_names(options: RecordingOptions, banks: Sequence[_Bank]) -> dict[str, str]:
    """`class_key` of every class that is measured to what it is called, of two banks by the first.

    Raises:
        InputError: One that is to be ignored is not there.
    """
    from m2df_runtime.bundle.prompt_texts import class_key

    names: dict[str, str] = {}
    for label in (label for bank in banks for label in bank.matcher.bank.labels):
        names.setdefault(class_key(label), label)
    if missing := [label for label in options.ignore if class_key(label) not in names]:
        raise InputError(f"--ignore {missing[0]}: no class is called so", f"there are {', '.join(names.values())}")
    ignored = {class_key(label) for label in options.ignore}
    return {key: label for key, label in names.items() if key not in ignored}


def _annotated(options: RecordingOptions, known: Collection[str]) -> tuple[list[_Annotated], int]:
    """The recordings with their actions, and how many could not be opened.

    Raises:
        InputError: No recordings, or rows that cannot be used; each is told in a line before.
    """
    from m2df_runtime.clips.opening import open_source
    from m2df_runtime.commands.queries import expand_path
    from m2df_train.evaluation.annotations import read_annotations

    root = options.recordings
    sources: dict[str, FrameSource] = {}
    unread: dict[str, float] = {}  # may have rows, too
    for path in expand_path(str(root)):
        name = path.relative_to(root).as_posix()
        try:
            sources[name] = open_source(path)
        except ClipError as error:
            report(error)
            unread[name] = math.inf
    if options.annotations is None:
        return [_Annotated(name, source, ()) for name, source in sources.items()], len(unread)
    lengths = {name: source.duration for name, source in sources.items()}
    actions, wrong = read_annotations(options.annotations, lengths | unread, known)
    for row in wrong:
        report(row)
    if wrong:
        count = f"{len(wrong)} row{'' if len(wrong) == 1 else 's'}"
        raise InputError(f"{options.annotations}: {count} cannot be used", "see the errors above")
    return [_Annotated(name, source, actions[name]) for name, source in sources.items()], len(unread)


def _scored(
    bank: _Bank, annotated: Sequence[_Annotated], options: RecordingOptions, names: Mapping[str, str]
) -> list[ScoredRecording]:
    """What a bank makes of the windows of each recording; one that cannot be read is told and left out."""
    from m2df_runtime.bundle.prompt_texts import class_key
    from m2df_train.evaluation.recordings import scored

    called = {label: names[class_key(label)] for label in bank.matcher.bank.labels if class_key(label) in names}
    window = None if options.window == "auto" else options.window
    found: list[ScoredRecording] = []
    length = sum(one.source.duration for one in annotated)
    with progress(f"{length / 60:.0f} min of recordings", round(length)) as advance:
        for one in annotated:
            try:
                found.append(
                    scored(
                        bank.matcher,
                        one.source,
                        one.name,
                        one.truth,
                        window=window,
                        stride=options.stride,
                        advance=advance,
                    ).called(called)
                )
            except ClipError as error:
                report(error)
    return found


def _measured(bank: _Bank, recordings: Sequence[ScoredRecording], rules: EventRules) -> MeasuredEvents:
    from m2df_train.evaluation.event_tables import MeasuredEvents

    model = bank.matcher.model
    return MeasuredEvents.of(recordings, rules, (bank.model, bank.name, model.backend, model.precision))
