"""`m2df-eval`: episode accuracy of a checkpoint or a bundle, any backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2df_runtime import __version__
from m2df_runtime.console import M2dfGroup, emit_json, main_entry, progress
from m2df_train.data.benchmarks import BENCHMARKS, SPLITS, BenchmarkName, Split, benchmark

if TYPE_CHECKING:
    from m2df_runtime.labels import LabelRules
    from m2df_runtime.preprocess import ClipSpec
    from m2df_train.data.clips import LabelledClip
    from m2df_train.evaluate import Accuracy, Features, Scorer

EXAMPLES = """
\b
Examples:
  m2df-eval
  m2df-eval --data clips/ --shot 1,5
  m2df-eval --checkpoint runs/mine --data clips/ --labels labels.csv
  m2df-eval --data clips/ --groups 'person([0-9]+)_' --json
  m2df-eval --dataset ucf101 --data UCF-101 --split-files CLIP-MDMF/splits/ucf_ARN
"""


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    `encoder` and `episodes` are the same model; on a CPU the second runs one thread per call, because
    its graphs are small and episodes run beside each other.
    """

    encoder: Scorer
    episodes: Scorer
    workers: int
    spec: ClipSpec
    rules: LabelRules
    backend: str
    precision: str


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


@click.command(
    "m2df-eval",
    cls=M2dfGroup,
    subcommand_metavar="",
    epilog=EXAMPLES,
    context_settings={"show_default": True, "help_option_names": ["-h", "--help"]},
)
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="Bundle directory or zip [newest, else the shipped one]."
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Checkpoint or run directory, run in PyTorch.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of class folders [generated test actions].")
@click.option("--dataset", type=click.Choice(BENCHMARKS), help="Benchmark that --data is a download of.")
@click.option("--split", type=click.Choice(SPLITS), help="Its split.  [default: test]")
@click.option("--split-files", type=click.Path(path_type=Path), help="Folder of the lists of videos of its splits.")
@click.option("--way", type=click.IntRange(2), default=5, help="Classes per episode.")
@click.option("--shot", multiple=True, default=("1",), callback=_shots, help="Support clips per class; several: 1,5.")
@click.option("--query", type=click.IntRange(1), default=1, help="Query clips per class and episode.")
@click.option("--episodes", type=click.IntRange(1), default=10_000, help="Number of episodes.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the episodes.")
@click.option("--classes", callback=_comma_list, help="Only these classes, separated by commas.")
@click.option("--labels", type=click.Path(path_type=Path), help="CSV with columns class,text.")
@click.option("--groups", metavar="REGEX", help="First capture group in a clip's name: never both support and query.")
@click.option("--backend", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Inference engine.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]), help="[fastest that passed its parity check]")
@click.option("--per-class", is_flag=True, help="Print the accuracy of every class too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per shot value.")
@click.version_option(__version__, prog_name="m2df-eval")
def cli(**options: Any) -> None:  # noqa: ANN401 - click passes every option by name
    """Measure episode accuracy with its 95 % confidence interval, without PyTorch for a bundle."""
    if options["bundle"] and options["checkpoint"]:
        raise click.UsageError("--bundle and --checkpoint exclude each other")
    if options["dataset"] and not options["data"]:
        raise click.UsageError("--dataset needs --data, the folder of its videos")
    if not options["dataset"] and (options["split"] or options["split_files"]):
        raise click.UsageError("--split and --split-files need --dataset")
    run(**options)


def run(
    *,
    bundle: Path | None,
    checkpoint: Path | None,
    data: Path | None,
    dataset: BenchmarkName | None,
    split: Split | None,
    split_files: Path | None,
    way: int,
    shot: Sequence[int],
    query: int,
    episodes: int,
    seed: int,
    classes: Sequence[str] | None,
    labels: Path | None,
    groups: str | None,
    backend: str,
    precision: str | None,
    per_class: bool,
    as_json: bool,
) -> None:
    """Encode the clips once, then print one result per number of shots."""
    from m2df_train.data.clips import clip_groups
    from m2df_train.evaluate import encode, episode_accuracy

    texts = _read_texts(labels)
    clips = _benchmark_clips(data, dataset, split, split_files, classes) if data and dataset else _clips(data, classes)

    def groups_of(names: Sequence[str]) -> list[str] | None:
        return None if groups is None else clip_groups(names, groups)

    sides = groups_of([clip.name for clip in clips])
    for count in shot:  # refuse impossible episodes before minutes of encoding
        _check_episodes([clip.label for clip in clips], sides, way=way, shot=count, query=query)
    subject = (
        _checkpoint_subject(checkpoint, backend, precision, texts)
        if checkpoint
        else _bundle_subject(bundle, backend, precision, texts)
    )
    if dataset:
        subject = replace(subject, rules=over_benchmark_texts(subject.rules, dataset))
    with progress("encoding", len(clips)) as advance:
        features = encode(subject.encoder, clips, subject.spec, workers=_cores(), advance=advance)
    prompts = subject.encoder.encode_texts([subject.rules.prompt(name) for name in dict.fromkeys(features.labels)])
    for count in shot:
        with progress(f"{way}-way {count}-shot", episodes) as advance:
            result = episode_accuracy(
                subject.episodes,
                features.values,
                features.labels,
                prompts,
                way=way,
                shot=count,
                query=query,
                episodes=episodes,
                seed=seed,
                groups=groups_of(features.names),
                workers=subject.workers,
                advance=advance,
            )
        if as_json:
            emit_json(_record(subject, features, result))
        else:
            _print(result, subject, features, per_class)


def _check_episodes(labels: Sequence[str], groups: Sequence[str] | None, *, way: int, shot: int, query: int) -> None:
    from m2df_train.data.episodes import EpisodeSampler

    sampler = EpisodeSampler(labels, groups=groups, way=way, shot=shot, query=query)
    if sampler.excluded:
        names = ", ".join(f"{name} ({count})" for name, count in sampler.excluded.items())
        _warn(f"{shot}-shot: classes with too few clips are not drawn: {names}")


def _clips(data: Path | None, classes: Sequence[str] | None) -> list[LabelledClip]:
    from m2df_train.data.clips import folder_clips, generated_clips

    if data is None:
        return generated_clips(classes=classes)
    clips, warnings = folder_clips(data, classes)
    for warning in warnings:
        _warn(warning)
    return clips


def _benchmark_clips(
    root: Path,
    dataset: BenchmarkName,
    split: Split | None,
    split_files: Path | None,
    classes: Sequence[str] | None,
) -> list[LabelledClip]:
    from m2df_train.data.datasets import find_clips

    with progress(f"listing {root}"):
        return find_clips(root, dataset, split or "test", split_files, classes)


def over_benchmark_texts(rules: LabelRules, dataset: BenchmarkName) -> LabelRules:
    """The model's own texts and the user's stay: an imported checkpoint has the spelling it was trained with."""
    return replace(rules, texts={**benchmark(dataset).texts(), **rules.texts})


def _read_texts(labels: Path | None) -> dict[str, str]:
    from m2df_runtime.labels import read_labels

    return {} if labels is None else read_labels(labels)


def _bundle_subject(path: Path | None, backend: Any, precision: Any, texts: dict[str, str]) -> Subject:  # noqa: ANN401
    from m2df_runtime.bundle import Bundle, newest_bundle
    from m2df_runtime.labels import LabelRules
    from m2df_runtime.session import Session

    bundle = Bundle.open(path or newest_bundle())
    encoder = Session(bundle, backend=backend, precision=precision)
    on_cpu = encoder.backend == "cpu"
    episodes = Session(bundle, backend="cpu", precision=encoder.precision, threads=1) if on_cpu else encoder
    episodes.prepare("support", "query")  # once, before several threads would do it at the same time
    text = bundle.manifest.text
    rules = LabelRules(text.prompt, {**text.labels, **texts})
    return Subject(
        encoder, episodes, _cores() if on_cpu else 1, bundle.manifest.clip, rules, encoder.backend, encoder.precision
    )


def _checkpoint_subject(path: Path, backend: Any, precision: str | None, texts: dict[str, str]) -> Subject:  # noqa: ANN401
    if precision not in (None, "fp32"):
        raise click.UsageError(f"a checkpoint runs in fp32; export it to measure {precision}")
    from m2df_runtime.labels import LabelRules
    from m2df_train.checkpoint import load_checkpoint
    from m2df_train.torch_scorer import CheckpointScorer

    checkpoint = load_checkpoint(path)
    scorer = CheckpointScorer(checkpoint, backend)
    rules = LabelRules(checkpoint.prompt, {**checkpoint.labels, **texts})
    # PyTorch's own threads already share the cores; several callers would only get in each other's way.
    return Subject(scorer, scorer, 1, checkpoint.clip, rules, scorer.backend, scorer.precision)


def _record(subject: Subject, features: Features, result: Accuracy) -> dict[str, object]:
    return {
        "accuracy": result.accuracy,
        "ci95": result.ci95,
        "per_class": result.per_class,
        "way": result.way,
        "shot": result.shot,
        "episodes": result.episodes,
        "backend": subject.backend,
        "precision": subject.precision,
        "encode_seconds": features.seconds,
        "episode_seconds": result.seconds,
    }


def _print(result: Accuracy, subject: Subject, features: Features, per_class: bool) -> None:
    click.echo(
        f"{result.way}-way {result.shot}-shot, {result.episodes} episodes: {result.accuracy:.2f} ± {result.ci95:.2f} %"
        f"  ({subject.backend} {subject.precision}, {len(features.labels)} clips encoded in {features.seconds:.1f} s,"
        f" episodes {result.seconds:.1f} s)"
    )
    if per_class:
        width = max(map(len, result.per_class))
        for name, value in sorted(result.per_class.items(), key=lambda item: -item[1]):
            click.echo(f"  {name:{width}}  {value:6.2f} %")


def _warn(message: str) -> None:
    import logging

    logging.getLogger(__name__).warning(message)


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """Entry point of `m2df-eval`."""
    main_entry(cli)


if __name__ == "__main__":
    main()
