"""The files of a bundle, in its directory or in its zip: no larger than announced, and hashed on the way.

What a zip says of itself is compared with what was asked for before anything is unpacked, and it is unpacked in
blocks. It is opened for each read, so that threads share nothing and nothing stays open.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import IO, BinaryIO

from m2df_runtime.errors import InputError
from m2df_runtime.regular_files import open_regular

_BLOCK = 1 << 20
# The weights of a model shrink to nine tenths, its tokenizer to a third. 21 MB of zip can hold 3 GB of zeros.
_MOST_SHRUNK = 50
_SMALL = 16 << 20  # a file of up to this size may shrink as it likes
_MAX_DIRECTORY = 1 << 20  # of a zip: 10,000 names; each takes 500 bytes of memory
_END_BYTES = 22 + (1 << 16)  # the end record of a zip, and the comment that may follow it


def read_file(bundle: Path, name: str, size: int | None, limit: int) -> tuple[bytes, str]:
    """A file of a bundle, and its SHA-256.

    Args:
        bundle: The directory or zip.
        name: Its path in the bundle.
        size: Bytes it must have; None where nobody said.
        limit: Most bytes it may have.

    Raises:
        InputError: It is missing, has another size, is larger than `limit`, or cannot be read.
    """
    if bundle.is_dir():
        path = bundle / name
        if not path.is_file():
            raise InputError(f"{bundle}: missing {name}", "export the bundle again")
        with open_regular(path) as file:
            found = os.fstat(file.fileno()).st_size  # another export may have put another file there
            _check_size(f"{path}: {found} bytes", found, size, limit)
            return _hashed(file, f"{path}", found)
    try:
        with open_regular(bundle) as opened, _archive(bundle, opened) as archive:
            return _read_member(bundle, archive, name, size, limit)
    except OSError as error:
        raise InputError(f"{bundle}: {error.strerror or error}", "name a bundle directory or its .zip") from None


def _check_size(problem: str, found: int, size: int | None, limit: int) -> None:
    if size is not None and found != size:
        raise InputError(f"{problem}, the manifest says {size}", "export the bundle again")
    if found > limit:
        raise InputError(f"{problem}, at most {limit} expected", "a zip of large files can be unpacked and used so")


def _archive(bundle: Path, file: BinaryIO) -> zipfile.ZipFile:
    try:
        if _directory_bytes(file) > _MAX_DIRECTORY:
            raise InputError(f"{bundle}: not a bundle: it holds too many files", "name a bundle directory or its .zip")
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(f"{bundle}: not a bundle: {error}", "name a bundle directory or its .zip") from None


def _directory_bytes(file: BinaryIO) -> int:
    """Size of a zip's list of files as its end record gives it, which `ZipFile` would read whole."""
    end = file.seek(0, 2)
    file.seek(max(0, end - _END_BYTES - 76))
    tail = file.read()
    file.seek(0)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0:
        return 0
    size = int.from_bytes(tail[at + 12 : at + 16], "little")
    if at >= 76 and tail[at - 20 : at - 16] == b"PK\x06\x07":  # above 4 GB another record before it holds the number
        large = int.from_bytes(tail[at - 36 : at - 28], "little")
        size = large if size == 0xFFFFFFFF else max(size, large)
    return size


def _read_member(bundle: Path, archive: zipfile.ZipFile, name: str, size: int | None, limit: int) -> tuple[bytes, str]:
    try:
        member = archive.getinfo(name)
    except KeyError:
        raise InputError(f"{bundle}: missing {name}", "export the bundle again") from None
    _check_size(f"{bundle}: {name} unpacks to {member.file_size} bytes", member.file_size, size, limit)
    if member.file_size > max(_SMALL, _MOST_SHRUNK * member.compress_size):
        problem = f"{bundle}: {name} unpacks from {member.compress_size} to {member.file_size} bytes, as no model does"
        raise InputError(problem, "export the bundle again")
    try:
        with archive.open(member) as file:
            return _hashed(file, f"{bundle}: {name}", member.file_size)
    except InputError:
        raise
    except Exception as error:  # besides zipfile's own, every compression method has its errors
        raise InputError(f"{bundle}: {name} cannot be read: {error}", "export the bundle again") from None


def _hashed(file: IO[bytes], label: str, size: int) -> tuple[bytes, str]:
    digest, content = hashlib.sha256(), []
    left = size
    while left and (block := file.read(min(_BLOCK, left))):
        digest.update(block)
        content.append(block)
        left -= len(block)
    if left or file.read(1):
        raise InputError(f"{label} has not the {size} bytes it says", "export the bundle again")
    return b"".join(content), digest.hexdigest()
