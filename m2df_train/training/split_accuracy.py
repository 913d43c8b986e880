"""Accuracy of a head on the encoded clips of one split, for validation and for the report at the end of a run."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from m2df_runtime.progress import unseen
from m2df_train.cache.encoding import FeaturePool
from m2df_train.evaluation.accuracy import Accuracy, summary
from m2df_train.evaluation.episode_run import EncodedClips, EpisodePlan, episode_answers
from m2df_train.evaluation.torch_scorer import HeadScorer

if TYPE_CHECKING:
    from m2df_train.recipe.sections import Evaluation

_log = logging.getLogger(__name__)


def accuracies(
    scorer: HeadScorer,
    pool: FeaturePool,
    evaluation: Evaluation,
    *,
    split: str,
    episodes: int,
    seed: int,
    advance: Callable[[int], None] = unseen,
) -> list[Accuracy]:
    """Accuracy for every number of shots.

    Args:
        scorer: Runs the head.
        pool: Clips with one view each.
        evaluation: Way, shots and queries.
        split: Its name, for the warning where it has fewer classes than `way`.
        episodes: Episodes per number of shots.
        seed: Of the episodes.
        advance: Called with the number of episodes done since the last call.

    Raises:
        InputError: Fewer than two classes have clips enough.
        CheckFailed: The head gives scores that are not finite.
    """
    clips, queries = EncodedClips(pool.features[:, 0].numpy(), pool.labels, pool.texts.numpy()), evaluation.queries
    found = []
    for shot in evaluation.shots:
        way = possible_way(pool.labels, evaluation.way, shot, queries, split)
        found.append(
            summary(episode_answers(scorer, clips, EpisodePlan(way, shot, queries, episodes, seed), advance=advance))
        )
    return found


def possible_way(labels: Sequence[str], way: int, shot: int, queries: int, split: str) -> int:
    """The number of classes an episode can have: `way`, or with a warning all that have clips enough.

    Where that is only one, `way` is returned: drawing an episode then tells what is missing.
    """
    usable = sum(count >= shot + queries for count in Counter(labels).values())
    if not 2 <= usable < way:
        return way
    _warn_once(f"{split}: {usable} classes have clips enough for {shot}-shot episodes, which are {usable}-way instead"
               f" of {way}-way")  # fmt: skip
    return usable


@lru_cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)
