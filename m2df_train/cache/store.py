"""Rows of features on disk: what a killed process had written stays good, and several may write at once.

A store is a folder. Every process that writes adds a segment of its own: `NAME.TxD.rows`, float32 rows one
after the other, and `NAME.TxD.index`, a line `KEY VIEW` for each of them. Lines are written after their rows
are on disk, so a row without a line does not exist, whatever happened to its writer. A writer locks its rows; those
that a killed one left without a line are given back by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Key = tuple[str, int]  # digest of the clip's key, view

_ROWS, _INDEX = ".rows", ".index"
_SHAPE = re.compile(r"\.(\d+)x(\d+)\Z")
_LINE = re.compile(r"([0-9a-f]{32}) (\d+)\n")
_FLUSH_SECONDS = 1.0  # what a kill can cost


class Segment:
    """The rows of one segment, as far as they are complete.

    Attributes:
        keys: Key of every row.
        rows: float32 [n, T, D], memory-mapped; good even after the file is deleted.
    """

    def __init__(self, index: Path) -> None:
        """Raises OSError or ValueError where it is gone or no segment."""
        shape = _SHAPE.search(index.stem)
        if shape is None:
            raise ValueError(f"{index}: no segment")
        frames, dim = int(shape[1]), int(shape[2])
        self.keys: list[Key] = []
        with index.open(encoding="ascii", newline="") as lines:
            for line in lines:
                found = _LINE.fullmatch(line)
                if found is None:  # cut off by a kill; nothing comes after it
                    break
                self.keys.append((found[1], int(found[2])))
        with index.with_suffix(_ROWS).open("rb") as file:
            whole = os.fstat(file.fileno()).st_size // (4 * frames * dim)
            self.keys = self.keys[:whole]
            self.rows = mapped(file.fileno(), (len(self.keys), frames, dim))


def mapped(handle: int, shape: tuple[int, int, int]) -> Float:
    """Rows of an open file, writable in memory only, as PyTorch wants arrays to be."""
    if shape[0] == 0:
        return np.zeros(shape, dtype=np.float32)
    with open(os.dup(handle), "rb") as file:
        return np.memmap(file, np.float32, "c", 0, shape)


def read_segments(folder: Path) -> list[Segment]:
    """All segments of a store; those that vanish meanwhile are left out."""
    found = []
    for index in sorted(folder.glob(f"*{_INDEX}")):
        try:
            found.append(Segment(index))
        except (OSError, ValueError):
            continue
    return found


def tidy(folder: Path) -> None:
    """Give back the rows without a line that killed writers left, and their segments where there is no other row."""
    for path in folder.glob(f"*{_ROWS}"):
        index = path.with_suffix(_INDEX)
        try:
            with path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                rows = _rows_of(index)
                if rows.size:
                    os.truncate(file.fileno(), rows.nbytes)
                else:
                    index.unlink(missing_ok=True)
                    path.unlink()
        except OSError:  # its writer is alive, locks do not work here, or another process was faster
            continue


def _rows_of(index: Path) -> Float:
    try:
        return Segment(index).rows
    except (FileNotFoundError, ValueError):
        return np.zeros((0, 0, 0), np.float32)


class SegmentWriter:
    """Writes one new segment.

    Args:
        folder: The store; created if it is not there.
        frames: T.
        dim: D.

    Raises:
        OSError: From every method, where the disk is full or cannot be written.
    """

    def __init__(self, folder: Path, frames: int, dim: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tidy(folder)
        path = folder / f"{secrets.token_hex(8)}.{frames}x{dim}"
        self._shape = (frames, dim)
        self._rows = _locked(Path(f"{path}{_ROWS}"))
        self._index = Path(f"{path}{_INDEX}").open("xb")  # noqa: SIM115
        self._pending: list[Key] = []
        self._flushed = time.monotonic()
        self.keys: list[Key] = []

    def add(self, keys: Sequence[Key], rows: Float) -> bool:
        """Append rows [n, T, D]; returns whether everything up to here was just made safe."""
        self._rows.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())
        self._pending += keys
        if time.monotonic() - self._flushed < _FLUSH_SECONDS:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Make everything added so far safe."""
        self._rows.flush()
        os.fsync(self._rows.fileno())
        self._index.write("".join(f"{key} {view}\n" for key, view in self._pending).encode("ascii"))
        self._index.flush()
        self.keys += self._pending
        self._pending = []
        self._flushed = time.monotonic()

    def rows(self) -> Float:
        """What is safe, float32 [len(keys), T, D], memory-mapped."""
        return mapped(self._rows.fileno(), (len(self.keys), *self._shape))

    def close(self) -> None:
        """Close the files; what was not flushed is given up, and an empty segment is removed."""
        for file in (self._index, self._rows):
            with contextlib.suppress(OSError):  # a buffer that a full disk does not take
                file.close()
            if not self.keys:
                Path(file.name).unlink(missing_ok=True)


def _locked(path: Path) -> BinaryIO:
    """A new file, locked; made again where another process tidied it away before it was."""
    while True:
        file = path.open("x+b")
        with contextlib.suppress(OSError):  # a file system without locks, where nothing is tidied
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            return file
        file.close()


def gather(places: Sequence[tuple[int, int]], tables: Mapping[int, Float]) -> Float:
    """Rows [n, T, D] at (table, row): a view of the table where they stand there one after the other, else a copy."""
    table = np.array([place[0] for place in places])
    row = np.array([place[1] for place in places])
    if (table == table[0]).all() and (np.diff(row) == 1).all():
        return tables[int(table[0])][row[0] : row[0] + len(row)]
    shape = tables[int(table[0])].shape[1:]
    result = np.empty((len(places), *shape), dtype=np.float32)
    for number in np.unique(table).tolist():
        here = table == number
        result[here] = tables[number][row[here]]
    return result
