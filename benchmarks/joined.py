"""Short recordings of real clips, one after the other: hard cuts, but real people.

Clips of one person or recording are joined; the support clips show others. Half of the classes are taught, the rest
occurs as background, and in the next recording it is the other way round.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2df_runtime import Matcher, SupportBank
from m2df_runtime.backends.model import Model
from m2df_runtime.bundle.prompt_texts import read_labels
from m2df_runtime.clips.source import ArrayPicture, FrameSource, Picture, fitted
from m2df_runtime.commands.console import progress
from m2df_train.data.clips import LabelledClip, clip_groups, folder_clips
from m2df_train.evaluation.event_measures import TrueAction
from m2df_train.evaluation.recordings import ScoredRecording, scored


class Joined(FrameSource):
    """Clips one after the other, each fitted into the picture of the first."""

    def __init__(self, sources: Sequence[FrameSource]) -> None:
        self._sources = sources
        lengths = [source.duration for source in sources]
        self.starts = np.concatenate([[0.0], np.cumsum(lengths)])
        self._firsts = np.concatenate([[0], np.cumsum([source.n_frames for source in sources])])
        self.n_frames = int(self._firsts[-1])
        self.times = np.concatenate(
            [source.times + start for source, start in zip(sources, self.starts.tolist(), strict=False)]
        )
        self.fps = self.n_frames / float(self.starts[-1])

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`."""
        size = self._sources[0].read([0]).shape[2:0:-1]
        for source, first in zip(self._sources, self._firsts.tolist(), strict=False):
            own = indices[(indices >= first) & (indices < first + source.n_frames)] - first
            for picture in source.pictures(own) if len(own) else ():
                yield ArrayPicture(fitted(picture.rgb(), (size[0], size[1])))


def joined_recordings(
    model: Model, data: Path, groups: str, classes: Sequence[str] | None, shots: int, folder: Path, labels: Path | None
) -> list[ScoredRecording]:
    """What is seen in the clips of every group of a folder of class folders.

    Args:
        model: The opened bundle.
        data: One folder per class.
        groups: Regular expression whose first group names the person or recording of a clip.
        classes: Only these; None for all.
        shots: Support clips per class, all of other groups.
        folder: Where support clips are copied to.
        labels: Texts of classes, as `m2df-eval --labels` reads them.
    """
    clips, _ = folder_clips(data, classes)
    owners = clip_groups([clip.name for clip in clips], groups)
    rules = model.bundle.manifest.text.rules.over(read_labels(labels) if labels else {})
    names = sorted({clip.label for clip in clips})
    found = []
    with progress("real clips", len(set(owners))) as advance:
        for number, group in enumerate(sorted(set(owners))):
            rng = np.random.default_rng(number)
            taught = names[number % 2 :: 2]
            support = folder / f"joined-{number}"
            for label in taught:
                others = [
                    clip for clip, owner in zip(clips, owners, strict=True) if owner != group and clip.label == label
                ]
                _copy(data, [others[k] for k in rng.permutation(len(others))[:shots].tolist()], support)
            own = [clip for clip, owner in zip(clips, owners, strict=True) if owner == group]
            order = [own[k] for k in rng.permutation(len(own)).tolist()]
            recording = Joined([clip.open() for clip in order])
            spans = zip(order, pairwise(recording.starts.tolist()), strict=True)
            truth = [TrueAction(*span, clip.label) for clip, span in spans if clip.label in taught]
            matcher = Matcher(model, SupportBank.of(model, support, rules))
            found.append(scored(matcher, recording, group, truth))
            advance(1)
    return found


def _copy(data: Path, clips: Sequence[LabelledClip], support: Path) -> None:
    for clip in clips:
        target = support / clip.name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = data / clip.name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
