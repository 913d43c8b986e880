"""What stands in a folder of clips: the entries a user put there, in natural order, each with its kind.

Hidden entries and the folders that systems, archivers and network storage make (thumbnails, waste bins) are
passed over everywhere by the one rule here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from m2df_runtime.regular_files import irregular

MAX_NAMED = 5
MAX_DEPTH = 64  # folders below a folder; the deepest layout of a benchmark has 4
# Synology, QNAP and Western Digital storage, Windows, macOS and Linux.
_SYSTEM = frozenset(
    {"@eadir", "@tmp", "@recycle", "@recently-snapshot", "@transcode", "#recycle", "#snapshot", ".snapshot"}
    | {"$recycle.bin", "recycler", "system volume information", "found.000", "desktop.ini", "thumbs.db"}
    | {"ehthumbs.db", "__macosx", "icon\r", "network trash folder", "temporary items", "lost+found"}
)
_NUMBER = re.compile(r"(\d+)")


class Entry(NamedTuple):
    """One entry of a folder.

    Attributes:
        path: Where it is.
        is_folder: Whether it is a folder or a link to one.
        problem: Why it can be neither listed nor read, such as `a pipe`; None for files and folders.
    """

    path: Path
    is_folder: bool
    problem: str | None


def passed_over(name: str) -> bool:
    """Whether an entry of this name is hidden or was made by a system and not by the user."""
    return name.startswith(".") or name.casefold() in _SYSTEM


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts `frame_9` before `frame_10`."""
    parts = _NUMBER.split(name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part.lower()) for part in parts if part]


def entries(folder: Path) -> list[Entry]:
    """The entries of a folder in natural order, without those that are passed over.

    Raises:
        OSError: It is no folder, or may not be listed.
    """
    with os.scandir(folder) as found:
        kept = [entry for entry in found if not passed_over(entry.name)]
    return [_entry(folder, entry) for entry in sorted(kept, key=lambda entry: natural_key(entry.name))]


def folders_below(folder: Path) -> tuple[list[Path], list[str]]:
    """A folder and all folders in it, each once however many links lead to it; and those that may not be listed."""
    below: list[Path] = []
    unlisted: list[str] = []
    visited: set[tuple[int, int]] = set()
    waiting = [(folder, 0)]
    while waiting:
        place, depth = waiting.pop()
        try:
            if not first_visit(place, visited):
                continue
            inside = [entry.path for entry in entries(place) if entry.is_folder]
        except OSError as error:
            unlisted.append(f"{place} ({error.strerror})")
            continue
        below.append(place)
        if depth < MAX_DEPTH:
            waiting += [(path, depth + 1) for path in reversed(inside)]
    return below, unlisted


def first_visit(folder: Path, visited: set[tuple[int, int]]) -> bool:
    """Whether a walk comes to this folder for the first time; remembers it. Raises OSError where it is gone."""
    info = folder.stat()
    place = (info.st_dev, info.st_ino)
    if place in visited:
        return False
    visited.add(place)
    return True


def named(names: Iterable[str]) -> str:
    """At most five names, and how many more there are."""
    every = list(names)
    shown = ", ".join(every[:MAX_NAMED])
    return shown if len(every) <= MAX_NAMED else f"{shown} and {len(every) - MAX_NAMED} more"


def _entry(folder: Path, entry: os.DirEntry[str]) -> Entry:
    path = folder / entry.name
    try:
        if entry.is_dir():  # from the listing itself; only links and odd things cost a call
            return Entry(path, True, None)
        return Entry(path, False, None if entry.is_file() else irregular(entry.stat().st_mode))
    except FileNotFoundError:
        return Entry(path, False, "a link to nothing")
    except OSError as error:
        return Entry(path, False, error.strerror or type(error).__name__)
