"""The support bank on disk: one safetensors file that is checked before any number in it is used.

Layout: tensors `features` [M, T, D], `prompts` [C, D], `prototypes` [C, V, T, D], all float32; in
the header's metadata, as JSON under `m2df`, the index (classes, clips, keys, calibration) and the
SHA-256 of index and tensors. Nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from m2df_runtime.errors import InputError
from m2df_runtime.files import atomic_write

BANK_VERSION = 2  # 1 had no change time and inode of clips
MAX_HEADER_BYTES = 64 << 20  # 1000 classes of 5 clips take 1.5 MB
MAX_BANK_BYTES = 8 << 30
TENSORS = ("features", "prompts", "prototypes")
METADATA_KEY = "m2df"
REMEDY = "delete the file; m2df-run builds it again"

Float = NDArray[np.float32]


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClipEntry(_Schema):
    """One clip; its features are the next row of `features`."""

    name: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    mtime_ns: int
    ctime_ns: int
    inode: int


class ClassEntry(_Schema):
    """One class; its clips are consecutive rows of `features`."""

    label: str
    text: str
    prompt: str
    clips: tuple[ClipEntry, ...] = Field(min_length=1)


class BankKeys(_Schema):
    """What the stored numbers were computed with: hashes of graphs, preprocessing and tokenizer."""

    visual: str
    text: str
    support: str
    query: str  # of the calibration


class CalibrationEntry(_Schema):
    """See `calibration.Calibration`."""

    threshold: float = Field(allow_inf_nan=False)
    queries: int = Field(ge=1)
    unknown_rejected: float = Field(ge=0, le=1)


class BankIndex(_Schema):
    """The JSON part of a bank."""

    version: Literal[2] = 2
    keys: BankKeys
    classes: tuple[ClassEntry, ...] = Field(min_length=1)
    calibration: CalibrationEntry | None = None


def write_bank(path: Path, index: BankIndex, tensors: Mapping[str, Float]) -> None:
    """Write a bank atomically. Raises OSError where the place cannot be written."""
    from safetensors.numpy import save

    text = index.model_dump_json()
    arrays = {name: np.ascontiguousarray(tensors[name], np.float32) for name in TENSORS}
    # One key only: safetensors writes several in random order, and equal banks shall be equal files.
    metadata = json.dumps({"sha256": _checksum(text, arrays), **json.loads(text)})
    atomic_write(path, save(arrays, {METADATA_KEY: metadata}))


def read_bank(path: Path, visual_key: str, sizes: tuple[int, int, int]) -> tuple[BankIndex, dict[str, Float]]:
    """Read and check a bank.

    Args:
        path: The bank file.
        visual_key: Key the features must have been made with.
        sizes: V, T and D of the bundle.

    Raises:
        InputError: Not a bank, damaged, of another version or bundle, or its tensors do not fit.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BANK_BYTES:
            raise InputError(f"{path}: {size} bytes, a bank has at most {MAX_BANK_BYTES}", REMEDY)
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    header = _parse_header(path, data)
    if header.content.keys.visual != visual_key:
        raise InputError(f"{path}: this bank was made with another bundle or preprocessing", REMEDY)
    _check_shapes(path, header, sizes)
    tensors = _load_tensors(path, data)
    if _checksum(header.content.model_dump_json(), tensors) != header.checksum:
        raise InputError(f"{path}: the bank does not match its own hash, it was changed or damaged", REMEDY)
    return header.content, tensors


class _Header(NamedTuple):
    content: BankIndex
    checksum: str
    tensors: dict[str, Any]  # name to {dtype, shape, data_offsets}, unchecked


def _parse_header(path: Path, data: bytes) -> _Header:
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 0 < length <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise InputError(f"{path}: not a support bank", REMEDY)
    try:
        tensors = json.loads(data[8 : 8 + length])
        metadata = tensors.pop("__metadata__")
        raw = json.loads(metadata[METADATA_KEY])
        checksum = str(raw.pop("sha256"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path}: not a support bank", REMEDY) from None
    version = raw.get("version")
    if version != BANK_VERSION:
        raise InputError(f"{path}: bank version {version!r}, this m2df reads version {BANK_VERSION}", REMEDY)
    try:
        return _Header(BankIndex.model_validate(raw), checksum, tensors)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(f"{path}: the bank's index is wrong: {problem}", REMEDY) from None


def _check_shapes(path: Path, header: _Header, sizes: tuple[int, int, int]) -> None:
    views, frames, dim = sizes
    classes = len(header.content.classes)
    clips = sum(len(entry.clips) for entry in header.content.classes)
    shapes = ([clips, frames, dim], [classes, dim], [classes, views, frames, dim])
    for name, shape in zip(TENSORS, shapes, strict=True):
        info = header.tensors.get(name)
        found = (info.get("dtype"), info.get("shape")) if isinstance(info, dict) else None
        if found != ("F32", shape):
            raise InputError(f"{path}: tensor {name} is {found}, expected F32 {shape}", REMEDY)
    if set(header.tensors) != set(TENSORS):
        raise InputError(f"{path}: unexpected tensors in the bank", REMEDY)


def _load_tensors(path: Path, data: bytes) -> dict[str, Float]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: damaged bank: {error}", REMEDY) from None
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise InputError(f"{path}: the bank holds numbers that are not finite", REMEDY)
    return {name: tensors[name] for name in TENSORS}


def _checksum(text: str, tensors: Mapping[str, Float]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in TENSORS:
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
