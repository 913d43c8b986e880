"""The clips a verification runs on: video files, so that decoding is part of what is verified."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2df_export.end_to_end import DATA_CLASSES, DATA_CLIPS, GENERATED_CLASSES, GENERATED_CLIPS, SHOT, WAY
from m2df_runtime.errors import InputError
from m2df_train.data.clips import folder_clips, generated_clips

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipFile:
    """A video file or frame folder: its class, its name `class/clip`, and where it is."""

    label: str
    name: str
    path: Path


def data_clips(data: Path) -> list[ClipFile]:
    """Clips of a folder with one sub-folder per class: at most 25 classes with 8 clips each.

    Raises:
        InputError: No such folder, or no class with a clip.
    """
    clips, warnings = folder_clips(data)
    for warning in warnings:
        _log.warning("%s", warning)
    chosen: list[ClipFile] = []
    for label in list(dict.fromkeys(clip.label for clip in clips))[:DATA_CLASSES]:
        of_class = [clip for clip in clips if clip.label == label][:DATA_CLIPS]
        # A clip's name in its class folder is its path there.
        chosen += [ClipFile(label, clip.name, (data / clip.name).resolve()) for clip in of_class]
    return chosen


def write_generated(folder: Path) -> list[ClipFile]:
    """Write the generated test clips, which no recipe trains on, as H.264 files: 10 classes with 4 clips each."""
    from m2df_train.demo_clips import encode_mp4

    labels = list(dict.fromkeys(clip.label for clip in generated_clips(1)))[:GENERATED_CLASSES]
    written: list[ClipFile] = []
    for clip in generated_clips(GENERATED_CLIPS, labels):
        source = clip.open()
        path = folder / f"{clip.name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        encode_mp4(path, source.read(np.arange(source.n_frames)), source.fps)
        written.append(ClipFile(clip.label, clip.name, path))
    return written


def usable(clips: list[ClipFile], where: str) -> tuple[list[ClipFile], int]:
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
