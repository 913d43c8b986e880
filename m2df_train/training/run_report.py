"""What a run ends with: accuracy on validation and test classes, beside a head that needs no training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from m2df_train.evaluation.accuracy import Accuracy


@dataclass(frozen=True)
class SplitResult:
    """One split: accuracy of the trained and of the training-free head on the same features, for all shots."""

    trained: list[Accuracy]
    training_free: list[Accuracy]


@dataclass(frozen=True)
class Result:
    """Outcome of a run: the checkpoint, and `validation` and, where there are test classes, `test`."""

    checkpoint: Path
    splits: dict[str, SplitResult]
    seconds: float


def measured(splits: dict[str, SplitResult]) -> dict[str, object]:
    """Accuracies in percent, as `metrics.json` and the checkpoint record them."""
    values: dict[str, object] = {}
    for name, split in splits.items():
        values[name] = _rows(split.trained)
        values[f"{name}_training_free"] = _rows(split.training_free)
    return values


def _rows(results: list[Accuracy]) -> dict[str, dict[str, float]]:
    return {f"{a.way}-way {a.shot}-shot": {"accuracy": round(a.accuracy, 2), "ci95": round(a.ci95, 2)} for a in results}


def lines(result: Result) -> list[str]:
    """The report as people read it."""
    text = []
    for name, split in result.splits.items():
        text.append(f"accuracy on {name} classes, which are in no training")
        for trained, free in zip(split.trained, split.training_free, strict=True):
            text.append(
                f"  {trained.way}-way {trained.shot}-shot   {_percent(trained)}"
                f"   training-free {_percent(free)}   chance {100 / trained.way:.1f} %"
            )
    if "test" not in result.splits:
        text.append("there are no test classes; validation classes chose the weights, so theirs flatters")
    text.append(f"checkpoint: {result.checkpoint}   ({result.seconds / 60:.1f} min)")
    return text


def _percent(value: Accuracy) -> str:
    return f"{value.accuracy:.1f} ± {value.ci95:.1f} %"
