"""Where a model looks: how its answer changes when a part of one frame is covered (occlusion sensitivity).

It needs nothing but answers, so it is the same for a vision transformer, a ResNet, the demo's tower and
an exported bundle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2df_train.evaluation.scorer import EpisodeScorer

Float = NDArray[np.float32]

CELLS = 8  # the frame is divided into 8 x 8 cells ...
PATCH = 2  # ... and 2 x 2 of them, a sixteenth of the frame, are covered at a time
_BATCH = 32  # frames, or queries, per call of the model


@dataclass(frozen=True)
class Occlusion:
    """Effect of covering parts of a clip's frames.

    Attributes:
        effect: Fall of the margin when what a cell shows is covered, float32 [T, CELLS, CELLS], the mean over
            the patches that cover it; positive where the cell speaks for the answer.
        margin: Score of the answer minus that of the runner-up with nothing covered.
        runner_up: The runner-up, a position in the episode.
    """

    effect: Float
    margin: float
    runner_up: int


def occlusion(scorer: EpisodeScorer, pixels: NDArray[np.uint8], prompts: Float, prototypes: Float) -> Occlusion:
    """Cover every patch of every frame, one at a time, and score the clip again.

    Covered pixels take the clip's mean colour. The answer and its runner-up are those of the whole clip.

    Args:
        scorer: The model.
        pixels: The clip as the model sees it, uint8 [T, S, S, 3].
        prompts: Text embeddings of the episode's classes [W, D].
        prototypes: Their prototypes [W, V, T, D].
    """
    whole = scorer.encode_clips(pixels[None])[0]  # (T, D)
    colour = np.rint(pixels.mean(axis=(0, 1, 2)))
    variants = [whole[None]]
    for place, frame in enumerate(pixels):
        covered = _covered(frame, colour)  # (patches, S, S, 3)
        if scorer.frames_alone:
            features = np.repeat(whole[None], len(covered), axis=0)
            features[:, place] = _encoded(scorer, covered[:, None])[:, 0]
        else:
            clips = np.repeat(pixels[None], len(covered), axis=0)
            clips[:, place] = covered
            features = _encoded(scorer, clips)
        variants.append(features)  # (patches, T, D)
    scores = _scores(scorer, np.concatenate(variants), prompts, prototypes)  # (1 + T * patches, W)
    runner_up, answer = np.argsort(scores[0], kind="stable")[-2:].tolist()
    margins = scores[:, answer] - scores[:, runner_up]
    side = CELLS - PATCH + 1
    fall = (margins[0] - margins[1:]).reshape(len(pixels), side, side)
    return Occlusion(_over_cells(fall), float(margins[0]), runner_up)


def _scores(scorer: EpisodeScorer, queries: Float, prompts: Float, prototypes: Float) -> Float:
    """Logits [n, W] of queries [n, T, D]."""
    batches = [queries[i : i + _BATCH] for i in range(0, len(queries), _BATCH)]
    with scorer.parallel():
        found = [
            scorer.batch_match(scorer.clip_parts(batch)[None], prompts[None], prototypes[None])[0] for batch in batches
        ]
    return np.concatenate(found)


def _covered(frame: NDArray[np.uint8], colour: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The frame [S, S, 3] once for every place of the patch, row by row: [patches, S, S, 3]."""
    edges = np.rint(np.linspace(0, len(frame), CELLS + 1)).astype(int)
    side = CELLS - PATCH + 1
    copies = np.repeat(frame[None], side * side, axis=0)
    for place, copy in enumerate(copies):
        top, left = divmod(place, side)
        copy[edges[top] : edges[top + PATCH], edges[left] : edges[left + PATCH]] = colour
    return copies


def _encoded(scorer: EpisodeScorer, clips: NDArray[np.uint8]) -> Float:
    """Features [n, t, D] of clips [n, t, S, S, 3]."""
    step = max(1, _BATCH // clips.shape[1])
    return np.concatenate([scorer.encode_clips(clips[i : i + step]) for i in range(0, len(clips), step)])


def _over_cells(fall: Float) -> Float:
    """Mean over the patches that cover a cell: [T, side, side] -> [T, CELLS, CELLS]."""
    total = np.zeros((len(fall), CELLS, CELLS), np.float32)
    count = np.zeros((CELLS, CELLS), np.float32)
    side = fall.shape[1]
    for down in range(PATCH):
        for right in range(PATCH):
            total[:, down : down + side, right : right + side] += fall
            count[down : down + side, right : right + side] += 1
    return total / count
