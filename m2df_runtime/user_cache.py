"""The user's cache folder, believed only where nobody else can have put anything into it.

A bank that another user planted there would answer wrongly without a word.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

MEASURED = "measured"  # folder in it of which engines were found fastest

_log = logging.getLogger(__name__)


def user_cache() -> Path | None:
    """`$XDG_CACHE_HOME`, by default `~/.cache`; None for a user without a home folder.

    A relative value counts as unset, as the XDG base directory specification has it.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base)
    try:
        home = Path.home()
    except RuntimeError:  # a container's user without an entry in the password file
        return None
    return home / ".cache" if home.is_absolute() else None


def cache_dir(*parts: str) -> Path:
    """m2df's folder in the user's cache folder, or a folder in that; made where it is not there yet.

    Where it belongs to another user or others may write to it, a private folder of this run takes its place, and a
    warning says so. Where it cannot be made, writing to it will tell why.
    """
    base = user_cache()
    if base is None:
        return _private("the user has no home folder", "XDG_CACHE_HOME=DIR keeps them").joinpath(*parts)
    folder = base / "m2df"
    for part in ("", *parts):
        folder = folder / part
        problem = _made(folder)
        if problem:
            remedy = f"chmod go-w {folder}, or XDG_CACHE_HOME=DIR, keeps them"
            return _private(f"{folder}: {problem}, so nothing in it is believed", remedy).joinpath(*parts)
    return folder


def has_cache(part: str) -> bool:
    """Whether m2df's folder holds this one; nothing is made and nothing warned of where it does not."""
    base = user_cache()
    # Not `Path.is_dir`, which raises where the user may not enter it: under sudo HOME may be another's.
    return base is not None and os.path.isdir(base / "m2df" / part)


def _made(folder: Path) -> str | None:
    """Make a folder; returns why it cannot be trusted, if it cannot."""
    with suppress(OSError):
        folder.mkdir(0o700, parents=True, exist_ok=True)
    try:
        found = folder.stat()
    except OSError:
        return None
    if found.st_uid != os.geteuid():
        return "belongs to another user"
    return "others may write to it" if found.st_mode & 0o022 else None


@cache
def _private(reason: str, remedy: str) -> Path:
    try:
        folder = Path(tempfile.mkdtemp(prefix="m2df-"))
    except OSError:  # no place for temporary files either: one where nothing is found and nothing can be written
        return Path(os.devnull, "m2df")
    atexit.register(_remove, folder, os.getpid())
    _log.warning("%s: banks and caches live for this run only (%s)", reason, remedy)
    return folder


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a forked child's to remove
        shutil.rmtree(folder, ignore_errors=True)
