"""Labelled clips to evaluate on: a folder of class folders, or generated actions that need no files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from m2df_runtime.bank.folder import Stamp, clip_stamp, read_support
from m2df_runtime.bundle.prompt_texts import class_key
from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.source import FrameSource
from m2df_runtime.errors import InputError


@dataclass(frozen=True)
class LabelledClip:
    """One clip, opened when it is needed; it can be sent to another process.

    Attributes:
        label: Class (folder) name.
        name: `class/clip`, for messages and groups.
        open: Opens the clip; raises InputError where it cannot be read.
        key: Stands for the clip's content in caches: its place and stamp, or what it is generated from.
    """

    label: str
    name: str
    open: Callable[[], FrameSource]
    key: str


def folder_clips(folder: Path, classes: Sequence[str] | None = None) -> tuple[list[LabelledClip], tuple[str, ...]]:
    """The clips of a folder with one sub-folder per class, and one line for each oddity met.

    Args:
        folder: The data folder.
        classes: Only these class folders; None for all.

    Raises:
        InputError: No such folder, no class with a clip, or a class that is not in it.
    """
    found = read_support(folder)
    chosen = chosen_classes(list(found.classes), classes, str(folder))
    clips = [
        LabelledClip(label, clip.name, partial(open_source, clip.path), file_key(clip.path, clip.stamp))
        for label in chosen
        for clip in found.classes[label]
    ]
    return clips, found.warnings


def file_key(path: Path, stamp: Stamp | None = None) -> str:
    """`LabelledClip.key` of a video file or frame folder; without a stamp it is taken now."""
    place = os.path.abspath(path)
    try:
        stamp = stamp or clip_stamp(path)
    except OSError:  # such as a dangling link, which opening the clip will report
        return place
    return "|".join([place, *map(str, stamp)])


def generated_clips(
    per_class: int = 20, classes: Sequence[str] | None = None, split: Literal["val", "test"] = "test"
) -> list[LabelledClip]:
    """Clips of the generated test or validation actions, none of which any recipe trains on.

    Clip `j` of an action is the same on every machine: its seed is `j`.
    """
    from m2df_train.data.generated import generated_clip
    from m2df_train.synthetic import split_actions

    where = {"val": "the generated validation actions", "test": "the generated test actions"}[split]
    chosen = chosen_classes([action.name for action in split_actions(split)], classes, where)
    return [generated_clip(name, number, seed=number) for name in chosen for number in range(per_class)]


def chosen_classes(known: list[str], wanted: Sequence[str] | None, where: str) -> list[str]:
    """The wanted ones of the known classes, all for None.

    Raises:
        InputError: A wanted class is not known; `where` says in what.
    """
    if wanted is None:
        return known
    named = {class_key(name): name for name in known}
    unknown = [name for name in wanted if class_key(name) not in named]
    if unknown:
        shown = ", ".join(known[:20]) + (" ..." if len(known) > 20 else "")
        raise InputError(f"{where}: no class {', '.join(map(repr, unknown))}", f"there are: {shown}")
    return list(dict.fromkeys(named[class_key(name)] for name in wanted))


def clip_groups(names: Sequence[str], pattern: str) -> list[str]:
    """Group of every clip: the first capture group of `pattern` that matched in the clip's own name.

    Args:
        names: `class/clip`; the class is not searched, so that a pattern cannot match it by accident.
        pattern: Regular expression with at least one capture group.

    Raises:
        InputError: Not a regular expression, no capture group, or a clip it does not match.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--groups {pattern!r}: not a regular expression: {error}") from None
    if not expression.groups:
        raise InputError(f"--groups {pattern!r}: no capture group", "put the part that names the person in ( )")
    groups = []
    for name in names:
        found = expression.search(name.rpartition("/")[2])
        value = next((part for part in found.groups() if part is not None), None) if found else None
        if value is None:
            raise InputError(f"--groups {pattern!r}: does not match clip {name}", "every clip needs a group")
        groups.append(value)
    return groups
