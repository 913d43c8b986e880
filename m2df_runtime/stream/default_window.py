"""How long a window is where nobody says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from m2df_runtime.bank.contents import BankContents

WINDOW_SECONDS = (1.0, 6.0)  # shortest and longest that is chosen: below, a window holds no action; above, several


def default_window(bank: BankContents) -> float:
    """Seconds of a window: the median length of the support clips, between 1 and 6 s."""
    # Not `np.median`, which loads masked arrays: a fiftieth of the start of m2df-run.
    median = float(np.quantile([clip.seconds for entry in bank.classes for clip in entry.clips], 0.5))
    return float(np.clip(round(median, 1), *WINDOW_SECONDS))
