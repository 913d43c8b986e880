"""What an action is, and the rule that deals the named actions to train, val and test."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from m2df_train.synthetic.motion import Program

Split = Literal["train", "val", "test"]
View = Literal["front", "side", "any", "pair"]


@dataclass(frozen=True)
class Action:
    """One class of motion.

    Args:
        name: Identifier, words joined by underscores.
        text: Natural description, used as the class text.
        people: 1 or 2.
        mirrorable: Whether a left-right flipped clip still shows the action.
        split: "train", "val" or "test".
        program: Maps phase [M] and a style to one track per person.
        kind: Group within which the splits are dealt.
        rate: Lowest and highest cycles per second (periodic) or seconds from start to end (one-shot).
        periodic: Whether the phase counts cycles; else it runs from 0 to 1 once.
        view: From where the action is usually seen.
        travels: Whether the person crosses the scene.
        upper: Whether a view of the upper body alone still shows the action.
    """

    name: str
    text: str
    people: int
    mirrorable: bool
    split: Split
    program: Program
    kind: str = "arm"
    rate: tuple[float, float] = (1.0, 1.0)
    periodic: bool = True
    view: View = "any"
    travels: bool = False
    upper: bool = False


def cycle(
    kind: str,
    name: str,
    text: str,
    rate: tuple[float, float],
    view: View,
    program: Program,
    *,
    travels: bool = False,
    upper: bool = False,
) -> Action:
    """Describe a periodic action by its cycles per second; the split is dealt later."""
    people = 2 if kind == "pair" else 1
    return Action(name, text, people, True, "train", program, kind, rate, True, view, travels, upper)


def once(
    kind: str,
    name: str,
    text: str,
    seconds: tuple[float, float],
    view: View,
    program: Program,
    *,
    travels: bool = False,
    upper: bool = False,
) -> Action:
    """Describe an action that happens once, by its duration; the split is dealt later."""
    people = 2 if kind == "pair" else 1
    return Action(name, text, people, True, "train", program, kind, seconds, False, view, travels, upper)


def deal(actions: Sequence[Action]) -> dict[str, Action]:
    """Give every action its split: 60 % train, 15 % val and 25 % test within each kind.

    Actions of one kind are ordered by the CRC-32 of their name, which nobody chose, and dealt by the repeating pattern
    below, so every split holds every kind and no action was placed for what it resembles. The pattern runs on from
    one kind to the next, so that small kinds do not all start with the same split.
    """
    pattern: tuple[Split, ...] = (
        "train",
        "test",
        "train",
        "val",
        "train",
        "test",
        "train",
        "train",
        "val",
        "train",
        "test",
        "train",
        "train",
        "test",
        "train",
        "val",
        "train",
        "test",
        "train",
        "train",
    )
    out: dict[str, Action] = {}
    for kind in dict.fromkeys(a.kind for a in actions):
        members = sorted((a for a in actions if a.kind == kind), key=lambda a: zlib.crc32(a.name.encode()))
        for action in members:
            out[action.name] = replace(action, split=pattern[len(out) % len(pattern)])
    return out
