"""Writing files so that a kill or a full disk leaves the old content intact, and the user's cache folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m2df_runtime.errors import InputError


def atomic_write(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`: temporary file beside it, fsync, rename.

    Readers see the old file or the new one, never half of one; of two writers the last one wins.

    Raises:
        OSError: The folder cannot be written or the disk is full; it names `path`, which is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes it private; a bank is as readable as its clips
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a failed write names no file, a failed rename the temporary one
        raise
    sync_folder(path.parent)


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


def user_cache() -> Path:
    """The user's cache folder: `$XDG_CACHE_HOME`, by default `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # a container's user without an entry in the password file has no home
        return Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"


def cache_dir() -> Path:
    """m2df's folder in the user's cache folder."""
    return user_cache() / "m2df"


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
