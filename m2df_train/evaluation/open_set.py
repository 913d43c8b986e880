"""How well the distance to the best class tells queries of known actions from those of unknown ones.

Every episode has known classes, which are in its support set, and unknown ones, which are not. All of them together
are asked with one threshold, as a user's bank is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.errors import CheckFailed
from m2df_runtime.progress import unseen
from m2df_train.data.episodes import EpisodeIndices
from m2df_train.evaluation.episode_run import EncodedClips, EpisodePlan, threads
from m2df_train.evaluation.scorer import EpisodeScorer

Values = NDArray[np.float64]
RECALL = 0.95
RESAMPLES = 500


@dataclass(frozen=True)
class OpenAnswers:
    """Distances of queries to the class that they were given, in E episodes.

    Attributes:
        known: Of queries of the episode's classes [E, N].
        right: Which of these were given their own class [E, N].
        unknown: Of queries of other classes [E, M].
    """

    known: Values
    right: NDArray[np.bool_]
    unknown: Values


@dataclass(frozen=True)
class Measure:
    """In percent, with its 95 % bootstrap interval over episodes."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OpenSet:
    """Known against unknown queries.

    Attributes:
        auroc: See `auroc`.
        false_positives: See `false_positives`.
        oscr: See `oscr`.
        accuracy: Share of known queries that were given their class; what OSCR is at best.
        way: Known classes of an episode.
        unknown: Unknown ones.
        episodes: Number of episodes.
    """

    auroc: Measure
    false_positives: Measure
    oscr: Measure
    accuracy: Measure
    way: int
    unknown: int
    episodes: int


def auroc(known: Values, unknown: Values) -> float:
    """Probability that a known query is nearer than an unknown one; a tie counts half."""
    return float(_nearer(known, unknown).mean())


def false_positives(known: Values, unknown: Values) -> float:
    """Share of unknown queries that are answered where 95 % of the known ones are, or the next share above that."""
    ordered = np.sort(known.ravel())
    threshold = ordered[int(np.ceil(RECALL * ordered.size - 1e-9)) - 1]
    return float((unknown <= threshold).mean())


def oscr(known: Values, right: NDArray[np.bool_], unknown: Values) -> float:
    """Area under the open-set classification rate curve (Dhamija, Günther and Boult, 2018).

    With the threshold t on the distance d to the given class, the curve is CCR(t) = |{known x: d(x) <= t and x was
    given its class}| / |known| over FPR(t) = |{unknown x: d(x) <= t}| / |unknown|; the area is that below it for FPR
    from 0 to 1, by trapezoids where several share a distance. It is at most the accuracy. Wrong answers to known
    queries count in the denominator: leaving them out gives an AUROC of what is easy anyway.
    """
    return float((right.ravel() * _nearer(known, unknown)).mean())


def _nearer(known: Values, unknown: Values) -> Values:
    """Of each known query the share of unknown ones that are further away, those equally far counted half."""
    ordered = np.sort(unknown.ravel())
    below, upto = (np.searchsorted(ordered, known.ravel(), side) for side in ("left", "right"))
    return 1 - (below + upto) / (2 * ordered.size)


def open_answers(
    scorer: EpisodeScorer, clips: EncodedClips, plan: EpisodePlan, unknown: int, advance: Callable[[int], None] = unseen
) -> OpenAnswers:
    """Draw episodes of `plan.way` known and `unknown` further classes, and match all their queries with the known ones.

    Raises:
        InputError: Options or data from which no episode can be drawn.
        CheckFailed: The model gives scores that are not finite.
    """
    drawn = EpisodePlan(plan.way + unknown, plan.shot, plan.query, plan.episodes, plan.seed)
    sampler = drawn.sampler(clips.labels, clips.groups)

    def answered(number: int) -> tuple[Values, NDArray[np.bool_], Values]:
        episode = sampler.episode(number)
        distances, predicted = _matched(scorer, clips, episode, plan.way)
        truth = np.repeat(np.arange(plan.way + unknown), plan.query)
        known = truth < plan.way
        return distances[known], (predicted == truth)[known], distances[~known]

    found = []
    with scorer.parallel() as workers, threads(workers) as each:
        for one in each(answered, range(plan.episodes)):
            found.append(one)
            advance(1)
    return OpenAnswers(*(np.stack(part) for part in zip(*found, strict=True)))


def _matched(
    scorer: EpisodeScorer, clips: EncodedClips, episode: EpisodeIndices, way: int
) -> tuple[Values, NDArray[np.int64]]:
    """All queries of an episode against its first `way` classes: distance to the given class, and which that is."""
    prompts = clips.prompts[episode.classes[:way]]
    prototypes = scorer.batch_prototypes(clips.features[episode.support[:way]], prompts)
    scores = scorer.match(clips.features[episode.query.ravel()], prompts, prototypes)
    distances = scores.distances.sum(axis=1, dtype=np.float64)  # (Q, V, C) -> (Q, C)
    if not (np.isfinite(distances).all() and np.isfinite(scores.logits).all()):
        raise CheckFailed("the model gives scores that are not finite", "try another precision")
    best = scores.logits.argmax(axis=1)
    return distances[np.arange(len(best)), best], best


def open_set(answers: OpenAnswers, way: int, unknown: int, seed: int = 0) -> OpenSet:
    """What the answers come to."""

    def measured(chosen: NDArray[np.int64] | slice) -> tuple[float, float, float, float]:
        known, right, others = answers.known[chosen], answers.right[chosen], answers.unknown[chosen]
        return auroc(known, others), false_positives(known, others), oscr(known, right, others), float(right.mean())

    episodes = len(answers.known)
    rng = np.random.default_rng(seed)
    drawn = np.array([measured(rng.integers(0, episodes, episodes)) for _ in range(RESAMPLES)])
    bounds = np.percentile(drawn, [2.5, 97.5], axis=0)
    every = zip(measured(slice(None)), *bounds, strict=True)
    found = [Measure(*(round(100 * float(v), 2) for v in row)) for row in every]
    return OpenSet(found[0], found[1], found[2], found[3], way, unknown, episodes)
