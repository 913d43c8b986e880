"""Bringing a support bank up to date: encode what changed, keep the rest, store the result."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.bank.bank import (
    BankClass,
    BankClip,
    BankReport,
    SupportBank,
    bank_paths,
    features_by_digest,
    keys_of,
    load_for_features,
)
from m2df_runtime.bank.folder import SupportClip, SupportFolder, read_support
from m2df_runtime.clips.opening import open_source
from m2df_runtime.errors import CheckFailed, ClipError, InputError
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.progress import Progress
from m2df_runtime.regular_files import irregular

if TYPE_CHECKING:
    from m2df_runtime.backends.model import Model
    from m2df_runtime.bundle.labels import LabelRules

Float = NDArray[np.float32]

PROMPT_BATCH = 64

_log = logging.getLogger(__name__)


@dataclass
class _Counts:
    encoded: int = 0
    reused: int = 0
    prompts: int = 0
    prototypes: int = 0
    left_out: int = 0


def update_bank(
    folder: Path, model: Model, rules: LabelRules, *, calibrated: bool, in_cache: bool, progress: Progress
) -> tuple[SupportBank, BankReport]:
    """See `SupportBank.update`."""
    paths = _free(bank_paths(folder, model.bundle, in_cache=in_cache))
    old, found = _load_first(paths, model)
    bank, counts = build_bank(folder, model, rules, old, progress)
    if calibrated:
        bank = bank.with_calibration(model)
    removed = len(features_by_digest(old).keys() - features_by_digest(bank).keys())
    if old is None or not _same(old, bank):
        found = _store(bank, paths)
    return bank, BankReport(counts.encoded, counts.reused, removed, counts.prompts, counts.prototypes, found)


def build_bank(
    folder: Path, model: Model, rules: LabelRules, old: SupportBank | None, progress: Progress
) -> tuple[SupportBank, _Counts]:
    """Make the bank of a folder, taking from an old one what still holds.

    Raises:
        InputError: No class with a readable clip is left, or one clip stands in two classes.
    """
    support = read_support(folder)
    for warning in support.warnings:
        _log.warning("%s", warning)
    counts = _Counts()
    digests = _distinct(support, _digests(support, old, counts))
    clips = _encoded(support, digests, model, features_by_digest(old), counts, progress)
    if counts.left_out > 1:  # of one, its own line says it
        total = sum(map(len, support.classes.values()))
        _log.warning("%s: %d of %d clips are left out, for the reasons above", folder, counts.left_out, total)
    classes = _with_prototypes(folder, clips, model, rules, old, counts)
    bank = SupportBank(classes, keys_of(model.bundle))
    if old and old.keys == bank.keys and _matched(old) == _matched(bank):
        bank = replace(bank, calibration=old.calibration)
    return bank, counts


def _free(paths: Sequence[Path]) -> list[Path]:
    """The places where nothing but a bank stands or could be; what else stands there is named and left as it is."""
    free = []
    for path in paths:
        taken = _in_the_way(path)
        if taken is None:
            free.append(path)
        else:
            _log.warning("%s; the support bank is not kept there", taken)
    return free


def _in_the_way(path: Path) -> str | None:
    for place, right in ((path.parent, stat.S_ISDIR), (path, stat.S_ISREG)):
        try:
            mode = place.stat().st_mode
        except OSError:  # nothing is there, or nothing that can be seen
            if os.path.islink(place):
                return f"{place}: a link that leads nowhere"
            continue
        if not right(mode):
            return f"{place}: {irregular(mode) or 'a file'}"
    return None


def _load_first(paths: Sequence[Path], model: Model) -> tuple[SupportBank | None, Path | None]:
    """The newest usable bank file; one that cannot be used is named and built anew."""
    present = []
    for path in paths:
        with suppress(OSError):
            present.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(present, reverse=True):
        try:
            return load_for_features(path, model.bundle), path
        except InputError as error:
            _log.warning("%s; building it again", error.message)
    return None, None


def _store(bank: SupportBank, paths: Sequence[Path]) -> Path | None:
    """Write to the first place that can be written; without any the bank lives for this run only."""
    problem = "nothing can be written where it would be"
    for path in paths:
        try:
            bank.save(path)
        except OSError as error:
            problem = f"{path}: {error.strerror or error}"
        except InputError as error:
            problem = error.message
        else:
            return path
        _log.debug("%s", problem)
    _log.warning("the support bank is not kept: %s", problem)
    return None


def _digests(support: SupportFolder, old: SupportBank | None, counts: _Counts) -> dict[str, str]:
    """Content hash of every readable clip; hashed only where its stamp differs from the last visit."""
    known = {clip.name: clip for entry in old.classes for clip in entry.clips} if old else {}
    digests = {}
    for clip in (clip for clips in support.classes.values() for clip in clips):
        last = known.get(clip.name)
        try:
            digests[clip.name] = last.digest if last and last.stamp == clip.stamp else clip.digest()
        except OSError as error:
            _log.warning("%s: %s; not used", clip.path, error.strerror or error)
            counts.left_out += 1
    return digests


def _distinct(support: SupportFolder, digests: Mapping[str, str]) -> dict[SupportClip, str]:
    """Clips with their hashes, each content once.

    Raises:
        InputError: The same content in two classes, where it would make both wrong.
    """
    first: dict[str, tuple[str, SupportClip]] = {}
    for label, clips in support.classes.items():
        for clip in (clip for clip in clips if clip.name in digests):
            other_label, other = first.setdefault(digests[clip.name], (label, clip))
            if other is clip:
                continue
            if other_label != label:
                raise InputError(
                    f"{clip.path}: the same clip stands in class {label!r} and, as {other.path}, in {other_label!r}",
                    "remove one of the two",
                )
            _log.warning("%s: the same clip as %s, used once", clip.path, other.path.name)
    return {clip: digest for digest, (_, clip) in first.items()}


def _encoded(
    support: SupportFolder,
    digests: Mapping[SupportClip, str],
    model: Model,
    known: Mapping[str, Float],
    counts: _Counts,
    progress: Progress,
) -> dict[str, tuple[BankClip, ...]]:
    """Features of every clip, per class; clips that cannot be read are named and left out."""
    features = {digest: known[digest] for digest in digests.values() if digest in known}
    counts.reused = len(features)
    new = [(clip, digest) for clip, digest in digests.items() if digest not in known]
    with progress("encoding support clips", len(new)) as advance:
        for clip, digest in new:
            encoded = _encode(clip, model)
            if encoded is None:
                counts.left_out += 1
            else:
                features[digest] = encoded
                counts.encoded += 1
            advance(1)
    classes: dict[str, tuple[BankClip, ...]] = {}
    for label, clips in support.classes.items():
        used = [clip for clip in clips if digests.get(clip) in features]
        kept = tuple(BankClip(c.name, digests[c], c.stamp, features[digests[c]]) for c in used)
        if kept:
            classes[label] = kept
        else:
            _log.warning("%s: no readable clip, class left out", support.path / label)
    if not classes:
        raise InputError(f"{support.path}: no clip in it can be read", "see the warnings above")
    return classes


def _encode(clip: SupportClip, model: Model) -> Float | None:
    try:
        frames = load_clip(open_source(clip.path), model.bundle.manifest.clip)
        features: Float = model.encode_clips(frames[None], [os.fspath(clip.path)])[0]
    except ClipError as error:
        _log.warning("%s; not used", error.message)
        return None
    return features


def _with_prototypes(
    folder: Path,
    clips: Mapping[str, tuple[BankClip, ...]],
    model: Model,
    rules: LabelRules,
    old: SupportBank | None,
    counts: _Counts,
) -> tuple[BankClass, ...]:
    """Prompt embedding and prototypes of every class, computed where clips, prompt or graph changed."""
    keys = keys_of(model.bundle)
    same_text = old is not None and old.keys.text == keys.text
    embeddings = {c.prompt: c.embedding for c in old.classes} if old and same_text else {}
    new = sorted({rules.prompt(label) for label in clips} - embeddings.keys())
    for start in range(0, len(new), PROMPT_BATCH):
        batch = new[start : start + PROMPT_BATCH]
        embeddings.update(zip(batch, model.encode_texts(batch), strict=True))
    counts.prompts = len(new)
    same_head = old is not None and same_text and old.keys.support == keys.support
    done = {_prototype_key(c.prompt, c.clips): c.prototypes for c in old.classes} if old and same_head else {}
    classes = []
    for label, members in clips.items():
        prompt = rules.prompt(label)
        prototypes = done.get(_prototype_key(prompt, members))
        if prototypes is None:
            features = np.stack([clip.features for clip in members])  # (K, T, D)
            try:
                prototypes = model.prototypes(features, embeddings[prompt][None])
            except CheckFailed as error:  # numbers that are not finite
                _log.warning("%s: %s; class left out", folder / label, error.message)
                continue
            counts.prototypes += 1
        classes.append(BankClass(label, rules.text(label), prompt, embeddings[prompt], prototypes, members))
    if not classes:
        raise InputError(f"{folder}: no class in it can be used", "see the warnings above")
    return tuple(classes)


def _prototype_key(prompt: str, clips: Sequence[BankClip]) -> tuple[str, ...]:
    return (prompt, *(clip.digest for clip in clips))


def _matched(bank: SupportBank) -> list[tuple[str, ...]]:
    """What scores depend on: prompts and clips of all classes."""
    return [_prototype_key(entry.prompt, entry.clips) for entry in bank.classes]


def _same(old: SupportBank, new: SupportBank) -> bool:
    """Whether a bank on disk needs no writing."""

    def described(bank: SupportBank) -> list[object]:
        clips = [(c.name, c.digest, c.stamp) for entry in bank.classes for c in entry.clips]
        return [clips, [(entry.label, entry.text, entry.prompt) for entry in bank.classes], bank.keys, bank.calibration]

    return described(old) == described(new)
