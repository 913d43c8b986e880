"""Accuracy over episodes with its confidence interval, per class, and which classes were taken for which."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from m2df_train.evaluation.episode_run import Answers


@dataclass(frozen=True)
class Accuracy:
    """Accuracy over episodes, in percent.

    Attributes:
        accuracy: Mean over episodes.
        ci95: Half width of its 95 % confidence interval, 1.96 times the standard error.
        per_class: Share of each class's queries that were right, for classes that were drawn.
        confusion: Class to class to number: how often a query of the first was taken for the second.
        way: Classes per episode.
        shot: Support clips per class.
        query: Query clips per class.
        episodes: Number of episodes.
        seconds: Wall time of the episodes.
    """

    accuracy: float
    ci95: float
    per_class: dict[str, float]
    confusion: dict[str, dict[str, int]]
    way: int
    shot: int
    query: int
    episodes: int
    seconds: float


def summary(answers: Answers) -> Accuracy:
    """Accuracy, per class and confusion of answers."""
    episodes, way, query = answers.predicted.shape
    per_episode = answers.right.mean(axis=(1, 2)).tolist()
    mean = math.fsum(per_episode) / episodes
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in per_episode) / episodes)
    confusion = _confusion(answers)
    return Accuracy(
        accuracy=100 * mean,
        ci95=100 * 1.96 * deviation / math.sqrt(episodes),
        per_class={name: 100 * row[name] / sum(row.values()) for name, row in confusion.items()},
        confusion=confusion,
        way=way,
        shot=answers.shot,
        query=query,
        episodes=episodes,
        seconds=answers.seconds,
    )


def _confusion(answers: Answers) -> dict[str, dict[str, int]]:
    """Counts of class and answer over all queries, between the classes that were drawn."""
    episodes, way, query = answers.predicted.shape
    truth = np.broadcast_to(answers.classes[:, :, None], answers.predicted.shape)
    taken = np.take_along_axis(answers.classes, answers.predicted.reshape(episodes, way * query), axis=1)
    size = len(answers.names)
    counts = np.bincount(truth.ravel() * size + taken.ravel(), minlength=size * size).reshape(size, size)
    drawn = [position for position in range(size) if counts[position].any()]
    return {answers.names[true]: {answers.names[other]: int(counts[true, other]) for other in drawn} for true in drawn}
