"""The clips a report shows: queries of the measured episodes, chosen by a rule and not by eye."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.pixels.load import load_clip
from m2df_runtime.show.filmstrip import display_spec
from m2df_train.report.tested import Drawn, Tested

Float = NDArray[np.float32]

RIGHT, WRONG = 2, 1  # clips shown


@dataclass(frozen=True)
class Example:
    """A query of an episode.

    Attributes:
        name: `class/clip`.
        answer: Class the model took it for.
        episode: Number of the episode.
        classes: Names of the episode's classes.
        own: Position of its class among them.
        prompts: Their text embeddings [W, D].
        support: Features of their support clips [W, K, T, D].
        features: Features of the clip [T, D].
        pixels: The clip as the model sees it, uint8 [T, S, S, 3].
        frames: The same frames and region in natural colours, uint8 [T, H, W, 3].
    """

    name: str
    answer: str
    episode: int
    classes: tuple[str, ...]
    own: int
    prompts: Float
    support: Float
    features: Float
    pixels: NDArray[np.uint8]
    frames: NDArray[np.uint8]

    @property
    def label(self) -> str:
        """Its class."""
        return self.classes[self.own]


def choose_examples(model: Tested, drawn: Drawn) -> list[Example]:
    """In the order of the episodes: two clips answered rightly, then one answered wrongly.

    They are of different classes, as far as there are; a model that is always right has no wrong one.
    """
    answers = model.answers[0]
    found: list[Example] = []
    for right, wanted in ((True, RIGHT), (False, WRONG)):
        shown = {example.label for example in found}
        first: dict[str, list[int]] = {}  # class to its first place [episode, position, query]
        for place in np.argwhere(answers.right == right).tolist():
            first.setdefault(answers.names[answers.classes[place[0], place[1]]], place)
            if len(first) == wanted + len(shown):
                break
        places = sorted(first.items(), key=lambda item: (item[0] in shown, item[1]))
        found += [_example(model, drawn, *place) for _, place in places[:wanted]]
    return found


def _example(model: Tested, drawn: Drawn, number: int, own: int, query: int) -> Example:
    answers, encoded = model.answers[0], model.encoded
    episode = drawn.sampler(answers.shot).episode(number)
    row = int(episode.query[own, query])
    clip = drawn.clips[row]
    names = tuple(answers.names[c] for c in episode.classes)
    return Example(
        name=clip.name,
        answer=names[int(answers.predicted[number, own, query])],
        episode=number,
        classes=names,
        own=own,
        prompts=encoded.prompts[episode.classes],
        support=encoded.features.values[episode.support],
        features=encoded.features.values[row],
        pixels=load_clip(clip.open(), encoded.subject.spec),
        frames=load_clip(clip.open(), display_spec(encoded.subject.spec)),
    )
