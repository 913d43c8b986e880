"""The clips a verification runs on: video files, so that decoding is part of what is verified."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2df_export.check.end_to_end import GENERATED_CLASSES, GENERATED_CLIPS, SHOT, WAY, folder_selection
from m2df_runtime.errors import InputError
from m2df_train.data.clips import generated_clips


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
    # A clip's name in its class folder is its path there.
    return [ClipFile(clip.label, clip.name, (data / clip.name).resolve()) for clip in folder_selection(data)]


def write_generated(folder: Path) -> list[ClipFile]:
    """Write the generated test clips, which no recipe trains on, as H.264 files: 10 classes with 4 clips each."""
    from m2df_train.synthetic.demo_clips import encode_mp4

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
