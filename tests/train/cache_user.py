"""What tests run in processes of their own: encode a folder of clips, call by call as they are let.

python cache_user.py CLIPS CACHE WORKERS

Each call of the encoder waits for a line on standard input, or for its end. ENCODER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.cache import store as feature_store
from m2df_train.cache.features import Encoded, Encoding, FeatureCache
from m2df_train.data.augment import Augmentation, TrainingLoader
from m2df_train.data.clips import folder_clips

SPEC = ClipSpec(frames=4, size=32, short_side=36, sampler="segment", interpolation="bilinear")
LOADER = TrainingLoader(Augmentation(SPEC, crop=True, hflip=0.5, hflip_query=0.5, query_colour=None), seed=0)
VIEWS = 3


def encoder(clips: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[B, T, S, S, 3] to [B, T, 6]: mean and deviation of each colour, exact in any batch."""
    values = clips.reshape(*clips.shape[:2], -1, 3).astype(np.float64)
    return np.concatenate([values.mean(axis=2), values.std(axis=2)], axis=-1).astype(np.float32)


def encode(clips: Path, cache: Path, workers: int = 0, *, works: bool = True, gate: TextIO | None = None) -> Encoded:
    """Encode all clips of a folder; the encoder waits at a gate, or fails where it must not be called."""

    def wait(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not works:
            raise AssertionError("a clip was encoded again")
        if gate is not None:
            gate.readline()
            print("encoded", flush=True)
        return encoder(pixels)

    store = FeatureCache(cache, 1 << 30)
    return store.encode(Encoding(wait, "model", LOADER, views=VIEWS, batch=4), folder_clips(clips)[0], workers=workers)


if __name__ == "__main__":
    feature_store._FLUSH_SECONDS = 0.0  # what a call encoded is safe when the next one begins
    encode(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), gate=sys.stdin)
