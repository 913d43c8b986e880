"""The support bank on disk: one safetensors file whose header is checked before anything else of it is read.

Layout: tensors `features` [M, T, D], `prompts` [C, D], `prototypes` [C, V, T, D], all float32; in
the header's metadata, as JSON under `m2df`, the index (classes, clips, keys, calibration) and the
SHA-256 of index and tensors. Nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from m2df_runtime.bundle.prompt_texts import MAX_TEXT, MAX_TEXTS
from m2df_runtime.errors import InputError
from m2df_runtime.files import atomic_write
from m2df_runtime.regular_files import open_regular

# 1 had no change time and inode of clips, 2 not how long they last, 3 one text for a class, 4 no background.
BANK_VERSION = 5
# 55,000 clips, of which each takes about 300 bytes and 16 values. JSON of a million values takes 100 MB at most; 20
# million lists in 64 MB took 1.9 GB.
MAX_HEADER_BYTES = 16 << 20
MAX_HEADER_VALUES = 1_000_000
MAX_KEYS = 16  # of one object
MAX_VIEWS = 8
TENSORS = ("features", "prompts", "prototypes")
METADATA_KEY = "m2df"
REMEDY = "delete the file; m2df-run builds it again"

Float = NDArray[np.float32]


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Nanoseconds = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Count = Annotated[int, Field(ge=0, lt=1 << 64)]
FileName = Annotated[str, Field(max_length=255)]
Text = Annotated[str, Field(max_length=2 * MAX_TEXT)]  # a prompt is a template with a text in it


Texts = Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_TEXTS)]


class ClipEntry(_Schema):
    """One clip; its features are the next row of `features`."""

    name: Annotated[str, Field(max_length=511)]  # class/clip
    digest: Hash
    size: Count
    mtime_ns: Nanoseconds
    ctime_ns: Nanoseconds
    inode: Count
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ClassEntry(_Schema):
    """One class; its clips are consecutive rows of `features`."""

    label: FileName
    texts: Texts
    prompts: Texts
    clips: Annotated[tuple[ClipEntry, ...], FailFast()] = Field(min_length=1)


class BankKeys(_Schema):
    """What the stored numbers were computed with: hashes of graphs, preprocessing and tokenizer."""

    visual: Hash
    text: Hash
    support: Hash
    query: Hash  # of the calibration


class CalibrationEntry(_Schema):
    """See `calibration.Calibration`."""

    threshold: float = Field(allow_inf_nan=False)
    queries: Annotated[int, Field(ge=1, lt=1 << 32)]
    unknown_rejected: float = Field(ge=0, le=1)


class BankIndex(_Schema):
    """The JSON part of a bank."""

    version: Literal[5] = 5
    keys: BankKeys
    classes: Annotated[tuple[ClassEntry, ...], FailFast()] = Field(min_length=1)
    background: Annotated[tuple[ClipEntry, ...], FailFast()] = ()  # the rows of `features` after those of the classes
    calibration: CalibrationEntry | None = None


def write_bank(path: Path, index: BankIndex, tensors: Mapping[str, Float]) -> None:
    """Write a bank atomically.

    Raises:
        OSError: The place cannot be written.
        InputError: More clips than a bank holds.
    """
    from safetensors.numpy import save

    text = index.model_dump_json()
    arrays = {name: np.ascontiguousarray(tensors[name], np.float32) for name in TENSORS}
    # One key only: safetensors writes several in random order, and equal banks shall be equal files.
    metadata = json.dumps({"sha256": _checksum(text, arrays), **json.loads(text)})
    data = save(arrays, {METADATA_KEY: metadata})
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES or _values(data[8 : 8 + length]) > MAX_HEADER_VALUES:
        raise InputError(f"{path}: a bank holds no more than about 55000 clips")
    atomic_write(path, data)


def read_bank(path: Path, visual_key: str, frames: int, dim: int) -> tuple[BankIndex, dict[str, Float]]:
    """Read and check a bank: its header, then its sizes, then its tensors.

    Args:
        path: The bank file.
        visual_key: Key the features must have been made with.
        frames: T of the bundle.
        dim: D of the bundle.

    Returns:
        Index and tensors; the number of views is that of the head the prototypes were made with.

    Raises:
        InputError: No file, not a bank, damaged, of another version or encoder, or its tensors do not fit.
    """
    try:
        with open_regular(path) as file:
            header = _read_header(path, file)
            if header.content.keys.visual != visual_key:
                raise InputError(f"{path}: this bank was made with another bundle or preprocessing", REMEDY)
            places = _check_shapes(path, header, frames, dim)
            tensors = _read_tensors(path, file, header, places)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise InputError(f"{path}: the bank holds numbers that are not finite", REMEDY)
    if _checksum(header.content.model_dump_json(), tensors) != header.checksum:
        raise InputError(f"{path}: the bank does not match its own hash, it was changed or damaged", REMEDY)
    return header.content, tensors


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


def _check_shapes(path: Path, header: _Header, frames: int, dim: int) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Where each tensor begins in the data, and its shape, all as the index wants them."""
    classes = len(header.content.classes)
    clips = sum(len(entry.clips) for entry in header.content.classes) + len(header.content.background)
    views = _views(header.tensors.get("prototypes"))
    shapes = ((clips, frames, dim), (classes, dim), (classes, views, frames, dim))
    places = {}
    for name, shape in zip(TENSORS, shapes, strict=True):
        info = header.tensors.get(name)
        info = info if isinstance(info, dict) else {}
        found = (info.get("dtype"), info.get("shape"))
        if found != ("F32", list(shape)):
            raise InputError(f"{path}: tensor {name} is {str(found)[:80]}, expected F32 {list(shape)}", REMEDY)
        offsets = info.get("data_offsets")
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(place) is int for place in offsets)):
            raise InputError(f"{path}: damaged bank: tensor {name} is nowhere", REMEDY)
        places[name] = (offsets[0], shape)
    if set(header.tensors) != set(TENSORS):
        raise InputError(f"{path}: unexpected tensors in the bank", REMEDY)
    end = 0
    for begin, shape in sorted(places.values()):
        if begin != end:
            raise InputError(f"{path}: damaged bank: its tensors do not follow one another", REMEDY)
        end += 4 * math.prod(shape)
    if end != header.data_bytes:
        raise InputError(f"{path}: damaged bank: {header.data_bytes} bytes of numbers, {end} expected", REMEDY)
    return places


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


def _checksum(text: str, tensors: Mapping[str, Float]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in TENSORS:
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
