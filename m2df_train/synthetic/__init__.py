"""Synthetic action clips: articulated people performing named and composed actions, rendered on the fly."""

from __future__ import annotations

from m2df_train.synthetic.actions import ACTIONS, split_actions
from m2df_train.synthetic.clip import SyntheticClip
from m2df_train.synthetic.composed import composed_action
from m2df_train.synthetic.plan import Performed
from m2df_train.synthetic.recording import SyntheticRecording
from m2df_train.synthetic.render import render_action, sample_action
from m2df_train.synthetic.table import Action, Split

__all__ = [
    "ACTIONS",
    "Action",
    "Performed",
    "Split",
    "SyntheticClip",
    "SyntheticRecording",
    "composed_action",
    "render_action",
    "sample_action",
    "split_actions",
]
