"""The file of a bulk run: one JSON line for each clip, appended when the clip is done.

A run goes on by reading it. Whatever the moment at which a run was killed, each line is a clip that was done as a
whole; what is half a line, or about a clip that has changed since, is taken out and done again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bank.contents import keys_of
from m2df_runtime.bank.folder import clip_stamp
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.errors import InputError
from m2df_runtime.files import atomic_file, exclusive, sha256_bytes
from m2df_runtime.match.results import Prediction
from m2df_runtime.regular_files import open_regular

Status = Literal["ok", "rejected", "failed"]
STATUSES: tuple[Status, ...] = ("ok", "rejected", "failed")
Fields = dict[str, Any]
"""What is known of a clip once it is done: `status`, and the answer or the error."""

_BEGIN = b'{"path": '
_HEX = 16  # digits of a key: 64 bits tell apart what nobody makes alike on purpose


@dataclass(frozen=True)
class Basis:
    """What answers rest on; those of another basis do not belong into the same file.

    Attributes:
        bundle: Key of the bundle's graphs and preprocessing.
        bank: Key of the classes: their labels, their prompts and the content of their clips.
        settings: The options that answers depend on.
    """

    bundle: str
    bank: str
    settings: str

    @classmethod
    def of(cls, bundle: Bundle, bank: SupportBank, settings: str) -> Basis:
        """That of a bundle and a bank. It is the same on every machine, whatever engine computes there."""
        classes = [[entry.label, entry.made_from] for entry in bank.classes]
        return cls(_key(keys_of(bundle).model_dump()), _key(classes), settings)


@dataclass(frozen=True)
class BulkClip:
    """A clip to be done: its path as it was given, its bytes and time of change in seconds; None if it is not there."""

    path: str
    size: int | None
    mtime: float | None

    @classmethod
    def found(cls, path: str) -> BulkClip:
        """A clip as it is now. Of a frame folder: the bytes of its frames and the newest of their times."""
        try:
            stamp = clip_stamp(Path(path))
        except (OSError, ValueError):  # ValueError: a zero byte in the name
            return cls(path, None, None)
        return cls(path, stamp.size, stamp.mtime_ns / 1e9)


def answered(prediction: Prediction, topk: int | None) -> Fields:
    """The fields of a clip that was answered."""
    record = prediction.record(topk)
    best = {name: getattr(prediction, name) for name in ("label", "probability", "distance")}
    kept = {name: record[name] for name in ("predictions", "threshold", "calibrated", "backend")}
    return {"status": "rejected" if prediction.rejected else "ok", **best, **kept}


def failed(code: str, text: str) -> Fields:
    """The fields of a clip that could not be answered: a word for programs, and what is wrong."""
    return {"status": "failed", "error": {"code": code, "text": text}}


class Results:
    """A file of results that this process alone appends to.

    Attributes:
        left: Clips that are still to be done.
        counts: Clips that are done, by status; those of earlier runs count, too.
    """

    def __init__(self, path: Path, basis: Basis, left: Sequence[BulkClip], done: Iterable[Status]) -> None:
        self._path = path
        self._basis = basis
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self.left = left
        self.counts: Counter[Status] = Counter(done)

    def append(self, clip: BulkClip, fields: Fields) -> None:
        """Write the line of a clip.

        Raises:
            OSError: The disk is full; the file then ends with the line before.
        """
        line = json.dumps({**asdict(clip), **fields, **asdict(self._basis)}, allow_nan=False).encode() + b"\n"
        end = os.fstat(self._handle).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(self._handle, line[written:])
        except OSError as error:
            os.ftruncate(self._handle, end)
            raise OSError(error.errno, error.strerror, os.fspath(self._path)) from error
        self.counts[fields["status"]] += 1

    def close(self) -> None:
        """Let go of the file, once its lines are on the disk."""
        os.fsync(self._handle)
        os.close(self._handle)


@contextmanager
def opened(
    path: Path, basis: Basis, clips: Sequence[BulkClip], *, restart: bool = False, retry_failed: bool = False
) -> Iterator[Results]:
    """A file of results, and which of distinct clips it does not hold yet; lines about other clips stay.

    Args:
        path: The file; it need not be there.
        basis: What the answers will rest on.
        clips: The clips to be done.
        restart: Begin with an empty file.
        retry_failed: Clips that failed are to be done again.

    Raises:
        InputError: The file holds something else, or answers of another basis; or another process writes it.
        OSError: It cannot be read or written.
    """
    wanted = {clip.path: clip for clip in clips}
    with exclusive(path):
        found = _Found(path, basis, wanted, restart=restart, retry_failed=retry_failed)
        if found.dropped:
            _rewrite(path, found.dropped)
        left = [clip for clip in wanted.values() if clip.path not in found.done]
        results = Results(path, basis, left, found.done.values())
        try:
            yield results
        finally:
            results.close()


class _Found:
    """What a file holds: which clips are `done`, and numbers of lines that are to be `dropped`."""

    def __init__(
        self, path: Path, basis: Basis, wanted: Mapping[str, BulkClip], *, restart: bool, retry_failed: bool
    ) -> None:
        self.done: dict[str, Status] = {}
        self.dropped: set[int] = set()
        last: dict[str, int] = {}
        if not path.exists():
            return
        with open_regular(path) as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n") and (line.startswith(_BEGIN) or _BEGIN.startswith(line)):
                    self.dropped.add(number)
                    continue
                record = _record(path, number, line)
                if restart:
                    self.dropped.add(number)
                    continue
                _check_basis(path, basis, record)
                clip = wanted.get(record["path"])
                if clip is None:
                    continue
                if clip.path in last:
                    self.dropped.add(last[clip.path])
                last[clip.path] = number
                again = record["status"] == "failed" and retry_failed
                if again or (record["size"], record["mtime"]) != (clip.size, clip.mtime):
                    self.dropped.add(number)
                    self.done.pop(clip.path, None)
                else:
                    self.done[clip.path] = record["status"]


def _record(path: Path, number: int, line: bytes) -> Fields:
    try:
        if not line.startswith(_BEGIN):
            raise ValueError
        record = json.loads(line)
        known = all(isinstance(record[name], str) for name in ("path", "bundle", "bank", "settings"))
        if not known or record["status"] not in STATUSES or not {"size", "mtime"} <= record.keys():
            raise ValueError
    except (ValueError, KeyError, RecursionError):
        raise InputError(f"{path}: line {number + 1} is no result of m2df-run", "name another file") from None
    return dict(record)


def _check_basis(path: Path, basis: Basis, record: Fields) -> None:
    hint = "--restart empties the file first; another --out keeps it"
    for name in ("bundle", "bank"):
        if record[name] != getattr(basis, name):
            raise InputError(f"{path}: holds answers of another {name}", hint)
    if record["settings"] != basis.settings:
        raise InputError(f"{path}: holds answers with {record['settings']}, not with {basis.settings}", hint)


def _rewrite(path: Path, dropped: set[int]) -> None:
    """Leave out lines of a file, as a whole or not at all."""
    with open_regular(path) as old, atomic_file(path) as new:
        new.writelines(line for number, line in enumerate(old) if number not in dropped)


def _key(what: object) -> str:
    return sha256_bytes(json.dumps(what, sort_keys=True).encode())[:_HEX]
