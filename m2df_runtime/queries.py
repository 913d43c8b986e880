"""What `--query` may name: a clip, a folder of clips, a glob, or `-` for paths on standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from m2df_runtime.errors import InputError
from m2df_runtime.image_sequences import folder_images
from m2df_runtime.video import list_clips

STDIN = "-"


def expand_queries(arguments: Sequence[str], stdin: Iterable[str]) -> list[Path]:
    """Paths of all query clips in the order given; paths that do not exist stay, to be reported one by one.

    Raises:
        InputError: A URL, a glob without match, a folder without clips, or nothing at all.
    """
    queries: list[Path] = []
    for argument in arguments:
        lines = (line.rstrip("\r\n") for line in stdin) if argument == STDIN else [argument]
        for line in lines:
            if line:
                queries.extend(_expand(line))
    if not queries:
        raise InputError("no queries: standard input was empty", "pipe one path per line into --query -")
    return queries


def _expand(argument: str) -> list[Path]:
    path = Path(argument)
    if os.path.isdir(path):  # unlike Path.is_dir, no error where the path is too long or may not be looked at
        return _folder(path)
    if not os.path.exists(path):
        if "://" in argument:
            raise InputError(f"{argument}: this version reads files, not streams", "record a clip and name its file")
        if glob.has_magic(argument):
            matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]
            if not matches:
                raise InputError(f"{argument}: no file matches", "quote the pattern, and check the folder")
            return [clip for match in matches for clip in (_folder(match) if match.is_dir() else [match])]
    return [path]


def _folder(path: Path) -> list[Path]:
    """The clips of a folder and of its sub-folders; a folder of frames is itself one clip."""
    clips = set(list_clips(path).clips)
    if not clips and folder_images(path):
        return [path]
    found: list[Path] = []
    for entry in sorted(path.iterdir()):
        if entry in clips:
            found.append(entry)
        elif entry.is_dir() and not entry.name.startswith("."):
            found.extend(list_clips(entry).clips)
    if not found:
        raise InputError(f"{path}: no clips in this folder", "name a video file, or a folder that holds some")
    return found
