"""What `--query` may name: a clip, a folder of clips, a glob, a camera, or `-` for such lines on standard input."""

from __future__ import annotations

import glob
import itertools
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from m2df_runtime.clips.folder_entries import folders_below, named, passed_over
from m2df_runtime.clips.listing import clips_below
from m2df_runtime.errors import InputError
from m2df_runtime.stream.sources.addresses import checked_address, device_number, is_address

Query = Path | str | int
"""Path of a clip, or the address or number of a camera."""

STDIN = "-"
_ANY_DEPTH = "**"

_log = logging.getLogger(__name__)


def expand_queries(arguments: Sequence[str], stdin: Iterable[str]) -> list[Query]:
    """Paths of all query clips, and cameras, in the order given.

    Folders give the clips in them and in all folders below; what else is there is named in a warning. Of several
    arguments or lines, one that names nothing stays as it is, to be reported when its turn comes.

    Raises:
        InputError: There is an address that is not a camera's; or one argument alone, a glob without match or a
            folder without clips; or nothing at all.
    """
    lines: list[str] = []
    for argument in arguments:
        lines += (line.rstrip("\r\n") for line in stdin) if argument == STDIN else [argument]
    lines = [line for line in lines if line]
    if not lines:
        raise InputError("no queries: standard input was empty", "pipe one path per line into --query -")
    queries: list[Query] = []
    for line in lines:
        exists = os.path.exists(line)
        if is_address(line) and not exists:
            queries.append(checked_address(line))
            continue
        if (number := device_number(line)) is not None and not exists:
            queries.append(number)
            continue
        try:
            queries += expand_path(line)
        except InputError:
            if len(lines) == 1:
                raise
            queries.append(Path(line))
    return queries


def expand_path(argument: str) -> list[Path]:
    """The clips that one argument names: a clip, a folder or a glob.

    Raises:
        InputError: A glob without match or a folder without clips.
    """
    path = Path(argument)
    if os.path.isdir(path):  # unlike Path.is_dir, no error where the path is too long or may not be looked at
        return _folder(path)
    if not os.path.exists(path) and glob.has_magic(argument):
        matches = _wanted(sorted(_matches(path)), path)
        if not matches:
            raise InputError(f"{argument}: no file matches", "quote the pattern, and check the folder")
        clips = (clip for match in matches for clip in (_folder(match) if os.path.isdir(match) else [match]))
        return list(dict.fromkeys(clips))  # a folder matches, and so may what is in it
    return [path]


def _matches(pattern: Path) -> list[Path]:
    """What a glob matches; `**` visits each folder once, where Python's own follows links that lead back."""
    parts = pattern.parts
    if _ANY_DEPTH not in parts:
        return [Path(match) for match in glob.glob(str(pattern))]
    place = parts.index(_ANY_DEPTH)
    starts = _matches(Path(*parts[:place])) if place else [Path()]
    rest = list(itertools.dropwhile(lambda part: part == _ANY_DEPTH, parts[place + 1 :]))
    found: dict[Path, None] = {}
    for start in filter(os.path.isdir, starts):
        if not rest:
            found[start] = None
            continue
        below, unlisted = folders_below(start)
        if unlisted:
            _log.warning("%s: not looked into: %s", start, named(unlisted))
        for folder in below:
            found.update(dict.fromkeys(_matches(Path(glob.escape(str(folder)), *rest))))
    return list(found)


def _wanted(matches: Iterable[Path], pattern: Path) -> list[Path]:
    """Matches without those in folders of the system, unless the pattern itself spells them."""
    spelled = set(pattern.parts)
    return [match for match in matches if not any(passed_over(part) for part in match.parts if part not in spelled)]


def _folder(path: Path) -> list[Path]:
    """The clips of a folder and of the folders below it; a folder of frames is itself one clip."""
    found = clips_below(path)
    if not found.clips:
        problem = "no clips in this folder" + (f", only {named(found.ignored)}" if found.ignored else "")
        raise InputError(f"{path}: {problem}", "name a video file, or a folder that holds some")
    if found.ignored:
        _log.warning("%s: not read, not clips: %s", path, named(found.ignored))
    return found.clips
