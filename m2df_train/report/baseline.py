"""What a model is measured against where no second one is named: the training-free head on the same features."""

from __future__ import annotations

from collections.abc import Callable

import torch

from m2df_train.evaluation.episode_run import Answers
from m2df_train.evaluation.torch_scorer import HeadScorer
from m2df_train.model.heads import TrainingFreeHead
from m2df_train.report.tested import Drawn, Tested, answers_of


def training_free_answers(
    model: Tested, drawn: Drawn, advance: Callable[[int], None] = lambda _: None
) -> tuple[Answers, ...]:
    """Answers of the training-free head to all measured episodes, one per number of shots."""
    _, frames, dim = model.encoded.features.values.shape
    head = HeadScorer(TrainingFreeHead(dim, frames), torch.device("cpu"))
    return tuple(
        answers_of(head, model.encoded, drawn, answers.shot, episodes=len(answers.classes), advance=advance)
        for answers in model.answers
    )
