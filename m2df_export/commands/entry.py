"""Where `m2df-export` begins; see `m2df_runtime.commands.entry`."""

from __future__ import annotations

from typing import NoReturn

from m2df_runtime.commands.entry import enter


def export() -> NoReturn:
    """Entry point of `m2df-export`."""
    enter("m2df_export.commands.export")
