"""Synthetic action clips: articulated people performing named and composed actions, rendered on the fly."""

from __future__ import annotations

from m2df_train.data.synthetic.actions import ACTIONS, split_actions
from m2df_train.data.synthetic.clip import SyntheticClip
from m2df_train.data.synthetic.composed import composed_action
from m2df_train.data.synthetic.render import render_action, sample_action
from m2df_train.data.synthetic.table import Action, Split

__all__ = [
    "ACTIONS",
    "Action",
    "Split",
    "SyntheticClip",
    "composed_action",
    "render_action",
    "sample_action",
    "split_actions",
]
