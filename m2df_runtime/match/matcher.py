"""From a query clip to a prediction, against the classes of a support bank."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends import Tensor, Tensors
from m2df_runtime.backends.model import Model, QueryScores
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bank.calibration import MISS_RATE, Rejection, what_lacks
from m2df_runtime.bank.contents import keys_of
from m2df_runtime.clips.source import ArraySource, FrameSource, Rectangle
from m2df_runtime.cpus import available_cpus
from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.match.reading import ReadClip, read_clip
from m2df_runtime.match.results import ClassScore, Prediction, Timings
from m2df_runtime.pixels.spec import ClipSpec

Float = NDArray[np.float32]
Clip = Path | str | FrameSource | NDArray[np.uint8]
"""A path, something to read frames from, or all frames of a clip, uint8 [n, H, W, 3] RGB."""
# Not Sequence[Clip], which a text is too.
Clips = list[str] | list[Path] | list[FrameSource] | list[NDArray[np.uint8]] | list[Clip] | tuple[Clip, ...]


@dataclass(frozen=True)
class _Classes:
    """A bank, and its tensors where the engine computes. One object: an answer never mixes two banks."""

    bank: SupportBank
    prompts: Tensor  # (C, D)
    prototypes: Tensor  # (C, V, T, D)
    derived: Tensors  # of these two
    rejection: Rejection | None

    def match(self, model: Model, features: Tensor, names: Sequence[str]) -> QueryScores:
        return model.match(features, self.prompts, self.prototypes, names, derived=self.derived)


class Matcher:
    """Recognises the classes of a bank in clips, from any number of threads at once.

    Args:
        model: The opened bundle.
        bank: Made with the same bundle.
        reject: `auto` rejects beyond a distance that a calibrated bank gives; a number rejects a best probability
            below it; `off` never rejects.
        miss_rate: Share of taught actions that `auto` may miss, in (0, 1); None takes `MISS_RATE`, 0.05.

    Raises:
        InputError: The bank was made with another bundle, or a number is out of its range.

    Examples:
        >>> import m2df_runtime as m2df
        >>> model = m2df.load()
        >>> matcher = m2df.Matcher(model, m2df.SupportBank.of(model, "actions"))
        >>> answer = matcher.predict("clip.mp4")
        >>> answer.label, answer.rejected
        ('clap', False)
    """

    def __init__(
        self,
        model: Model,
        bank: SupportBank,
        *,
        reject: Literal["auto", "off"] | float = "auto",
        miss_rate: float | None = None,
    ) -> None:
        if not isinstance(reject, str) and not 0 <= reject <= 1:
            raise InputError(f"rejection probability {reject} is not in [0, 1]")
        rate = MISS_RATE if miss_rate is None else miss_rate
        if not 0 < rate < 1:
            raise InputError(f"miss rate {rate} is not between 0 and 1")
        self.model = model
        self._reject = reject
        self._miss_rate = rate
        # More readers than processors hand Python's lock around: eight on two took twice the processor time per clip.
        self._readers = threading.BoundedSemaphore(available_cpus())
        self.swap(bank)

    @property
    def bank(self) -> SupportBank:
        """The bank that the next answer is from."""
        return self._classes.bank

    @property
    def rejection(self) -> Rejection | None:
        """When `auto` answers `unknown`, and what that costs; None where nothing is rejected by distance.

        Examples:
            >>> import m2df_runtime as m2df
            >>> model = m2df.load()
            >>> matcher = m2df.Matcher(model, m2df.SupportBank.of(model, "actions"), miss_rate=0.2)
            >>> round(matcher.rejection.miss_rate, 3), matcher.rejection.clips  # 2 of 11 lie beyond the ninth of ten
            (0.182, 10)
        """
        return self._classes.rejection

    @property
    def about_rejection(self) -> str:
        """One line on when it answers `unknown`."""
        classes = self._classes
        if self._reject == "off":
            return "never, whatever the query"
        if self._reject != "auto":
            return f"below a probability of {self._reject:g}"
        if classes.rejection:
            return classes.rejection.text()
        lacks = what_lacks([len(entry.clips) for entry in classes.bank.classes])
        return f"not calibrated: {lacks or 'see the warning above'}"

    def swap(self, bank: SupportBank) -> None:
        """Answer from another bank of the same bundle from now on.

        Every answer is from one bank as a whole: those begun before are still from the old one.

        Raises:
            InputError: The bank was made with another bundle.

        Examples:
            >>> import m2df_runtime as m2df
            >>> model = m2df.load()
            >>> matcher = m2df.Matcher(model, m2df.SupportBank.of(model, "actions"))
            >>> matcher.swap(matcher.bank.add("wave", ["a.mp4", "b.mp4"]))
            >>> "wave" in matcher.bank.labels
            True
        """
        if bank.keys != keys_of(self.model.bundle):
            raise InputError("the support bank was made with another bundle", "make it anew with SupportBank.of")
        prompts, prototypes = self.model.resident(bank.prompts), self.model.resident(bank.prototypes)
        self._classes = _Classes(
            bank,
            prompts,
            prototypes,
            self.model.derived(prompts, prototypes),
            bank.calibration.rejection(self._miss_rate) if bank.calibration and self._reject == "auto" else None,
        )

    @overload
    def predict(self, clips: Clip, *, roi: Rectangle | None = ..., look: ClipSpec | None = ...) -> Prediction: ...

    @overload
    def predict(
        self,
        clips: Clips,
        *,
        roi: Rectangle | None = ...,
        look: ClipSpec | None = ...,
        return_errors: Literal[False] = ...,
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        clips: Clips,
        *,
        roi: Rectangle | None = ...,
        look: ClipSpec | None = ...,
        return_errors: Literal[True],
    ) -> list[Prediction | ClipError]: ...

    def predict(
        self,
        clips: Clip | Clips,
        *,
        roi: Rectangle | None = None,
        look: ClipSpec | None = None,
        return_errors: bool = False,
    ) -> Prediction | Sequence[Prediction | ClipError]:
        """Classify a clip, or a list of clips in one run of the graphs.

        Args:
            clips: A path (video file, frame folder, pattern or animated picture), all frames of a clip (uint8
                [n, H, W, 3] RGB, any size and number), a `FrameSource`, or a list of these. All are sampled, cropped
                and resized alike.
            roi: x, y, width, height in pixels of the upright picture, cut out before the bundle's region applies.
            look: How the answers' `frames` are to look, for example `filmstrip.display_spec` of the bundle's; None
                for none. A clip is decoded once all the same, and its answer then has its features.
            return_errors: For a list: a clip that cannot be used has its ClipError in place of an answer, as
                `asyncio.gather` does it, and the others are answered. Otherwise the first such error is raised.

        Returns:
            The answer; for a list, one for each clip in the order given.

        Raises:
            InputError: Something else than a clip, or an array of another type or shape.
            ClipError: A clip cannot be read, the rectangle lies outside it, or its features are not finite.

        Examples:
            >>> import numpy as np
            >>> import m2df_runtime as m2df
            >>> model = m2df.load()
            >>> matcher = m2df.Matcher(model, m2df.SupportBank.of(model, "actions"))
            >>> frames = np.zeros((20, 240, 320, 3), np.uint8)
            >>> [answer.query for answer in matcher.predict(["clip.mp4", frames])]
            ['clip.mp4', 'clip 2']
            >>> matcher.predict(["clip.mp4", "gone.mp4"], return_errors=True)[1]
            ClipError('gone.mp4: no such file')
        """
        classes = self._classes
        self.model.prepare_beside("query")
        self.model.prepare("visual")
        if not isinstance(clips, list | tuple):
            return self._answered(classes, [self._read(clips, FrameSource.name, roi, look)])[0]
        read: list[ReadClip | ClipError] = []
        for number, clip in enumerate(clips, 1):
            try:
                read.append(self._read(clip, f"clip {number}", roi, look))
            except ClipError as error:
                if not return_errors:
                    raise
                read.append(error)
        queries = [query for query in read if isinstance(query, ReadClip)]
        answers = iter(self._each_answered(classes, queries) if return_errors else self._answered(classes, queries))
        return [query if isinstance(query, ClipError) else next(answers) for query in read]

    def predict_encoded(self, features: Float, names: Sequence[str]) -> list[Prediction]:
        """Classify clips whose frames were encoded before, in one run of the query graph.

        Args:
            features: As `Model.encode_clips` returns them, float32 [B, T, D].
            names: Of each clip.

        Returns:
            One answer for each clip, without times of the other stages.

        Raises:
            InputError: The array has another type or shape.
            ClipError: The scores of a clip are not finite.
        """
        classes = self._classes
        self.model.prepare("query")
        start = perf_counter()
        scores = classes.match(self.model, features, names)
        each = Timings(0.0, 0.0, 0.0, 1000 * (perf_counter() - start) / len(names))
        return [
            self._answer(classes, found, query=name, timings=each, features=own)
            for name, found, own in zip(names, _ranked(scores, classes), features, strict=True)
        ]

    def _read(self, clip: Clip, name: str, roi: Rectangle | None, look: ClipSpec | None) -> ReadClip:
        """A clip's pixels. `name` is what frames in memory are called."""
        if isinstance(clip, np.ndarray):
            clip = ArraySource(clip)
            clip.name = name
        elif not isinstance(clip, FrameSource | str | os.PathLike):
            raise InputError(f"a clip is a path, frames uint8 [n, H, W, 3] or a FrameSource, not {type(clip).__name__}")
        with self._readers:
            return read_clip(clip, self.model.bundle.manifest.clip, roi=roi, look=look)

    def answer(self, read: Sequence[ReadClip]) -> list[Prediction | ClipError]:
        """Answer clips that were read before, perhaps by other processes, in one run of the graphs.

        Returns:
            For each clip its answer, or what is wrong with it, as `predict` has it with `return_errors`.
        """
        return self._each_answered(self._classes, read)

    def _each_answered(self, classes: _Classes, queries: Sequence[ReadClip]) -> list[Prediction | ClipError]:
        """Like `_answered`, with the errors of clips whose numbers are not finite; those are not expected."""
        try:
            return [*self._answered(classes, queries)]
        except ClipError as error:
            if len(queries) == 1:
                return [error]
            return [answer for query in queries for answer in self._each_answered(classes, [query])]

    def _answered(self, classes: _Classes, queries: Sequence[ReadClip]) -> list[Prediction]:
        """Answers to clips that were read, in one run of each graph.

        Raises:
            ClipError: The features or scores of a clip are not finite.
        """
        if not queries:
            return []
        pixels, names = np.stack([query.pixels for query in queries]), [query.name for query in queries]
        watched = any(query.frames is not None for query in queries)
        self.model.prepare("visual", "query")
        start = perf_counter()
        features = (self.model.encode_clips if watched else self.model.encode_resident)(pixels, names)  # (B, T, D)
        encoded = perf_counter()
        try:
            scores = classes.match(self.model, features, names)
        except ClipError:
            if not isinstance(features, np.ndarray):
                self.model.encode_clips(pixels, names)  # raises where the features themselves are at fault
            raise
        ranked = _ranked(scores, classes)
        visual = 1000 * (encoded - start) / len(queries)
        query_ms = 1000 * (perf_counter() - encoded) / len(queries)
        kept = features if isinstance(features, np.ndarray) else [None] * len(queries)
        return [
            self._answer(
                classes,
                found,
                query=query.name,
                timings=Timings(query.decode, query.preprocess, visual, query_ms),
                features=own,
                frames=query.frames,
                seconds=query.seconds,
            )
            for query, found, own in zip(queries, ranked, kept, strict=True)
        ]

    def _answer(self, classes: _Classes, found: tuple[ClassScore, ...], **what: Any) -> Prediction:  # noqa: ANN401
        """An answer from its classes, best first, and what else is known of it."""
        best, threshold = found[0], classes.rejection.threshold if classes.rejection else None
        if threshold is not None:
            rejected = best.distance > threshold
        else:
            rejected = not isinstance(self._reject, str) and best.probability < self._reject
        return Prediction(
            classes=found,
            rejected=rejected,
            backend=self.model.backend,
            threshold=threshold,
            calibrated=classes.bank.calibration is not None,
            **what,
        )


def _ranked(scores: QueryScores, classes: _Classes) -> list[tuple[ClassScore, ...]]:
    """Per query its classes, best first."""
    logits = scores.logits / np.float32(classes.bank.temperature)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)  # (B, C)
    distances = scores.distances.sum(axis=1)  # (B, V, C) -> (B, C)
    labels, order = classes.bank.labels, np.argsort(-logits, axis=1, kind="stable")
    columns = (np.take_along_axis(values, order, axis=1).tolist() for values in (probabilities, distances))
    return [
        tuple(map(ClassScore, map(labels.__getitem__, best), shares, far))
        for best, shares, far in zip(order.tolist(), *columns, strict=True)
    ]
