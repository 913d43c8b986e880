"""Which clips a folder holds, for support folders, query folders and training data alike.

Clips are video files, animated pictures, and folders with pictures and no clips in them: frames of one clip.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from m2df_runtime.clips.folder_entries import MAX_DEPTH, Entry, entries, first_visit
from m2df_runtime.clips.pictures import ANIMATED_SUFFIXES, IMAGE_SUFFIXES, families, is_moving
from m2df_runtime.errors import InputError

VIDEO_SUFFIXES = frozenset(
    {".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".h263", ".h264", ".h265"}
    | {".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mj2", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4"}
    | {".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".obu", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob"}
    | {".webm", ".wmv", ".wtv", ".y4m"}
)
_Visited = set[tuple[int, int]]


class ClipListing(NamedTuple):
    """What a folder of clips holds.

    Attributes:
        clips: Video files, animated pictures and frame folders, in natural order.
        ignored: Names of entries that are none of these, below the folder, with the reason where the name has none.
    """

    clips: list[Path]
    ignored: list[str]


def list_clips(folder: Path) -> ClipListing:
    """The clips directly in a folder; hidden and system entries are passed over without a word.

    Raises:
        InputError: The folder is missing or cannot be listed.
    """
    inside = _entries(folder)
    moving = clip_files(inside)
    clips: list[Path] = []
    ignored: list[str] = []
    for entry in inside:
        name, problem = entry.path.name, entry.problem
        is_clip = entry.path in moving
        if entry.is_folder:
            try:
                found = _below(entry.path, set(), 1).clips
                is_clip = found == [entry.path]
                problem = "a folder of clips" if found else None
            except OSError as error:
                problem = error.strerror
        if is_clip:
            clips.append(entry.path)
        else:
            ignored.append(f"{name} ({problem})" if problem else name)
    return ClipListing(clips, ignored)


def clips_below(folder: Path) -> ClipListing:
    """The clips in a folder and in all folders below it; a folder of frames is itself one clip.

    Links are followed, each folder is visited once, and one that may not be listed is among the ignored.

    Raises:
        InputError: The folder is missing or cannot be listed.
    """
    try:
        return _below(folder, set(), 0)
    except OSError as error:
        raise _unlisted(folder, error) from error


def clip_files(inside: Iterable[Entry]) -> set[Path]:
    """Those of a folder's entries that are clips by themselves: video files and animated pictures."""
    files = [
        (entry.path, entry.path.suffix.lower()) for entry in inside if not entry.is_folder and entry.problem is None
    ]
    found = {path for path, suffix in files if suffix in VIDEO_SUFFIXES}
    # A folder may hold a million frames: of a family of names only the first one is looked into.
    for family in families([path for path, suffix in files if suffix in ANIMATED_SUFFIXES]):
        if is_moving(family[0]):
            found.update(path for path in family if is_moving(path))
    return found


def _below(folder: Path, visited: _Visited, depth: int) -> ClipListing:
    """See `clips_below`. Raises OSError where this very folder cannot be listed."""
    if not first_visit(folder, visited):
        return ClipListing([], [])
    inside = entries(folder)
    moving = clip_files(inside)
    clips: list[Path] = []
    ignored: list[str] = []
    pictures: list[str] = []
    for entry in inside:
        name = entry.path.name
        if entry.is_folder and depth < MAX_DEPTH:
            try:
                found = _below(entry.path, visited, depth + 1)
            except OSError as error:
                ignored.append(f"{name} ({error.strerror})")
            else:
                clips += found.clips
                ignored += [f"{name}/{below}" for below in found.ignored]
        elif entry.path in moving:
            clips.append(entry.path)
        elif entry.path.suffix.lower() in IMAGE_SUFFIXES and not entry.problem:
            pictures.append(name)
        else:
            ignored.append(f"{name} ({entry.problem})" if entry.problem else name)
    if pictures and not clips:
        return ClipListing([folder], ignored)
    return ClipListing(clips, pictures + ignored)


def _entries(folder: Path) -> list[Entry]:
    try:
        return entries(folder)
    except OSError as error:
        raise _unlisted(folder, error) from error


def _unlisted(folder: Path, error: OSError) -> InputError:
    return InputError(f"{folder}: cannot be listed: {error.strerror}", hint="give a folder of clips")
