"""What the support clips say of a bank's answers: when to answer `unknown`, and how sure a probability may be.

Leave-one-out over the clips of classes with two or more: each in turn is a query, its class is rebuilt from the
others, and its distance to the best class (by logit, as in a prediction) is a genuine score. The first clips of all
classes are left out together, then the second ones: no class has more clips than that of the query. A taught action is
as far away as they are, if it resembles them. How often something else is answered only clips of something else tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.bounds import share_upper
from m2df_runtime.progress import Advance, unseen

if TYPE_CHECKING:
    from m2df_runtime.backends.model import Model

Float = NDArray[np.float32]

# Part of every calibration; raise it where the same clips give other numbers, and banks are calibrated anew. 1 had no
# `apart`, and less sure probabilities.
CALIBRATION_VERSION = 2
MISS_RATE = 0.05
# How far beyond all scores the threshold moves, in shares of `apart`, for every factor e that the clips are too few for
# the wished rate. On generated validation actions (2 to 5 classes of 2 to 5 clips) 3 to 6 % were missed where 5 % were
# wished; without, 3 to 12 %. A margin from the spread of the scores answers more unknown actions for as few misses.
_BEYOND = 0.1
# On a busy core 500 clips of 100 classes take 1.7 s with 128 features, and 200 clips of 1,000 classes 2.1 s; a run for
# each clip took 2.8 s and 3.7 s.
_MAX_PAIRS = 100_000
_FEWEST, _MOST = 200, 2000
_AT_ONCE = 10_000  # pairs of a clip and a class in one run
_TEMPERATURES = (1e-3, 1e3)
# On generated validation actions (2, 3 and 5 classes of 2, 3 and 5 clips) the true action was surprising by 0.245 nats
# with 8 or 16, 0.247 with 4, 0.253 with 1, 0.247 without any temperature, and 0.317 with Platt scaling of the clips.
_TRUST = 8.0


@dataclass(frozen=True)
class Rejection:
    """When a query is `unknown`, and what that costs.

    Attributes:
        threshold: Distance of the best class beyond which it is.
        miss_rate: Share of taught actions that is expected beyond it: the wished one, or the least that so few clips
            can vouch for.
        at_most: Share that is still plausible for this bank: the 95 % bound of Beta(n + 1 - k, k), the distribution of
            the share of scores above the k-th smallest of n.
        wished: The miss rate that was asked for.
        clips: Support clips that were left out in turn, n.
        answered: How many background clips lie within the threshold.
        background: How many there are.
    """

    threshold: float
    miss_rate: float
    at_most: float
    wished: float
    clips: int
    answered: int
    background: int

    def text(self) -> str:
        """Both numbers in one line, with what they were counted on."""
        needed = math.ceil(1 / self.wished - 1 - 1e-9)
        few = self.clips < needed
        fewer = f"; {_percent(self.wished)} takes {needed}" if few else ""
        alarms = "not measured"
        if self.background:
            upper = share_upper(self.answered, self.background)
            alarms = (
                f"{self.answered} of {self.background} background clips answered (up to {_percent(upper)} is plausible)"
            )
        return (
            f"{'at most ' if few else ''}about {_percent(self.miss_rate)} of taught actions rejected, if queries "
            "resemble the support clips "
            f"({self.clips} clips{fewer}; for this bank up to {_percent(self.at_most)} is plausible); "
            f"false alarms: {alarms}"
        )


@dataclass(frozen=True)
class Calibration:
    """What was measured on a bank's own clips, with one engine.

    Attributes:
        scores: Distances of left-out support clips to the best class, rising.
        temperature: What logits are divided by before they become probabilities.
        backend: Engine that the graphs ran on.
        precision: Their precision.
        background: Distances of background clips to the best class, rising.
        apart: By how much the nearest class that is not a clip's own is further away than the best class, of medians.
        version: `CALIBRATION_VERSION` of the code that measured.
    """

    scores: tuple[float, ...]
    temperature: float
    backend: str
    precision: str
    background: tuple[float, ...] = ()
    apart: float = 0.0
    version: int = CALIBRATION_VERSION

    def made_by(self, model: Model) -> bool:
        """Whether this model would measure the same: with the same code, on the same backend in the same precision."""
        same_code = self.version == CALIBRATION_VERSION
        return same_code and (self.backend, self.precision) == (model.backend, model.precision)

    def rejection(self, miss_rate: float = MISS_RATE) -> Rejection:
        """When to reject so that about this share of taught actions is missed.

        The threshold is the k-th smallest of the n scores, k = ceil((n + 1)(1 - miss_rate)): of n + 1 exchangeable
        scores the last lies above it with probability (n + 1 - k) / (n + 1). For less than 1 / (n + 1) no
        n clips can vouch; then it is the largest score and a margin, which grows as they become too few for the wish.

        Args:
            miss_rate: In (0, 1).
        """
        n = len(self.scores)
        beyond = max(math.floor((n + 1) * miss_rate + 1e-9), 1)  # n + 1 - k
        lack = max(0.0, -math.log((n + 1) * miss_rate))
        threshold = self.scores[n - beyond] + _BEYOND * lack * self.apart
        return Rejection(
            threshold=threshold,
            miss_rate=beyond / (n + 1),
            at_most=share_upper(beyond - 1, n),
            wished=miss_rate,
            clips=n,
            answered=sum(distance <= threshold for distance in self.background),
            background=len(self.background),
        )


def what_lacks(shots: Sequence[int]) -> str | None:
    """What to teach before a bank of classes with these numbers of clips can be calibrated; None where it can."""
    if len(shots) < 2:
        return "teach a second action"
    return None if max(shots) > 1 else "teach a second clip"


class LeftOut(NamedTuple):
    """Support clips as queries, each against classes without it.

    Attributes:
        labels: Class of each [H].
        clips: Its place in the class [H].
        logits: [H, C].
        distances: Summed over views [H, C].
    """

    labels: NDArray[np.int64]
    clips: NDArray[np.int64]
    logits: Float
    distances: Float

    @property
    def to_others(self) -> Float:
        """Distances to classes that are not a clip's own, infinite for its own [H, C]."""
        others = self.distances.copy()
        others[np.arange(len(others)), self.labels] = np.inf
        return others


def leave_out(
    model: Model,
    features: Sequence[Float],
    prompts: Float,
    prototypes: Float,
    *,
    most: int | None = None,
    advance: Advance = unseen,
) -> LeftOut:
    """Leave out every clip of classes with two or more in turn, or `most` of them, evenly chosen.

    Clips at the same place of their classes share a run, as far as it has room: their classes all lack a clip in it.

    Args:
        model: Runs the support and query graphs.
        features: Per class the clips' features [K, T, D].
        prompts: [C, D].
        prototypes: [C, V, T, D].
        most: How many at most.
        advance: Told of each.

    Raises:
        ClipError: The scores of a clip are not finite.
        CheckFailed: Prototypes are not finite.
    """
    every = [(c, k) for c, clips in enumerate(features) if len(clips) > 1 for k in range(len(clips))]
    count = len(every) if most is None else min(most, len(every))
    places = np.linspace(0, len(every) - 1, count).round().astype(int)
    chosen = np.asarray(every, np.int64).reshape(-1, 2)[places]
    chosen = chosen[np.lexsort((chosen[:, 0], chosen[:, 1]))]
    found = []
    for labels, clips in _runs(chosen, max(1, _AT_ONCE // len(features))):
        without = prototypes.copy()
        for label, clip in zip(labels, clips, strict=True):
            others = np.delete(features[label], clip, axis=0)  # (K - 1, T, D)
            without[label] = model.prototypes(others, prompts[label : label + 1])
        queries = np.stack([features[label][clip] for label, clip in zip(labels, clips, strict=True)])
        found.append(model.match(queries, prompts, without))
        advance(len(labels))
    logits = np.concatenate([one.logits for one in found])
    distances = np.concatenate([one.distances.sum(axis=1) for one in found])
    return LeftOut(chosen[:, 0], chosen[:, 1], logits, distances)


def _runs(chosen: NDArray[np.int64], size: int) -> Iterator[tuple[list[int], list[int]]]:
    """Rows of class and place, ordered by place, as runs of at most `size` in which no class is twice."""
    for place in np.unique(chosen[:, 1]):
        labels = chosen[chosen[:, 1] == place, 0].tolist()
        for start in range(0, len(labels), size):
            part = labels[start : start + size]
            yield part, [int(place)] * len(part)


def calibrate(
    model: Model, features: Sequence[Float], prompts: Float, prototypes: Float, background: Sequence[Float] = ()
) -> Calibration | None:
    """Calibrate from stored features; encodes nothing.

    Args:
        model: Runs the support and query graphs.
        features: Per class the clips' features [K, T, D].
        prompts: [C, D].
        prototypes: [C, V, T, D].
        background: Features [T, D] of clips that show none of the classes.

    Returns:
        None where the classes have too few clips (`what_lacks`).

    Raises:
        ClipError: The scores of a clip are not finite.
        CheckFailed: Prototypes are not finite.
    """
    if what_lacks([len(clips) for clips in features]):
        return None
    most = min(_MOST, max(_FEWEST, _MAX_PAIRS // len(features)))
    left_out = leave_out(model, features, prompts, prototypes, most=most)
    scores = _to_best(left_out.logits, left_out.distances)
    return Calibration(
        scores=scores,
        temperature=fit_temperature(left_out.logits, left_out.labels),
        backend=model.backend,
        precision=model.precision,
        background=_to_best(*to_classes(model, background, prompts, prototypes)),
        apart=max(0.0, float(np.median(left_out.to_others.min(axis=1)) - np.median(scores))),
    )


def to_classes(model: Model, clips: Sequence[Float], prompts: Float, prototypes: Float) -> tuple[Float, Float]:
    """Logits and distances summed over views [n, C] of clips [T, D] that are in no class."""
    step = max(1, _AT_ONCE // len(prompts))
    found = [
        model.match(np.stack(clips[start : start + step]), prompts, prototypes) for start in range(0, len(clips), step)
    ]
    none = np.empty((0, len(prompts)), np.float32)
    logits = np.concatenate([none, *(one.logits for one in found)])
    return logits, np.concatenate([none, *(one.distances.sum(axis=1) for one in found)])


def _to_best(logits: Float, distances: Float) -> tuple[float, ...]:
    """Distances of queries to their best class, rising, from logits and distances [Q, C]."""
    best = logits.argmax(axis=1)
    return tuple(sorted(distances[np.arange(len(best)), best].tolist()))


def fit_temperature(logits: Float, labels: NDArray[np.int64]) -> float:
    """The most likely temperature by the true labels and by the model, which was trained at a temperature of 1.

    With few clips, all of them right, the likelihood alone would make every probability 100 %. The prior of the inverse
    temperature b is a gamma distribution with its mode at 1, whose logarithm is `_TRUST` (log b - b).

    Args:
        logits: [n, C], C at least 2.
        labels: The true column of each row [n].
    """
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wanted = wide[np.arange(len(wide)), labels].sum()
    # Both logarithms are concave in the inverse temperature: the zero of their slope is found between the bounds.
    low, high = (math.log(1 / bound) for bound in reversed(_TEMPERATURES))
    for _ in range(50):
        middle = (low + high) / 2
        inverse = math.exp(middle)
        shares = np.exp(wide * inverse)
        expected = ((shares / shares.sum(axis=1, keepdims=True)) * wide).sum()
        rises = wanted - expected + _TRUST * (1 / inverse - 1) > 0
        low, high = (middle, high) if rises else (low, middle)
    return math.exp(-(low + high) / 2)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1g} %"
