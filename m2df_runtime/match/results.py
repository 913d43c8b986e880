"""What a matcher answers, and how an answer writes itself: as an object for programs, as lines for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from m2df_runtime.errors import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ClassScore:
    """One class for one query.

    Attributes:
        label: The class.
        probability: Softmax over all classes of the logits, divided by the bank's temperature where it is calibrated.
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

    @property
    def total(self) -> float:
        """Sum of the stages."""
        return self.decode + self.preprocess + self.visual + self.query


@dataclass(frozen=True)
class Prediction:
    """Answer for one query. Answers are equal where query, classes and rejection are, whatever the time they took.

    Attributes:
        query: The clip's path as it was given, or its name.
        classes: All classes, best first.
        rejected: Whether it belongs to none of them.
        backend: What computed it: `cpu`, `openvino`, `cuda` or `tensorrt`.
        timings: Time per stage.
        features: What was matched, float32 [T, D]; None where that stayed on a GPU.
        frames: Frames to look at, uint8 [T, S, S, 3]; None unless they were asked for.
        seconds: How long the clip lasts; None of features.
        threshold: Distance of the best class beyond which a query is rejected; None where no distance is.
        calibrated: Whether the bank's own clips say how sure a probability may be.

    Examples:
        >>> import m2df_runtime as m2df
        >>> model = m2df.load()
        >>> answer = m2df.Matcher(model, m2df.SupportBank.of(model, "actions")).predict("clip.mp4")
        >>> answer.label, answer.rejected, len(answer.classes)
        ('clap', False, 5)
        >>> answer.probability == answer.classes[0].probability > answer.classes[1].probability
        True
    """

    query: str
    classes: tuple[ClassScore, ...]
    rejected: bool
    backend: str
    timings: Timings = field(compare=False)
    features: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    frames: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    seconds: float | None = field(default=None, compare=False, repr=False)
    threshold: float | None = None
    calibrated: bool = False

    @property
    def label(self) -> str:
        """The most probable class, also of a rejected query."""
        return self.classes[0].label

    @property
    def probability(self) -> float:
        """Probability of `label` among the classes."""
        return self.classes[0].probability

    @property
    def distance(self) -> float:
        """Distance of `label`, which `threshold` is compared with."""
        return self.classes[0].distance

    @property
    def answer(self) -> str:
        """The label; of a rejected query `unknown` and what is nearest."""
        return f"unknown (nearest: {self.label})" if self.rejected else self.label

    def record(self, topk: int | None = None) -> dict[str, object]:
        """The object that `m2df-run --json` prints, with the best `topk` classes or all of them.

        Examples:
            >>> import m2df_runtime as m2df
            >>> model = m2df.load()
            >>> matcher = m2df.Matcher(model, m2df.SupportBank.of(model, "actions"))
            >>> list(matcher.predict("clip.mp4").record(topk=1))
            ['query', 'predictions', 'rejected', 'threshold', 'calibrated', 'backend', 'timings_ms']
        """
        stages = {**asdict(self.timings), "total": self.timings.total}
        return {
            "query": self.query,
            "predictions": [asdict(score) for score in self.classes[:topk]],
            "rejected": self.rejected,
            "threshold": self.threshold,
            "calibrated": self.calibrated,
            "backend": self.backend,
            "timings_ms": {stage: round(ms, 3) for stage, ms in stages.items()},
        }

    def text(self, topk: int | None = None) -> str:
        """The lines that `m2df-run` prints: the answer, the best `topk` classes or all of them, the time per stage."""
        shown = self.classes[:topk]
        width = max(len(score.label) for score in shown)
        stages = {**asdict(self.timings), "total": self.timings.total}
        sure = "" if self.rejected else f" {self.probability:.1%}"
        lines = [
            f"{self.query}: {self.answer}{sure}",
            *(f"  {s.label:<{width}}  {s.probability:>6.1%}  distance {s.distance:.4f}" for s in shown),
            "  " + ", ".join(f"{stage} {ms:.1f} ms" for stage, ms in stages.items()),
        ]
        return "\n".join(map(printable, lines))
