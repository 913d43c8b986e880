"""Changes of a support folder that are made as a whole or not at all, the last of which can be undone.

A change is a list of renames below the folder. It is written down in `.m2df` before the first of them: from then on it
counts as made, and whoever comes next, to read or to write, finishes what a killed process left.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from m2df_runtime.bank.folder import KEPT_FOLDER
from m2df_runtime.errors import InputError
from m2df_runtime.files import atomic_write, locked, sync_folder
from m2df_runtime.regular_files import open_regular

REMOVED = "removed"  # in `.m2df`: one folder for each change, with what it took out of sight
_LOCK, _JOURNAL, _LAST = "lock", "change.json", "last.json"
_UNDONE, _REDONE = "undone: ", "redone: "
_MAX_BYTES = 64 << 20

_log = logging.getLogger(__name__)


def _below(path: str) -> str:
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise ValueError("not a path inside the folder")
    return path


Inside = Annotated[str, AfterValidator(_below)]


class Change(BaseModel):
    """What is done to a folder: in words, and as renames in their order, from and to, below the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    did: str
    moves: tuple[tuple[Inside, Inside], ...]


@contextmanager
def settled(folder: Path, *, create: bool) -> Iterator[None]:
    """Keep others from changing a folder while the block runs, with every change made whole before.

    Where the folder cannot be written and nobody has changed it through m2df yet, there is nothing to wait for.

    Args:
        folder: The support folder.
        create: Make what is needed to keep others waiting.
    """
    with ExitStack() as held:
        try:
            _settle(folder, held, create)
        except OSError as error:
            held.close()
            if (folder / KEPT_FOLDER / _JOURNAL).exists():
                _log.warning("%s: a change of it was interrupted, and cannot be finished: %s", folder, error.strerror)
        yield


def _settle(folder: Path, held: ExitStack, create: bool) -> None:
    kept = folder / KEPT_FOLDER
    if create:
        kept.mkdir(exist_ok=True)
    while True:
        held.enter_context(locked(kept / _LOCK, shared=True, create=create))
        if not (kept / _JOURNAL).exists():
            return
        held.close()
        with locked(kept / _LOCK):
            _finish(folder)


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Be the only one who changes a folder while the block runs; waits for others.

    Raises:
        OSError: The folder cannot be written.
        InputError: A change that was interrupted cannot be read.
    """
    kept = folder / KEPT_FOLDER
    kept.mkdir(exist_ok=True)
    with locked(kept / _LOCK, create=True):
        _finish(folder)
        yield


def out_of_sight(folder: Path) -> Path:
    """A new place for what a change takes out of sight. Called while the folder is `changing`."""
    place = folder / KEPT_FOLDER / REMOVED
    place.mkdir(exist_ok=True)
    numbers = [int(name) for name in os.listdir(place) if name.isdecimal()]
    new = place / f"{max(numbers, default=0) + 1:04d}"
    new.mkdir()
    return new


def commit(folder: Path, did: str, moves: Iterable[tuple[Path, Path]]) -> None:
    """Make a change. Called while the folder is `changing`.

    Args:
        folder: The support folder.
        did: What it is, in words.
        moves: Paths from and to, below the folder.

    Raises:
        InputError: Something is not where it is to be taken from, or stands where it is to go.
        OSError: The folder cannot be written; it is as it was.
    """
    inside = [tuple(path.relative_to(folder).as_posix() for path in move) for move in moves]
    try:
        change = Change.model_validate({"did": did, "moves": inside})
    except ValidationError:
        raise InputError(f"{folder}: a class or clip has a name that is not Unicode", "rename it first") from None
    _commit(folder, change)


def undo(folder: Path) -> str:
    """Make the reverse of the last change, which may be an undoing itself; in words what was done.

    Called while the folder is `changing`.

    Raises:
        InputError: There is none, or the folder was changed since in another way.
        OSError: The folder cannot be written.
    """
    last = _read(folder / KEPT_FOLDER / _LAST)
    if last is None:
        raise InputError(f"{folder}: nothing to undo", "what was done by hand is not known")
    did = undoing(last.did)
    try:
        _commit(folder, Change(did=did, moves=tuple((to, source) for source, to in reversed(last.moves))))
    except InputError as error:
        raise InputError(f"cannot be undone: {error.message}", error.hint) from None
    return did


def forget(folder: Path) -> None:
    """Let nothing be there to be undone. Called while the folder is `changing`."""
    (folder / KEPT_FOLDER / _LAST).unlink(missing_ok=True)


def last_change(folder: Path) -> Change | None:
    """What `undo` would take back, as far as it can be read."""
    with suppress(InputError):
        return _read(folder / KEPT_FOLDER / _LAST)
    return None


def undoing(did: str) -> str:
    """In words what undoes what was done."""
    return _REDONE + did.removeprefix(_UNDONE) if did.startswith(_UNDONE) else _UNDONE + did.removeprefix(_REDONE)


def _commit(folder: Path, change: Change) -> None:
    _check(folder, change.moves)
    journal = folder / KEPT_FOLDER / _JOURNAL
    atomic_write(journal, change.model_dump_json().encode())
    try:
        _move(folder, change.moves)
    except OSError:
        _move(folder, [(to, source) for source, to in reversed(change.moves)])
        journal.unlink()
        raise
    _close(folder)


def _finish(folder: Path) -> None:
    """Make the rest of a change that a killed process began."""
    change = _read(folder / KEPT_FOLDER / _JOURNAL)
    if change is not None:
        _move(folder, change.moves)
        _close(folder)


def _close(folder: Path) -> None:
    kept = folder / KEPT_FOLDER
    os.replace(kept / _JOURNAL, kept / _LAST)
    for place in (folder, kept):
        sync_folder(place)


def _move(folder: Path, moves: Sequence[tuple[str, str]]) -> None:
    """Those of the renames that are still to be made."""
    for source, to in moves:
        if os.path.lexists(folder / source) and not os.path.lexists(folder / to):
            os.rename(folder / source, folder / to)


def _check(folder: Path, moves: Sequence[tuple[str, str]]) -> None:
    """Raise what a rename would fail with, before the first is made."""
    come: set[str] = set()
    gone: set[str] = set()
    for source, to in moves:
        parent = str(PurePosixPath(to).parent)
        if not os.path.lexists(folder / source):
            raise InputError(f"{folder / source}: it is gone", "the folder was changed by hand")
        if os.path.lexists(folder / to) and to not in gone:
            raise InputError(f"{folder / to}: something stands there", "the folder was changed by hand")
        place, origin = (folder if parent in come else folder / parent), (folder / source).parent
        if place.stat().st_dev != origin.stat().st_dev:
            raise InputError(f"{place}: lies on another disk than {origin}", "have the support folder on one disk")
        for writable in (place, origin):
            if not os.access(writable, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(writable))
        come.add(to)
        gone.add(source)


def _read(path: Path) -> Change | None:
    try:
        with open_regular(path) as file:
            data = file.read(_MAX_BYTES)
        return Change.model_validate_json(data)
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged"
        raise InputError(f"{path}: {reason}", "delete it; removed clips are in the folder beside it") from None
