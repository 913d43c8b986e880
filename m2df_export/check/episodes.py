"""Episodes that two sides answer: which clips they are drawn from, and how the answers differ."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from m2df_runtime.errors import InputError
from m2df_runtime.parity import ROUNDING, Gates
from m2df_train.data.clips import LabelledClip, folder_clips, generated_clips
from m2df_train.evaluation.accuracy import summary
from m2df_train.evaluation.compare import compare
from m2df_train.evaluation.episode_run import Answers

WAY, SHOT, EPISODES, SEED = 5, 1, 200, 0
# 40 clips: a ViT-B/16 encodes them in about two minutes on two cores, for each precision and for PyTorch.
GENERATED_CLASSES, GENERATED_CLIPS = 10, 4
DATA_CLASSES, DATA_CLIPS = 25, 8

logger = logging.getLogger(__name__)


class _Labelled(Protocol):
    @property
    def label(self) -> str: ...


Clip = TypeVar("Clip", bound=_Labelled)


@dataclass(frozen=True)
class ClipFile:
    """A video file or frame folder: its class, its name `class/clip`, and where it is."""

    label: str
    name: str
    path: Path


def chosen_clips(data: Path | None) -> list[LabelledClip]:
    """Clips of a folder with one sub-folder per class, at most 25 classes with 8 clips each; None for generated ones.

    Generated are 10 classes of the test actions, which no recipe trains on, with 4 clips each.

    Raises:
        InputError: No such folder, or no class with a clip.
    """
    if data is None:
        labels = list(dict.fromkeys(clip.label for clip in generated_clips(1)))[:GENERATED_CLASSES]
        return generated_clips(GENERATED_CLIPS, labels)
    clips, warnings = folder_clips(data)
    for warning in warnings:
        logger.warning("%s", warning)
    chosen: list[LabelledClip] = []
    for name in list(dict.fromkeys(clip.label for clip in clips))[:DATA_CLASSES]:
        chosen += [clip for clip in clips if clip.label == name][:DATA_CLIPS]
    return chosen


def clip_files(data: Path | None, folder: Path) -> list[ClipFile]:
    """The chosen clips as files; generated ones are written to `folder` as H.264.

    Raises:
        InputError: See `chosen_clips`.
    """
    if data is not None:
        # A clip's name in its class folder is its path there.
        return [ClipFile(clip.label, clip.name, (data / clip.name).resolve()) for clip in chosen_clips(data)]
    from m2df_train.synthetic.demo_clips import encode_mp4

    written: list[ClipFile] = []
    for clip in chosen_clips(None):
        source = clip.open()
        path = folder / f"{clip.name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        encode_mp4(path, source.read(np.arange(source.n_frames)), source.fps)
        written.append(ClipFile(clip.label, clip.name, path))
    return written


def source_name(data: Path | None) -> str:
    """Where the chosen clips come from, for reports."""
    return "generated actions" if data is None else data.resolve().name


def usable(clips: Sequence[Clip], where: str | Path) -> tuple[list[Clip], int]:
    """The clips of classes with enough of them for an episode, and the number of classes per episode.

    Raises:
        InputError: Fewer than two such classes.
    """
    labels = [clip.label for clip in clips]
    classes = [label for label in dict.fromkeys(labels) if labels.count(label) > SHOT]
    if len(classes) < 2:
        raise InputError(
            f"{where}: episodes need two classes with {SHOT + 1} readable clips each, {len(classes)} found"
        )
    return [clip for clip in clips if clip.label in classes], min(WAY, len(classes))


@dataclass(frozen=True)
class Flip:
    """A query clip with answers that differ: how many of how many."""

    name: str
    flipped: int
    drawn: int


@dataclass(frozen=True)
class EpisodeResult:
    """Episodes of an engine and of the reference.

    Attributes:
        agreement: Share of queries with the same top-1 answer.
        accuracy: In percent.
        reference_accuracy: In percent.
        difference: Of the two, in percentage points.
        interval: Its 95 % bootstrap interval over episodes.
        flips: Clips with answers that differ, the most often first.
        problem: Why this is out of tolerance; None where it is not.
    """

    agreement: float
    accuracy: float
    reference_accuracy: float
    difference: float
    interval: tuple[float, float]
    flips: tuple[Flip, ...]
    problem: str | None


def compare_answers(actual: Answers, expected: Answers, names: Iterable[str], gates: Gates) -> EpisodeResult:
    """Compare the answers of an engine with the reference's, both to the same episodes; `names` are the clips'."""
    names = list(names)
    compared = compare(expected, actual, names)
    different = actual.predicted != expected.predicted
    drawn = np.bincount(actual.query.ravel(), minlength=len(names))
    flipped = np.bincount(actual.query[different], minlength=len(names))
    counts = zip(names, flipped.tolist(), drawn.tolist(), strict=True)
    flips = [Flip(name, count, of) for name, count, of in counts if count]
    agreement = 1.0 - float(different.mean())
    problem = None
    if gates.agreement is not None and agreement < gates.agreement:
        problem = f"top-1 agreement {agreement:.1%}, needed {gates.agreement:.1%}"
    elif gates.accuracy_drop is not None and -compared.difference / 100 > gates.accuracy_drop + ROUNDING:
        problem = f"accuracy drops by {-compared.difference:.1f} points, allowed {100 * gates.accuracy_drop:.1f}"
    return EpisodeResult(
        agreement=agreement,
        accuracy=summary(actual).accuracy,
        reference_accuracy=summary(expected).accuracy,
        difference=compared.difference,
        interval=compared.interval,
        flips=tuple(sorted(flips, key=lambda flip: (-flip.flipped, flip.name))),
        problem=problem,
    )
