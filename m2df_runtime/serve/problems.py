"""What a client is told when something is refused: one shape for every route, with a status, a code and what to do."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from m2df_runtime.errors import ClipError, EnvironmentMissing, M2dfError, printable, shortened

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Refused(Exception):
    """A request that is not done.

    Args:
        status: Of HTTP.
        code: A word for programs.
        message: What is wrong.
        hint: What to do about it.
        retry_after: Seconds after which it may be tried again.
    """

    def __init__(
        self, status: int, code: str, message: str, hint: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.hint, self.retry_after = status, code, message, hint, retry_after

    def record(self) -> dict[str, object]:
        """The object that is sent."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


def unstored(error: OSError) -> Refused:
    """What a client is told where a file cannot be used."""
    if error.errno in _FULL:
        return Refused(507, "full", "the disk is full", "nothing was changed; make room")
    return Refused(500, "storage", f"a file cannot be used: {error.strerror or type(error).__name__}")


def refused(error: M2dfError | OSError, own: Path, support: Path) -> Refused:
    """What a client is told of an error; nothing of where things are on this machine.

    Args:
        error: What happened.
        own: The folder of what clients sent.
        support: The support.
    """
    if isinstance(error, OSError):
        return unstored(error)
    message = re.sub(rf"{re.escape(str(own))}/(?:[^/:]*/)*", "", error.message)
    message = message.replace(f"{support}/", "").replace(f"{support}: ", "").replace(str(support), "the support")
    code, status = "input", 422
    if isinstance(error, ClipError):
        code = "clip"
    elif isinstance(error, EnvironmentMissing):
        code, status = "environment", 503
    return Refused(status, code, shortened(printable(message), 500), error.hint)
