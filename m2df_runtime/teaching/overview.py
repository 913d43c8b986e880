"""What a support folder or a bank file holds, to be looked at: needs no model, and decodes nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from m2df_runtime.bank.changes import last_change, settled
from m2df_runtime.bank.contents import BankClass, BankClip, BankContents, read_stored
from m2df_runtime.bank.folder import BACKGROUND, SupportClip, SupportFolder, found_class, list_support
from m2df_runtime.bank.update import known_banks
from m2df_runtime.bundle.prompt_texts import LabelRules, text_from_folder
from m2df_runtime.errors import InputError

BANK_SUFFIX = ".bank"


@dataclass(frozen=True)
class ClipView:
    """One clip.

    Attributes:
        name: `class/clip`.
        bytes: Size of the clip itself, as it was when it was encoded.
        seconds: How long it lasts; None where it was not encoded yet.
    """

    name: str
    bytes: int
    seconds: float | None

    def record(self) -> dict[str, object]:
        """The object that `m2df-run bank show --json` prints."""
        return {"clip": self.name, "seconds": self.seconds, "bytes": self.bytes}


@dataclass(frozen=True)
class ClassView:
    """One class.

    Attributes:
        label: Its name.
        texts: What a model reads of it; where no rules are known, by those with which it was used last.
        clips: Its clips.
        closest: The class whose clips look most like its own; None where they were not encoded yet.
        similarity: Cosine between the two classes' mean features.
    """

    label: str
    texts: tuple[str, ...]
    clips: tuple[ClipView, ...]
    closest: str | None
    similarity: float | None

    def record(self) -> dict[str, object]:
        """The object that `m2df-run bank list --json` prints."""
        return {
            "label": self.label,
            "clips": len(self.clips),
            "texts": list(self.texts),
            "closest": self.closest,
            "similarity": self.similarity,
        }


@dataclass(frozen=True)
class SupportView:
    """What a support folder or a bank file holds.

    Attributes:
        path: Where it is.
        classes: In the natural order of their names.
        background: Clips of what belongs to no class.
        last_change: What `undo` would take back, in words; None where there is nothing.
    """

    path: Path
    classes: tuple[ClassView, ...]
    background: tuple[ClipView, ...]
    last_change: str | None

    def clips_of(self, label: str) -> tuple[ClipView, ...]:
        """Clips of a class, or of the background by its folder's name. Raises InputError where there is no such."""
        if label == BACKGROUND:
            return self.background
        known = {entry.label: entry.clips for entry in self.classes}
        return known[found_class(self.path, known, label)]


def is_bank_file(path: Path) -> bool:
    """Whether a support is a bank file; a folder need not be there yet.

    Raises:
        InputError: It has the name of a bank file, and is not there.
    """
    if path.suffix == BANK_SUFFIX and not os.path.exists(path):
        raise InputError(f"{path}: no such bank file", "bank pack makes one of a support folder")
    return os.path.isfile(path)


def view_of(path: Path, rules: LabelRules | None = None) -> SupportView:
    """What a support folder or a bank file holds.

    Args:
        path: It.
        rules: Labels to texts; None takes those with which it was used last.

    Raises:
        InputError: It is neither, or a damaged bank file.
    """
    found = _view_of_file(path) if is_bank_file(path) else _view_of_folder(path)
    if rules is None:
        return found
    classes = tuple(replace(entry, texts=rules.descriptions(entry.label)) for entry in found.classes)
    return replace(found, classes=classes)


def _view_of_file(path: Path) -> SupportView:
    bank, past = read_stored(path)
    classes = {entry.label: tuple(map(_of_bank, entry.clips)) for entry in bank.classes}
    return SupportView(
        path,
        _classes(classes, {entry.label: entry for entry in bank.classes}),
        tuple(map(_of_bank, bank.background)),
        past.did if past else None,
    )


def _view_of_folder(folder: Path) -> SupportView:
    with settled(folder, create=False):
        support, last = list_support(folder), last_change(folder)
    kept = _kept(support)
    known = {(clip.name, clip.stamp): clip.seconds for clip in kept.clips.values()} if kept else {}
    # A class whose clips changed since it was encoded looks like nothing that is known.
    fresh = {
        entry.label: entry
        for entry in (kept.classes if kept else ())
        if [(clip.name, clip.stamp) for clip in entry.clips]
        == [(clip.name, clip.stamp) for clip in support.classes.get(entry.label, ())]
    }

    def views(clips: Sequence[SupportClip]) -> tuple[ClipView, ...]:
        return tuple(ClipView(clip.name, clip.stamp.size, known.get((clip.name, clip.stamp))) for clip in clips)

    classes = {label: views(clips) for label, clips in support.classes.items()}
    return SupportView(folder, _classes(classes, fresh), views(support.background), last.did if last else None)


def _kept(support: SupportFolder) -> BankContents | None:
    """The newest bank of a folder, of whatever bundle."""
    for path in known_banks(support.path):
        with suppress(InputError):
            return read_stored(path).bank
    return None


def _of_bank(clip: BankClip) -> ClipView:
    return ClipView(clip.name, clip.stamp.size, clip.seconds)


def _classes(clips: Mapping[str, tuple[ClipView, ...]], encoded: Mapping[str, BankClass]) -> tuple[ClassView, ...]:
    closest = _closest(encoded)
    found = []
    for label, own in clips.items():
        texts = encoded[label].texts if label in encoded else (text_from_folder(label),)
        found.append(ClassView(label, texts, own, *closest.get(label, (None, None))))
    return tuple(found)


def _closest(encoded: Mapping[str, BankClass]) -> dict[str, tuple[str, float]]:
    """For each class the one whose clips' features are most like its own, and the cosine of the two."""
    if len(encoded) < 2:
        return {}
    labels = list(encoded)
    counts = [len(entry.clips) for entry in encoded.values()]
    clips = np.stack([clip.features for entry in encoded.values() for clip in entry.clips]).mean(axis=1)  # (M, D)
    means = np.add.reduceat(clips, np.cumsum([0, *counts[:-1]])) / np.asarray(counts, np.float32)[:, None]  # (C, D)
    means /= np.linalg.norm(means, axis=1, keepdims=True) + 1e-12
    alike = means @ means.T
    np.fill_diagonal(alike, -np.inf)
    best = alike.argmax(axis=1)
    return {label: (labels[best[c]], round(float(alike[c, best[c]]), 4)) for c, label in enumerate(labels)}
