"""Reads the lists that say which videos belong to which class and split of a benchmark.

The formats are those of the two public repositories (method section 6.2); which one a file has shows in
its first line:

    CLIP-MDMF           class/video                  brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0
                        SSv2 label number/video      126/195025
    CLIP-FSAR           split and class id/video     test18/195025
    CLIP-FSAR, paths    split and class id//path     test0//videos/fencing/AHF_Rapier_fencing_f_cm_np2_ba_bad_5.avi
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from m2df_runtime.clips.listing import VIDEO_SUFFIXES
from m2df_runtime.errors import InputError
from m2df_train.public_benchmarks import Benchmark, BenchmarkClass, BenchmarkName, Split, benchmark

LISTS_HINT = "--split-files names the folder of the lists, such as splits/hmdb_ARN of CLIP-MDMF"

_NUMBERED = re.compile(r"(train|val|test)(\d+)(//?)(.+)")
_FILE_NAMES = ("{split}_few_shot.txt", "{split}list03.txt", "{split}list07.txt")
# What the two repositories call the folder of a benchmark's lists.
_FOLDERS: dict[BenchmarkName, tuple[str, str]] = {
    "hmdb51": ("hmdb51", "hmdb_ARN"),
    "ucf101": ("ucf101", "ucf_ARN"),
    "kinetics100": ("kinetics100", "kinetics_CMN"),
    "ssv2-full": ("ssv2_full", "ssv2_OTAM"),
    "ssv2-small": ("ssv2_small", "ssv2_CMN"),
}


@dataclass(frozen=True)
class SplitClip:
    """One line of a list.

    Attributes:
        class_id: `BenchmarkClass.id` of its class in the split.
        video: Path or id of the video, as the list gives it.
    """

    class_id: int
    video: str

    @property
    def stem(self) -> str:
        """Name of the video without folders and file suffix."""
        return video_stem(PurePosixPath(self.video).name)


class _Problem(Exception):
    """What is wrong with a line."""


def video_stem(name: str) -> str:
    """A file name without the suffix of a video; other dots belong to the name."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else name


def read_split(path: Path, dataset: Benchmark | BenchmarkName, split: Split) -> tuple[SplitClip, ...]:
    """Read one list of either repository.

    Args:
        path: The file.
        dataset: Benchmark it belongs to.
        split: Split it must be of.

    Returns:
        Its clips, in the order of the file.

    Raises:
        InputError: Not readable, empty, or a line (named with its number) that is not of the first line's
            format, of another split, of no class of the split, or there twice.
    """
    known = benchmark(dataset) if isinstance(dataset, str) else dataset
    parse: Callable[[str], SplitClip] | None = None
    seen: dict[SplitClip, int] = {}
    for number, line in _lines(path):
        parse = parse or _parser(line, known, split)
        try:
            clip = parse(line)
            if seen.setdefault(clip, number) != number:
                raise _Problem(f"{line!r} is on line {seen[clip]} already")
        except _Problem as problem:
            raise InputError(f"{path}, line {number}: {problem}", f"expected a list of {known.name}, {split}") from None
    if not seen:
        raise InputError(f"{path}: the list is empty")
    return tuple(seen)


def find_split_file(folder: Path, dataset: BenchmarkName, split: Split) -> Path | None:
    """The list of a split in a folder, or in the benchmark's own sub-folder of it; None where there is none.

    Raises:
        InputError: There is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder", LISTS_HINT)
    places = [folder, *(folder / name for name in _FOLDERS[dataset])]
    files = (place / name.format(split=split) for place in places for name in _FILE_NAMES)
    return next((file for file in files if file.is_file()), None)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, empty ones left out."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "name a list of videos") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text", "name a list of videos") from None
    # Not splitlines, which also breaks at characters that may stand in a file name.
    return ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _parser(first: str, known: Benchmark, split: Split) -> Callable[[str], SplitClip]:
    """The reader of lines like the first one of a file."""
    classes = known.classes(split)
    match = _NUMBERED.fullmatch(first)
    if match is None:
        return lambda line: _named(line, known, split)
    with_path = match[3] == "//"
    return lambda line: _numbered(line, known, split, classes, with_path)


def _numbered(
    line: str, known: Benchmark, split: Split, classes: tuple[BenchmarkClass, ...], with_path: bool
) -> SplitClip:
    match = _NUMBERED.fullmatch(line)
    if match is None or (match[3] == "//") != with_path:
        raise _Problem(f"{line!r} is not like {split}0{'//folder/class/video.mp4' if with_path else '/123'}")
    of, class_id, video = match[1], int(match[2]), match[4]
    if of != split:
        raise _Problem(f"{line!r} is of split {of}, not {split}")
    if class_id >= len(classes):
        raise _Problem(f"{line!r} has class {class_id}; {known.name} has {len(classes)} classes in {split}")
    if with_path and known.find(PurePosixPath(video).parent.name) != classes[class_id]:
        raise _Problem(f"{line!r} is not in the folder of class {class_id}, {classes[class_id].folder!r}")
    return SplitClip(class_id, video)


def _named(line: str, known: Benchmark, split: Split) -> SplitClip:
    folder, slash, video = line.rpartition("/")
    if not slash or not folder or not video:
        raise _Problem(f"{line!r} is not like class/video")
    found = known.find(folder)
    if found is None:
        raise _Problem(f"{folder!r} is no class of {known.name}")
    if found.split != split:
        raise _Problem(f"{folder!r} is a class of split {found.split}, not {split}")
    return SplitClip(found.id, video)
