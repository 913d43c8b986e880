"""What a report is about: models measured on the same episodes of the same clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from m2df_runtime.progress import unseen
from m2df_train.data.clips import LabelledClip
from m2df_train.data.episodes import EpisodeSampler
from m2df_train.evaluation.clips import EpisodeOptions
from m2df_train.evaluation.episode_run import Answers, episode_answers
from m2df_train.evaluation.models import Encoded
from m2df_train.evaluation.scorer import EpisodeHead
from m2df_train.evaluation.torch_scorer import CheckpointScorer
from m2df_train.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class Drawn:
    """The episodes, and the clips they are drawn from.

    Attributes:
        data: Where the clips come from, in words.
        clips: The clips every model could read, in the order of the features.
        options: How the episodes are drawn.
    """

    data: str
    clips: Sequence[LabelledClip]
    options: EpisodeOptions

    @property
    def labels(self) -> tuple[str, ...]:
        """Class of every clip."""
        return tuple(clip.label for clip in self.clips)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every clip."""
        return tuple(clip.name for clip in self.clips)

    def sampler(self, shot: int) -> EpisodeSampler:
        """What draws the episodes of this number of support clips."""
        return self.options.plan(shot).sampler(self.labels, self.options.groups_of(self.names))


@dataclass(frozen=True)
class Tested:
    """A model and what it answered.

    Attributes:
        name: What the page calls it.
        encoded: The model, and its features of the clips.
        answers: One per number of shots, in the order of the options.
    """

    name: str
    encoded: Encoded
    answers: tuple[Answers, ...]

    @property
    def checkpoint(self) -> Checkpoint | None:
        """Its modules, to look into; a bundle has none."""
        scorer = self.encoded.subject.scorer
        return scorer.checkpoint if isinstance(scorer, CheckpointScorer) else None


def answers_of(
    head: EpisodeHead,
    encoded: Encoded,
    drawn: Drawn,
    shot: int,
    *,
    episodes: int,
    advance: Callable[[int], None] = unseen,
) -> Answers:
    """What another head answers to the first of the measured episodes, on the same features."""
    options = drawn.options
    return episode_answers(head, encoded.clips(options), options.plan(shot, episodes), advance=advance)
