"""How work that takes a while tells how far it is: what it calls, and what the commands show it with.

Everything below the commands takes a `Progress` and knows nothing of terminals; `commands/console.py` implements it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Called with the steps finished since the last call, and a note on the work as it is now."""

    def __call__(self, steps: int, note: str = "", /) -> None:
        """Tell of steps."""
        ...


class Progress(Protocol):
    """Given what is done and how many steps it takes, None where nobody knows: a block that tells of its steps."""

    def __call__(self, title: str, total: int | None = None, /) -> AbstractContextManager[Advance]:
        """Begin."""
        ...


def unseen(steps: int, note: str = "", /) -> None:
    """An `Advance` that nobody sees."""


@contextmanager
def silent(title: str, total: int | None = None, /) -> Iterator[Advance]:
    """A `Progress` that nobody sees."""
    yield unseen
