"""`m2df-train prepare`: is the download of a benchmark complete, and can its videos be read?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from m2df_runtime.commands.console import emit, emit_json, progress
from m2df_train.public_benchmarks import BENCHMARKS, SPLITS, BenchmarkName

if TYPE_CHECKING:
    from m2df_train.data.completeness import ClassReport, PrepareReport, SplitReport

NAMED = 5  # missing videos and folders named in a line; --json names all

EPILOG = """\b
Examples:
  m2df-train prepare --dataset ucf101 --root UCF-101
  m2df-train prepare --dataset hmdb51 --root hmdb51_org --split-files CLIP-MDMF/splits/hmdb_ARN
  m2df-train prepare --dataset ssv2-full --root 20bn-something-something-v2 --split-files ssv2_full --decode
  m2df-train prepare --dataset kinetics100 --root k400 --split-files kinetics100 --json > report.json

Videos may lie in class folders or side by side, as webm, mp4, avi or folders of frames; folders such as
videos/ or train_256/ around them do not matter. The lists of videos are files of the CLIP-MDMF repository
(splits/...: trainlist03.txt) or of CLIP-FSAR (configs/projects/CLIPFSAR/...: train_few_shot.txt). Without
them the class folders are compared with the published number of videos.

\b
Exit codes: 0 complete, 1 videos missing or unreadable, 2 bad input.
"""


@click.command("prepare", epilog=EPILOG)
@click.option("--dataset", type=click.Choice(BENCHMARKS), required=True, help="Which benchmark.")
@click.option("--root", type=click.Path(path_type=Path), metavar="DIR", required=True, help="The download.")
@click.option("--split-files", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the lists of videos.")
@click.option("--decode", is_flag=True, help="Decode every video to its end, not only open it.")
@click.option("--json", "as_json", is_flag=True, help="Print the result, with every name, as one JSON object.")
def prepare_command(dataset: BenchmarkName, root: Path, split_files: Path | None, decode: bool, as_json: bool) -> None:
    """Check the download of a benchmark against its splits: what is missing, what cannot be read, what is extra."""
    from m2df_runtime.errors import CheckFailed
    from m2df_train.data.completeness import check_download

    with ExitStack() as bars:
        listing = bars.enter_context(ExitStack())
        listed = listing.enter_context(progress(f"listing {root}"))

        def reading(total: int) -> Callable[[int], None]:
            listing.close()  # one bar at a time
            return bars.enter_context(progress("decoding" if decode else "opening", total))

        report = check_download(root, dataset, split_files, decode=decode, listed=listed, reading=reading)
    if as_json:
        emit_json(_record(dataset, root, split_files, report))
    else:
        emit("\n".join(_lines(report)))
    if report.lacking or report.unreadable:
        total = sum(split.expected for split in report.splits)
        raise CheckFailed(
            f"{root}: {report.lacking} of {total} videos are missing, {report.unreadable} cannot be read",
            "m2df-eval works with those that are there",
        )


def _record(dataset: str, root: Path, split_files: Path | None, report: PrepareReport) -> dict[str, object]:
    return {
        "dataset": dataset,
        "root": str(root),
        "split_files": None if split_files is None else str(split_files),
        "complete": not (report.lacking or report.unreadable),
        "splits": [_split_record(split) for split in report.splits],
        "extra": report.extra,
    }


def _split_record(split: SplitReport) -> dict[str, object]:
    return {
        "split": split.split,
        "list": None if split.list_file is None else str(split.list_file),
        "classes": split.classes_expected,
        "classes_found": split.classes_found,
        "videos": split.expected,
        "videos_found": split.found,
        "missing": {item.folder: item.lacking for item in split.classes if item.lacking},
        "missing_videos": {item.folder: list(item.missing) for item in split.classes if item.missing},
        "unreadable": split.unreadable,
    }


def _lines(report: PrepareReport) -> list[str]:
    lines = [f"{'split':5}  {'classes':>9}  {'videos':>15}  {'missing':>8}  {'unreadable':>10}"]
    for split in report.splits:
        classes = f"{split.classes_found}/{split.classes_expected}"
        videos = f"{split.found}/{split.expected}"
        lines.append(f"{split.split:5}  {classes:>9}  {videos:>15}  {split.lacking:8}  {len(split.unreadable):10}")
    absent = [split for split in SPLITS if split not in {part.split for part in report.splits}]
    lines += [f"{split:5}  not checked, no list of it in the folder" for split in absent]
    if all(split.list_file is None for split in report.splits):
        lines.append("numbers only: with --split-files every video is looked for by name")
    for split in report.splits:
        lines += [_missing_line(split, item) for item in split.classes if item.lacking]
    for split in report.splits:
        lines += [f"unreadable: {name}: {problem}" for name, problem in split.unreadable.items()]
    if report.extra:
        named = _named([f"{folder} ({count})" for folder, count in report.extra.items()])
        total = sum(report.extra.values())
        lines.append(f"extra: {total} clip{'s' * (total > 1)} of no split, in {named}")
    if not (report.lacking or report.unreadable):
        lines.append("complete")
    return lines


def _missing_line(split: SplitReport, item: ClassReport) -> str:
    which = "all" if item.found == 0 else str(item.lacking)
    names = f": {_named(list(item.missing))}" if item.missing and item.found else ""
    return f"missing: {split.split} {item.folder}: {which} of {item.expected}{names}"


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
