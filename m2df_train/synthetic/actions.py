"""The table of named actions, with their splits."""

from __future__ import annotations

from m2df_train.synthetic import arms, floor, legs, pairs, sports
from m2df_train.synthetic.table import Action, Split, deal

ACTIONS: dict[str, Action] = deal((*arms.ACTIONS, *legs.ACTIONS, *sports.ACTIONS, *floor.ACTIONS, *pairs.ACTIONS))


def split_actions(split: Split) -> list[Action]:
    """Return the named actions of one split, in table order."""
    return [action for action in ACTIONS.values() if action.split == split]
