"""Labelled clips of a benchmark's split, from a download in any usual layout."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from m2df_runtime.clips.opening import open_source
from m2df_runtime.errors import InputError
from m2df_train.data.clips import LabelledClip, chosen_classes, file_key
from m2df_train.data.folder import DatasetFolder, FoundClip
from m2df_train.data.split_files import LISTS_HINT, SplitClip, find_split_file, read_split
from m2df_train.public_benchmarks import Benchmark, BenchmarkClass, BenchmarkName, Split, benchmark

_log = logging.getLogger(__name__)


def find_clips(
    root: Path,
    dataset: BenchmarkName,
    split: Split,
    split_files: Path | None = None,
    classes: Sequence[str] | None = None,
) -> list[LabelledClip]:
    """The clips of a split, labelled with the class folders' usual names.

    Listed videos that are not there (some of Kinetics are gone for good) are left out, with a warning.

    Args:
        root: The download.
        dataset: Which benchmark.
        split: Which split.
        split_files: Folder of the lists of either repository; None takes everything in the class folders.
        classes: Only these classes (`BenchmarkClass.folder`); None for all.

    Raises:
        InputError: No download, no list of the split, no clip of the split, or a class that is not in it.
    """
    known = benchmark(dataset)
    wanted = set(chosen_classes([item.folder for item in known.classes(split)], classes, f"{dataset}, {split}"))
    if split_files is not None:
        _read_list(split_files, known, split)  # before the download is listed, which may take minutes
    clips = split_clips(DatasetFolder.scan(root, known), split, split_files)
    return [clip for clip in clips if clip.label in wanted]


def split_clips(folder: DatasetFolder, split: Split, split_files: Path | None) -> list[LabelledClip]:
    """`find_clips` in a download that is listed already, of all classes."""
    known = folder.known
    in_split = known.classes(split)
    lines = None if split_files is None else _read_list(split_files, known, split)
    if lines is None:
        located = [(item, clip) for item in in_split for clip in folder.of_class(item)]
        hint = f"are its clips in no class folders? {LISTS_HINT}"
    else:
        located = _located(folder, in_split, lines)
        hint = "m2df-train prepare tells what it holds"
    if not located:
        raise InputError(f"{folder.root}: holds no clip of {known.name}, {split}", hint)
    if lines is not None and len(located) < len(lines):
        missing = len(lines) - len(located)
        _log.warning("%s: %d of %d videos are missing; m2df-train prepare names them", folder.root, missing, len(lines))
    absent = {item.folder for item in in_split} - {item.folder for item, _ in located}
    if absent:
        _log.warning("%s: no clip of %d classes: %s", folder.root, len(absent), ", ".join(sorted(absent)))
    return [
        LabelledClip(
            item.folder, f"{item.folder}/{clip.path.name}", partial(open_source, clip.path), file_key(clip.path)
        )
        for item, clip in located
    ]


def _read_list(folder: Path, known: Benchmark, split: Split) -> tuple[SplitClip, ...]:
    file = find_split_file(folder, known.name, split)
    if file is None:
        raise InputError(f"{folder}: no list of {known.name}, {split}", LISTS_HINT)
    return read_split(file, known, split)


def _located(
    folder: DatasetFolder, in_split: Sequence[BenchmarkClass], lines: Iterable[SplitClip]
) -> list[tuple[BenchmarkClass, FoundClip]]:
    candidates = ((in_split[line.class_id], folder.candidates(line, in_split[line.class_id])) for line in lines)
    return [(item, clips[0]) for item, clips in candidates if clips]
