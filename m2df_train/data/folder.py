"""What a downloaded benchmark holds: every clip below a folder, by name and by class.

Any layout will do in which a clip has its usual name: videos in class folders, videos side by side
(SSv2), folders of frames instead of videos, with further folders such as `videos/` or `train_256/` around them.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from m2df_runtime.clips.folder_entries import passed_over
from m2df_runtime.clips.listing import VIDEO_SUFFIXES
from m2df_runtime.clips.pictures import IMAGE_SUFFIXES
from m2df_runtime.errors import InputError
from m2df_train.data.split_files import SplitClip, video_stem
from m2df_train.public_benchmarks import Benchmark, BenchmarkClass

_log = logging.getLogger(__name__)

LAYOUT_HINT = "expected ROOT/class/video.avi, ROOT/video.webm or folders of frames in their place"
_ARCHIVES = (".rar", ".zip", ".tar", ".gz", ".tgz", ".7z")
_MAX_DEPTH = 8  # the deepest layout in use, Kinetics as frames, has 3 folders above the frames
# Kinetics clips are named after the YouTube video, most of them with the seconds they were cut from.
_SECONDS = re.compile(r"_\d{6}_\d{6}\Z")


@dataclass(frozen=True)
class FoundClip:
    """A clip on disk.

    Attributes:
        path: Video file or folder of frames.
        name: Its path below the root, with `/`.
        owner: The class whose folder it is in; None outside of all class folders.
        is_folder: Whether it is a folder of frames.
    """

    path: Path
    name: str
    owner: BenchmarkClass | None
    is_folder: bool

    @property
    def stem(self) -> str:
        """Name without file suffix, as lists have it."""
        base = self.name.rpartition("/")[2]
        return base if self.is_folder else video_stem(base)


class DatasetFolder:
    """The clips of a downloaded benchmark.

    Args:
        root: The download.
        known: The benchmark it is of.
        clips: Its clips.

    Attributes:
        clips: All of them, sorted by name.
    """

    def __init__(self, root: Path, known: Benchmark, clips: Iterable[FoundClip]) -> None:
        self.root, self.known = root, known
        self.clips = tuple(sorted(clips, key=lambda clip: clip.name))
        self._exact: dict[str, list[FoundClip]] = defaultdict(list)
        self._loose: dict[str, list[FoundClip]] = defaultdict(list)
        for clip in self.clips:
            self._exact[_key(clip.stem)].append(clip)
            self._loose[self._loose_key(clip.stem)].append(clip)

    @classmethod
    def scan(cls, root: Path, known: Benchmark, advance: Callable[[int], None] = lambda count: None) -> DatasetFolder:
        """List a download; `advance` is called with the number of clips met.

        Raises:
            InputError: No such folder, or no clip in it.
        """
        if not root.is_dir():
            what = "is a file; unpack it first" if root.exists() else "no such folder"
            raise InputError(f"{root}: {what}", LAYOUT_HINT)
        clips = _Scan(root, known, advance).below("", None, 0)
        if not clips:
            packed = sum(entry.suffix.lower() in _ARCHIVES for entry in root.iterdir())
            note = f", only archives to unpack ({packed})" if packed else ""
            raise InputError(f"{root}: holds no clips{note}", LAYOUT_HINT)
        return cls(root, known, clips)

    def candidates(self, listed: SplitClip, item: BenchmarkClass) -> list[FoundClip]:
        """All clips that are the listed one, the best first.

        Names are compared as they are, then without regard to case (UCF101 writes `HandStand` in files and
        `Handstand` in folders) or, for Kinetics, to the seconds, which may be missing on either side. A clip
        in the folder of another class is not it.
        """
        stem = listed.stem
        near = self._exact.get(_key(stem)) or [
            clip for clip in self._loose.get(self._loose_key(stem), ()) if self._may_be(clip.stem, stem)
        ]
        usable = [clip for clip in near if clip.owner in (None, item)]
        path = listed.video
        return sorted(usable, key=lambda clip: (not clip.name.endswith(path), clip.owner is None, clip.is_folder))

    def of_class(self, item: BenchmarkClass) -> list[FoundClip]:
        """The clips in the folders of a class; frames of a video that is there too are left out."""
        return self._by_class.get(item, [])

    @cached_property
    def _by_class(self) -> dict[BenchmarkClass, list[FoundClip]]:
        result: dict[BenchmarkClass, list[FoundClip]] = defaultdict(list)
        for clip in self.clips:
            if clip.owner is None:
                continue
            same = self._exact[_key(clip.stem)]
            if not clip.is_folder or all(other.is_folder or other.owner != clip.owner for other in same):
                result[clip.owner].append(clip)
        return result

    def _loose_key(self, stem: str) -> str:
        return _SECONDS.sub("", _key(stem)) if self._is_kinetics else _key(stem).casefold()

    def _may_be(self, found: str, listed: str) -> bool:
        """Two names of one Kinetics clip: times that differ are other clips of the same YouTube video."""
        return not (self._is_kinetics and _SECONDS.search(found) and _SECONDS.search(listed))

    @property
    def _is_kinetics(self) -> bool:
        return self.known.name == "kinetics100"


def _key(stem: str) -> str:
    """Composed characters (macOS unpacks decomposed ones), and `_` for spaces as CLIP-MDMF's lists have it."""
    return unicodedata.normalize("NFC", stem).replace(" ", "_")


class _Scan:
    def __init__(self, root: Path, known: Benchmark, advance: Callable[[int], None]) -> None:
        self._root, self._known, self._advance = root, known, advance

    def below(self, name: str, owner: BenchmarkClass | None, depth: int) -> list[FoundClip]:
        """Clips in the folder `name` (relative, "" or with a final /) and the folders in it.

        A folder with pictures and no other clips is a clip itself, of the class around it.
        """
        folder = self._root / name
        inside = self._known.find(folder.name) if name else None
        videos, folders, has_pictures = self._entries(folder)
        found = [FoundClip(folder / video, name + video, inside or owner, False) for video in videos]
        self._advance(len(found))
        if depth < _MAX_DEPTH:
            for child in folders:
                found += self.below(f"{name}{child}/", inside or owner, depth + 1)
        if has_pictures and not found and name:
            self._advance(1)
            found.append(FoundClip(folder, name.rstrip("/"), owner, True))
        return found

    def _entries(self, folder: Path) -> tuple[list[str], list[str], bool]:
        videos: list[str] = []
        folders: list[str] = []
        has_pictures = False
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if passed_over(entry.name):
                        continue
                    suffix = os.path.splitext(entry.name)[1].lower()
                    if suffix in IMAGE_SUFFIXES:  # before is_dir, which costs a call for each of a million frames
                        has_pictures = True
                    elif entry.is_dir():
                        if not _leads_back(entry, folder):
                            folders.append(entry.name)
                    elif suffix in VIDEO_SUFFIXES:
                        videos.append(entry.name)
        except OSError as error:  # such as lost+found on a disk of its own
            _log.warning("%s: cannot be listed: %s", folder, error.strerror)
        return videos, folders, has_pictures


def _leads_back(entry: os.DirEntry[str], folder: Path) -> bool:
    """Whether a link leads to a folder it is in."""
    return entry.is_symlink() and folder.resolve().is_relative_to(Path(entry.path).resolve())
