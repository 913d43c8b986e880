"""Generated clips for training: batches for the contrastive stage, labelled clips for episodes.

Every clip is a function of names and numbers alone (seed, step, position), so a run that resumes sees what
it would have seen, whatever the number of worker processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.pixels.load import load_clip
from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.data.cache_keys import generator_version
from m2df_train.data.clips import LabelledClip
from m2df_train.synthetic import (
    Action,
    SyntheticClip,
    composed_action,
    render_action,
    sample_action,
    split_actions,
)

# Composed actions of training and of the pool come from disjoint halves of the index space.
POOL_OFFSET = 1 << 40
_COMPOSED = "composed_"


@dataclass(frozen=True)
class Batch:
    """Clips [P*K, T, S, S, 3] uint8, the class 0..P-1 of each [P*K], and one text per class [P]."""

    clips: NDArray[np.uint8]
    classes: NDArray[np.int64]
    texts: tuple[str, ...]


class ContrastiveBatches:
    """The batch of a step: `clips` clips of each of `classes` actions."""

    def __init__(self, spec: ClipSpec, *, classes: int, clips: int, composed: float, seed: int) -> None:
        self._spec = spec
        self._classes = classes
        self._clips = clips
        self._composed = composed
        self._seed = seed

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng([self._seed, step])
        actions = self._actions(rng)
        clips = [render(action, self._spec, rng) for action in actions for _ in range(self._clips)]
        texts = tuple(description(action, rng) for action in actions)
        return Batch(np.stack(clips), np.repeat(np.arange(len(actions)), self._clips), texts)

    def _actions(self, rng: np.random.Generator) -> list[Action]:
        """Actions with different texts: composed ones may share a text, and would then be told apart in vain."""
        training = split_actions("train")
        named = min(int(rng.binomial(self._classes, 1 - self._composed)), len(training))
        chosen = {training[i].text: training[i] for i in rng.choice(len(training), named, replace=False)}
        while len(chosen) < self._classes:
            action = composed_action(int(rng.integers(0, POOL_OFFSET)))
            chosen.setdefault(action.text, action)
        return list(chosen.values())


def description(action: Action, rng: np.random.Generator) -> str:
    """The action's sentence or its bare name: users label their folders either way."""
    return action.text if rng.random() < 0.5 else action.name.replace("_", " ")


def render(action: Action, spec: ClipSpec, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One new clip of an action, through the same preprocessing as a user's file: uint8 [T, S, S, 3]."""
    return load_clip(sample_action(action, rng), spec, rng=rng)


def pool_actions(composed: int, seed: int) -> list[Action]:
    """All named training actions and `composed` that no contrastive batch draws, each with a text of its own."""
    chosen = {action.text: action for action in split_actions("train")}
    wanted, index = len(chosen) + composed, POOL_OFFSET + seed * 1_000_003
    while len(chosen) < wanted:
        action = composed_action(index)
        chosen.setdefault(action.text, action)
        index += 1
    return list(chosen.values())


def action_clips(actions: Sequence[Action], per_class: int) -> list[LabelledClip]:
    """`per_class` clips of each action; clip i of an action is the same in every run, and like no other action's."""
    return [
        generated_clip(action.name, number, seed=_own_seed(action.name, number))
        for action in actions
        for number in range(per_class)
    ]


def generated_clip(name: str, number: int, *, seed: int) -> LabelledClip:
    """Clip `number` of a named or composed action, made from `seed`."""
    key = f"generated|{name}|{seed}|{generator_version()}"
    return LabelledClip(name, f"{name}/{number:02d}", partial(_open_generated, name, seed), key)


def _open_generated(name: str, seed: int) -> SyntheticClip:
    if name.startswith(_COMPOSED):
        return SyntheticClip(composed_action(int(name.removeprefix(_COMPOSED))), seed)
    return render_action(name, seed)


def _own_seed(name: str, number: int) -> int:
    """A seed of this clip alone: clips of two actions made from one seed share performer and scene."""
    return int.from_bytes(hashlib.sha256(f"{name}/{number}".encode()).digest()[:7], "big")
