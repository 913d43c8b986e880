"""What each choice of the matching is worth: one option changed at a time, on the same episodes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pydantic import BaseModel

from m2df_train.evaluation.accuracy import Accuracy, summary
from m2df_train.evaluation.compare import compare
from m2df_train.evaluation.episode_run import Answers
from m2df_train.evaluation.torch_scorer import CheckpointScorer, HeadScorer
from m2df_train.model.heads import (
    ClipFsarOptions,
    Head,
    M2dfOptions,
    TrainingFreeOptions,
    deterministic_head,
)
from m2df_train.model.options import MatchOptions
from m2df_train.report.tested import Drawn, Tested, answers_of

Options = TypeVar("Options", bound=BaseModel)

EPISODES = 1000  # the first so many of the measured ones: enough for an interval of about a point
LAMBDAS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Setting:
    """One value of one option.

    Attributes:
        topic: The option, in words.
        value: Its value, in words.
        options: The head's options with that value.
        own: Whether that is the model as it is.
    """

    topic: str
    value: str
    options: MatchOptions
    own: bool


@dataclass(frozen=True)
class Effect:
    """A setting with one number of shots, beside the model as it is.

    Attributes:
        accuracy: What was measured.
        difference: To the model as it is, in points; 0 for itself.
        interval: Its 95 % interval over episodes.
    """

    accuracy: Accuracy
    difference: float
    interval: tuple[float, float]


def settings(head: Head) -> list[Setting]:
    """All values that are tried, topic by topic; every topic holds the model as it is once."""
    options = deterministic_head(head).options
    rows = _matching(options)
    if isinstance(options, M2dfOptions):
        rows += _prompts_and_views(options)
    elif isinstance(options, ClipFsarOptions):
        fusion = options.text_visual_fusion
        modes = {"frames alone": "off", f"share of the text {fusion.beta:g}": "combine", "text alone": "text"}
        mixed = {w: _changed(options, text_visual_fusion=_changed(fusion, mode=m)) for w, m in modes.items()}
        rows += _topic("text in the scores", options, mixed)
    elif isinstance(options, TrainingFreeOptions):
        ends = {"frames alone": _changed(options, beta=0.0), "text alone": _changed(options, beta=1.0)}
        rows += _topic("text in the scores", options, ends, f"share of the text {options.beta:g}")
    return rows


def _matching(o: MatchOptions) -> list[Setting]:
    """What every head has: smoothing and directions of OTAM, and what distances are made of."""
    rows = []
    if o.otam_weight:
        lambdas = {f"{lam:g}": _changed(o, otam=_changed(o.otam, lam=lam)) for lam in sorted({*LAMBDAS, o.otam.lam})}
        rows += _topic("OTAM λ", o, lambdas)
        ways = {"both": True, "query to prototype": False}
        rows += _topic(
            "directions of OTAM", o, {w: _changed(o, otam=_changed(o.otam, bidirectional=b)) for w, b in ways.items()}
        )
    parts = {"OTAM": (1.0, 0.0), "mean of the frames": (0.0, 1.0), "OTAM + mean of the frames": (1.0, 1.0)}
    mixed = {words: _changed(o, otam_weight=order, mean_weight=mean) for words, (order, mean) in parts.items()}
    return rows + _topic("distance", o, mixed, f"{o.otam_weight:g} × OTAM + {o.mean_weight:g} × mean of the frames")


def _prompts_and_views(o: M2dfOptions) -> list[Setting]:
    modes = {"none": "none", "most probable (argmax)": "argmax", "mixture (expectation)": "expectation"}
    prompts = {words: _changed(o, pps=_changed(o.pps, eval=mode)) for words, mode in modes.items()}
    weights = {"local and global": (1.0, 1.0), "local alone": (1.0, 0.0), "global alone": (0.0, 1.0)}
    views = {words: _changed(o, view_weights=pair) for words, pair in weights.items()}
    local, other = o.view_weights
    return [
        *_topic("prompt of a query (PPS)", o, prompts),
        *_topic("views", o, views, f"{local:g} × local + {other:g} × global"),
    ]


def _topic(topic: str, own: MatchOptions, values: Mapping[str, MatchOptions], own_words: str = "") -> list[Setting]:
    """Settings of one topic; the model as it is comes first where it is none of the values."""
    rows = [Setting(topic, words, options, options == own) for words, options in values.items()]
    return rows if any(row.own for row in rows) else [Setting(topic, own_words, own, True), *rows]


def _changed(options: Options, **values: object) -> Options:
    return options.model_copy(update=values)


def sweep(
    model: Tested, drawn: Drawn, rows: Sequence[Setting], advance: Callable[[int], None] = lambda _: None
) -> list[tuple[Setting, list[Effect]]]:
    """Run settings on the first thousand of the measured episodes; an effect per number of shots.

    Raises:
        ValueError: The model is a bundle, whose options are part of its graphs.
    """
    scorer = model.encoded.subject.scorer
    if not isinstance(scorer, CheckpointScorer):
        raise ValueError("the options of a bundle are part of its graphs")
    found = []
    for row in rows:
        head = copy.copy(scorer.checkpoint.head)
        head.options = row.options
        effects = []
        for answers in model.answers:
            base = _first(answers)
            other = base
            if not row.own:
                runner = HeadScorer(head, scorer.device)
                other = answers_of(runner, model.encoded, drawn, base.shot, episodes=len(base.classes))
            between = compare(base, other, drawn.names, seed=drawn.options.seed)
            effects.append(Effect(summary(other), between.difference, between.interval))
            advance(1)
        found.append((row, effects))
    return found


def _first(answers: Answers) -> Answers:
    """Those of the first thousand episodes."""
    classes, query, predicted = (part[:EPISODES] for part in (answers.classes, answers.query, answers.predicted))
    return replace(answers, classes=classes, query=query, predicted=predicted)
