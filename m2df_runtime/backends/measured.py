"""What `m2df-doctor --measure` found on this machine, kept in the user's cache folder: a file for bundle and machine.

It counts while the processor, the number of threads and the versions of the engines are those it was measured with. A
bundle is known by the hashes of its graphs, whatever its place and name.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from m2df_runtime.cpus import processor_name, thread_count
from m2df_runtime.engine_names import EngineName, RunPrecision
from m2df_runtime.errors import CheckFailed, first_line
from m2df_runtime.files import atomic_write, sha256_bytes
from m2df_runtime.installed import version_of
from m2df_runtime.pixels.spec import PIXELS_VERSION
from m2df_runtime.regular_files import open_regular
from m2df_runtime.user_cache import MEASURED, cache_dir, user_cache

if TYPE_CHECKING:
    from m2df_runtime.bundle.bundle import Bundle

_MAX_BYTES = 1 << 16
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")

_log = logging.getLogger(__name__)

Word = Annotated[str, Field(max_length=200)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Unusable(Exception):
    """What was measured is there and cannot be used; the text says why, to follow "what was measured here"."""


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Schema):
    """What a measurement depends on: the processor, an engine's threads on it, the engines' versions by package."""

    processor: Word
    threads: Annotated[int, Field(ge=1)]
    engines: dict[Word, Word]

    @classmethod
    def here(cls, threads: int | None) -> Machine:
        """This machine with so many threads; None stands for the cores that this process may use. Raises InputError."""
        engines = {package: version for package in _PACKAGES if (version := version_of(package)) is not None}
        return cls(processor=processor_name()[:200], threads=thread_count(threads), engines=engines)

    def text(self) -> str:
        """For people."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return ", ".join([self.processor, threads, *(f"{name} {version}" for name, version in self.engines.items())])

    def unlike(self, now: Machine) -> str:
        """In what it differs from what is there now, for people."""
        before, after = self.text().split(", "), now.text().split(", ")
        gone = ", ".join(word for word in before if word not in after)
        new = ", ".join(word for word in after if word not in before)
        if not gone:
            return f"without {new}"
        return f"with {gone}, now {new}" if new else f"with {gone}, which is gone"


class Timed(_Schema):
    """An engine and a precision with the right answers, and the milliseconds of a whole query (median)."""

    backend: EngineName
    precision: RunPrecision
    ms: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.backend} {self.precision}"


class Measured(_Schema):
    """What was measured of one bundle on one machine.

    Attributes:
        others: Share of the processors that other programs had, where it was kept although they were busy.
        timed: What `auto` may take, the fastest first.
    """

    version: Literal[2] = 2
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    machine: Machine
    others: Annotated[float, Field(ge=0, le=1)] | None
    bundle: Hash
    timed: Annotated[tuple[Timed, ...], Field(min_length=1, max_length=100)]


def kept_in() -> Path:
    """The folder for what is measured, which can be asked for before anything is.

    Raises:
        CheckFailed: What is kept would be gone after this run.
        OSError: The folder cannot be written.
    """
    folder = cache_dir(MEASURED)
    if not _lasts(folder):
        raise CheckFailed(
            "what is measured would not be kept: the cache folder cannot be used", "see the warning above"
        )
    try:
        with TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


def keep(bundle: Bundle, machine: Machine, timed: Sequence[Timed], others: float | None = None) -> Path:
    """Keep what was measured now, in place of what was measured before of the same on the same; returns the file.

    Raises:
        CheckFailed: As `kept_in`.
        OSError: As `kept_in`.
    """
    key = _key(bundle)
    found = Measured(date=date.today().isoformat(), machine=machine, others=others, bundle=key, timed=tuple(timed))
    path = kept_in() / _name(key, machine)
    atomic_write(path, (found.model_dump_json(indent=2) + "\n").encode())
    return path


def measured(bundle: Bundle, here: Machine) -> Measured | None:
    """What was measured of a bundle on this machine; None where nothing was.

    Where only a machine was measured that differs from this one as it is now, that: its `machine` is then another.

    Raises:
        Unusable: Something was, and a warning says what is wrong with it.
    """
    folder, key = cache_dir(MEASURED), _key(bundle)
    if not _lasts(folder):
        raise Unusable("is not believed")
    paths = sorted(folder.glob(f"{key[:16]}-*.json"))
    own = folder / _name(key, here)
    read = [_read(path) for path in ([own] if own in paths else paths)]
    found = max((one for one in read if one and one.bundle == key), key=lambda one: one.date, default=None)
    if found is None and None in read:
        raise Unusable("cannot be read")
    return found


def _lasts(folder: Path) -> bool:
    """Whether the cache folder is the user's, and not one of this run alone."""
    base = user_cache()
    return base is not None and folder.is_relative_to(base / "m2df")


def _name(key: str, machine: Machine) -> str:
    return f"{key[:16]}-{sha256_bytes(machine.model_dump_json().encode())[:16]}.json"


def _key(bundle: Bundle) -> str:
    graphs = bundle.manifest.graphs.items()
    files = {name: {precision: file.sha256 for precision, file in info.files.items()} for name, info in graphs}
    return sha256_bytes(json.dumps([files, PIXELS_VERSION], sort_keys=True).encode())


def _read(path: Path) -> Measured | None:
    """A file; one that cannot be used is named."""
    try:
        with open_regular(path) as file:
            return Measured.model_validate_json(file.read(_MAX_BYTES))
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
    except OSError as error:
        reason = error.strerror or first_line(error)
    _log.warning("%s: not used: %s (m2df-doctor --measure writes it anew)", path, reason)
    return None
