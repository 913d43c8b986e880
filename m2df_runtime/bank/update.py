"""A folder's support bank brought up to date: encode what changed, keep the rest, store the result."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.bank.changes import settled
from m2df_runtime.bank.contents import (
    BankClass,
    BankClip,
    BankContents,
    Encoded,
    Members,
    encode,
    keys_of,
    make_classes,
    read_stored,
)
from m2df_runtime.bank.folder import BACKGROUND, KEPT_FOLDER, SupportClip, SupportFolder, read_support
from m2df_runtime.bank.origin import OnDisk
from m2df_runtime.errors import CheckFailed, ClipError, InputError
from m2df_runtime.progress import Progress, silent
from m2df_runtime.regular_files import irregular
from m2df_runtime.user_cache import cache_dir

if TYPE_CHECKING:
    from m2df_runtime.backends.model import Model
    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.bundle.prompt_texts import LabelRules
    from m2df_runtime.pixels.spec import ClipSpec

Float = NDArray[np.float32]

_log = logging.getLogger(__name__)


def folder_bank(
    folder: Path,
    model: Model,
    rules: LabelRules,
    *,
    in_cache: bool = False,
    progress: Progress = silent,
    known: Mapping[str, Encoded] | None = None,
    calibrated: bool = True,
) -> BankContents:
    """See `SupportBank.of`.

    Args:
        folder: The support folder.
        model: The opened bundle.
        rules: Labels to prompts.
        in_cache: See `SupportBank.of`.
        progress: See `SupportBank.of`.
        known: Clips that are encoded already, by their content hashes.
        calibrated: False leaves that to the next use: it may take seconds.

    Raises:
        InputError: See `SupportBank.of`.
    """
    paths = _free(bank_paths(folder, model.bundle, in_cache=in_cache))
    old = _load_first(paths, model)
    with settled(folder, create=not in_cache):
        support = read_support(folder)
        for warning in support.warnings if known is None else ():  # told when it is matched with
            _log.warning("%s", warning)
        digests = digests_of(support, old)
        distinct = _distinct(support, digests)
        encoded = _encoded(distinct, model, old, progress, known or {})
    total = len(support.clips)
    left_out = total - len(digests) + len(set(distinct.values()) - encoded.keys())
    if left_out > 1:  # of one, its own line says it
        _log.warning("%s: %d of %d clips are left out, for the reasons above", folder, left_out, total)
    spec = model.bundle.manifest.clip
    classes = _classes(_by_class(support, distinct, encoded, spec), folder, model, rules, old)
    background = _used(support.background, distinct, encoded, spec)
    bank = BankContents(classes, keys_of(model.bundle), background=background)
    if old and _calibrated_from(old) == _calibrated_from(bank):
        bank = replace(bank, calibration=old.calibration)
    bank = bank.calibrated(model) if calibrated else bank
    if old is None or _described(old) != _described(bank):
        _store(bank, paths)
    return bank


def bank_paths(folder: Path, bundle: Bundle, *, in_cache: bool = False) -> list[Path]:
    """Where a folder's bank is kept, best place first: in the folder, else in the user's cache folder.

    The name carries the visual key, so bundles that share encoder and preprocessing share features.
    """
    key = bundle.key("visual")
    resolved = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    cached = cache_dir("banks") / f"{resolved}-{key[:16]}.bank"
    return [cached] if in_cache else [folder / bank_name(key), cached]


def known_banks(folder: Path) -> list[Path]:
    """The banks that are kept of a folder, of whatever bundle: newest first."""
    resolved = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    present = [*(folder / KEPT_FOLDER).glob("*.bank"), *cache_dir("banks").glob(f"{resolved}-*.bank")]
    times = []
    for path in present:
        with suppress(OSError):
            times.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(times, reverse=True)]


def bank_name(visual_key: str) -> str:
    """Where the bank is in its support folder."""
    return f"{KEPT_FOLDER}/{visual_key[:16]}.bank"


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


def _load_first(paths: Sequence[Path], model: Model) -> BankContents | None:
    """The newest usable bank file; one that cannot be used is named and built anew."""
    present = []
    for path in paths:
        with suppress(OSError):
            present.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(present, reverse=True):
        try:
            return read_stored(path, model.bundle).bank
        except InputError as error:
            _log.warning("%s; building it again", error.message)
    return None


def _store(bank: BankContents, paths: Sequence[Path]) -> None:
    """Write to the first place that can be written; without any the bank lives for this run only."""
    problem = "nothing can be written where it would be"
    for path in paths:
        try:
            bank.write(path)
        except OSError as error:
            problem = f"{path}: {error.strerror or error}"
        except InputError as error:
            problem = error.message
        else:
            return
        _log.debug("%s", problem)
    _log.warning("the support bank is not kept: %s", problem)


def kept_bank(folder: Path, model: Model) -> BankContents | None:
    """The bank of a folder as it was kept when it was last used, if it was."""
    return _load_first(_free(bank_paths(folder, model.bundle)), model)


def digests_of(support: SupportFolder, old: BankContents | None) -> dict[str, str]:
    """Content hash of every readable clip; hashed only where its stamp differs from the last visit."""
    known = {clip.name: clip for clip in old.clips.values()} if old else {}
    digests = {}
    for clip in support.clips:
        last = known.get(clip.name)
        try:
            digests[clip.name] = last.digest if last and last.stamp == clip.stamp else clip.digest()
        except OSError as error:
            _log.warning("%s: %s; not used", clip.path, error.strerror or error)
    return digests


def _distinct(support: SupportFolder, digests: Mapping[str, str]) -> dict[SupportClip, str]:
    """Clips with their hashes, each content once.

    Raises:
        InputError: The same content in two classes, or in one and in the background, where it would make both wrong.
    """
    first: dict[str, tuple[str, SupportClip]] = {}
    for label, clips in (*support.classes.items(), (BACKGROUND, support.background)):
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
    clips: Mapping[SupportClip, str],
    model: Model,
    old: BankContents | None,
    progress: Progress,
    known: Mapping[str, Encoded],
) -> dict[str, Encoded]:
    """Content hash to features and length; clips that cannot be read are named and left out."""
    kept = old.clips if old else {}
    every = {**known, **{digest: Encoded(clip.features, clip.seconds) for digest, clip in kept.items()}}
    encoded = {digest: every[digest] for digest in clips.values() if digest in every}
    new = [(clip, digest) for clip, digest in clips.items() if digest not in every]
    with progress("encoding support clips", len(new)) as advance:
        for clip, digest in new:
            try:
                encoded[digest] = encode(clip.path, model)
            except ClipError as error:
                _log.warning("%s; not used", error.message)
            advance(1)
    return encoded


def _by_class(
    support: SupportFolder, digests: Mapping[SupportClip, str], encoded: Mapping[str, Encoded], spec: ClipSpec
) -> dict[str, tuple[BankClip, ...]]:
    """The clips that have features, per class.

    Raises:
        InputError: There is none.
    """
    classes: dict[str, tuple[BankClip, ...]] = {}
    for label, clips in support.classes.items():
        used = _used(clips, digests, encoded, spec)
        if used:
            classes[label] = used
        else:
            _log.warning("%s: no readable clip, class left out", support.path / label)
    if not classes:
        raise InputError(f"{support.path}: no clip in it can be read", "see the warnings above")
    return classes


def _used(
    clips: Sequence[SupportClip],
    digests: Mapping[SupportClip, str],
    encoded: Mapping[str, Encoded],
    spec: ClipSpec,
) -> tuple[BankClip, ...]:
    used = [clip for clip in clips if digests.get(clip) in encoded]
    return tuple(
        BankClip(clip.name, digests[clip], clip.stamp, *encoded[digests[clip]], OnDisk(clip, spec)) for clip in used
    )


def _classes(
    clips: Mapping[str, tuple[BankClip, ...]], folder: Path, model: Model, rules: LabelRules, old: BankContents | None
) -> tuple[BankClass, ...]:
    """Every class of a folder.

    Raises:
        InputError: None can be used.
    """
    members = (Members(label, rules.descriptions(label), rules.prompts(label), own) for label, own in clips.items())

    def left_out(label: str, error: CheckFailed) -> None:
        _log.warning("%s: %s; class left out", folder / label, error.message)

    classes = make_classes(members, model, old, left_out)
    if not classes:
        raise InputError(f"{folder}: no class in it can be used", "see the warnings above")
    return classes


def _calibrated_from(bank: BankContents) -> list[object]:
    """What a calibration depends on."""
    return [bank.keys, [entry.made_from for entry in bank.classes], [clip.digest for clip in bank.background]]


def _described(bank: BankContents) -> list[object]:
    """What differs where a bank on disk needs to be written anew."""
    clips = [(clip.name, clip.digest, clip.stamp) for clip in bank.clips.values()]
    return [
        clips,
        len(bank.background),
        [(entry.label, entry.texts, entry.prompts) for entry in bank.classes],
        bank.keys,
        bank.calibration,
    ]
