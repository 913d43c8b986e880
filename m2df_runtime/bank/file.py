"""The support bank on disk: one safetensors file whose header is checked before anything else of it is read.

Layout: tensors `features` [M, T, D], `prompts` [C, D], `prototypes` [C, V, T, D], all float32; in
the header's metadata, as JSON under `m2df`, the index (classes, clips, keys, calibration) and the
SHA-256 of index and tensors. A bank that travels also holds the clips themselves as `bytes`, which the index
has digests of and which matching never reads. Nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator

from m2df_runtime.bundle.prompt_texts import MAX_TEXT, MAX_TEXTS
from m2df_runtime.errors import InputError
from m2df_runtime.files import atomic_file
from m2df_runtime.regular_files import open_regular

# 1 had no change time and inode of clips, 2 not how long they last, 3 one text for a class, 4 no background, none of
# the clips themselves, and no scores to calibrate by.
BANK_VERSION: Final = 5
# 55,000 clips, of which each takes about 300 bytes and 16 values. JSON of a million values takes 100 MB at most; 20
# million lists in 64 MB took 1.9 GB.
MAX_HEADER_BYTES = 16 << 20
MAX_HEADER_VALUES = 1_000_000
MAX_KEYS = 16  # of one object
MAX_VIEWS = 8
MAX_SIDE = 1 << 16  # T and D of a bank that is read without a bundle
TENSORS = ("features", "prompts", "prototypes")
BYTES = "bytes"  # uint8 [n]: of each clip that has them its strip, then its files; the last of the tensors
METADATA_KEY = "m2df"
REMEDY = "copy or pack it again, or give a folder of classes"

Float = NDArray[np.float32]


class _Schema(BaseModel):
    # Of each file one validator is needed, that of the whole: with one for every part, loading took 20 ms more.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Nanoseconds = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Count = Annotated[int, Field(ge=0, lt=1 << 64)]
Bytes = Annotated[int, Field(ge=1, lt=1 << 48)]
Text = Annotated[str, Field(max_length=2 * MAX_TEXT)]  # a prompt is a template with a text in it


def _as_one_name(name: str) -> str:
    """A name that stays in the folder it is put into."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise ValueError("no name of a file")
    return name


def _as_two_names(name: str) -> str:
    label, _, clip = name.partition("/")
    return f"{_as_one_name(label)}/{_as_one_name(clip)}"


Texts = Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_TEXTS)]
FileName = Annotated[str, Field(max_length=255), AfterValidator(_as_one_name)]
ClipName = Annotated[str, Field(max_length=511), AfterValidator(_as_two_names)]  # class/clip


class StripEntry(_Schema):
    """A clip's frames side by side, as a JPEG picture in `bytes`."""

    bytes: Annotated[int, Field(ge=1, le=1 << 22)]
    digest: Hash


class FileEntry(_Schema):
    """A file of a clip, in `bytes`: the clip itself, or a frame of it."""

    name: FileName | None = None  # of a frame
    bytes: Bytes


class ClipEntry(_Schema):
    """One clip; its features are the next row of `features`."""

    name: ClipName
    digest: Hash
    size: Count
    mtime_ns: Nanoseconds
    ctime_ns: Nanoseconds
    inode: Count
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    strip: StripEntry | None = None
    files: Annotated[tuple[FileEntry, ...], FailFast()] = ()

    @property
    def bytes(self) -> int:
        """How many of `bytes` are its."""
        return (self.strip.bytes if self.strip else 0) + sum(file.bytes for file in self.files)


class ClassEntry(_Schema):
    """One class; its clips are consecutive rows of `features`."""

    label: FileName
    texts: Texts
    prompts: Texts
    clips: Annotated[tuple[ClipEntry, ...], FailFast()] = Field(min_length=1)


class PastClip(_Schema):
    """A clip as the bank had it before its last change: its name then, and its row of `features` now."""

    name: ClipName
    row: Annotated[int, Field(ge=0, lt=1 << 32)]


class PastClass(_Schema):
    """A class before the last change."""

    label: FileName
    texts: Texts
    prompts: Texts
    clips: Annotated[tuple[PastClip, ...], FailFast()] = Field(min_length=1)


class PastEntry(_Schema):
    """What `undo` goes back to: what was done, and the classes and the background before."""

    did: Annotated[str, Field(max_length=MAX_TEXT)]
    classes: Annotated[tuple[PastClass, ...], FailFast()] = Field(min_length=1)
    background: Annotated[tuple[PastClip, ...], FailFast()] = ()


class BankKeys(_Schema):
    """What the stored numbers were computed with: hashes of graphs, preprocessing and tokenizer."""

    visual: Hash
    text: Hash
    support: Hash
    query: Hash  # of the calibration


Distances = Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], FailFast()]


class CalibrationEntry(_Schema):
    """See `calibration.Calibration`."""

    scores: Annotated[Distances, Field(min_length=1)]
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    backend: Annotated[str, Field(max_length=20)]
    precision: Annotated[str, Field(max_length=20)]
    background: Distances = ()
    apart: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    version: Annotated[int, Field(ge=1, lt=1 << 16)] = 1  # of calibrations that have none


class BankIndex(_Schema):
    """The JSON part of a bank."""

    version: Literal[5]
    keys: BankKeys
    classes: Annotated[tuple[ClassEntry, ...], FailFast()] = Field(min_length=1)
    background: Annotated[tuple[ClipEntry, ...], FailFast()] = ()  # the rows of `features` after those of the classes
    removed: Annotated[tuple[ClipEntry, ...], FailFast()] = ()  # the rows after these: what only `past` has
    past: PastEntry | None = None
    calibration: CalibrationEntry | None = None

    def clips(self) -> Iterator[ClipEntry]:
        """All clips, in the order of the rows of `features`."""
        for entry in self.classes:
            yield from entry.clips
        yield from self.background
        yield from self.removed

    @property
    def rows(self) -> int:
        """How many clips it has."""
        return sum(len(entry.clips) for entry in self.classes) + len(self.background) + len(self.removed)

    @model_validator(mode="after")
    def _past_is_here(self) -> BankIndex:
        rows = self.rows
        if self.past:
            past = (*(clip for entry in self.past.classes for clip in entry.clips), *self.past.background)
            if any(clip.row >= rows for clip in past):
                raise ValueError("the state before has a clip that is not here")
        elif self.removed:
            raise ValueError("removed clips without a state before")
        return self


class Fit(NamedTuple):
    """What a bank must fit to be matched with a bundle: the key of its features, T and D."""

    visual: str
    frames: int
    dim: int


class OtherEncoder(InputError):
    """A bank whose features another encoder made, or other preprocessing."""


class Content:
    """The clips' own bytes in a bank file, which stays open: they are those of this very file, whatever replaces it."""

    def __init__(self, file: BinaryIO, begin: int) -> None:
        self._handle, self._begin = os.dup(file.fileno()), begin
        weakref.finalize(self, os.close, self._handle)

    def read(self, place: int, count: int) -> bytes:
        """`count` bytes from `place` on, fewer where the file was cut since. Raises OSError."""
        return os.pread(self._handle, count, self._begin + place)


class BankRead(NamedTuple):
    """A bank that was read and checked; its clips' bytes are not, see `Content`."""

    entries: BankIndex
    tensors: dict[str, Float]
    content: Content | None


def write_bank(path: Path, index: BankIndex, tensors: Mapping[str, Float], content: Iterable[bytes] = ()) -> None:
    """Write a bank atomically.

    Args:
        path: The file.
        index: What it holds.
        tensors: Those of `TENSORS`.
        content: The bytes of all clips that have some, in the order of `BankIndex.clips`, in any blocks.

    Raises:
        OSError: The place cannot be written.
        InputError: More clips than a bank holds.
    """
    text = _canonical(index)
    arrays = {name: np.ascontiguousarray(tensors[name], np.float32) for name in TENSORS}
    metadata = json.dumps({"sha256": _checksum(text, arrays), **json.loads(text)})
    header: dict[str, object] = {"__metadata__": {METADATA_KEY: metadata}}
    sizes = [(name, "F32", array.shape, array.nbytes) for name, array in arrays.items()]
    if stored := sum(clip.bytes for clip in index.clips()):
        sizes.append((BYTES, "U8", (stored,), stored))
    end = 0
    for name, dtype, shape, size in sizes:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)  # the format's alignment
    if len(data) > MAX_HEADER_BYTES or _values(data) > MAX_HEADER_VALUES:
        raise InputError(f"{path}: a bank holds no more than about 55000 clips")
    # Not by the library, which takes a whole file in memory: clips may be larger than that.
    with atomic_file(path) as file:
        file.write(len(data).to_bytes(8, "little"))
        file.write(data)
        for array in arrays.values():
            file.write(array.data)
        written = sum(file.write(block) for block in content)
    assert written == stored


def read_bank(path: Path, fit: Fit | None = None) -> BankRead:
    """Read and check a bank: its header, then its sizes, then its tensors. Clips' own bytes are not read.

    Args:
        path: The bank file.
        fit: What it must fit; None takes any bank that fits itself.

    Returns:
        Index and tensors; the number of views is that of the head the prototypes were made with.

    Raises:
        OtherEncoder: It is of another encoder or preprocessing.
        InputError: No file, not a bank, damaged, of another version, or its tensors do not fit.
    """
    try:
        with open_regular(path) as file:
            header = _read_header(path, file)
            if fit and header.content.keys.visual != fit.visual:
                raise OtherEncoder(f"{path}: this bank was made with another bundle or preprocessing", REMEDY)
            places = _check_shapes(path, header, fit)
            tensors = _read_tensors(path, file, header, places)
            content = Content(file, file.tell()) if BYTES in header.tensors else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise InputError(f"{path}: the bank holds numbers that are not finite", REMEDY)
    if _checksum(_canonical(header.content), tensors) != header.checksum:
        raise InputError(f"{path}: the bank does not match its own hash, it was changed or damaged", REMEDY)
    return BankRead(header.content, tensors, content)


class _Header(NamedTuple):
    content: BankIndex
    checksum: str
    tensors: dict[str, Any]  # name to {dtype, shape, data_offsets}, unchecked
    data_bytes: int  # of the file, after the header


def _read_header(path: Path, file: BinaryIO) -> _Header:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
        raise InputError(f"{path}: not a support bank", REMEDY)
    text = file.read(length)
    if len(text) != length or _values(text) > MAX_HEADER_VALUES:
        raise InputError(f"{path}: not a support bank", REMEDY)
    try:
        tensors = json.loads(text, object_pairs_hook=_small)
        metadata = tensors.pop("__metadata__")
        raw = json.loads(metadata[METADATA_KEY], object_pairs_hook=_small)
        checksum = str(raw.pop("sha256"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path}: not a support bank", REMEDY) from None
    version = raw.get("version")
    if version != BANK_VERSION:
        raise InputError(f"{path}: bank version {str(version)[:20]}, this m2df reads version {BANK_VERSION}", REMEDY)
    try:
        return _Header(BankIndex.model_validate(raw), checksum, tensors, size - 8 - length)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(f"{path}: the bank's index is wrong: {problem}", REMEDY) from None


def _small(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, none of which has many keys in a bank: what is wrong with each would be told otherwise."""
    if len(pairs) > MAX_KEYS:
        raise ValueError(f"an object of {len(pairs)} keys")
    return dict(pairs)


def _values(text: bytes) -> int:
    """At least as many values as a JSON text holds; commas and brackets inside of strings count too."""
    return sum(text.count(mark) for mark in (b"[", b"{", b",", b":"))


def _check_shapes(path: Path, header: _Header, fit: Fit | None) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Where each tensor begins in the data, and its shape, all as the index wants them."""
    classes = len(header.content.classes)
    clips = header.content.rows
    frames, dim = (fit.frames, fit.dim) if fit else _own_sizes(header.tensors.get("features"))
    views = _views(header.tensors.get("prototypes"))
    shapes = ((clips, frames, dim), (classes, dim), (classes, views, frames, dim))
    places = {}
    for name, shape in zip(TENSORS, shapes, strict=True):
        places[name] = (_check_tensor(path, name, header.tensors.get(name), "F32", shape), shape)
    stored = sum(clip.bytes for clip in header.content.clips())
    if set(header.tensors) != {*TENSORS, *([BYTES] if stored else [])}:
        raise InputError(f"{path}: unexpected tensors in the bank", REMEDY)
    end = 0
    for begin, shape in sorted(places.values()):
        if begin != end:
            raise InputError(f"{path}: damaged bank: its tensors do not follow one another", REMEDY)
        end += 4 * math.prod(shape)
    if stored and _check_tensor(path, BYTES, header.tensors[BYTES], "U8", (stored,)) != end:
        raise InputError(f"{path}: damaged bank: its clips do not follow its numbers", REMEDY)
    end += stored
    if end != header.data_bytes:
        raise InputError(f"{path}: damaged bank: {header.data_bytes} bytes of data, {end} expected", REMEDY)
    return places


def _check_tensor(path: Path, name: str, info: object, dtype: str, shape: tuple[int, ...]) -> int:
    """Where a tensor begins, by what the header says of it; it must be as expected."""
    info = info if isinstance(info, dict) else {}
    found = (info.get("dtype"), info.get("shape"))
    if found != (dtype, list(shape)):
        raise InputError(f"{path}: tensor {name} is {str(found)[:80]}, expected {dtype} {list(shape)}", REMEDY)
    offsets = info.get("data_offsets")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(place) is int for place in offsets)):
        raise InputError(f"{path}: damaged bank: tensor {name} is nowhere", REMEDY)
    return int(offsets[0])


def _own_sizes(info: object) -> tuple[int, int]:
    """T and D that the file itself gives its features [M, T, D], 1 where they are none."""
    shape = info.get("shape") if isinstance(info, dict) else None
    sizes = shape[1:] if isinstance(shape, list) and len(shape) == 3 else []
    fine = sizes and all(type(size) is int and 1 <= size <= MAX_SIDE for size in sizes)
    return (sizes[0], sizes[1]) if fine else (1, 1)


def _views(info: object) -> int:
    """Views of the stored prototypes [C, V, T, D], between 1 and `MAX_VIEWS` whatever the file says."""
    shape = info.get("shape") if isinstance(info, dict) else None
    views = shape[1] if isinstance(shape, list) and len(shape) == 4 else 1
    return views if type(views) is int and 1 <= views <= MAX_VIEWS else 1


def _read_tensors(
    path: Path, file: BinaryIO, header: _Header, places: Mapping[str, tuple[int, tuple[int, ...]]]
) -> dict[str, Float]:
    tensors = {}
    for name, (_, shape) in sorted(places.items(), key=lambda item: item[1][0]):  # they follow one another
        array = np.empty(shape, "<f4")
        if file.readinto(array.data.cast("B")) != array.nbytes:  # type: ignore[attr-defined]
            raise InputError(f"{path}: damaged bank: it ends early", REMEDY)
        tensors[name] = array.astype(np.float32, copy=False)
    return tensors


def _canonical(index: BankIndex) -> str:
    """The index as it is hashed and written: what is not there takes no place."""
    return index.model_dump_json(exclude_defaults=True)


def _checksum(text: str, tensors: Mapping[str, Float]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in TENSORS:
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
