"""The facts behind one answer: its best two classes term by term, the text that was chosen, the clips to look at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends.model import QueryScores
from m2df_runtime.bank.contents import BankClass
from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.match.matcher import Matcher
from m2df_runtime.match.results import ClassScore, Prediction
from m2df_runtime.show.filmstrip import display_spec
from m2df_runtime.show.parts import Matching, Terms, ViewParts

_APART = 0.01  # by which an answer's distance may differ from that of its features alone: batches round differently
_EXACT, _NEAR = 1e-4, 0.02  # of a distance, by which its parts may differ without a word, and at all
_LEAST = 1e-38  # probability of a text: the smallest that float32 tells from 0


@dataclass(frozen=True)
class ExplainedClass:
    """One class and the query.

    Attributes:
        score: Label, probability, distance.
        views: What the distance is made of; empty where that is not known.
        prompt: The class's text.
        selected: Probability of that text for the query.
        clips: How many support clips it has.
        nearest: Name of the one that is most like the query.
        frames: Of that clip, uint8 [T, S, S, 3]; None where there is nothing to look at.
        unseen: Why not.
    """

    score: ClassScore
    views: tuple[ViewParts, ...]
    prompt: str
    selected: float
    clips: int
    nearest: str
    frames: NDArray[np.uint8] | None
    unseen: str | None


@dataclass(frozen=True)
class Explanation:
    """One answer.

    Attributes:
        prediction: It.
        about_rejection: When the matcher answers `unknown`.
        view_names: Of each view; empty texts where there is one.
        matching: How distances become logits; None where they cannot be taken apart.
        problem: Why not, or what is odd about the parts.
        error: Largest difference between a distance and the sum of its parts.
        best: The most probable class.
        second: The next; None in a bank of one class.
        temperature: What logits are divided by before they become probabilities.
        chosen: The class whose text fits the query best, that text and its probability.
    """

    prediction: Prediction
    about_rejection: str
    view_names: tuple[str, ...]
    matching: Matching | None
    problem: str | None
    error: float
    best: ExplainedClass
    second: ExplainedClass | None
    temperature: float
    chosen: tuple[str, str, float]

    @property
    def shown(self) -> tuple[ExplainedClass, ...]:
        """The classes that are explained."""
        return (self.best, self.second) if self.second else (self.best,)

    def terms(self, one: ExplainedClass) -> Terms:
        """What the distance to a class is made of, all views together."""
        return sum((view.terms for view in one.views), Terms())

    def lead(self) -> tuple[Terms, ...]:
        """What the best class is ahead of the second by, in logits: one sum for each view, then that of the text."""
        assert self.matching and self.second
        pairs = zip(self.matching.view_factors, self.best.views, self.second.views, strict=True)
        text = self.matching.text_factor * (_log(self.best.selected) - _log(self.second.selected))
        return (*(ours.terms.times(f) + theirs.terms.times(-f) for f, ours, theirs in pairs), Terms(text=text))


def explanation(prediction: Prediction, matcher: Matcher) -> Explanation:
    """Find out what an answer rests on, with one run of the query graph.

    Args:
        prediction: Of this matcher, with features.
        matcher: With the bank that it is from.

    Raises:
        InputError: The answer has no features, or is from another bank.
        ClipError: Its scores are not finite.
    """
    if prediction.features is None:
        raise InputError(
            "an answer without features cannot be explained", "have them kept: predict(clip, look=…) does so on a GPU"
        )
    model, bank = matcher.model, matcher.bank
    manifest = model.bundle.manifest
    found = model.match(prediction.features[None], bank.prompts, bank.prototypes, [prediction.query])
    _check_same(prediction, found, bank.labels)
    matching, problem = None, None
    try:
        matching = Matching.of(manifest)
    except InputError as error:
        problem = error.message
    rows = {label: place for place, label in enumerate(bank.labels)}
    wanted = prediction.classes[:2]
    parts = [matching.parts(found.tokens[0], bank.prototypes[rows[one.label]]) if matching else () for one in wanted]
    errors = [own for one in zip(wanted, parts, strict=True) for own in _errors(found, rows, *one)]
    furthest = float(np.max(errors, initial=0.0))
    if not furthest <= _NEAR:  # not a number, too
        problem = "the options of its manifest give other distances than its graph"
        matching, parts = None, [() for _ in wanted]
    elif furthest > _EXACT:
        problem = f"The parts add up to the graph's distance within {100 * furthest:.2g} %: this engine rounds more"
    classes = [
        _explained(prediction, matcher, bank.classes[row], one, own, float(found.selected[0, row]))
        for row, one, own in zip([rows[one.label] for one in wanted], wanted, parts, strict=True)
    ]
    likeliest = int(found.selected[0].argmax())
    return Explanation(
        prediction=prediction,
        about_rejection=matcher.about_rejection,
        view_names=_view_names(manifest.head.name, manifest.views),
        matching=matching,
        problem=problem,
        error=furthest,
        best=classes[0],
        second=classes[1] if len(classes) > 1 else None,
        temperature=bank.temperature,
        chosen=(
            bank.labels[likeliest],
            _prompt(bank.classes[likeliest]),
            float(found.selected[0, likeliest]),
        ),
    )


def _check_same(prediction: Prediction, found: QueryScores, labels: tuple[str, ...]) -> None:
    distances = dict(zip(labels, found.distances[0].sum(axis=0).tolist(), strict=True))
    for one in prediction.classes[:2]:
        now = distances.get(one.label, math.inf)
        if len(prediction.classes) != len(labels) or abs(now - one.distance) > _APART * (1 + abs(one.distance)):
            raise InputError(
                f"the answer to {prediction.query} is from another bank than the matcher has now", "predict it again"
            )


def _errors(
    found: QueryScores, rows: dict[str, int], score: ClassScore, parts: tuple[ViewParts, ...]
) -> Iterator[float]:
    """How far each view's parts are from its distance, by the size of what is added up."""
    for view, own in enumerate(parts):
        size = sum(abs(getattr(own.terms, one.name)) for one in fields(Terms))
        yield abs(own.terms.total - float(found.distances[0, view, rows[score.label]])) / max(size, 1.0)


def _explained(
    prediction: Prediction, matcher: Matcher, entry: BankClass, score: ClassScore, parts: tuple[ViewParts, ...],
    selected: float,
) -> ExplainedClass:  # fmt: skip
    assert prediction.features is not None
    nearest = matcher.bank.nearest_clip(prediction.features, score.label)
    frames, unseen = None, None
    try:
        if nearest.origin is None:
            raise ClipError(nearest.name, "the bank does not say where it is")
        frames = nearest.origin.frames(display_spec(matcher.model.bundle.manifest.clip))
    except ClipError as error:
        unseen = error.reason
    return ExplainedClass(score, parts, _prompt(entry), selected, len(entry.clips), nearest.name, frames, unseen)


def _prompt(entry: BankClass) -> str:
    more = len(entry.prompts) - 1
    return entry.prompts[0] + (f" (and {more} more)" if more else "")


def _view_names(head: str, views: int) -> tuple[str, ...]:
    if head == "m2df" and views == 2:
        return "local view", "global view"
    return tuple(f"view {place + 1}" for place in range(views)) if views > 1 else ("",)


def _log(probability: float) -> float:
    return math.log(max(probability, _LEAST))
