"""A support folder: one sub-folder per class, the clips of that class inside.

Finds what is there and what changed since it was last seen; decodes nothing.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from m2df_runtime.bundle.prompt_texts import class_called, class_key
from m2df_runtime.clips.folder_entries import entries, named, passed_over
from m2df_runtime.clips.listing import clip_files, list_clips
from m2df_runtime.clips.pictures import folder_images, frames_of
from m2df_runtime.errors import InputError
from m2df_runtime.files import sha256_file

MAX_NAME = 255  # bytes of a name in a folder
BACKGROUND = "_background"  # the folder of clips of nothing: no class, whatever is in it
KEPT_FOLDER = ".m2df"  # what m2df keeps in a support folder: its bank, and what verbs took out of it
LAYOUT_HINT = "expected one sub-folder per class with its clips inside, for example jump/clip.mp4"


class Stamp(NamedTuple):
    """Cheap sign that a clip did not change: bytes, times of content and of any change in ns, and inode.

    Tools that keep size and modification time (`rsync --times --inplace`, a restored backup, two clips exchanged)
    cannot keep the time of change, which the system alone sets. Of a frame folder: summed bytes, and the newest
    times of its frames and itself, whose time tells of renamed frames.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class ClassTaken(InputError):
    """The new name of a class is that of another one."""


def clip_stamp(path: Path) -> Stamp:
    """The stamp of a video file, animated picture or frame folder.

    Raises:
        OSError: It is not there, or a folder that may not be listed.
    """
    own = os.stat(path)
    stats = [frame.stat() for frame in frames_of(path)[0]] if stat.S_ISDIR(own.st_mode) else []
    if not stats:
        return Stamp(own.st_size, own.st_mtime_ns, own.st_ctime_ns, own.st_ino)
    every = (own, *stats)
    newest = max(s.st_mtime_ns for s in every), max(s.st_ctime_ns for s in every)
    return Stamp(sum(s.st_size for s in stats), *newest, own.st_ino)


@dataclass(frozen=True)
class SupportClip:
    """One clip of a class.

    Attributes:
        path: The video file, animated picture or frame folder.
        name: `class/clip`, its path inside the support folder.
        stamp: Tells whether it changed.
    """

    path: Path
    name: str
    stamp: Stamp

    def digest(self) -> str:
        """SHA-256 of the clip's content; of a frame folder, over its frames in order."""
        if not self.path.is_dir():
            return sha256_file(self.path)
        digest = hashlib.sha256()
        for frame in frames_of(self.path)[0]:
            digest.update(bytes.fromhex(sha256_file(frame)))
        return digest.hexdigest()


@dataclass(frozen=True)
class SupportFolder:
    """What a support folder holds.

    Attributes:
        path: The folder.
        classes: Class label (folder name) to its clips; no class is empty.
        background: Clips of what belongs to no class.
        warnings: One line for each oddity met.
        why_no_class: What to say where there is none, else nothing.
    """

    path: Path
    classes: dict[str, tuple[SupportClip, ...]]
    background: tuple[SupportClip, ...]
    warnings: tuple[str, ...]
    why_no_class: str

    @property
    def clips(self) -> tuple[SupportClip, ...]:
        """Those of all classes, and of the background after them."""
        return (*(clip for clips in self.classes.values() for clip in clips), *self.background)


def checked_label(label: str) -> str:
    """The label, if a class can be called so wherever it is kept.

    Raises:
        InputError: It cannot be the name of a folder, or would not be found as one.
    """
    if not label.strip():
        raise InputError("a class needs a label", "name what is done, such as wave")
    if class_key(label) == BACKGROUND:
        raise InputError(f"{BACKGROUND} holds clips of nothing, and is no class", "bank background adds to it")
    shown = repr(label if len(label) <= MAX_NAME else label[:40] + "...")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in label):
        raise InputError(f"label {shown} holds characters that cannot be written", "take letters of any language")
    if "/" in label or label in (".", "..") or label != label.strip():
        raise InputError(f"label {shown} cannot be the name of a folder", "leave out / and spaces around it")
    if passed_over(label):
        raise InputError(f"label {shown} would be passed over as a hidden or system folder", "take another name")
    if len(label.encode()) > MAX_NAME:
        raise InputError(f"label {shown} takes {len(label.encode())} bytes, at most {MAX_NAME} fit", "shorten it")
    return label


def found_class(where: Path, labels: Iterable[str], name: str) -> str:
    """The label among those of a support that a user means.

    Raises:
        InputError: There is none.
    """
    every = list(labels)
    found = class_called(every, name)
    if found is None:
        raise InputError(f"{where}: no class {name!r}", f"there are: {named(every)}" if every else "it has no class")
    return found


def renamed_onto(labels: Iterable[str], label: str, new: str, join: bool) -> str | None:
    """The class whose clips those of `label` join under a new name; None where the name is free.

    Raises:
        ClassTaken: The name is taken, and they are not to join.
        InputError: They are to join, and it is not; or it is no name.
    """
    checked_label(new)
    others = [other for other in labels if other != label]
    taken = class_called(others, new)
    if taken and not join:
        raise ClassTaken(f"there is a class {taken!r} already", "--join makes the two one")
    if join and not taken:
        raise InputError(f"there is no class {new!r} to join", f"there are: {named(others)}")
    if new == label:
        raise InputError(f"class {label!r} is called so already", "give another name")
    return taken


def free_name(name: str, taken: Collection[str]) -> str:
    """A clip's name, with a number where others have it already."""
    stem, suffix = os.path.splitext(name)
    names = (name, *(f"{stem}-{number}{suffix}" for number in range(2, len(taken) + 3)))
    return next(free for free in names if free not in taken)


def read_support(path: Path) -> SupportFolder:
    """List a support folder.

    Raises:
        InputError: The folder is missing or holds no class with a clip.
    """
    found = list_support(path)
    if not found.classes:
        raise InputError(f"{path}: {found.why_no_class}", LAYOUT_HINT)
    return found


def list_support(path: Path) -> SupportFolder:
    """List a support folder, which may hold nothing yet.

    Raises:
        InputError: The folder is missing, or may not be listed.
    """
    if not os.path.isdir(path):  # unlike Path.is_dir, no error where it may not be looked at
        what = "is a file" if os.path.exists(path) else "no such folder"
        raise InputError(f"{path}: {what}", LAYOUT_HINT)
    try:
        inside = entries(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be listed: {error.strerror}", LAYOUT_HINT) from None
    classes: dict[str, tuple[SupportClip, ...]] = {}
    warnings: list[str] = []
    folders = [entry.path for entry in inside if entry.is_folder]
    for folder in folders:
        try:
            listing = list_clips(folder)
        except InputError as error:  # such as one of another user
            warnings.append(f"{error.message}; class left out")
            continue
        if listing.ignored:
            warnings.append(f"{folder}: ignored, not clips: {named(listing.ignored)}")
        clips = []
        for clip in listing.clips:
            try:
                clips.append(SupportClip(clip, f"{folder.name}/{clip.name}", clip_stamp(clip)))
            except OSError as error:  # gone by now
                warnings.append(f"{clip}: {error.strerror}; not used")
        if clips:
            classes[folder.name] = tuple(clips)
        else:
            warnings.append(f"{folder}: no clips in this class folder, class left out{_frames_note([folder])}")
    background = classes.pop(BACKGROUND, ())
    folders = [folder for folder in folders if folder.name != BACKGROUND]
    moving = clip_files(inside)
    loose = [entry.path.name for entry in inside if entry.path in moving]
    if loose and classes:
        warnings.append(f"{path}: clips outside class folders are not used: {named(loose)}")
    rivals = _alike(classes)
    if rivals:
        warnings.append(
            f"{path}: classes whose names differ in capital letters alone: {named(rivals)}; "
            "bank rename --join makes two of them one"
        )
    if len(classes) == 1:
        warnings.append(f"{path}: only one class ({next(iter(classes))}), every query will be given that label")
    why = "" if classes else _why_no_class(folders, loose)  # which looks into every folder once more
    return SupportFolder(path, classes, background, tuple(warnings), why)


def _alike(labels: Iterable[str]) -> list[str]:
    """Those that have another's name but for capital letters."""
    every = list(labels)
    keys = Counter(map(class_key, every))
    return [label for label in every if keys[class_key(label)] > 1]


def _why_no_class(folders: list[Path], loose: list[str]) -> str:
    if folders:
        names = named(folder.name for folder in folders)
        return f"none of its class folders holds a clip: {names}{_frames_note(folders)}"
    if loose:
        return f"{len(loose)} clip{'s' if len(loose) > 1 else ''} directly in it, no class folders"
    return "the folder is empty"


def _frames_note(folders: list[Path]) -> str:
    loose = any(_holds_pictures(folder) for folder in folders)
    return "; the frames of one clip belong in a folder of their own inside the class folder" if loose else ""


def _holds_pictures(folder: Path) -> bool:
    try:
        return bool(folder_images(folder))
    except OSError:
        return False
