"""What looks wrong in a bank: each mistake with the clips and classes it is about, and what to do.

Nothing is certain but a clip that stands there twice. The rest compares a clip with what is usual in this bank, so a
model that cannot tell the actions apart says little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.bank.calibration import LeftOut, leave_out, to_classes, what_lacks
from m2df_runtime.bundle.prompt_texts import class_key
from m2df_runtime.errors import printable
from m2df_runtime.progress import Progress, silent

if TYPE_CHECKING:
    from m2df_runtime.bank.bank import SupportBank
    from m2df_runtime.bank.contents import BankClip

Float = NDArray[np.float32]
Kind = Literal["mislabelled", "twice", "alike", "same text", "still", "background", "uncalibrated"]

# Chosen on generated validation actions; `benchmarks/lint.py` counts what they find and what they name wrongly.
# By how many robust deviations a named clip is nearer to another class than clips of the bank usually are; and the
# largest share of the way from own classes to others at which it may stand. Without the second, a third more clips of
# clean banks were named, for an eighth more of the clips that were in the wrong class.
_STRANGE, _NEAR = 2.5, 0.5
_ALIKE, _FEWEST_ALIKE = 0.5, 3  # share and number of two classes' clips that are nearest to the other class
# Of the squared distance that two clips of one class usually have, or of two classes where that is less: nine of ten
# clips that were encoded anew at a low rate lie below, and of 2,090 pairs of clips of one class none below 0.16.
_TWICE = 0.12
_STILL = 0.02  # of the usual change over time; the least of 380 clips with movement was 0.046


@dataclass(frozen=True)
class Finding:
    """One thing that looks wrong.

    Attributes:
        kind: `mislabelled`, `twice` (the same clip), `alike` (classes), `same text`, `still` (nothing moves),
            `background` (a taught action in it) or `uncalibrated`.
        about: The clips as `class/clip`, or the classes.
        problem: What is seen.
        advice: What to do.
    """

    kind: Kind
    about: tuple[str, ...]
    problem: str
    advice: str

    def record(self) -> dict[str, object]:
        """The object that is printed for programs."""
        return asdict(self)

    def text(self) -> str:
        """The line that is printed for people."""
        return printable(f"{' and '.join(self.about)}: {self.problem}; {self.advice}")


def lint(bank: SupportBank, progress: Progress = silent) -> tuple[Finding, ...]:
    """Look for mistakes in a bank, from its stored features.

    Raises:
        CheckFailed: Numbers that are not finite.
        ClipError: Those of a clip.

    Examples:
        >>> import m2df_runtime as m2df
        >>> from m2df_runtime.bank.lint import lint
        >>> bank = m2df.SupportBank.of(m2df.load(), "actions")
        >>> [finding.kind for finding in lint(bank)]
        []
    """
    features = [entry.features for entry in bank.classes]
    total = sum(len(clips) for clips in features if len(clips) > 1)
    found = [*_twice(bank), *_still(bank), *_same_text(bank), *_uncalibrated(bank)]
    if what_lacks([len(clips) for clips in features]) is None:
        with progress("leaving clips out", total) as advance:
            left_out = leave_out(bank.model, features, bank.prompts, bank.prototypes, advance=advance)
        found += _mislabelled(bank, left_out)
        found += _alike(bank, left_out)
        found += _taught_background(bank, left_out)
    return tuple(found)


class _Nearest(NamedTuple):
    """Of left-out clips the distance of the own class and of the nearest other, and which that is; all [H]."""

    own: Float
    other: Float
    which: NDArray[np.int64]


def _nearest(left_out: LeftOut) -> _Nearest:
    rows, others = np.arange(len(left_out.labels)), left_out.to_others
    which = others.argmin(axis=1)
    return _Nearest(left_out.distances[rows, left_out.labels], others[rows, which], which)


def _mislabelled(bank: SupportBank, left_out: LeftOut) -> Iterator[Finding]:
    """Clips near another class, and nearer to it than to their own by far more than clips of this bank differ."""
    own, other, which = _nearest(left_out)
    ahead = other - own
    usual = np.median(ahead)
    spread = 1.4826 * np.median(np.abs(ahead - usual))
    like_another = (ahead < 0) & (other < np.median(own) + _NEAR * max(usual, 0))
    for row in np.flatnonzero(like_another & (usual - ahead > _STRANGE * spread)).tolist():
        clip = bank.classes[int(left_out.labels[row])].clips[int(left_out.clips[row])]
        label = bank.labels[int(which[row])]
        yield Finding(
            "mislabelled",
            (clip.name,),
            f"looks like {label!r}",
            f"look at it: move it to {label!r} if it shows that, else remove it or teach more clips like it",
        )


def _alike(bank: SupportBank, left_out: LeftOut) -> Iterator[Finding]:
    """Pairs of classes of which many clips are nearest to the other class, on both sides."""
    own, other, which = _nearest(left_out)
    taken = Counter(zip(left_out.labels[other <= own].tolist(), which[other <= own].tolist(), strict=True))
    shots = Counter(left_out.labels.tolist())
    for a, b in sorted(taken):
        count, total = taken[a, b] + taken[b, a], shots[a] + shots[b]
        if a < b and taken[b, a] and count >= max(_FEWEST_ALIKE, _ALIKE * total):
            yield Finding(
                "alike",
                (bank.labels[a], bank.labels[b]),
                f"{count} of their {total} clips are nearest to the other class",
                "merge them if they are one action, else teach more clips that show how they differ",
            )


def _twice(bank: SupportBank) -> Iterator[Finding]:
    """Clips whose features are nearly equal, such as one that was encoded anew under another name."""
    clips = [*(clip for entry in bank.classes for clip in entry.clips), *bank.background]
    owners = np.asarray(
        [*(c for c, entry in enumerate(bank.classes) for _ in entry.clips), *[-1] * len(bank.background)]
    )
    flat = np.stack([clip.features for clip in clips]).reshape(len(clips), -1).astype(np.float64)
    squared = (flat**2).sum(axis=1)
    apart = np.maximum(squared[:, None] + squared[None] - 2 * flat @ flat.T, 0)
    same = owners[:, None] == owners[None]
    groups = (apart[~same], apart[same & ~np.eye(len(clips), dtype=bool)])
    usual = min((float(np.median(group)) for group in groups if group.size), default=0.0)
    for i, j in np.argwhere(np.triu(apart < _TWICE * usual, 1)):
        one, other = clips[i], clips[j]
        yield Finding(
            "twice",
            (one.name, other.name),
            "nearly the same clip" + ("" if owners[i] == owners[j] else ", in two places"),
            "remove one of the two: it teaches nothing, and makes the bank look surer than it is",
        )


def _still(bank: SupportBank) -> Iterator[Finding]:
    """Classes whose frames do not differ over time, next to what is usual."""

    def moves(clip: BankClip) -> float:
        return float(((clip.features - clip.features.mean(axis=0)) ** 2).sum(axis=1).mean())

    moving = [[moves(clip) for clip in entry.clips] for entry in bank.classes]
    usual = float(np.median([value for clips in moving for value in clips]))
    for entry, clips in zip(bank.classes, moving, strict=True):
        if max(clips) < _STILL * usual:
            yield Finding(
                "still",
                (entry.label,),
                "nothing moves in its clips",
                "clips of nothing belong into the background: no class is needed for them",
            )


def _same_text(bank: SupportBank) -> Iterator[Finding]:
    for one, other in combinations(bank.classes, 2):
        if {class_key(text) for text in one.texts} & {class_key(text) for text in other.texts}:
            yield Finding(
                "same text",
                (one.label, other.label),
                f"both are described as {one.texts[0]!r}",
                "merge them if they are one action, else give each a text of its own with --labels",
            )


def _uncalibrated(bank: SupportBank) -> Iterator[Finding]:
    single = tuple(entry.label for entry in bank.classes if len(entry.clips) == 1)
    if single:
        yield Finding(
            "uncalibrated",
            single,
            "one clip, which cannot be left out: nothing tells how often the action is missed",
            "teach a second clip",
        )


def _taught_background(bank: SupportBank, left_out: LeftOut) -> Iterator[Finding]:
    """Background clips that are nearer to a class than its own clips usually are."""
    usual = float(np.median(_nearest(left_out).own))
    _, distances = to_classes(bank.model, [clip.features for clip in bank.background], bank.prompts, bank.prototypes)
    for clip, row in zip(bank.background, distances, strict=True):
        if row.min() < usual:
            label = bank.labels[int(row.argmin())]
            yield Finding(
                "background",
                (clip.name,),
                f"looks like {label!r}",
                f"remove it from the background, and teach it as {label!r} if it shows that",
            )
