"""A support folder: one sub-folder per class, the clips of that class inside.

Finds what is there and what changed since it was last seen; decodes nothing.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from m2df_runtime.clips.folder_entries import entries, named
from m2df_runtime.clips.listing import clip_files, list_clips
from m2df_runtime.clips.pictures import folder_images, frames_of
from m2df_runtime.errors import InputError
from m2df_runtime.files import sha256_file

BACKGROUND = "_background"  # the folder of clips of nothing: no class, whatever is in it
LAYOUT_HINT = "expected one sub-folder per class with its clips inside, for example jump/clip.mp4"


@dataclass(frozen=True)
class Stamp:
    """Cheap sign that a clip did not change: bytes, times of content and of any change in ns, and inode.

    Tools that keep size and modification time (`rsync --times --inplace`, a restored backup, two clips exchanged)
    cannot keep the time of change, which the system alone sets. Of a frame folder: summed bytes, and the newest
    times of its frames and itself, whose time tells of renamed frames.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def clip_stamp(path: Path) -> Stamp:
    """The stamp of a video file, animated picture or frame folder.

    Raises:
        OSError: It is not there, or a folder that may not be listed.
    """
    own = path.stat()
    stats = [frame.stat() for frame in frames_of(path)[0]] if stat.S_ISDIR(own.st_mode) else []
    size = sum(s.st_size for s in stats) if stats else own.st_size
    every = (own, *stats)
    return Stamp(size, max(s.st_mtime_ns for s in every), max(s.st_ctime_ns for s in every), own.st_ino)


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
    """

    path: Path
    classes: dict[str, tuple[SupportClip, ...]]
    background: tuple[SupportClip, ...]
    warnings: tuple[str, ...]

    @property
    def clips(self) -> tuple[SupportClip, ...]:
        """Those of all classes, and of the background after them."""
        return (*(clip for clips in self.classes.values() for clip in clips), *self.background)


def read_support(path: Path) -> SupportFolder:
    """List a support folder.

    Raises:
        InputError: The folder is missing or holds no class with a clip.
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
    if not classes:
        raise InputError(f"{path}: {_why_no_class(folders, loose)}", LAYOUT_HINT)
    if loose:
        warnings.append(f"{path}: clips outside class folders are not used: {named(loose)}")
    if len(classes) == 1:
        warnings.append(f"{path}: only one class ({next(iter(classes))}), every query will be given that label")
    return SupportFolder(path, classes, background, tuple(warnings))


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
