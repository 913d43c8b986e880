"""The five benchmarks of few-shot action recognition: their classes, in splits, with the texts for prompts.

Names and counts of classes only; which video belongs to which split is in the lists that the benchmarks'
authors publish, see `split_files.py`. One CSV file per benchmark, columns:

    split     train, val or test
    id        number of the class in CLIP-FSAR's lists, from 0 in every split
    folder    name of its folder in the usual download
    text      SSv2: the template of the annotation, with [ ]; empty: the text follows from the folder name
    official  spelling of the two public repositories, where it is not the text
    number    SSv2: number of the label, 0 to 173, which CLIP-MDMF names folders after
    videos    videos of the class in the published split
"""

from __future__ import annotations

import csv
import re
import unicodedata
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, cast, get_args

from m2df_runtime.errors import InputError

BenchmarkName = Literal["hmdb51", "ucf101", "kinetics100", "ssv2-full", "ssv2-small"]
Split = Literal["train", "val", "test"]
Spelling = Literal["paper", "official"]

BENCHMARKS: tuple[BenchmarkName, ...] = get_args(BenchmarkName)
SPLITS: tuple[Split, ...] = get_args(Split)

_WORD_START = re.compile(r"(?<=[a-z])(?=[A-Z])")
_IN_FOLDER_NAMES = re.compile(r"[\s_\-\[\]]+")


@dataclass(frozen=True)
class BenchmarkClass:
    """One class of a split.

    Attributes:
        split: The split.
        id: Position in the split, and the class's number in CLIP-FSAR's lists.
        folder: Name of its folder in the usual download; of SSv2, which has none, the template without [ ].
        number: Number of the label in SSv2's annotation; None elsewhere.
        videos: Videos of the class in the published split.
        paper: Text in clean spelling.
        official: Text as the public repositories spell it.
    """

    split: Split
    id: int
    folder: str
    number: int | None
    videos: int
    paper: str
    official: str

    def text(self, spelling: Spelling = "paper") -> str:
        """The text that goes into the prompt (method section 1.3).

        Args:
            spelling: `paper`, or `official`, which checkpoints of the public repositories were trained with.
        """
        return self.official if spelling == "official" else self.paper

    @property
    def folders(self) -> tuple[str, ...]:
        """Names that its folder has in downloads and in lists, the usual one first."""
        return (self.folder,) if self.number is None else (self.folder, str(self.number))


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: the classes of its three splits, no class in two of them."""

    name: BenchmarkName
    all_classes: tuple[BenchmarkClass, ...]

    def classes(self, split: Split) -> tuple[BenchmarkClass, ...]:
        """The classes of a split; position and `id` are the same."""
        return tuple(item for item in self.all_classes if item.split == split)

    def find(self, name: str) -> BenchmarkClass | None:
        """The class that a folder of this name holds, whatever its case, spaces, `_`, `-` and brackets."""
        return self._by_folder.get(folder_key(name))

    def texts(self, spelling: Spelling = "paper") -> dict[str, str]:
        """Folder name to text, over all splits."""
        return {item.folder: item.text(spelling) for item in self.all_classes}

    @cached_property
    def _by_folder(self) -> dict[str, BenchmarkClass]:
        return {folder_key(name): item for item in self.all_classes for name in item.folders}


@cache
def benchmark(name: str) -> Benchmark:
    """A benchmark by name.

    Raises:
        InputError: There is none of that name.
    """
    if name not in BENCHMARKS:
        raise InputError(f"{name!r}: no such benchmark", f"there are: {', '.join(BENCHMARKS)}")
    with (Path(__file__).parent / f"{name}.csv").open(encoding="utf-8", newline="") as table:
        return Benchmark(name, tuple(_class(row) for row in csv.DictReader(table)))


def folder_key(name: str) -> str:
    """What spellings of one class folder have in common: `Blow_Dry Hair` and `BlowDryHair` are one."""
    return _IN_FOLDER_NAMES.sub("", unicodedata.normalize("NFC", name)).casefold()


def _class(row: dict[str, str]) -> BenchmarkClass:
    paper = row["text"] or _text_from_folder(row["folder"])
    return BenchmarkClass(
        split=cast(Split, row["split"]),
        id=int(row["id"]),
        folder=row["folder"],
        number=int(row["number"]) if row["number"] else None,
        videos=int(row["videos"]),
        paper=paper,
        official=row["official"] or paper,
    )


def _text_from_folder(folder: str) -> str:
    """The rule of method section 1.3. It keeps capitals, which `text_from_folder` of the runtime lowers."""
    return _WORD_START.sub(" ", folder.replace("_", " "))
