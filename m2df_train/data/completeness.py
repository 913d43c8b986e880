"""Checks the download of a benchmark: which videos of the published splits are there and can be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from m2df_runtime.clips.opening import open_source
from m2df_runtime.cpus import available_cpus
from m2df_runtime.errors import InputError, M2dfError
from m2df_train.data.folder import DatasetFolder, FoundClip
from m2df_train.data.split_files import LISTS_HINT, SplitClip, find_split_file, read_split
from m2df_train.public_benchmarks import SPLITS, BenchmarkName, Split, benchmark

_FRAMES_AT_ONCE = 16  # pictures of a frame folder in memory

Advance = Callable[[int], None]


@dataclass(frozen=True)
class ClassReport:
    """One class.

    Attributes:
        folder: Its name.
        expected: Videos it should have.
        found: Videos that are there: of those in the list or, without a list, in the class's folders.
        missing: Names of listed videos that are not there; empty without a list.
    """

    folder: str
    expected: int
    found: int
    missing: tuple[str, ...] = ()

    @property
    def lacking(self) -> int:
        """How many videos are missing."""
        return max(self.expected - self.found, 0)


@dataclass(frozen=True)
class SplitReport:
    """One split.

    Attributes:
        split: Which.
        list_file: The list it was compared with; None for the published number of videos of every class.
        classes: Its classes, in the order of the benchmark.
        unreadable: Clip (path below the root) to what is wrong with it.
    """

    split: Split
    list_file: Path | None
    classes: tuple[ClassReport, ...]
    unreadable: dict[str, str]

    @property
    def classes_expected(self) -> int:
        """Classes that should have videos."""
        return sum(item.expected > 0 for item in self.classes)

    @property
    def classes_found(self) -> int:
        """Classes that have videos."""
        return sum(item.found > 0 for item in self.classes)

    @property
    def expected(self) -> int:
        """Videos that should be there."""
        return sum(item.expected for item in self.classes)

    @property
    def found(self) -> int:
        """Videos that are there."""
        return sum(item.found for item in self.classes)

    @property
    def lacking(self) -> int:
        """How many videos are missing."""
        return sum(item.lacking for item in self.classes)


@dataclass(frozen=True)
class PrepareReport:
    """A whole download.

    Attributes:
        splits: The splits that were checked.
        extra: Folder below the root to the number of clips in it that belong to no checked split.
    """

    splits: tuple[SplitReport, ...]
    extra: dict[str, int]

    @property
    def lacking(self) -> int:
        """How many videos are missing."""
        return sum(split.lacking for split in self.splits)

    @property
    def unreadable(self) -> int:
        """How many clips are there and cannot be read."""
        return sum(len(split.unreadable) for split in self.splits)


@dataclass(frozen=True)
class _Part:
    """A split before its clips are read: the clips, and the names of all files that are one of them."""

    split: Split
    list_file: Path | None
    classes: tuple[ClassReport, ...]
    clips: list[FoundClip]
    known_names: set[str]


def check_download(
    root: Path,
    dataset: BenchmarkName,
    split_files: Path | None = None,
    *,
    decode: bool = False,
    listed: Advance = lambda count: None,
    reading: Callable[[int], Advance] = lambda total: lambda count: None,
) -> PrepareReport:
    """Compare a download with the splits and try to read every clip of them.

    Args:
        root: The download.
        dataset: Which benchmark.
        split_files: Folder of the lists of either repository; splits without a list are left out. None
            compares the clips in the class folders with the published numbers alone.
        decode: Decode every clip to its end; else containers are opened and their packets counted.
        listed: Called with numbers of clips met while the folder is listed.
        reading: Called with the number of clips to read, before the first; gives what is called for those read.

    Raises:
        InputError: No download, no list, a damaged list or, without lists, no class folder.
    """
    known = benchmark(dataset)
    lists = None if split_files is None else _lists(split_files, dataset)
    lines = {} if lists is None else {split: read_split(file, known, split) for split, file in lists.items()}
    folder = DatasetFolder.scan(root, known, listed)
    if lists is None:
        parts = [_by_folders(folder, split) for split in SPLITS]
        if not any(part.clips for part in parts):
            raise InputError(f"{root}: holds no class folder of {dataset} with clips", LISTS_HINT)
    else:
        parts = [_by_list(folder, split, file, lines[split]) for split, file in lists.items()]
    problems = _problems([clip for part in parts for clip in part.clips], decode, reading)
    return PrepareReport(tuple(_report(part, problems) for part in parts), _extra(folder, parts))


def _lists(split_files: Path, dataset: BenchmarkName) -> dict[Split, Path]:
    found = {split: find_split_file(split_files, dataset, split) for split in SPLITS}
    lists = {split: path for split, path in found.items() if path is not None}
    if not lists:
        raise InputError(f"{split_files}: no list of {dataset}", LISTS_HINT)
    return lists


def _by_list(folder: DatasetFolder, split: Split, file: Path, lines: Iterable[SplitClip]) -> _Part:
    items = folder.known.classes(split)
    expected: Counter[int] = Counter()
    missing: dict[int, list[str]] = {item.id: [] for item in items}
    clips: list[FoundClip] = []
    names: set[str] = set()
    for line in lines:
        expected[line.class_id] += 1
        candidates = folder.candidates(line, items[line.class_id])
        if candidates:
            clips.append(candidates[0])
            names.update(clip.name for clip in candidates)
        else:
            missing[line.class_id].append(line.video)
    classes = (
        ClassReport(item.folder, expected[item.id], expected[item.id] - len(missing[item.id]), tuple(missing[item.id]))
        for item in items
    )
    return _Part(split, file, tuple(classes), clips, names)


def _by_folders(folder: DatasetFolder, split: Split) -> _Part:
    items = folder.known.classes(split)
    classes = tuple(ClassReport(item.folder, item.videos, len(folder.of_class(item))) for item in items)
    names = {clip.name for clip in folder.clips if clip.owner is not None and clip.owner.split == split}
    return _Part(split, None, classes, [clip for item in items for clip in folder.of_class(item)], names)


def _report(part: _Part, problems: dict[str, str]) -> SplitReport:
    unreadable = {clip.name: problems[clip.name] for clip in part.clips if clip.name in problems}
    return SplitReport(part.split, part.list_file, part.classes, unreadable)


def _extra(folder: DatasetFolder, parts: list[_Part]) -> dict[str, int]:
    """Clips of no split by folder; those that may be of a split nobody gave a list of do not count."""
    names = set().union(*(part.known_names for part in parts))
    splits = {part.split for part in parts}
    complete = len(splits) == len(SPLITS)
    extra = Counter(
        clip.name.rpartition("/")[0] or "."
        for clip in folder.clips
        if clip.name not in names and (complete or (clip.owner is not None and clip.owner.split in splits))
    )
    return dict(sorted(extra.items()))


def _problems(clips: list[FoundClip], decode: bool, reading: Callable[[int], Advance]) -> dict[str, str]:
    """What is wrong with the clips that cannot be read, by name."""
    advance = reading(len(clips))
    problems: dict[str, str] = {}
    pool = ThreadPoolExecutor(available_cpus())  # decoding and demuxing run outside of Python's lock
    try:
        for clip, problem in zip(clips, pool.map(lambda clip: _problem(clip.path, decode), clips), strict=True):
            advance(1)
            if problem is not None:
                problems[clip.name] = problem
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for a quarter of a million files
    return problems


def _problem(path: Path, decode: bool) -> str | None:
    try:
        source = open_source(path)
        if path.is_dir():
            end = source.n_frames if decode else 1
            for first in range(0, end, _FRAMES_AT_ONCE):
                source.read(range(first, min(first + _FRAMES_AT_ONCE, end)))
        elif decode:
            source.read([0, source.n_frames - 1])  # every frame up to the last is decoded, these are kept
    except M2dfError as error:
        return error.message.removeprefix(f"{path}: ")
    except Exception as error:  # one strange file among thousands must not end the check
        return f"{type(error).__name__}: {error}"
    return None
