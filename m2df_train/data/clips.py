"""Labelled clips to evaluate on: a folder of class folders, or generated actions that need no files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from m2df_runtime.errors import InputError
from m2df_runtime.support import read_support
from m2df_runtime.video import FrameSource, open_source


@dataclass(frozen=True)
class LabelledClip:
    """One clip, opened when it is needed.

    Attributes:
        label: Class (folder) name.
        name: `class/clip`, for messages and groups.
        open: Opens the clip; raises InputError where it cannot be read.
    """

    label: str
    name: str
    open: Callable[[], FrameSource]


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
    clips = [LabelledClip(n, clip.name, partial(open_source, clip.path)) for n in chosen for clip in found.classes[n]]
    return clips, found.warnings


def generated_clips(per_class: int = 20, classes: Sequence[str] | None = None) -> list[LabelledClip]:
    """Clips of the generated test actions, none of which any recipe trains on.

    Clip `j` of an action is the same on every machine: its seed is `j`.
    """
    from m2df_train.data.synthetic import render_action, split_actions

    chosen = chosen_classes([action.name for action in split_actions("test")], classes, "the generated test actions")
    return [
        LabelledClip(name, f"{name}/{seed:02d}", partial(render_action, name, seed))
        for name in chosen
        for seed in range(per_class)
    ]


def chosen_classes(known: list[str], wanted: Sequence[str] | None, where: str) -> list[str]:
    """The wanted ones of the known classes, all for None.

    Raises:
        InputError: A wanted class is not known; `where` says in what.
    """
    if wanted is None:
        return known
    unknown = [name for name in wanted if name not in known]
    if unknown:
        shown = ", ".join(known[:20]) + (" ..." if len(known) > 20 else "")
        raise InputError(f"{where}: no class {', '.join(map(repr, unknown))}", f"there are: {shown}")
    return list(dict.fromkeys(wanted))


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
