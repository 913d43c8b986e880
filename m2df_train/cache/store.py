"""Rows of features, on disk as far as there is room and in memory beyond it.

A store is a folder of tables, `NAME.npy`, each written once and whole about every second: what a killed process had
written stays good, and several may write at once without knowing of each other. Writing a file safely takes 9 ms:
2,000 clips of 16 KB took 17 s to write and 0.45 s to read with a file each, 3.6 s and 0.25 s in 200 tables, and
0.4 s and 0.05 s in one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.files import atomic_file

Float = NDArray[np.float32]
Key = tuple[str, int]  # digest of the clip's key, view
Table = NDArray[Any]  # [n] of `key`, `view` and `row`, see `_table`

_log = logging.getLogger(__name__)

_FLUSH_SECONDS = 1.0  # what a kill can cost
_HEADER_BYTES = 256  # of a table, at most
_STORE = re.compile(r"[0-9a-f]{32}")


class Rows:
    """The rows of one call: those found in a store, those written to it, and those that stay in memory.

    Args:
        folder: The store, a folder beside those of other stores; None for memory alone.
        limit: Bound of all stores together, in bytes.
        bound: What says so to the user, for the warning that it is reached.
    """

    def __init__(self, folder: Path | None, limit: int, bound: str) -> None:
        self._folder, self._limit, self._bound = folder, limit, bound
        self._storing = folder is not None
        self._tables: list[Table] = []
        self._pending: list[Table] = []
        self._flushed = time.monotonic()
        if folder is not None and folder.is_dir():
            self._tables = [table for path in sorted(folder.glob("*.npy")) if (table := _read(path)) is not None]
            with contextlib.suppress(OSError):
                os.utime(folder)
        self._places = {key: place for number, table in enumerate(self._tables) for key, place in _keys(table, number)}

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def add(self, keys: Sequence[Key], rows: Float) -> None:
        """Take rows [n, T, D]."""
        self._pending.append(_table(keys, rows))
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was added, as far as there is room; a warning says where there is none or writing fails."""
        if not self._pending:
            return
        table = np.concatenate(self._pending)
        self._pending = []
        written = 0
        if self._storing and self._folder is not None:
            try:
                written = self._write(self._folder, table)
            except OSError as error:
                self._stop(f"{self._folder}: features cannot be kept: {error.strerror}")
        if written < len(table):
            self._keep(table[written:])
        self._flushed = time.monotonic()

    def collect(self, keys: Sequence[Key]) -> Float:
        """Rows [n, T, D] of keys that are all there: memory-mapped where they lie in one table in this order."""
        self.flush()
        places = np.array([self._places[key] for key in keys])
        table, row = places[:, 0], places[:, 1]
        if (table == table[0]).all() and (np.diff(row) == 1).all():
            found: Float = self._tables[int(table[0])]["row"][row[0] : row[0] + len(row)]
            return found
        result = np.empty((len(keys), *self._tables[int(table[0])]["row"].shape[1:]), np.float32)
        for number in np.unique(table).tolist():
            here = table == number
            result[here] = self._tables[number]["row"][row[here]]
        return result

    def _write(self, folder: Path, table: Table) -> int:
        """Write a table's first rows, as many as fit; returns how many that are."""
        folder.mkdir(parents=True, exist_ok=True)
        room = _make_room(folder, self._limit, _HEADER_BYTES + table.nbytes) - _HEADER_BYTES
        fitting = table[: max(0, room // table.itemsize)]
        if len(fitting):
            path = folder / f"{secrets.token_hex(8)}.npy"
            with atomic_file(path) as file:
                np.save(file, fitting)
            found = _read(path)
            self._keep(fitting if found is None else found)  # None: another process made room already
        if len(fitting) < len(table):
            self._stop(f"{folder.parent}: these features are more than {self._bound}")
        return len(fitting)

    def _keep(self, table: Table) -> None:
        self._places.update(_keys(table, len(self._tables)))
        self._tables.append(table)

    def _stop(self, reason: str) -> None:
        _log.warning("%s; the others stay in memory", reason)
        self._storing = False


def _make_room(own: Path, limit: int, count: int) -> int:
    """Delete stores beside one's own, those not used for longest first, until `count` bytes fit; how many bytes do."""
    folders = []
    for folder in own.parent.iterdir():
        try:
            if _STORE.fullmatch(folder.name):
                size = sum(entry.stat().st_size for entry in os.scandir(folder))
                folders.append((folder.stat().st_mtime, size, folder))
        except OSError:  # another process was faster
            continue
    used = sum(size for _, size, _ in folders)
    others = [item for item in sorted(folders) if item[2] != own]
    room = limit - used + sum(size for _, size, _ in others)  # once all others are gone
    if room <= 0:
        return 0
    for _, size, folder in others:
        if used + min(count, room) <= limit:
            break
        shutil.rmtree(folder, ignore_errors=True)
        used -= size
    return max(0, limit - used)


def _table(keys: Sequence[Key], rows: Float) -> Table:
    """Rows [n, T, D] with their keys."""
    layout = [("key", "S32"), ("view", "<i4"), ("row", "<f4", rows.shape[1:])]
    table = np.empty(len(keys), np.dtype(layout))
    table["key"] = [key.encode("ascii") for key, _ in keys]
    table["view"] = [view for _, view in keys]
    table["row"] = rows
    return table


def _keys(table: Table, number: int) -> list[tuple[Key, tuple[int, int]]]:
    pairs = zip(table["key"].tolist(), table["view"].tolist(), strict=True)
    return [((key.decode("ascii", "replace"), view), (number, row)) for row, (key, view) in enumerate(pairs)]


def _read(path: Path) -> Table | None:
    """A table, writable in memory only, as PyTorch wants arrays to be; None for one that is gone or damaged."""
    try:
        table = np.load(path, mmap_mode="c")
    except (OSError, ValueError, EOFError):
        return None
    whole = table.ndim == 1 and table.dtype.names == ("key", "view", "row")
    return table if whole and table.dtype["row"].base == np.float32 and table.dtype["row"].ndim == 2 else None
