"""Opening what a user names only if it is a file: a pipe without a writer or a link to /dev/zero never ends."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def irregular(mode: int) -> str | None:
    """What something with this `st_mode` is, where it is not a file; None for a file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no file of bytes")


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; never waits, and reads nothing that is not a file.

    Raises:
        OSError: It cannot be opened, or `strerror` says what it is instead of a file.
    """
    _check(path, os.stat(path).st_mode)  # before opening, which already does something to a device
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check(path, os.fstat(handle).st_mode)  # another one may stand there by now
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _check(path: Path, mode: int) -> None:
    kind = irregular(mode)
    if kind is not None:
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, f"{kind}, not a file", os.fspath(path))
