"""A support folder: one sub-folder per class, the clips of that class inside.

Finds what is there and what changed since it was last seen; decodes nothing.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from m2df_runtime.bundle import sha256_file
from m2df_runtime.errors import InputError
from m2df_runtime.image_sequences import folder_images, natural_key
from m2df_runtime.video import list_clips

LAYOUT_HINT = "expected one sub-folder per class with its clips inside, for example jump/clip.mp4"
MAX_NAMED = 5


@dataclass(frozen=True)
class Stamp:
    """Cheap sign that a clip did not change: bytes and modification time in ns.

    Of a frame folder: summed, and the newest of its frames and itself, whose time tells of renamed frames.
    """

    size: int
    mtime_ns: int


def clip_stamp(path: Path) -> Stamp:
    """The stamp of a video file, animated picture or frame folder.

    Raises:
        OSError: It is not there, or a folder that may not be listed.
    """
    frames = folder_images(path) if path.is_dir() else []
    own, stats = path.stat(), [frame.stat() for frame in frames]
    size = sum(s.st_size for s in stats) if frames else own.st_size
    return Stamp(size, max(s.st_mtime_ns for s in (own, *stats)))


@dataclass(frozen=True)
class SupportClip:
    """One clip of a class.

    Attributes:
        path: The video file, animated picture or frame folder.
        name: `class/clip`, its path inside the support folder.
        stamp: Size and time.
    """

    path: Path
    name: str
    stamp: Stamp

    def digest(self) -> str:
        """SHA-256 of the clip's content; of a frame folder, over its frames in order."""
        if not self.path.is_dir():
            return sha256_file(self.path)
        digest = hashlib.sha256()
        for frame in folder_images(self.path):
            digest.update(bytes.fromhex(sha256_file(frame)))
        return digest.hexdigest()


@dataclass(frozen=True)
class SupportFolder:
    """What a support folder holds.

    Attributes:
        path: The folder.
        classes: Class label (folder name) to its clips; no class is empty.
        warnings: One line for each oddity met.
    """

    path: Path
    classes: dict[str, tuple[SupportClip, ...]]
    warnings: tuple[str, ...]


def read_support(path: Path) -> SupportFolder:
    """List a support folder.

    Raises:
        InputError: The folder is missing or holds no class with a clip.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "no such folder"
        raise InputError(f"{path}: {what}", LAYOUT_HINT)
    classes: dict[str, tuple[SupportClip, ...]] = {}
    warnings: list[str] = []
    folders = _class_folders(path)
    for folder in folders:
        listing = list_clips(folder)
        if listing.ignored:
            warnings.append(f"{folder}: ignored, not clips: {_named([os.fspath(name) for name in listing.ignored])}")
        clips = []
        for clip in listing.clips:
            try:
                clips.append(SupportClip(clip, f"{folder.name}/{clip.name}", clip_stamp(clip)))
            except OSError as error:  # a dangling link, or a frame folder that may not be listed
                warnings.append(f"{clip}: {error.strerror}; not used")
        if clips:
            classes[folder.name] = tuple(clips)
        else:
            warnings.append(f"{folder}: no clips in this class folder, class left out{_frames_note([folder])}")
    loose = [entry for entry in list_clips(path).clips if entry.is_file()]
    if not classes:
        raise InputError(f"{path}: {_why_no_class(folders, loose)}", LAYOUT_HINT)
    if loose:
        names = _named([os.fspath(clip) for clip in loose])
        warnings.append(f"{path}: clips outside class folders are not used: {names}")
    if len(classes) == 1:
        warnings.append(f"{path}: only one class ({next(iter(classes))}), every query will be given that label")
    return SupportFolder(path, classes, tuple(warnings))


def _class_folders(path: Path) -> list[Path]:
    try:
        entries = [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{path}: cannot be listed: {error.strerror}", LAYOUT_HINT) from None
    return sorted(entries, key=lambda entry: natural_key(entry.name))


def _why_no_class(folders: list[Path], loose: list[Path]) -> str:
    if folders:
        names = _named([os.fspath(folder) for folder in folders])
        return f"none of its class folders holds a clip: {names}{_frames_note(folders)}"
    if loose:
        return f"{len(loose)} clip{'s' if len(loose) > 1 else ''} directly in it, no class folders"
    return "the folder is empty"


def _frames_note(folders: list[Path]) -> str:
    loose = any(folder_images(folder) for folder in folders)
    return "; the frames of one clip belong in a folder of their own inside the class folder" if loose else ""


def _named(names: list[str]) -> str:
    shown = ", ".join(Path(name).name for name in names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"
