"""The support bank: what a folder of support clips looks like to one bundle, kept between runs.

Features are bound to the visual graph, the preprocessing and the pixel version, prototypes to the support graph,
calibration to the query graph: only clips whose content changed are encoded again, heads of one encoder use the same
features, and a change of one class touches no other.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from m2df_runtime.bank.calibration import Calibration, calibrate, can_calibrate
from m2df_runtime.bank.file import BankIndex, BankKeys, CalibrationEntry, ClassEntry, ClipEntry, read_bank, write_bank
from m2df_runtime.bank.folder import Stamp
from m2df_runtime.bundle.labels import LabelRules
from m2df_runtime.errors import CheckFailed, ClipError, InputError
from m2df_runtime.progress import Progress, silent
from m2df_runtime.user_cache import cache_dir

if TYPE_CHECKING:
    from m2df_runtime.backends.model import Model
    from m2df_runtime.bundle.bundle import Bundle

Float = NDArray[np.float32]

BANK_FOLDER = ".m2df"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BankClip:
    """One support clip: `class/clip` name, content hash, stamp, features [T, D]."""

    name: str
    digest: str
    stamp: Stamp
    features: Float


@dataclass(frozen=True)
class BankClass:
    """One class: folder name, its text and prompt, prompt embedding [D], prototypes [V, T, D], clips."""

    label: str
    text: str
    prompt: str
    embedding: Float
    prototypes: Float
    clips: tuple[BankClip, ...]

    @property
    def features(self) -> Float:
        """Features of all clips, [K, T, D]."""
        return np.stack([clip.features for clip in self.clips])


@dataclass(frozen=True)
class BankReport:
    """What an update did: clips encoded, re-used and removed, prompts embedded, prototypes computed, file written."""

    encoded: int
    reused: int
    removed: int
    prompts: int
    prototypes: int
    path: Path | None


@dataclass(frozen=True)
class SupportBank:
    """Classes ready to be matched against.

    Attributes:
        classes: In the natural order of their folder names.
        keys: What the numbers were computed with.
        calibration: Rejection threshold; None where not calibrated.
    """

    classes: tuple[BankClass, ...]
    keys: BankKeys
    calibration: Calibration | None = None

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

    @classmethod
    def build(cls, folder: Path | str, model: Model, rules: LabelRules | None = None) -> SupportBank:
        """Encode a support folder without reading or writing a bank file. Raises InputError as `update` does."""
        from m2df_runtime.bank.update import build_bank

        return build_bank(Path(folder), model, rules or default_rules(model.bundle), None, silent)[0]

    @classmethod
    def update(
        cls,
        folder: Path | str,
        model: Model,
        rules: LabelRules | None = None,
        *,
        calibrated: bool = False,
        in_cache: bool = False,
        progress: Progress = silent,
    ) -> tuple[SupportBank, BankReport]:
        """The folder's bank, brought up to date and stored.

        Args:
            folder: One sub-folder per class.
            model: The opened bundle.
            rules: Folder names to prompts; None takes the bundle's.
            calibrated: Also calibrate rejection, where the classes have enough clips.
            in_cache: Keep the file in the user's cache folder even where the support folder is writable.
            progress: Shows the encoding of clips.

        Raises:
            InputError: The folder holds no usable class, or the same clip in two classes.
        """
        from m2df_runtime.bank.update import update_bank

        rules = rules or default_rules(model.bundle)
        return update_bank(Path(folder), model, rules, calibrated=calibrated, in_cache=in_cache, progress=progress)

    @classmethod
    def load(cls, path: Path | str, bundle: Bundle) -> SupportBank:
        """Read a bank made with this bundle.

        Raises:
            InputError: Damaged, of another version, or made with another bundle.
        """
        bank = load_for_features(Path(path), bundle)
        if bank.keys != keys_of(bundle) or bank.prototypes.shape[1] != bundle.manifest.views:
            raise InputError(f"{path}: this bank's prototypes were made with another bundle", "update it")
        return bank

    def save(self, path: Path | str) -> None:
        """Write the bank atomically.

        Raises:
            OSError: The place cannot be written.
            InputError: A name that is not Unicode or is too long, or more clips than a bank holds.
        """
        try:
            index = BankIndex(
                keys=self.keys,
                classes=tuple(_class_entry(entry) for entry in self.classes),
                calibration=CalibrationEntry(**vars(self.calibration)) if self.calibration else None,
            )
        except ValidationError as error:
            first = error.errors()[0]
            unicode = "a class or clip has a name that is not Unicode"
            raise InputError(f"{path}: {unicode if first['type'] == 'string_unicode' else first['msg']}") from None
        features = np.concatenate([entry.features for entry in self.classes])  # (M, T, D)
        write_bank(Path(path), index, {"features": features, "prompts": self.prompts, "prototypes": self.prototypes})

    def with_calibration(self, model: Model) -> SupportBank:
        """The same bank with its rejection threshold, where the classes have enough clips."""
        if self.calibration or not can_calibrate([len(entry.clips) for entry in self.classes]):
            return self
        try:
            found = calibrate(model, [entry.features for entry in self.classes], self.prompts, self.prototypes)
        except (CheckFailed, ClipError) as error:  # numbers that are not finite
            _log.warning("rejection is not calibrated: %s", error.message)
            return self
        return SupportBank(self.classes, self.keys, found)


def keys_of(bundle: Bundle) -> BankKeys:
    """The keys a bank of this bundle has."""
    return BankKeys(
        visual=bundle.key("visual"), text=bundle.key("text"), support=bundle.key("support"), query=bundle.key("query")
    )


def default_rules(bundle: Bundle) -> LabelRules:
    """Prompt template and label texts of the bundle."""
    return LabelRules(bundle.manifest.text.prompt, bundle.manifest.text.labels)


def bank_paths(folder: Path, bundle: Bundle, *, in_cache: bool = False) -> list[Path]:
    """Where a folder's bank is kept, best place first: in the folder, else in the user's cache folder.

    The name carries the visual key, so bundles that share encoder and preprocessing share features.
    """
    key = bundle.key("visual")[:16]
    resolved = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    cached = cache_dir("banks") / f"{resolved}-{key}.bank"
    return [cached] if in_cache else [folder / BANK_FOLDER / f"{key}.bank", cached]


def load_for_features(path: Path, bundle: Bundle) -> SupportBank:
    """Read a bank whose features fit this bundle; its prompts and prototypes may be of another head, of other views.

    Raises:
        InputError: Damaged, of another version, or made with another encoder or preprocessing.
    """
    index, tensors = read_bank(path, bundle.key("visual"), bundle.manifest.clip.frames, bundle.manifest.dim)
    classes, row = [], 0
    for number, entry in enumerate(index.classes):
        rows = tensors["features"][row : row + len(entry.clips)]
        row += len(entry.clips)
        clips = tuple(
            BankClip(clip.name, clip.digest, Stamp(clip.size, clip.mtime_ns, clip.ctime_ns, clip.inode), features)
            for clip, features in zip(entry.clips, rows, strict=True)
        )
        prompt, prototypes = tensors["prompts"][number], tensors["prototypes"][number]
        classes.append(BankClass(entry.label, entry.text, entry.prompt, prompt, prototypes, clips))
    calibration = Calibration(**index.calibration.model_dump()) if index.calibration else None
    return SupportBank(tuple(classes), index.keys, calibration)


def _class_entry(entry: BankClass) -> ClassEntry:
    clips = tuple(ClipEntry(name=c.name, digest=c.digest, **asdict(c.stamp)) for c in entry.clips)
    return ClassEntry(label=entry.label, text=entry.text, prompt=entry.prompt, clips=clips)


def features_by_digest(bank: SupportBank | None) -> Mapping[str, Float]:
    """Content hash to features of every clip in a bank."""
    return {clip.digest: clip.features for entry in bank.classes for clip in entry.clips} if bank else {}
