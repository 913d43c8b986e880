"""Frames that calibrated precisions take the ranges of their activations from."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2df_export.check.episodes import chosen_clips
from m2df_export.check.single_graphs import smooth_pictures
from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.data.clips import LabelledClip

CLIPS = 20  # one frame of each
PICTURES = 8
_SEED = 20260101  # not the seed of the pictures that parity is measured on

logger = logging.getLogger(__name__)


def calibration_frames(spec: ClipSpec, data: Path | None = None) -> NDArray[np.uint8]:
    """Frames whose activations set the ranges: the same on every machine.

    One frame of each of 20 generated clips of training actions, or of clips of `data`, and 8 pictures of random
    colours: on frames of clips alone the ranges were too narrow for anything else (a small residual network's
    cosine on such pictures was 0.907, 0.9998 with them, and 0.990 and 0.999 on other generated clips).

    Args:
        spec: Preprocessing of the model.
        data: Folder with one sub-folder of clips per class; unreadable clips are left out.

    Returns:
        uint8 [N, S, S, 3].

    Raises:
        InputError: No clip of the folder can be read.
    """
    clips = _generated() if data is None else chosen_clips(data)
    step = max(1, len(clips) // CLIPS)
    frames: list[NDArray[np.uint8]] = []
    for clip in clips[::step]:
        if len(frames) == CLIPS:
            break
        try:
            pixels = load_clip(clip.open(), spec)  # [T, S, S, 3]
        except ClipError as error:
            logger.warning("left out of the calibration: %s", error)
            continue
        frames.append(pixels[len(frames) % len(pixels)])
    if not frames:
        raise InputError(f"{data}: no clip to calibrate int8 on can be read")
    return np.concatenate([np.stack(frames), smooth_pictures(np.random.default_rng(_SEED), PICTURES, spec.size)])


def _generated() -> list[LabelledClip]:
    from m2df_train.data.generated import generated_clip
    from m2df_train.synthetic import split_actions

    return [generated_clip(action.name, 0, seed=0) for action in split_actions("train")]
