"""What a support bank holds, how each part of it is computed, and its way to a file and back.

Features are bound to the visual graph, the preprocessing and the pixel version, prototypes to the support graph,
calibration to the query graph: only clips whose content changed are encoded again, heads of one encoder use the same
features, and a change of one class touches no other.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from m2df_runtime.bank.calibration import Calibration, calibrate
from m2df_runtime.bank.file import (
    BANK_VERSION,
    BankIndex,
    BankKeys,
    CalibrationEntry,
    ClassEntry,
    ClipEntry,
    Fit,
    PastClass,
    PastClip,
    PastEntry,
    read_bank,
    write_bank,
)
from m2df_runtime.bank.folder import Stamp
from m2df_runtime.bank.origin import InBank, Keep, Origin, Parts
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
    """One support clip: `class/clip` name, content hash, stamp, features [T, D], how long it lasts, where it is."""

    name: str
    digest: str
    stamp: Stamp
    features: Float
    seconds: float
    origin: Origin | None = field(default=None, repr=False, compare=False)


class Members(NamedTuple):
    """What a class is made of: its label, texts, prompts and clips."""

    label: str
    texts: tuple[str, ...]
    prompts: tuple[str, ...]
    clips: tuple[BankClip, ...]


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
    def members(self) -> Members:
        """What it is made of."""
        return Members(self.label, self.texts, self.prompts, self.clips)

    @property
    def made_from(self) -> tuple[tuple[str, ...], ...]:
        """What its prototypes depend on: the prompts and the content of its clips."""
        return self.prompts, tuple(clip.digest for clip in self.clips)


class Past(NamedTuple):
    """A bank before its last change, and what was done to it."""

    did: str
    classes: tuple[Members, ...]
    background: tuple[BankClip, ...]


_Self = TypeVar("_Self", bound="BankContents")


@dataclass(frozen=True)
class BankContents:
    """Classes ready to be matched against.

    Attributes:
        classes: In the natural order of their folder names.
        keys: What the numbers were computed with.
        calibration: What its own clips say of answers; None where not calibrated.
        background: Clips of what belongs to no class.
    """

    classes: tuple[BankClass, ...]
    keys: BankKeys
    calibration: Calibration | None = None
    background: tuple[BankClip, ...] = ()

    @property
    def temperature(self) -> float:
        """What logits are divided by before they become probabilities; 1 where it is not calibrated."""
        return self.calibration.temperature if self.calibration else 1.0

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
        """The same, calibrated with this model, where the classes have enough clips."""
        if self.calibration and self.calibration.made_by(model):
            return self
        features = [entry.features for entry in self.classes]
        try:
            found = calibrate(model, features, self.prompts, self.prototypes, [one.features for one in self.background])
        except (CheckFailed, ClipError) as error:  # numbers that are not finite
            _log.warning("rejection is not calibrated: %s", error.message)
            found = None
        return self if found == self.calibration else replace(self, calibration=found)

    def write(self, path: Path, past: Past | None = None, *, keep: Keep = "nothing") -> None:
        """Write to a file, atomically.

        Args:
            path: The file.
            past: What `undo` is to go back to.
            keep: What else of the clips than their features.

        Raises:
            OSError: The place cannot be written.
            InputError: A name that is not Unicode or is too long, or more clips than a bank holds.
            ClipError: A clip that is to be kept cannot be read.
        """
        here = [*(clip for entry in self.classes for clip in entry.clips), *self.background]
        rows = {clip.digest: row for row, clip in enumerate(here)}
        before = [*(clip for entry in past.classes for clip in entry.clips), *past.background] if past else []
        removed = list({clip.digest: clip for clip in before if clip.digest not in rows}.values())
        rows |= {clip.digest: row for row, clip in enumerate(removed, len(here))}
        every = here + removed
        parts = [clip.origin.parts(keep) if clip.origin else Parts(None, (), iter(())) for clip in every]
        try:
            entries = iter([_clip_entry(clip, own) for clip, own in zip(every, parts, strict=True)])
            index = BankIndex(
                version=BANK_VERSION,
                keys=self.keys,
                classes=tuple(
                    ClassEntry(label=c.label, texts=c.texts, prompts=c.prompts, clips=_taken(entries, c.clips))
                    for c in self.classes
                ),
                background=_taken(entries, self.background),
                removed=_taken(entries, removed),
                past=_past_entry(past, rows) if past else None,
                calibration=CalibrationEntry(**vars(self.calibration)) if self.calibration else None,
            )
        except ValidationError as error:
            first = error.errors()[0]
            unicode = "a class or clip has a name that is not Unicode"
            raise InputError(f"{path}: {unicode if first['type'] == 'string_unicode' else first['msg']}") from None
        features = np.stack([clip.features for clip in every])  # (M, T, D)
        tensors = {"features": features, "prompts": self.prompts, "prototypes": self.prototypes}
        write_bank(path, index, tensors, itertools.chain.from_iterable(own.blocks for own in parts))


class Stored(NamedTuple):
    """What a bank file holds: the bank, and what it was before its last change."""

    bank: BankContents
    past: Past | None


def read_stored(path: Path, bundle: Bundle | None = None) -> Stored:
    """Read a bank whose features fit this bundle; its prompts and prototypes may be of another head, of other views.

    Args:
        path: The file.
        bundle: None takes a bank of any bundle.

    Raises:
        OtherEncoder: Made with another encoder or preprocessing.
        InputError: Damaged, or of another version.
    """
    fit = Fit(bundle.key("visual"), bundle.manifest.clip.frames, bundle.manifest.dim) if bundle else None
    index, tensors, content = read_bank(path, fit)
    every: list[BankClip] = []
    place = 0
    for c, features in zip(index.clips(), tensors["features"], strict=True):
        stamp = Stamp(c.size, c.mtime_ns, c.ctime_ns, c.inode)
        every.append(BankClip(c.name, c.digest, stamp, features, c.seconds, InBank(path, c, content, place)))
        place += c.bytes
    rows = iter(every)
    classes = []
    for number, entry in enumerate(index.classes):
        clips = _taken(rows, entry.clips)
        prompt, prototypes = tensors["prompts"][number], tensors["prototypes"][number]
        classes.append(BankClass(entry.label, entry.texts, entry.prompts, prompt, prototypes, clips))
    calibration = Calibration(**index.calibration.model_dump()) if index.calibration else None
    bank = BankContents(tuple(classes), index.keys, calibration, _taken(rows, index.background))
    return Stored(bank, _past_of(index.past, every) if index.past else None)


def _past_of(past: PastEntry, every: Sequence[BankClip]) -> Past:
    def clips_of(entries: Sequence[PastClip]) -> tuple[BankClip, ...]:
        return tuple(replace(every[clip.row], name=clip.name) for clip in entries)

    classes = tuple(Members(entry.label, entry.texts, entry.prompts, clips_of(entry.clips)) for entry in past.classes)
    return Past(past.did, classes, clips_of(past.background))


def _past_entry(past: Past, rows: Mapping[str, int]) -> PastEntry:
    def entries_of(clips: Sequence[BankClip]) -> tuple[PastClip, ...]:
        return tuple(PastClip(name=clip.name, row=rows[clip.digest]) for clip in clips)

    return PastEntry(
        did=past.did,
        classes=tuple(
            PastClass(label=entry.label, texts=entry.texts, prompts=entry.prompts, clips=entries_of(entry.clips))
            for entry in past.classes
        ),
        background=entries_of(past.background),
    )


def _clip_entry(clip: BankClip, own: Parts) -> ClipEntry:
    stamp = clip.stamp._asdict()
    return ClipEntry(
        name=clip.name, digest=clip.digest, **stamp, seconds=clip.seconds, strip=own.strip, files=own.files
    )


_Any = TypeVar("_Any")


def _taken(rows: Iterator[_Any], wanted: Sequence[object]) -> tuple[_Any, ...]:
    """As many of what is left as others are there."""
    return tuple(itertools.islice(rows, len(wanted)))


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


def _embedded(
    prompts: Iterable[tuple[str, ...]], model: Model, old: BankContents | None
) -> dict[tuple[str, ...], Float]:
    """Prompts of a class to embedding [D], of those that the old bank has not computed with the same graph, and of
    its own."""
    same = old is not None and old.keys.text == model.bundle.key("text")
    embeddings = {entry.prompts: entry.embedding for entry in old.classes} if old and same else {}
    new = sorted(set(prompts) - embeddings.keys())
    for start in range(0, len(new), PROMPT_BATCH):
        batch = new[start : start + PROMPT_BATCH]
        embeddings.update(zip(batch, prompt_embeddings(batch, model.encode_texts), strict=True))
    return embeddings


def make_classes(
    members: Iterable[Members],
    model: Model,
    old: BankContents | None,
    left_out: Callable[[str, CheckFailed], None] | None = None,
) -> tuple[BankClass, ...]:
    """Classes, with prompt embedding and prototypes computed where clips, prompts or graph differ from an old bank's.

    Args:
        members: What each class is made of.
        model: Computes what is new.
        old: A bank whose numbers are used again where they are the same.
        left_out: Told of a class whose numbers are not finite, which is then left out; None raises instead.

    Raises:
        CheckFailed: The prototypes of a class are not finite.
    """
    keys = keys_of(model.bundle)
    every = list(members)
    embeddings = _embedded([entry.prompts for entry in every], model, old)
    same = old is not None and (old.keys.text, old.keys.support) == (keys.text, keys.support)
    done = {entry.made_from: entry for entry in old.classes} if old and same else {}
    classes = []
    for label, texts, prompts, clips in every:
        found = done.get((prompts, tuple(clip.digest for clip in clips)))
        if found is not None:
            classes.append(replace(found, label=label, texts=texts, clips=clips))
            continue
        try:
            prototypes = model.prototypes(np.stack([clip.features for clip in clips]), embeddings[prompts][None])
        except CheckFailed as error:  # numbers that are not finite
            if left_out is None:
                raise
            left_out(label, error)
        else:
            classes.append(BankClass(label, texts, prompts, embeddings[prompts], prototypes, clips))
    return tuple(classes)
