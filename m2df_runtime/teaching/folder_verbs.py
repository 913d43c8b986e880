"""The verbs of teaching on a support folder: clips go in, out of sight and back, each time as one change.

The folder is the truth; its bank follows from it. Encoding comes first, so that a clip that cannot be read changes
nothing.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from m2df_runtime.bank.changes import REMOVED, changing, commit, forget, out_of_sight
from m2df_runtime.bank.contents import BankContents, Encoded, encode
from m2df_runtime.bank.folder import (
    BACKGROUND,
    KEPT_FOLDER,
    SupportClip,
    SupportFolder,
    clip_stamp,
    found_class,
    free_name,
    list_support,
    renamed_onto,
)
from m2df_runtime.bank.origin import OnDisk, Origin
from m2df_runtime.bank.update import digests_of, folder_bank, kept_bank
from m2df_runtime.bundle.prompt_texts import LabelRules, class_called
from m2df_runtime.clips.folder_entries import named
from m2df_runtime.clips.listing import list_clips
from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.files import TEMPORARY_SUFFIX, temporary_folder
from m2df_runtime.progress import Progress

if TYPE_CHECKING:
    from m2df_runtime.backends.model import Model

_log = logging.getLogger(__name__)


class Taught(NamedTuple):
    """A clip that is to be put into a folder.

    Attributes:
        label: Its class, or `BACKGROUND`.
        name: What it is to be called there.
        origin: Where it is.
        said: What messages call it.
        encoded: What is known of it already.
        digest: Its content hash, where that is known, too.
    """

    label: str
    name: str
    origin: Origin
    said: str
    encoded: Encoded | None = None
    digest: str | None = None


def taught_from(label: str, paths: Iterable[Path], model: Model) -> list[Taught]:
    """Clips by their paths. Raises ClipError where one is not there."""
    spec, found = model.bundle.manifest.clip, []
    for path in paths:
        try:
            clip = SupportClip(path, f"{label}/{path.name}", clip_stamp(path))
        except OSError as error:
            raise ClipError(path, error.strerror or str(error), "check the path") from None
        found.append(Taught(label, path.name, OnDisk(clip, spec), str(path)))
    return found


def taught_from_bank(bank: BankContents) -> list[Taught]:
    """All clips of a bank. Raises InputError where it holds none of them."""
    found = []
    for label, clips in (*((one.label, one.clips) for one in bank.classes), (BACKGROUND, bank.background)):
        for clip in clips:
            if clip.origin is None or not clip.origin.has_clip:
                raise InputError(f"{clip.name}: the bank was packed without its clips", "a folder needs the clips")
            name = clip.name.partition("/")[2]
            found.append(Taught(label, name, clip.origin, clip.name, Encoded(clip.features, clip.seconds), clip.digest))
    return found


def put(
    folder: Path,
    taught: Sequence[Taught],
    model: Model,
    rules: LabelRules,
    progress: Progress,
    did: Callable[[list[tuple[str, str]], list[str]], str],
) -> str | None:
    """Copy clips into a folder, which is made where it is not there, and encode those that nobody has yet.

    Args:
        folder: The support folder.
        taught: The clips.
        model: Encodes them.
        rules: Labels to prompts.
        progress: Shows the encoding.
        did: Classes and names of the clips that are new, and classes that are new, to words.

    Returns:
        The words; None where all clips are in it already.

    Raises:
        ClipError: A clip cannot be read, or would not be found under its name.
        InputError: The same clip stands in another class.
        OSError: The folder cannot be written.
    """
    with _copies(folder, taught) as (copies, work), changing(folder):
        support, old = list_support(folder), kept_bank(folder, model)
        new = _new(support, digests_of(support, old), taught, copies)
        known = _encoded(new, model, old, progress)
        if not new:
            return None
        words = _place(folder, support, new, work / "ready", did)
    try:
        folder_bank(folder, model, rules, calibrated=False, progress=progress, known=known)
    except InputError as error:  # of what was there before
        _log.warning("%s", error)
    return words


class _New(NamedTuple):
    taught: Taught
    copy: SupportClip
    digest: str


@contextmanager
def _copies(folder: Path, taught: Sequence[Taught]) -> Iterator[tuple[list[Path], Path]]:
    """Copies of clips inside a folder where nobody sees them, and the place they lie in, which goes in the end."""
    kept = folder / KEPT_FOLDER
    kept.mkdir(parents=True, exist_ok=True)
    with temporary_folder(kept / "new") as work:
        yield [_copied(one, work / f"{number}") for number, one in enumerate(taught)], work


def _copied(one: Taught, place: Path) -> Path:
    place.mkdir()
    path = one.origin.restored(place, one.name)
    if list_clips(place).clips != [path]:
        reason = "in a folder it would not be found as a clip under this name"
        raise ClipError(one.said, reason, "give its file a name such as 1.mp4")
    return path


def _new(
    support: SupportFolder, digests: dict[str, str], taught: Sequence[Taught], copies: Sequence[Path]
) -> list[_New]:
    """Clips that the folder has not yet, each once."""
    home = {digests[clip.name]: clip.name.partition("/")[0] for clip in support.clips if clip.name in digests}
    new: list[_New] = []
    for one, path in zip(taught, copies, strict=True):
        label = class_called(support.classes, one.label) or one.label
        copy = SupportClip(path, f"{label}/{one.name}", clip_stamp(path))
        digest = copy.digest()
        known = home.setdefault(digest, label)
        if known != label:
            raise InputError(f"{one.said}: the same clip stands in class {known!r}", "teach it as one of the two")
        if any(other.digest == digest for other in new) or digest in digests.values():
            if one.encoded is None:  # of another support, most may be the same
                _log.warning("%s: class %r has this clip already, used once", one.said, label)
        else:
            new.append(_New(one._replace(label=label), copy, digest))
    return new


def _encoded(new: Sequence[_New], model: Model, old: BankContents | None, progress: Progress) -> dict[str, Encoded]:
    """Content hash to features, of clips that are new to the folder and to its bank."""
    known = {one.digest: one.taught.encoded for one in new if one.taught.encoded}
    missing = [one for one in new if one.digest not in known and not (old and one.digest in old.clips)]
    with progress("encoding support clips", len(missing)) as advance:
        for one in missing:
            try:
                known[one.digest] = encode(one.copy.path, model)
            except ClipError as error:
                raise ClipError(one.taught.said, error.reason, error.hint) from None
            advance(1)
    return known


def _place(
    folder: Path,
    support: SupportFolder,
    new: Sequence[_New],
    ready: Path,
    did: Callable[[list[tuple[str, str]], list[str]], str],
) -> str:
    """Move copies to where they belong, as one change."""
    ready.mkdir()
    taken: dict[str, set[str]] = {}
    added = []
    for one in new:
        label = one.taught.label
        if label not in taken:
            (ready / label).mkdir()
            taken[label] = set(os.listdir(folder / label)) if (folder / label).is_dir() else set()
        name = free_name(one.taught.name, taken[label])
        taken[label].add(name)
        os.rename(one.copy.path, ready / label / name)
        added.append((label, name))
    place = out_of_sight(folder)
    os.rename(ready, place)
    moves = []
    for label in taken:
        if (folder / label).is_dir():
            moves += [(place / label / name, folder / label / name) for own, name in added if own == label]
        else:
            moves.append((place / label, folder / label))
    there = {*support.classes, BACKGROUND}
    words = did(added, [label for label in taken if label not in there])
    commit(folder, words, moves)
    return words


def replace(
    folder: Path, taught: Sequence[Taught], model: Model, rules: LabelRules, progress: Progress, words: str
) -> None:
    """Put clips into a folder in place of all that it holds, which goes to where it stays until `purge`.

    Raises:
        ClipError: A clip would not be found under its name.
        OSError: The folder cannot be written.
    """
    with _copies(folder, taught) as (copies, _), changing(folder):
        support = list_support(folder)
        old = [*support.classes, *([BACKGROUND] if support.background else [])]
        fresh, gone = out_of_sight(folder), out_of_sight(folder)
        labels = dict.fromkeys(one.label for one in taught)
        for label in labels:
            (fresh / label).mkdir()
        for one, copy in zip(taught, copies, strict=True):
            os.rename(copy, fresh / one.label / one.name)
        moves = [(folder / label, gone / label) for label in old]
        commit(folder, words, [*moves, *((fresh / label, folder / label) for label in labels)])
    known = {one.digest: one.encoded for one in taught if one.encoded and one.digest}
    try:
        folder_bank(folder, model, rules, calibrated=False, progress=progress, known=known)
    except InputError as error:  # not of the clips, which were encoded
        _log.warning("%s", error)


def remove(folder: Path, name: str) -> str:
    """Take a class, or the clip `class/clip`, out of a folder, to where it stays until `purge`.

    Raises:
        InputError: There is no such class or clip.
        OSError: The folder cannot be written.
    """
    label, _, clip = name.partition("/")
    with _changed(folder) as support:
        classes = {**support.classes, **({BACKGROUND: support.background} if support.background else {})}
        label = found_class(folder, classes, label)
        clips = [own.name.partition("/")[2] for own in classes[label]]
        if clip and clip not in clips:
            raise InputError(f"{folder}: class {label!r} has no clip {clip!r}", f"there are: {named(clips)}")
        place = out_of_sight(folder)
        if clip and len(clips) > 1:
            did = f"removed {label}/{clip}"
            (place / label).mkdir()
            moves = [(folder / label / clip, place / label / clip)]
        else:
            did = f"removed class {label!r} with {counted(len(clips), 'clip')}"
            moves = [(folder / label, place / label)]
        commit(folder, did, moves)
    return did


def rename(folder: Path, label: str, new: str, *, join: bool = False) -> str:
    """Give a class another name, or its clips to another class.

    Raises:
        InputError: There is no such class; the new name is taken, or none with `join`.
        OSError: The folder cannot be written.
    """
    with _changed(folder) as support:
        label = found_class(folder, support.classes, label)
        other = renamed_onto(support.classes, label, new, join)
        if other is None:
            did = f"renamed class {label!r} to {new!r}"
            commit(folder, did, [(folder / label, folder / new)])
            return did
        taken = set(os.listdir(folder / other))
        moves = []
        for clip in support.classes[label]:
            name = free_name(clip.path.name, taken)
            taken.add(name)
            moves.append((clip.path, folder / other / name))
        did = f"joined class {label!r} with {counted(len(moves), 'clip')} to {other!r}"
        commit(folder, did, [*moves, (folder / label, out_of_sight(folder) / label)])
    return did


@contextmanager
def _changed(folder: Path) -> Iterator[SupportFolder]:
    """A folder that is there, and that nobody else changes while the block runs."""
    list_support(folder)  # says what is wrong before anything is made in it
    with changing(folder):
        yield list_support(folder)


def purge(folder: Path) -> str:
    """Delete what was taken out of a folder; the last change can be undone no more.

    Raises:
        OSError: The folder cannot be written.
    """
    with _changed(folder):
        place = folder / KEPT_FOLDER / REMOVED
        files = [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else []
        size = sum(path.stat().st_size for path in files)
        did = f"purged {counted(len(files), 'file')}, {size / 1e6:.1f} MB"
        if place.is_dir():
            gone = place.with_name(f".{REMOVED}{TEMPORARY_SUFFIX}")
            shutil.rmtree(gone, ignore_errors=True)  # of one that was killed
            commit(folder, did, [(place, gone)])
            shutil.rmtree(gone)
        forget(folder)
    return did


def counted(count: int, what: str) -> str:
    """`1 clip`, `2 clips`."""
    return f"{count} {what}{'' if count == 1 else 's'}"
