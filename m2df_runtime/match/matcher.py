"""From a query clip to a prediction, against the classes of a support bank."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Literal

import av  # noqa: F401 - its 70 ms of loading are not decoding time
import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends import Tensor
from m2df_runtime.backends.arrays import checked
from m2df_runtime.backends.model import Model
from m2df_runtime.bank.bank import BankClass, BankClip, SupportBank, keys_of
from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.source import CroppedSource, FrameSource, Picture, Rectangle
from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.pixels.thumbnails import WatchedClip, shown_frames

Float = NDArray[np.float32]


@dataclass(frozen=True)
class ClassScore:
    """One class for one query.

    Attributes:
        label: The class.
        probability: Softmax of the logits over all classes.
        distance: Distance summed over the views; small is similar. OTAM distances may be negative.
    """

    label: str
    probability: float
    distance: float


@dataclass(frozen=True)
class Timings:
    """Milliseconds per stage. In a batch, `visual` and `query` are the batch's time divided by its clips."""

    decode: float
    preprocess: float
    visual: float
    query: float
    total: float


@dataclass(frozen=True)
class Prediction:
    """Answer for one query.

    Attributes:
        query: The clip's path or name.
        predictions: All classes, best first.
        rejected: Whether it belongs to none of them.
        timings: Time per stage.
        features: What was matched, float32 [T, D]; None where that stayed on a GPU.
        frames: Frames to look at, uint8 [T, S, S, 3]; None unless they were asked for.
    """

    query: str
    predictions: tuple[ClassScore, ...]
    rejected: bool
    timings: Timings
    features: Float | None = None
    frames: NDArray[np.uint8] | None = None

    @property
    def best(self) -> ClassScore:
        """The most probable class."""
        return self.predictions[0]


class TimedSource(FrameSource):
    """A clip that adds up the seconds spent decoding and converting its frames."""

    def __init__(self, path: Path) -> None:
        start = perf_counter()
        self._source = open_source(path)
        self.name = self._source.name
        self.n_frames = self._source.n_frames
        self.times = self._source.times
        self.fps = self._source.fps
        self.seconds = perf_counter() - start

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`."""
        pictures = self._source.pictures(indices)
        while True:
            with self._timed():
                picture = next(pictures, None)
            if picture is None:
                return
            yield _TimedPicture(picture, self._timed)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds += perf_counter() - start


class _TimedPicture(Picture):
    def __init__(self, picture: Picture, timed: Callable[[], AbstractContextManager[None]]) -> None:
        self._picture = picture
        self._timed = timed
        self.nbytes = picture.nbytes

    def rgb(self) -> NDArray[np.uint8]:
        with self._timed():
            return self._picture.rgb()

    def grey(self, long_side: int | None = None) -> NDArray[np.uint8]:
        with self._timed():
            return self._picture.grey(long_side)


class Matcher:
    """Classifies queries against a bank, from any number of threads at once.

    Args:
        model: The opened bundle.
        bank: Made with the same bundle.
        reject: `auto` rejects beyond the bank's calibrated distance, if it has one; a number rejects a best
            probability below it; `off` never rejects.

    Raises:
        InputError: The bank was made with another bundle, or the number is not in [0, 1].
    """

    def __init__(self, model: Model, bank: SupportBank, *, reject: Literal["auto", "off"] | float = "auto") -> None:
        if bank.keys != keys_of(model.bundle):
            raise InputError("the support bank was made with another bundle", "update it with SupportBank.update")
        if not isinstance(reject, str) and not 0 <= reject <= 1:
            raise InputError(f"rejection probability {reject} is not in [0, 1]")
        self.model = model
        self.bank = bank
        self._reject = reject
        self._prompts = model.resident(bank.prompts)
        self._prototypes = model.resident(bank.prototypes)

    def predict(self, clip: NDArray[np.uint8], name: str = "") -> Prediction:
        """Classify one clip, uint8 [T, S, S, 3] as `load_clip` gives it.

        Raises:
            InputError: The array has another type or shape.
            ClipError: The clip's features or scores are not finite.
        """
        spec = self.model.bundle.manifest.clip
        checked("clip", clip, "uint8", T=spec.frames, height=spec.size, width=spec.size, channels=3)
        return self.predict_many(clip[None], [name])[0]

    def predict_many(self, clips: NDArray[np.uint8], names: Sequence[str] | None = None) -> list[Prediction]:
        """Classify clips uint8 [B, T, S, S, 3] in one run of each graph.

        Raises:
            InputError: The array has another type or shape, or there is not a name for each clip.
            ClipError: The features or scores of a clip are not finite; it has the clip's name.
        """
        return self._encoded(clips, names, self.model.encode_resident)

    def _encoded(
        self,
        clips: NDArray[np.uint8],
        names: Sequence[str] | None,
        encode: Callable[[NDArray[np.uint8], Sequence[str] | None], Tensor],
    ) -> list[Prediction]:
        spec = self.model.bundle.manifest.clip
        checked("clips", clips, "uint8", B=None, T=spec.frames, height=spec.size, width=spec.size, channels=3)
        if names is not None and len(names) != len(clips):
            raise InputError(f"{len(names)} names for {len(clips)} clips")
        self.model.prepare("visual", "query")
        start = perf_counter()
        features = encode(clips, names)
        encoded = perf_counter()
        try:
            predictions = self.predict_features(features, names)
        except ClipError:
            if not isinstance(features, np.ndarray):
                self.model.encode_clips(clips, names)  # raises where the features themselves are at fault
            raise
        visual = 1000 * (encoded - start) / max(len(clips), 1)
        return [replace(p, timings=_timings(visual=visual, query=p.timings.query)) for p in predictions]

    def predict_features(self, features: Tensor, names: Sequence[str] | None = None) -> list[Prediction]:
        """Classify clips whose features [B, T, D] are known.

        Raises:
            InputError: The array has another type or shape, or there is not a name for each clip.
            ClipError: The scores of a clip are not finite; it has the clip's name.
        """
        if names is not None and len(names) != len(features):
            raise InputError(f"{len(names)} names for {len(features)} clips")
        start = perf_counter()
        scores = self.model.match(features, self._prompts, self._prototypes, names)
        probabilities = softmax(scores.logits)  # (B, C)
        distances = scores.distances.sum(axis=1)  # (B, V, C) -> (B, C)
        ranked = [self._ranked(p, d) for p, d in zip(probabilities, distances, strict=True)]
        query = 1000 * (perf_counter() - start) / max(len(features), 1)
        timings = _timings(query=query)
        labels = names if names is not None else [""] * len(features)
        kept = features if isinstance(features, np.ndarray) else [None] * len(features)
        return [
            Prediction(name, scores, self._rejects(scores[0]), timings, own)
            for name, scores, own in zip(labels, ranked, kept, strict=True)
        ]

    def predict_file(
        self, path: Path | str, roi: Rectangle | None = None, *, look: ClipSpec | None = None
    ) -> Prediction:
        """Read and classify a clip: a video file, frame folder, pattern or animated picture.

        Args:
            path: The clip.
            roi: x, y, width, height in pixels of the upright picture, cut out before the bundle's region applies.
            look: How the answer's `frames` are to look, for example `render.display_spec` of the bundle's; None
                for none. The clip is decoded once all the same, and the answer then has its features.

        Raises:
            ClipError: The clip cannot be read, or the rectangle lies outside it.
        """
        self.model.prepare("visual", "query")
        start = perf_counter()
        source = TimedSource(Path(path))
        seen = source if roi is None else CroppedSource(source, roi)
        watched = None if look is None else WatchedClip(seen, look)
        clip = load_clip(watched or seen, self.model.bundle.manifest.clip)
        decode, loaded = 1000 * source.seconds, 1000 * (perf_counter() - start)
        encode = self.model.encode_resident if look is None else self.model.encode_clips
        prediction = self._encoded(clip[None], [os.fspath(path)], encode)[0]
        frames = shown_frames(watched.small, look) if watched and look else None
        stages = prediction.timings
        return replace(
            prediction, timings=_timings(decode, loaded - decode, stages.visual, stages.query), frames=frames
        )

    def nearest_clip(self, features: Float, label: str) -> BankClip:
        """The support clip of a class most like a query [T, D]: highest cosine between means over frames.

        Raises:
            InputError: The array has another type or shape, or the bank has no such class.
        """
        manifest = self.model.bundle.manifest
        checked("features", features, "float32", T=manifest.clip.frames, D=manifest.dim)
        entry = self._class(label)
        means = np.concatenate([entry.features, features[None]]).mean(axis=1)  # (K + 1, D)
        means /= np.linalg.norm(means, axis=1, keepdims=True) + 1e-12
        return entry.clips[int(np.argmax(means[:-1] @ means[-1]))]

    def _class(self, label: str) -> BankClass:
        if label not in self.bank.labels:
            raise InputError(f"the bank has no class {label!r}", f"it has {', '.join(self.bank.labels)[:200]}")
        return self.bank.classes[self.bank.labels.index(label)]

    def _ranked(self, probabilities: Float, distances: Float) -> tuple[ClassScore, ...]:
        order = np.argsort(-probabilities, kind="stable")
        labels = self.bank.labels
        return tuple(ClassScore(labels[c], float(probabilities[c]), float(distances[c])) for c in order)

    def _rejects(self, best: ClassScore) -> bool:
        if self._reject == "off":
            return False
        if self._reject == "auto":
            return self.bank.calibration is not None and best.distance > self.bank.calibration.threshold
        return best.probability < float(self._reject)


def softmax(logits: Float) -> Float:
    """Probabilities along the last axis."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Float = exponents / exponents.sum(axis=-1, keepdims=True)
    return probabilities


def _timings(decode: float = 0.0, preprocess: float = 0.0, visual: float = 0.0, query: float = 0.0) -> Timings:
    return Timings(decode, preprocess, visual, query, decode + preprocess + visual + query)
