"""What a support bank holds, how each part of it is computed, and its way to a file and back.

Features are bound to the visual graph, the preprocessing and the pixel version, prototypes to the support graph,
calibration to the query graph: only clips whose content changed are encoded again, heads of one encoder use the same
features, and a change of one class touches no other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from m2df_runtime.bank.calibration import Calibration, calibrate, can_calibrate
from m2df_runtime.bank.file import BankIndex, BankKeys, CalibrationEntry, ClassEntry, ClipEntry, read_bank, write_bank
from m2df_runtime.bank.folder import Stamp
from m2df_runtime.bundle.prompt_texts import prompt_embeddings
from m2df_runtime.clips.opening import open_source
from m2df_runtime.errors import CheckFailed, ClipError, InputError
from m2df_runtime.pixels.load import load_clip

if TYPE_CHECKING:
    from m2df_runtime.backends.model import Model
    from m2df_runtime.bundle.bundle import Bundle

Float = NDArray[np.float32]

PROMPT_BATCH = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BankClip:
    """One support clip: `class/clip` name, content hash, stamp, features [T, D], how long it lasts."""

    name: str
    digest: str
    stamp: Stamp
    features: Float
    seconds: float


@dataclass(frozen=True)
class BankClass:
    """One class: folder name, its texts and prompts, their mean embedding [D], prototypes [V, T, D], clips."""

    label: str
    texts: tuple[str, ...]
    prompts: tuple[str, ...]
    embedding: Float
    prototypes: Float
    clips: tuple[BankClip, ...]

    @property
    def features(self) -> Float:
        """Features of all clips, [K, T, D]."""
        return np.stack([clip.features for clip in self.clips])

    @property
    def made_from(self) -> tuple[tuple[str, ...], ...]:
        """What its prototypes depend on: the prompts and the content of its clips."""
        return self.prompts, tuple(clip.digest for clip in self.clips)


_Self = TypeVar("_Self", bound="BankContents")


@dataclass(frozen=True)
class BankContents:
    """Classes ready to be matched against.

    Attributes:
        classes: In the natural order of their folder names.
        keys: What the numbers were computed with.
        calibration: Rejection threshold; None where not calibrated.
        background: Clips of what belongs to no class.
    """

    classes: tuple[BankClass, ...]
    keys: BankKeys
    calibration: Calibration | None = None
    background: tuple[BankClip, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Class labels."""
        return tuple(entry.label for entry in self.classes)

    @property
    def prompts(self) -> Float:
        """Prompt embeddings [C, D]."""
        return np.stack([entry.embedding for entry in self.classes])

    @property
    def prototypes(self) -> Float:
        """Prototypes [C, V, T, D]."""
        return np.stack([entry.prototypes for entry in self.classes])

    @property
    def clips(self) -> dict[str, BankClip]:
        """Every clip by its content hash, those of the background too."""
        every = (*(clip for entry in self.classes for clip in entry.clips), *self.background)
        return {clip.digest: clip for clip in every}

    def calibrated(self: _Self, model: Model) -> _Self:
        """The same with a rejection threshold, where it has none and the classes have enough clips."""
        if self.calibration or not can_calibrate([len(entry.clips) for entry in self.classes]):
            return self
        try:
            found = calibrate(model, [entry.features for entry in self.classes], self.prompts, self.prototypes)
        except (CheckFailed, ClipError) as error:  # numbers that are not finite
            _log.warning("rejection is not calibrated: %s", error.message)
            return self
        return replace(self, calibration=found)

    def write(self, path: Path) -> None:
        """Write to a file, atomically.

        Raises:
            OSError: The place cannot be written.
            InputError: A name that is not Unicode or is too long, or more clips than a bank holds.
        """
        try:
            index = BankIndex(
                keys=self.keys,
                classes=tuple(_class_entry(entry) for entry in self.classes),
                background=tuple(_clip_entry(clip) for clip in self.background),
                calibration=CalibrationEntry(**vars(self.calibration)) if self.calibration else None,
            )
        except ValidationError as error:
            first = error.errors()[0]
            unicode = "a class or clip has a name that is not Unicode"
            raise InputError(f"{path}: {unicode if first['type'] == 'string_unicode' else first['msg']}") from None
        clips = [*(clip for entry in self.classes for clip in entry.clips), *self.background]
        features = np.stack([clip.features for clip in clips])  # (M, T, D)
        write_bank(path, index, {"features": features, "prompts": self.prompts, "prototypes": self.prototypes})


def read_contents(path: Path, bundle: Bundle) -> BankContents:
    """Read a bank whose features fit this bundle; its prompts and prototypes may be of another head, of other views.

    Raises:
        InputError: Damaged, of another version, or made with another encoder or preprocessing.
    """
    index, tensors = read_bank(path, bundle.key("visual"), bundle.manifest.clip.frames, bundle.manifest.dim)
    rows = iter(tensors["features"])

    def clips_of(entries: Sequence[ClipEntry]) -> tuple[BankClip, ...]:
        return tuple(
            BankClip(c.name, c.digest, Stamp(c.size, c.mtime_ns, c.ctime_ns, c.inode), next(rows), c.seconds)
            for c in entries
        )

    classes = []
    for number, entry in enumerate(index.classes):
        clips = clips_of(entry.clips)
        prompt, prototypes = tensors["prompts"][number], tensors["prototypes"][number]
        classes.append(BankClass(entry.label, entry.texts, entry.prompts, prompt, prototypes, clips))
    calibration = Calibration(**index.calibration.model_dump()) if index.calibration else None
    return BankContents(tuple(classes), index.keys, calibration, clips_of(index.background))


def _class_entry(entry: BankClass) -> ClassEntry:
    clips = tuple(_clip_entry(clip) for clip in entry.clips)
    return ClassEntry(label=entry.label, texts=entry.texts, prompts=entry.prompts, clips=clips)


def _clip_entry(clip: BankClip) -> ClipEntry:
    return ClipEntry(name=clip.name, digest=clip.digest, **asdict(clip.stamp), seconds=clip.seconds)


def keys_of(bundle: Bundle) -> BankKeys:
    """The keys a bank of this bundle has."""
    return BankKeys(
        visual=bundle.key("visual"), text=bundle.key("text"), support=bundle.key("support"), query=bundle.key("query")
    )


class Encoded(NamedTuple):
    """What encoding a clip gives: features [T, D], and how long the clip lasts."""

    features: Float
    seconds: float


def encode(path: Path, model: Model) -> Encoded:
    """Encode a support clip. Raises ClipError where it cannot be read or its features are not finite."""
    source = open_source(path)
    frames = load_clip(source, model.bundle.manifest.clip)
    seconds = max(round(source.duration, 3), 0.001)  # to the millisecond, as containers keep times
    return Encoded(model.encode_clips(frames[None], [os.fspath(path)])[0], seconds)


def embed(prompts: Iterable[tuple[str, ...]], model: Model, old: BankContents | None) -> dict[tuple[str, ...], Float]:
    """Prompts of a class to embedding [D], of those that the old bank has not computed with the same graph, and of
    its own."""
    same = old is not None and old.keys.text == model.bundle.key("text")
    embeddings = {entry.prompts: entry.embedding for entry in old.classes} if old and same else {}
    new = sorted(set(prompts) - embeddings.keys())
    for start in range(0, len(new), PROMPT_BATCH):
        batch = new[start : start + PROMPT_BATCH]
        embeddings.update(zip(batch, prompt_embeddings(batch, model.encode_texts), strict=True))
    return embeddings


def make_class(
    label: str,
    texts: tuple[str, ...],
    prompts: tuple[str, ...],
    embedding: Float,
    clips: Sequence[BankClip],
    model: Model,
) -> BankClass:
    """A class from the embedding [D] of its prompts and its clips' features.

    Raises:
        CheckFailed: Its prototypes are not finite.
    """
    features = np.stack([clip.features for clip in clips])  # (K, T, D)
    prototypes = model.prototypes(features, embedding[None])
    return BankClass(label, texts, prompts, embedding, prototypes, tuple(clips))
