"""What happens in a user's recordings: a CSV table with columns recording, start, end, label."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from m2df_runtime.bundle.prompt_texts import class_key
from m2df_runtime.clips.folder_entries import named
from m2df_runtime.errors import InputError
from m2df_runtime.regular_files import open_regular
from m2df_train.evaluation.event_measures import TrueAction

COLUMNS = ("recording", "start", "end", "label")
_HEADER = f"the first line must be: {','.join(COLUMNS)}"
_LARGEST = 64 << 20
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d*)?)")
_LATE = 0.1  # seconds after the end of a recording at which an action may end: people round


def read_annotations(
    path: Path, recordings: Mapping[str, float], labels: Collection[str]
) -> tuple[dict[str, list[TrueAction]], list[InputError]]:
    """Read the table.

    Times are seconds, such as 75.5, or as a player shows them, such as 1:15.5. A recording is named as the file is,
    its ending may be left out.

    Args:
        path: The table; other columns are allowed.
        recordings: Name of every recording, with its seconds.
        labels: The classes that are known.

    Returns:
        The actions of every recording in order of time, and what is wrong with each row that cannot be used.

    Raises:
        InputError: No file, not readable as UTF-8 CSV, a column is missing, or it has no rows.
    """
    names = _names(recordings)
    known = {class_key(label): label for label in labels}
    actions: dict[str, list[TrueAction]] = {name: [] for name in recordings}
    wrong: list[InputError] = []
    rows = _rows(path)
    for line, row in rows:
        try:
            name, action = _action(row, names, recordings, known)
            if action in actions[name]:
                raise InputError("the same row twice", "remove one")
        except InputError as error:
            wrong.append(InputError(f"{path}, line {line}: {error.message}", error.hint))
        else:
            actions[name].append(action)
    if not rows:
        raise InputError(f"{path}: no rows", "one row per action: recording,start,end,label")
    for found in actions.values():
        found.sort(key=lambda one: (one.start, one.end))
    return actions, wrong


def _action(
    row: Mapping[str, str], names: Mapping[str, str], recordings: Mapping[str, float], known: Mapping[str, str]
) -> tuple[str, TrueAction]:
    """Recording and action of one row. Raises InputError."""
    cells = {column: (row.get(column) or "").strip() for column in COLUMNS}
    for column, cell in cells.items():
        if not cell:
            raise InputError(f"no {column}", "a row is recording,start,end,label")
    name = names.get(class_key(cells["recording"]))
    if name is None:
        raise InputError(f"no recording is called {cells['recording']!r}", f"there are {named(recordings)}")
    label = known.get(class_key(cells["label"]))
    if label is None:
        raise InputError(f"{cells['label']!r} is not a taught action", f"taught are {named(known.values())}")
    start, end = (_seconds(column, cells[column]) for column in ("start", "end"))
    if end <= start:
        raise InputError(f"it ends at {end:g} s, which is not after its start at {start:g} s")
    if end > recordings[name] + _LATE:
        raise InputError(f"it ends at {end:g} s, and {name} at {recordings[name]:.1f} s")
    return name, TrueAction(start, min(end, recordings[name]), label)


def _seconds(column: str, cell: str) -> float:
    found = _CLOCK.fullmatch(cell)
    try:
        seconds = float(cell) if not found else 3600 * int(found[1] or 0) + 60 * int(found[2]) + float(found[3])
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(f"{column} is {cell!r}, which is not a time", "seconds such as 75.5, or 1:15.5")
    return seconds


def _names(recordings: Collection[str]) -> dict[str, str]:
    """Ways to name each recording: as the file is, and without its ending where that is one recording's alone."""
    short: dict[str, list[str]] = {}
    for name in recordings:
        short.setdefault(class_key(str(PurePosixPath(name).with_suffix(""))), []).append(name)
    alone = {key: found[0] for key, found in short.items() if len(found) == 1}
    return alone | {class_key(name): name for name in recordings}


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with open_regular(path) as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise InputError(f"{path}: larger than {_LARGEST} bytes", _HEADER)
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), skipinitialspace=True)
        columns = [column.strip() for column in reader.fieldnames or []]
        missing = [column for column in COLUMNS if column not in columns]
        if missing:
            raise InputError(f"{path}: no column {' and '.join(missing)}", _HEADER)
        reader.fieldnames = columns
        return [(reader.line_num, {k: v for k, v in row.items() if isinstance(v, str)}) for row in reader]
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}", "name a CSV file with columns recording,start,end,label"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a UTF-8 CSV file: {error}") from None
