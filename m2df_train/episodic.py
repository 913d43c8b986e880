"""The episodic stage: a head learns to match on episodes of features from a frozen backbone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from m2df_train.contrastive import cosine_schedule, set_learning_rate
from m2df_train.data.episodes import EpisodeIndices, EpisodeSampler
from m2df_train.data.features import FeaturePool
from m2df_train.model.heads import Episode, Head
from m2df_train.state import Best, load_state, save_state

if TYPE_CHECKING:
    from m2df_train.recipe import EpisodicStage, Evaluation

VALIDATION_SEED = 1


def train_head(
    head: Head,
    pool: FeaturePool,
    validation: FeaturePool,
    stage: EpisodicStage,
    evaluation: Evaluation,
    *,
    seed: int,
    state_file: Path,
    report: Callable[[int, float, float | None], None],
) -> float:
    """Train in place and leave the weights that validated best.

    Args:
        head: Any head with parameters; the backbone is not part of it.
        pool: Clips of the training actions.
        validation: Clips of actions that are in no training.
        stage: Episodes, optimiser.
        evaluation: Way, shots and number of validation episodes.
        seed: Episodes and dropout follow from it.
        state_file: Weights and optimizer are kept here at every validation.
        report: Called after every update with finished episodes, loss per query and, where it
            was measured, validation accuracy (mean over the shots, 0 to 1).

    Returns:
        The best validation accuracy.
    """
    samplers = [
        EpisodeSampler(pool.labels, way=stage.way, shot=shot, query=stage.queries, seed=seed) for shot in stage.shots
    ]
    optimizer = torch.optim.AdamW(head.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay)
    updates = -(-stage.episodes // stage.per_update)
    first, best = load_state(state_file, head, optimizer)
    best = best or _validated(head, validation, evaluation)
    for update in range(first, updates):
        torch.manual_seed(seed * 1_000_003 + update)
        set_learning_rate(optimizer, stage.learning_rate * cosine_schedule(update, updates, updates // 50 + 1))
        loss = _update(head, pool, samplers, stage, optimizer, update)
        done, current = update + 1, None
        if done * stage.per_update % stage.validate_every < stage.per_update or done == updates:
            current = _validated(head, validation, evaluation)
            best = current if current.accuracy >= best.accuracy else best
            save_state(state_file, done, head, optimizer, best)
        report(done * stage.per_update, loss, current.accuracy if current else None)
    head.load_state_dict(best.weights)
    head.eval()
    return best.accuracy


def _validated(head: Head, validation: FeaturePool, evaluation: Evaluation) -> Best:
    return Best(accuracy(head, validation, evaluation), copy.deepcopy(head.state_dict()))


def _update(
    head: Head,
    pool: FeaturePool,
    samplers: Sequence[EpisodeSampler],
    stage: EpisodicStage,
    optimizer: torch.optim.Optimizer,
    update: int,
) -> float:
    """Sum the gradients of `per_update` episodes, step, and return the mean loss per query."""
    head.train()
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for number in range(update * stage.per_update, (update + 1) * stage.per_update):
        drawn = samplers[number % len(samplers)].episode(number)
        rng = np.random.default_rng([samplers[0].seed, number, 1])
        texts = pool.texts
        if rng.random() < stage.shuffled_prompts:
            texts = texts[torch.from_numpy(rng.permutation(len(texts)))]
        losses = head(make_episode(pool, drawn, texts)).losses
        assert losses is not None  # make_episode gives query labels
        (losses.total / stage.per_update).backward()
        total += losses.total.item() / drawn.query.size
    torch.nn.utils.clip_grad_norm_(head.parameters(), 10.0)
    optimizer.step()
    return total / stage.per_update


def make_episode(pool: FeaturePool, drawn: EpisodeIndices, texts: Tensor) -> Episode:
    """The drawn clips as an episode; queries are ordered by class. `texts` is [C, D] in the pool's class order."""
    support, query = torch.from_numpy(drawn.support), torch.from_numpy(drawn.query)  # (W, K), (W, Q)
    way = torch.arange(len(drawn.classes))
    classes = torch.from_numpy(drawn.classes)
    return Episode(
        support_features=pool.features[support.flatten()],
        support_labels=way.repeat_interleave(support.shape[1]),
        query_features=pool.features[query.flatten()],
        class_prompts=texts[classes],
        query_labels=way.repeat_interleave(query.shape[1]),
        text_table=texts,
        support_classes=classes.repeat_interleave(support.shape[1]),
        query_classes=classes.repeat_interleave(query.shape[1]),
    )


def accuracy(head: Head, pool: FeaturePool, evaluation: Evaluation) -> float:
    """Mean accuracy (0 to 1) over the evaluation's shots on fixed validation episodes."""
    head.eval()
    correct = []
    with torch.inference_mode():
        for shot in evaluation.shots:
            sampler = EpisodeSampler(
                pool.labels, way=evaluation.way, shot=shot, query=evaluation.queries, seed=VALIDATION_SEED
            )
            for drawn in sampler.episodes(evaluation.validation_episodes):
                episode = make_episode(pool, drawn, pool.texts)
                output = head(episode)
                correct.append((output.logits.argmax(dim=1) == episode.query_labels).float().mean().item())
    return float(np.mean(correct))
