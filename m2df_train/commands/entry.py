"""Where `m2df-train` and `m2df-eval` begin; see `m2df_runtime.commands.entry`."""

from __future__ import annotations

from typing import NoReturn

from m2df_runtime.commands.entry import enter


def train() -> NoReturn:
    """Entry point of `m2df-train`."""
    enter("m2df_train.commands.train")


def evaluate() -> NoReturn:
    """Entry point of `m2df-eval`."""
    enter("m2df_train.commands.evaluate")
