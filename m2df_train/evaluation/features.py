"""Features of labelled clips as a model has them: every clip is encoded once, and episodes are drawn from these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.progress import unseen
from m2df_train.cache.features import Encoding, FeatureCache
from m2df_train.data.augment import DeployedLoader
from m2df_train.data.clips import LabelledClip
from m2df_train.evaluation.scorer import Scorer

Float = NDArray[np.float32]

# Clips per call of the visual graph: ORT on 2 cores gains nothing beyond 4, and pixels stay below 10 MB.
_ENCODE_BATCH = 4
_NO_CACHE = FeatureCache(None, 0)


@dataclass(frozen=True)
class Features:
    """Encoded clips.

    Attributes:
        values: float32 [n, T, D].
        labels: Class of every clip.
        names: `class/clip` of every clip.
        skipped: Clips that could not be read.
        seconds: Wall time of decoding and encoding, next to none for features that were kept.
    """

    values: Float
    labels: tuple[str, ...]
    names: tuple[str, ...]
    skipped: tuple[str, ...]
    seconds: float


def encode(
    scorer: Scorer,
    clips: Sequence[LabelledClip],
    spec: ClipSpec,
    *,
    cache: FeatureCache = _NO_CACHE,
    identity: str = "",
    workers: int = 0,
    advance: Callable[[int], None] = unseen,
) -> Features:
    """Read, preprocess and encode every clip once; clips that cannot be read are reported and left out.

    Args:
        scorer: The model.
        clips: What to encode.
        spec: The model's preprocessing.
        cache: Where features are found and kept.
        identity: Stands in the cache for all that the features of a clip depend on.
        workers: Processes that read clips; 0 for none but this one.
        advance: Called with the number of clips done.

    Raises:
        InputError: No clip can be read.
    """
    way = Encoding(scorer.encode_clips, identity, DeployedLoader(spec), batch=_ENCODE_BATCH)
    encoded = cache.encode(way, clips, workers=workers, advance=advance)
    kept = set(encoded.kept)
    return Features(
        values=encoded.values[:, 0],  # the one view
        labels=tuple(clips[place].label for place in encoded.kept),
        names=tuple(clips[place].name for place in encoded.kept),
        skipped=tuple(clip.name for place, clip in enumerate(clips) if place not in kept),
        seconds=encoded.seconds,
    )
