"""Writing files and folders so that a kill or a full disk leaves the old content intact, and nothing else for long.

What is being written is a hidden temporary beside its target, locked by its writer. A lock ends with its process, so
the next writer in the folder sees which temporaries nobody will finish, and removes them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from m2df_runtime.errors import InputError
from m2df_runtime.regular_files import irregular, open_regular

TEMPORARY_SUFFIX = ".m2df-tmp"
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of <fcntl.h> and <linux/fs.h>


def atomic_write(path: Path, data: bytes | memoryview, *, sweep: bool = True) -> None:
    """Write `data` to `path`, see `atomic_file`."""
    with atomic_file(path, sweep=sweep) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path, *, sweep: bool = True) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends without an exception.

    Readers see the old file or the new one, never half of one; of two writers the last one wins. A link stays, and
    the file that it leads to is replaced.

    Args:
        path: The file; the folder it lies in is made.
        sweep: Remove what killed writers left in the folder; False for folders of many files, swept otherwise.

    Raises:
        OSError: The folder cannot be written, the disk is full, or a folder, pipe or device stands there; it names
            `path`, which is then unchanged.
    """
    target = Path(os.path.realpath(path))
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_replaceable(target)
        with _temporary(target, sweep, lambda **place: _close(*tempfile.mkstemp(**place))) as work:
            with work.open("r+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            work.chmod(0o666 & ~_umask())  # mkstemp makes it private; a bank is as readable as its clips
            work.replace(target)
        sync_folder(target.parent)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, to be renamed to it or exchanged with it.

    Whatever has its name at the end is removed: itself, or what was at `target`.

    Raises:
        OSError: The folder they lie in cannot be written.
    """
    with _named(target), _temporary(target, True, lambda **place: tempfile.mkdtemp(**place)) as work:
        yield work


def sweep_dead(folder: Path) -> None:
    """Remove the temporaries in a folder that no process is writing any more.

    Those of living ones are locked; where the file system has no locks, nothing is removed.
    """
    try:
        left = [Path(entry.path) for entry in os.scandir(folder) if _is_temporary(entry.name)]
    except OSError:
        return
    for path in left:
        _remove_if_dead(path)


def exchange(first: Path, second: Path) -> bool:
    """Let two files or folders change places in one step; False where the system cannot, and nothing happened.

    Linux has it since 3.15 on local file systems; NFS does not.
    """
    import ctypes

    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = os.fsencode(first.absolute()), os.fsencode(second.absolute())
    return rename is not None and rename(_HERE, paths[0], _HERE, paths[1], ctypes.c_uint(_EXCHANGE)) == 0


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the file system name `path` where they name what a user does not know.

    A failed write names no file, a failed mkdir the folder, a failed rename the temporary.
    """
    try:
        yield
    except OSError as error:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
        if name is None or path.is_relative_to(name) or _is_temporary(name):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _check_replaceable(target: Path) -> None:
    with suppress(FileNotFoundError):
        kind = irregular(target.lstat().st_mode)
        if kind is not None:
            raise OSError(errno.EEXIST, f"{kind} stands there", str(target))


def _is_temporary(name: str) -> bool:
    base = os.path.basename(name)
    return base.startswith(".") and base.endswith(TEMPORARY_SUFFIX)


def _close(handle: int, name: str) -> str:
    os.close(handle)
    return name


@contextmanager
def _temporary(target: Path, sweep: bool, make: Callable[..., str]) -> Iterator[Path]:
    """Something new beside `target`, locked while the block runs; what has its name after that is removed."""
    if sweep:
        sweep_dead(target.parent)
    work, handle = _claimed(lambda: make(dir=target.parent, prefix=f".{target.name[:80]}.", suffix=TEMPORARY_SUFFIX))
    try:
        yield work
    finally:
        _remove(work)
        os.close(handle)


def _claimed(make: Callable[[], str]) -> tuple[Path, int]:
    """Make something and lock it; again where another process swept it away before it was locked."""
    import fcntl

    while True:
        path = Path(make())
        with suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
            with suppress(OSError):  # a file system without locks, where nothing is swept
                fcntl.flock(handle, fcntl.LOCK_EX)
            if path.exists():  # its name is random: if anything has it, then this
                return path, handle
            os.close(handle)


def _remove_if_dead(path: Path) -> None:
    import fcntl

    try:
        handle = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # gone, or another user's
        return
    try:
        with suppress(OSError):  # locked by its writer
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Be the only process that writes `target`; the lock is a hidden file beside it, which goes with the lock.

    Raises:
        InputError: Another process is writing it.
    """
    import fcntl

    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.lock")
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it last may have removed the very file this one waited for.
            mine = os.fstat(handle).st_ino == os.stat(path).st_ino
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise InputError(f"{target}: another process is writing it", "wait for it, or choose another place")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, *, shared: bool = False, create: bool = False) -> Iterator[None]:
    """Hold the lock of a file while the block runs, and wait for it before; where there are no locks, for nothing.

    The file may be replaced by whoever holds its lock: those who waited then take that of the new one.

    Args:
        path: The file.
        shared: Others may hold it in this way, too; of a file that may only be read.
        create: Make the file where it is not there.

    Raises:
        OSError: The file cannot be opened.
    """
    handle = _locked_handle(path, shared, create)
    try:
        yield
    finally:
        os.close(handle)


def _locked_handle(path: Path, shared: bool, create: bool) -> int:
    import fcntl

    flags = (os.O_RDONLY if shared else os.O_RDWR) | (os.O_CREAT if create else 0)
    while True:
        handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
        try:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can (not on Windows)."""
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # a folder that may be written but not listed
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data` as hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as hex, read in blocks of 1 MiB. Raises OSError, also where it is no file but a pipe."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
