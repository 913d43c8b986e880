"""Parity at export: what was just written walks beside the model in PyTorch, which this process holds in memory."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from m2df_export.check.episodes import EPISODES, SEED, chosen_clips, source_name, usable
from m2df_export.check.measure import EngineResult, Reference, measure
from m2df_export.check.walk import Opened, Request, Walk, write_results
from m2df_runtime.engine_names import Precision
from m2df_runtime.errors import ClipError
from m2df_runtime.pixels.load import load_clip
from m2df_train.evaluation.torch_scorer import CheckpointScorer
from m2df_train.model.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


class Parity:
    """PyTorch's walk, done once, and the comparison of any precision with it.

    Args:
        checkpoint: The model.
        folder: Takes the results of the walks.
        data: Folder with one sub-folder of clips per class; None for generated ones.
        random: The weights are random, so that top-1 is noise: they are held to their graphs alone.

    Raises:
        InputError: The folder has fewer than two classes with two readable clips.
    """

    def __init__(self, checkpoint: Checkpoint, folder: Path, data: Path | None, *, random: bool) -> None:
        self._folder = folder
        reference = folder / "reference"
        reference.mkdir()
        clips, way = ((), 0) if random else _write_pixels(checkpoint, reference, data)
        request = Request(
            kind="checkpoint",
            path="",  # it is in memory
            backend="cpu",
            precision="fp32",
            clips=clips,
            reference=None,
            way=way,
            episodes=0 if random else EPISODES,
            seed=SEED,
            fresh=True,
        )
        name = f"PyTorch {torch.__version__} fp32"
        Walk(
            reference, request, Opened(CheckpointScorer(checkpoint, "cpu"), name, checkpoint.clip, checkpoint.rules)
        ).run()
        self.reference = Reference(reference, name, "fp32", False, {"clip": {}}, request, source_name(data), random)

    def measure(self, bundle: Path, precision: Precision) -> EngineResult:
        """Compare one precision of a bundle folder, in ONNX Runtime on the CPU."""
        return measure(bundle, "cpu", precision, self.reference, self._folder)


def _write_pixels(
    checkpoint: Checkpoint, folder: Path, data: Path | None
) -> tuple[tuple[tuple[str, str, str], ...], int]:
    """Load the clips once for all walks; class, name and no path of each, and the number of classes per episode."""
    pixels, read = {}, []
    for clip in chosen_clips(data):
        try:
            pixels[clip.name] = load_clip(clip.open(), checkpoint.clip)
        except ClipError as error:
            logger.warning("left out of the parity episodes: %s", error)
            continue
        read.append(clip)
    clips, way = usable(read, data or "")
    write_results(folder, "pixels", chain=np.stack([pixels[clip.name] for clip in clips]))
    return tuple((clip.label, clip.name, "") for clip in clips), way
