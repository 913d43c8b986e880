"""Errors a user can cause or repair, each with one line on what is wrong and one on what to do.

The command line maps them to exit codes in one place (`console.py`): 1 a failed check, 2 bad usage
or input, 3 something missing from the environment.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class M2dfError(Exception):
    """Base of every error m2df raises for a user's input, files or environment.

    Args:
        message: What is wrong, naming the file or option.
        hint: What to do about it, if that is known.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InputError(M2dfError):
    """A file, folder, bundle, bank or option that cannot be used. Exit code 2."""


class ClipError(InputError):
    """One clip that cannot be used, for whatever reason. A batch names it and goes on.

    Args:
        clip: The clip: its path as the user gave it, or its name.
        reason: What is wrong with it, without the clip's name.
        hint: What to do about it, if that is known.

    Examples:
        >>> import m2df_runtime as m2df
        >>> model = m2df.load()
        >>> matcher = m2df.Matcher(model, m2df.SupportBank.of(model, "actions"))
        >>> try:
        ...     matcher.predict("gone.mp4")
        ... except m2df.ClipError as error:
        ...     print(error.clip, "|", error.reason, "|", error.hint)
        gone.mp4 | no such file | check the path
    """

    def __init__(self, clip: Path | str, reason: str, hint: str | None = None) -> None:
        super().__init__(f"{clip}: {reason}", hint)
        self.clip = os.fspath(clip)
        self.reason = reason


class CheckFailed(M2dfError):
    """A check ran and failed: parity, an accuracy gate, or part of a batch. Exit code 1."""

    exit_code = 1


class EnvironmentMissing(M2dfError):
    """A required engine, driver or package is not on this machine. Exit code 3."""

    exit_code = 3


def first_line(error: BaseException) -> str:
    """The first line of another library's error, which may run over pages; its class where it says nothing."""
    text = str(error).strip()
    return shortened(text.splitlines()[0]) if text else type(error).__name__


def shortened(text: str, most: int = 300) -> str:
    """The text, cut between two words and marked so where it has more than `most` characters."""
    if len(text) <= most:
        return text
    kept = text[:most]
    return (kept.rpartition(" ")[0] or kept) + " …"


def printable(text: str) -> str:
    """The text with control characters as escapes, which names of files may hold and terminals would obey."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
