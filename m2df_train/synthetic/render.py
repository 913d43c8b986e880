"""Shortcuts from an action to a clip of it."""

from __future__ import annotations

import numpy as np

from m2df_train.synthetic.actions import ACTIONS
from m2df_train.synthetic.clip import SyntheticClip
from m2df_train.synthetic.table import Action


def render_action(name: str, seed: int) -> SyntheticClip:
    """Return the clip of the named action that belongs to `seed`.

    Raises:
        KeyError: No action has this name.
    """
    return SyntheticClip(ACTIONS[name], seed)


def sample_action(action: Action, rng: np.random.Generator) -> SyntheticClip:
    """Return a random clip of `action`."""
    return SyntheticClip(action, int(rng.integers(2**62)))
