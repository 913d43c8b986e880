"""`m2df-eval`: episode accuracy of a checkpoint or a bundle, or of two on the same episodes; events in recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2df_runtime.commands.console import M2dfGroup, emit, emit_json, main_entry, progress
from m2df_runtime.engine_names import BACKENDS, RUN_PRECISIONS, BackendName, RunPrecision
from m2df_train.commands.recordings import Models, RecordingOptions, evaluate_recordings, recording_options
from m2df_train.public_benchmarks import BENCHMARKS, BenchmarkName

if TYPE_CHECKING:
    from m2df_runtime.bundle.prompt_texts import ClassTexts
    from m2df_train.cache.features import FeatureCache
    from m2df_train.evaluation.clips import EpisodeOptions, SplitClips
    from m2df_train.evaluation.episode_run import Answers
    from m2df_train.evaluation.models import Encoded, Subject
    from m2df_train.evaluation.tables import Measured

EXAMPLES = """
\b
Examples:
  m2df-eval
  m2df-eval --data clips/ --shot 1,5 --confusion
  m2df-eval --checkpoint runs/mine --data clips/ --labels labels.csv
  m2df-eval --data clips/ --groups 'person([0-9]+)_' --json
  m2df-eval --compare bundles/old bundles/new --data clips/
  m2df-eval --data clips/ --shot 5 --open-set
  m2df-eval --checkpoint runs/mine --shot 1,5 --report report.html
  m2df-eval --checkpoint runs/mine --split validation,test
  m2df-eval --recordings days --annotations events.csv --support actions/ --tune
  m2df-eval --recordings quiet_days --support actions/
  m2df-eval --dataset ucf101 --data UCF-101 --split-files CLIP-MDMF/splits/ucf_ARN
"""
CACHE_BYTES = 10 << 30


def _comma_list(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(part.strip() for part in value.split(",") if part.strip())
    if not names:
        raise click.BadParameter("empty list")
    return names


def _shots(_ctx: click.Context, _parameter: click.Parameter, value: Sequence[str]) -> tuple[int, ...]:
    parts = [part for text in value for part in text.split(",")]
    try:
        shots = tuple(dict.fromkeys(int(part) for part in parts))
    except ValueError:
        raise click.BadParameter(f"{','.join(value)!r} is not a number or a list such as 1,5") from None
    if min(shots) < 1:
        raise click.BadParameter("must be at least 1")
    return shots


def _splits(_ctx: click.Context, _parameter: click.Parameter, value: Sequence[str]) -> tuple[str, ...]:
    from m2df_train.evaluation.clips import SPLIT_NAMES

    names = tuple(dict.fromkeys(part.strip() for text in value for part in text.split(",")))
    unknown = [name for name in names if name not in SPLIT_NAMES]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(SPLIT_NAMES)}")
    return names


@click.command(
    "m2df-eval",
    cls=M2dfGroup,
    subcommand_metavar="",
    epilog=EXAMPLES,
    context_settings={"show_default": True},
)
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="Bundle directory or zip [newest, else the shipped one]."
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Checkpoint or run directory, run in PyTorch.")
@click.option(
    "--compare", nargs=2, type=click.Path(path_type=Path), metavar="A B", help="Two of either, on the same episodes."
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of class folders [generated test actions].")
@click.option("--dataset", type=click.Choice(BENCHMARKS), help="Benchmark that --data is a download of.")
@click.option(
    "--split",
    "splits",
    multiple=True,
    callback=_splits,
    help="Of a benchmark [test] or of a run: train, validation, test; several: validation,test.",
)
@click.option("--split-files", type=click.Path(path_type=Path), help="Folder of the lists of videos of its splits.")
@click.option("--way", type=click.IntRange(2), default=5, help="Classes per episode.")
@click.option(
    "--shot", "shots", multiple=True, default=("1",), callback=_shots, help="Support clips per class; several: 1,5."
)
@click.option("--query", type=click.IntRange(1), default=1, help="Query clips per class and episode.")
@click.option("--episodes", type=click.IntRange(1, 1_000_000), default=10_000, help="Number of episodes.")
@click.option("--seed", type=click.IntRange(0, (1 << 40) - 1), default=0, help="Seed of the episodes.")
@click.option("--classes", callback=_comma_list, help="Only these classes, separated by commas.")
@click.option("--labels", type=click.Path(path_type=Path), help="CSV with columns class,text.")
@click.option("--groups", metavar="REGEX", help="First capture group in a clip's name: never both support and query.")
@click.option(
    "--open-set",
    type=click.IntRange(1),
    is_flag=False,
    flag_value=5,
    show_default=False,
    metavar="[N]",
    help="Tell queries of N further classes [5], which are in no support set, from those of the episode.",
)
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="Inference engine of a bundle.")
@click.option(
    "--precision",
    type=click.Choice(RUN_PRECISIONS),
    help="[fastest that was measured here, else on a CPU at export]",
)
@click.option("--cache", type=click.Path(path_type=Path), help="Folder that keeps features [in the user's cache].")
@click.option("--no-cache", is_flag=True, help="Encode everything anew and keep nothing.")
@click.option("--per-class", is_flag=True, help="Print the accuracy of every class too.")
@click.option("--confusion", is_flag=True, help="Print which classes were taken for which.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write an HTML page that looks into the model, or into its events.",
)
@recording_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object per split and shot value, with everything.")
@click.pass_context
def cli(context: click.Context, **options: Any) -> None:  # noqa: ANN401 - click passes every option by name
    """Measure accuracy over episodes with its 95 % confidence interval, or events in recordings, without PyTorch."""
    recordings = RecordingOptions.taken_from(context, options)
    if recordings:
        models = Models(**{name: options[name] for name in ("bundle", "compare", "labels", "backend", "precision")})
        evaluate_recordings(recordings, models, as_json=options["as_json"], report_file=options["report"])
    else:
        run(Options(**options))


@dataclass(frozen=True)
class Options:
    """What the command line says, by the names of its options.

    Raises:
        UsageError: Two options do not go together.
    """

    bundle: Path | None
    checkpoint: Path | None
    compare: tuple[Path, Path] | None
    data: Path | None
    dataset: BenchmarkName | None
    splits: tuple[str, ...]
    split_files: Path | None
    way: int
    shots: tuple[int, ...]
    query: int
    episodes: int
    seed: int
    classes: tuple[str, ...] | None
    labels: Path | None
    groups: str | None
    open_set: int | None
    backend: BackendName
    precision: RunPrecision | None
    cache: Path | None
    no_cache: bool
    per_class: bool
    confusion: bool
    report: Path | None
    as_json: bool

    def __post_init__(self) -> None:
        named = [name for name in ("bundle", "checkpoint", "compare") if getattr(self, name)]
        if len(named) > 1:
            raise click.UsageError(f"{' and '.join(f'--{name}' for name in named)} exclude each other")
        if self.dataset and not self.data:
            raise click.UsageError("--dataset needs --data, the folder of its videos")
        if self.split_files and not self.dataset:
            raise click.UsageError("--split-files needs --dataset")
        if self.splits and not (self.dataset or self.checkpoint):
            raise click.UsageError("--split needs --dataset, or the --checkpoint of a training run")
        if self.report and len(self.splits) > 1:
            raise click.UsageError("--report is about one split: name one with --split")
        if self.cache and self.no_cache:
            raise click.UsageError("--cache and --no-cache exclude each other")


def run(options: Options) -> None:
    """Encode the clips of every split once, then report on every number of shots."""
    from m2df_runtime.bundle.prompt_texts import read_labels, warn_unmatched
    from m2df_train.evaluation.clips import EpisodeOptions
    from m2df_train.evaluation.models import encode_for_all

    if options.report:
        from m2df_train.report.check import check_report

        check_report(options.report)
    episodes = EpisodeOptions(options.way, options.shots, options.query, options.episodes, options.seed, options.groups)
    texts = {} if options.labels is None else read_labels(options.labels)
    sets = _sets(options)
    if options.labels:
        warn_unmatched(options.labels, texts, (clip.label for chosen in sets for clip in chosen.clips))
    for chosen in sets:
        episodes.check([clip.label for clip in chosen.clips], [clip.name for clip in chosen.clips])
    subjects = _subjects(options, texts)
    features = _cache(options)
    for chosen in sets:
        encoded = encode_for_all(subjects, chosen.clips, chosen.texts, features, progress)
        answers = []
        for shot in options.shots:
            results = [_measure(item, chosen, episodes, shot, options.open_set) for item in encoded]
            _report(results, options)
            answers.append([found for _, found in results])
        if options.report:
            from m2df_train.report.page import report_on

            report_on(options.report, options.dataset or options.data, chosen, episodes, encoded, answers, progress)
            if not options.as_json:
                emit(f"report: {options.report}")


def _sets(options: Options) -> list[SplitClips]:
    """The clips, split by split."""
    from m2df_train.evaluation.clips import benchmark_sets, folder_sets, run_sets

    splits, classes = options.splits, options.classes
    if options.data and options.dataset:
        return benchmark_sets(
            options.data, options.dataset, splits or ("test",), options.split_files, classes, progress
        )
    if options.checkpoint and splits:
        return run_sets(options.checkpoint, options.data, splits, classes)
    return folder_sets(options.data, classes)


def _cache(options: Options) -> FeatureCache:
    """The cache of features that training uses too."""
    from m2df_runtime.user_cache import cache_dir
    from m2df_train.cache.features import FeatureCache

    if options.no_cache:
        return FeatureCache(None, 0)
    return FeatureCache(options.cache or cache_dir("features"), CACHE_BYTES, f"the {CACHE_BYTES >> 30} GiB of a cache")


def _subjects(options: Options, texts: ClassTexts) -> list[Subject]:
    """Open what is evaluated: one model, or the two that are compared."""
    from m2df_train.evaluation.models import is_bundle, open_bundle, open_checkpoint

    backend, precision = options.backend, options.precision
    kinds = {path: is_bundle(path) for path in options.compare or ()}
    if options.checkpoint:
        kinds = {options.checkpoint: False}
    if kinds and not any(kinds.values()):
        wanted = "tensorrt" if backend == "tensorrt" else precision
        if wanted not in (None, "fp32"):
            raise click.UsageError(f"a checkpoint runs in PyTorch and fp32; export it to measure {wanted}")
    if not kinds:
        return [open_bundle(options.bundle, backend, precision, texts)]
    return [
        open_bundle(path, backend, precision, texts) if kinds[path] else open_checkpoint(path, backend, texts)
        for path in options.compare or kinds
    ]


def _measure(
    encoded: Encoded, clips: SplitClips, options: EpisodeOptions, shot: int, unknown: int | None
) -> tuple[Measured, Answers]:
    from m2df_train.evaluation.accuracy import summary
    from m2df_train.evaluation.episode_run import episode_answers
    from m2df_train.evaluation.open_set import open_answers, open_set
    from m2df_train.evaluation.tables import Measured

    scorer, drawn, plan = encoded.subject.scorer, encoded.clips(options), options.plan(shot)
    title = f"{encoded.subject.path.name}, {options.way}-way {shot}-shot"
    with progress(title, options.episodes) as advance:
        answers = episode_answers(scorer, drawn, plan, advance=advance)
    found = None
    if unknown is not None:
        with progress(f"{title}, unknown classes", options.episodes) as advance:
            found = open_set(open_answers(scorer, drawn, plan, unknown, advance), options.way, unknown, options.seed)
    return Measured(clips.split, encoded, summary(answers), answers.excluded, options, found), answers


def _report(results: Sequence[tuple[Measured, Answers]], options: Options) -> None:
    """Print one result, or two with what lies between them."""
    from m2df_train.evaluation.compare import compare
    from m2df_train.evaluation.tables import comparison_lines, comparison_record, lines, record

    (first, answers), *others = results
    if others:
        second, other_answers = others[0]
        found = compare(answers, other_answers, first.encoded.features.names, seed=first.options.seed)
        as_record = comparison_record(first, second, found)
        as_lines = comparison_lines(first, second, found, confusion=options.confusion)
    else:
        as_record = record(first)
        as_lines = lines(first, per_class=options.per_class, confusion=options.confusion)
    if options.as_json:
        emit_json(as_record)
    else:
        for line in as_lines:
            emit(line)


def main() -> None:
    """Entry point of `m2df-eval`."""
    main_entry(cli)


if __name__ == "__main__":
    main()
