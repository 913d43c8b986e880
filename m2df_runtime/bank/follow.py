"""A bank file brought up to date with a model: from its features where they fit it, else from the clips inside it."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from m2df_runtime.bank.contents import (
    BankClass,
    BankClip,
    BankContents,
    Encoded,
    Members,
    Past,
    Stored,
    encode,
    keys_of,
    make_classes,
    read_stored,
)
from m2df_runtime.bank.file import OtherEncoder
from m2df_runtime.bank.origin import InBank
from m2df_runtime.bundle.prompt_texts import LabelRules
from m2df_runtime.errors import CheckFailed, ClipError, InputError
from m2df_runtime.files import locked
from m2df_runtime.progress import Progress, silent

if TYPE_CHECKING:
    from m2df_runtime.backends.model import Model

_log = logging.getLogger(__name__)


def file_bank(path: Path, model: Model, rules: LabelRules | None, progress: Progress = silent) -> BankContents:
    """See `SupportBank.of`."""
    try:
        seen = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "check the path") from None
    found = followed(path, model, progress)
    bank = found.bank.calibrated(model)
    if found.whole and (found.changed or bank is not found.bank):
        _store(path, seen, bank, found.past)
    return bank if rules is None else described(bank, rules, model).calibrated(model)


class Followed(NamedTuple):
    """What a bank file holds, with the numbers of a model.

    Attributes:
        bank: It.
        past: What it was before its last change.
        changed: Whether the file has other numbers.
        whole: Whether everything in the file could be used; what could not is left to it.
    """

    bank: BankContents
    past: Past | None
    changed: bool
    whole: bool


def followed(path: Path, model: Model, progress: Progress = silent) -> Followed:
    """Read a bank file, and bring it up to date with a model.

    Raises:
        InputError: It is damaged, or of another encoder and without clips.
    """
    try:
        stored = read_stored(path, model.bundle)
    except OtherEncoder:
        return _encoded(path, read_stored(path), model, progress)
    bank, keys = stored.bank, keys_of(model.bundle)
    fits = bank.prototypes.shape[1] == model.bundle.manifest.views
    if bank.keys == keys and fits:
        return Followed(*stored, False, True)
    same = bank.keys.text == keys.text
    members = [entry.members if same else _reworded(entry.members, model) for entry in bank.classes]
    classes = _classes(path, members, model, bank if fits else None)
    made = BankContents(classes, keys, background=bank.background)
    past = stored.past and _reworded_past(stored.past, model, same)
    return Followed(made, past, True, len(classes) == len(members))


def _encoded(path: Path, stored: Stored, model: Model, progress: Progress) -> Followed:
    """The same from the clips inside, which are encoded anew."""
    bank, past = stored
    if not all(clip.origin and clip.origin.has_clip for clip in bank.clips.values()):
        raise InputError(
            f"{path}: this bank was made with another bundle or pixel version, which it cannot follow: it was packed "
            "without its clips",
            "pack it again from its support folder, or use the bundle that it was made with",
        )
    before = [*(clip for entry in past.classes for clip in entry.clips), *past.background] if past else []
    clips = {clip.digest: clip for clip in before} | bank.clips
    encoded: dict[str, Encoded] = {}
    with progress("encoding support clips", len(clips)) as advance, tempfile.TemporaryDirectory(prefix="m2df-") as work:
        for number, clip in enumerate(clips.values()):
            folder = Path(work, str(number))
            folder.mkdir()
            try:
                assert isinstance(clip.origin, InBank)  # clips of a bank file
                encoded[clip.digest] = _encoded_clip(clip.origin, folder, model)
            except ClipError as error:
                _log.warning("%s; not used", error)
            advance(1)
    members = [_reworded(entry.members, model)._replace(clips=_with(encoded, entry.clips)) for entry in bank.classes]
    usable = [entry for entry in members if entry.clips]
    classes = _classes(path, usable, model, None)
    made = BankContents(classes, keys_of(model.bundle), background=_with(encoded, bank.background))
    whole = all(digest in encoded for digest in clips) and len(classes) == len(bank.classes)
    return Followed(made, _with_past(encoded, past, model) if past and whole else None, True, whole)


def _encoded_clip(origin: InBank, folder: Path, model: Model) -> Encoded:
    path = origin.restored(folder)
    try:
        return encode(path, model)
    except ClipError as error:
        raise ClipError(origin.name, error.reason, error.hint) from None


def _with(encoded: dict[str, Encoded], clips: Sequence[BankClip]) -> tuple[BankClip, ...]:
    """Clips with new features; without those that have none."""
    return tuple(replace(clip, **encoded[clip.digest]._asdict()) for clip in clips if clip.digest in encoded)


def _with_past(encoded: dict[str, Encoded], past: Past, model: Model) -> Past:
    reworded = _reworded_past(past, model, False)
    classes = tuple(entry._replace(clips=_with(encoded, entry.clips)) for entry in reworded.classes)
    return reworded._replace(classes=classes, background=_with(encoded, past.background))


def _reworded(entry: Members, model: Model) -> Members:
    """A class with its own texts in the bundle's template."""
    template = model.bundle.manifest.text.rules.template
    return entry._replace(prompts=LabelRules(template, {entry.label: entry.texts}).prompts(entry.label))


def _reworded_past(past: Past, model: Model, same: bool) -> Past:
    return past if same else past._replace(classes=tuple(_reworded(entry, model) for entry in past.classes))


def described(bank: BankContents, rules: LabelRules, model: Model) -> BankContents:
    """The bank with prompts by other rules."""
    members = [
        Members(entry.label, rules.descriptions(entry.label), rules.prompts(entry.label), entry.clips)
        for entry in bank.classes
    ]
    if [entry.prompts for entry in members] == [entry.prompts for entry in bank.classes]:
        return bank
    return replace(bank, classes=make_classes(members, model, bank), calibration=None)


def _classes(path: Path, members: Sequence[Members], model: Model, old: BankContents | None) -> tuple[BankClass, ...]:
    def left_out(label: str, error: CheckFailed) -> None:
        _log.warning("%s: class %r: %s; left out", path, label, error.message)

    classes = make_classes(members, model, old, left_out)
    if not classes:
        raise InputError(f"{path}: no class in it can be used", "see the warnings above")
    return classes


def _store(path: Path, seen: os.stat_result, bank: BankContents, past: Past | None) -> None:
    """Write what was brought up to date, unless the file is another one by now or cannot be written."""
    try:
        with locked(path):
            now = os.stat(path)
            if os.path.samestat(seen, now) and seen.st_mtime_ns == now.st_mtime_ns:
                bank.write(path, past, keep="clips")
    except (OSError, InputError) as error:
        _log.debug("%s: not stored: %s", path, error)
