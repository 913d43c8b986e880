"""The tables of a report: accuracy, classes, confusions, and in what two models differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2df_train.evaluation.accuracy import Accuracy, summary
from m2df_train.evaluation.bundle_scorer import BundleScorer
from m2df_train.evaluation.compare import Comparison, compare
from m2df_train.evaluation.episode_run import Answers
from m2df_train.evaluation.models import Subject
from m2df_train.evaluation.torch_scorer import CheckpointScorer

CONFUSION_CLASSES = 40  # a larger matrix is not read, its largest confusions are
CONFUSIONS = 10


@dataclass(frozen=True)
class ClassRow:
    """One class: accuracy with the half width of its 95 % interval, the rival's, and the gain over it with its own."""

    name: str
    queries: int
    accuracy: float
    ci95: float
    rival: float | None
    gain: float | None
    gain_ci95: float | None


@dataclass(frozen=True)
class Confused:
    """A confusion: a share of the class's queries, in percent, was taken for another."""

    name: str
    answer: str
    share: float
    count: int


@dataclass(frozen=True)
class ShotTables:
    """Everything about one number of shots.

    Attributes:
        accuracy: The model's.
        rival: Accuracy of what it is compared with, None without.
        comparison: The model against the rival.
        classes: One row per class, the largest gain first, or the largest accuracy without a rival.
        shares: Percentages of each class's queries by answer [C, C], in the order of `accuracy.confusion`.
        confused: The largest confusions.
    """

    accuracy: Accuracy
    rival: Accuracy | None
    comparison: Comparison | None
    classes: tuple[ClassRow, ...]
    shares: NDArray[np.float64]
    confused: tuple[Confused, ...]


def shot_tables(answers: Answers, rival: Answers | None, names: Sequence[str], seed: int) -> ShotTables:
    """Tables of one number of shots.

    Args:
        answers: Of the model.
        rival: Of what it is compared with, to the same episodes.
        names: Name of every clip.
        seed: Seed of the bootstrap.
    """
    accuracy = summary(answers)
    counts = np.array([list(row.values()) for row in accuracy.confusion.values()], dtype=np.float64)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    return ShotTables(
        accuracy=accuracy,
        rival=None if rival is None else summary(rival),
        comparison=None if rival is None else compare(rival, answers, names, seed=seed),
        classes=_class_rows(answers, rival),
        shares=shares,
        confused=_largest(list(accuracy.confusion), counts, shares),
    )


def _class_rows(answers: Answers, rival: Answers | None) -> tuple[ClassRow, ...]:
    right = answers.right.mean(axis=2)  # (E, W)
    other = None if rival is None else rival.right.mean(axis=2)
    queries = answers.query.shape[2]
    rows = []
    for position, name in enumerate(answers.names):
        drawn = answers.classes == position  # (E, W)
        own = right[drawn]
        if not len(own):
            continue
        accuracy, ci95 = _mean(own)
        if other is None:
            rows.append(ClassRow(name, len(own) * queries, accuracy, ci95, None, None, None))
        else:
            gain, gain_ci95 = _mean(own - other[drawn])
            rows.append(ClassRow(name, len(own) * queries, accuracy, ci95, accuracy - gain, gain, gain_ci95))
    return tuple(sorted(rows, key=lambda row: -(row.accuracy if row.gain is None else row.gain)))


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval over episodes, in percent."""
    return 100 * float(values.mean()), 196 * float(values.std()) / len(values) ** 0.5


def _largest(names: Sequence[str], counts: NDArray[np.float64], shares: NDArray[np.float64]) -> tuple[Confused, ...]:
    wrong = shares - np.diag(np.diag(shares))
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return tuple(Confused(names[i], names[j], wrong[i, j], int(counts[i, j])) for i, j in places if wrong[i, j])


def facts(subject: Subject) -> dict[str, str]:
    """What a model is, flat: its head and options, preprocessing, prompt and origin."""
    scorer = subject.scorer
    if isinstance(scorer, CheckpointScorer):
        held = scorer.checkpoint
        name, options, source = held.head_name, held.head.options.model_dump(mode="json"), held.source
    elif isinstance(scorer, BundleScorer):
        manifest = scorer.bundle.manifest
        name, options, source = manifest.head.name, manifest.head.options, manifest.source
    else:
        return {}
    origin = {"backbone": source.model, "pretrained": source.pretrained, "recipe": source.recipe, "seed": source.seed}
    values = {**origin, "head": name, "head.options": options, "clip": subject.spec.model_dump(mode="json")}
    values |= {"prompt": subject.rules.template, "run by": f"{subject.backend} {subject.precision}"}
    return _flat(values)


def differences(a: Mapping[str, str], b: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """What two models' facts differ in: name, of A, of B."""
    names = dict.fromkeys([*a, *b])
    return [(name, a.get(name, "–"), b.get(name, "–")) for name in names if a.get(name) != b.get(name)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = "–" if value is None else str(value)
    return found
