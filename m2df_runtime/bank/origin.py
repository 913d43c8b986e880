"""Where a support clip itself is: beside its folder's bank, or inside a bank file that travels.

A bank file holds clips byte for byte, so that it can follow a new model, and strips of their frames to look at. Both
are read when they are asked for: matching needs neither.
"""

from __future__ import annotations

import io
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2df_runtime.bank.file import ClipEntry, Content, FileEntry, StripEntry
from m2df_runtime.bank.folder import SupportClip, clip_stamp
from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.pictures import frames_of
from m2df_runtime.errors import ClipError, first_line
from m2df_runtime.files import sha256_bytes
from m2df_runtime.pixels.spec import MAX_FRAMES, ClipSpec
from m2df_runtime.pixels.thumbnails import shown_frames, strip_jpeg, to_look_at
from m2df_runtime.regular_files import open_regular

Keep = Literal["clips", "strips", "nothing"]
"""What is written of clips besides their features: they and their strips, strips alone, or neither."""

_STRIP_SIDE = 112  # pixels of a frame; 8 of them in JPEG take about 15 kB
_LARGEST_SIDE = 1024  # of a strip that is read
_BLOCK = 1 << 20
_HINT = "take the class out and teach it again"


class Parts(NamedTuple):
    """What a bank file holds of one clip: entries of its index, and the bytes that they tell of."""

    strip: StripEntry | None
    files: tuple[FileEntry, ...]
    blocks: Iterator[bytes]


class Origin(ABC):
    """Where a clip is."""

    @abstractmethod
    def parts(self, keep: Keep) -> Parts:
        """What a bank file is to hold of it. Raises ClipError, also while the blocks are read."""

    @abstractmethod
    def frames(self, look: ClipSpec) -> NDArray[np.uint8]:
        """Its frames to be drawn, uint8 [T, S, S, 3]. Raises ClipError where nothing is left to look at."""

    @abstractmethod
    def restored(self, folder: Path, name: str | None = None) -> Path:
        """Write the clip into a folder, under its own name or another.

        Raises:
            ClipError: It is not there, or damaged.
            OSError: The folder cannot be written.
        """

    @property
    @abstractmethod
    def has_clip(self) -> bool:
        """Whether the clip itself is there, and not its strip alone."""


class OnDisk(Origin):
    """A clip that is a file or a folder of frames.

    Args:
        clip: It, as it was when it was encoded.
        spec: How the model sees clips, which chooses the frames of the strip.
    """

    has_clip = True

    def __init__(self, clip: SupportClip, spec: ClipSpec) -> None:
        self._clip, self._spec = clip, spec

    def parts(self, keep: Keep) -> Parts:
        """See `Origin.parts`."""
        if keep == "nothing":
            return Parts(None, (), iter(()))
        path = self._clip.path
        data = strip_jpeg(self.frames(to_look_at(self._spec, _STRIP_SIDE)))
        strip = StripEntry(bytes=len(data), digest=sha256_bytes(data))
        if keep == "strips":
            return Parts(strip, (), iter((data,)))
        try:
            folder = path.is_dir()
            paths = frames_of(path)[0] if folder else [path]
            sizes = [file.stat().st_size for file in paths]
            changed = clip_stamp(path) != self._clip.stamp
        except OSError as error:
            raise ClipError(path, error.strerror or str(error), "check the folder") from None
        if changed:
            raise ClipError(path, "it changed while it was read", "try again")
        files = tuple(
            FileEntry(name=file.name if folder else None, bytes=size) for file, size in zip(paths, sizes, strict=True)
        )
        return Parts(strip, files, self._blocks(data, paths, sizes))

    def frames(self, look: ClipSpec) -> NDArray[np.uint8]:
        """See `Origin.frames`."""
        return shown_frames(open_source(self._clip.path), look)

    def restored(self, folder: Path, name: str | None = None) -> Path:
        """See `Origin.restored`."""
        path = self._clip.path
        target = folder / (name or path.name)
        if not path.is_dir():
            _write(target, _blocks_of(path))
            return target
        try:
            frames = frames_of(path)[0]
        except OSError as error:
            raise ClipError(path, error.strerror or str(error), "check the folder") from None
        target.mkdir()
        for frame in frames:
            _write(target / frame.name, _blocks_of(frame))
        return target

    def _blocks(self, strip: bytes, paths: list[Path], sizes: list[int]) -> Iterator[bytes]:
        yield strip
        for path, size in zip(paths, sizes, strict=True):
            read = 0
            for block in _blocks_of(path):
                read += len(block)
                if read > size:
                    break
                yield block
            if read != size:
                raise ClipError(path, "it changed while it was read", "try again")


class InBank(Origin):
    """A clip inside a bank file.

    Args:
        bank: The file, for messages.
        entry: What the index says of it.
        content: The bytes of all clips.
        place: Where its own begin.
    """

    def __init__(self, bank: Path, entry: ClipEntry, content: Content | None, place: int) -> None:
        self._bank, self._entry, self._content, self._place = bank, entry, content, place

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self._bank}: {self._entry.name}"

    @property
    def has_clip(self) -> bool:
        """See `Origin.has_clip`."""
        return bool(self._entry.files)

    def parts(self, keep: Keep) -> Parts:
        """See `Origin.parts`; byte for byte as they are, so that a damaged clip is in nobody's way."""
        strip = self._entry.strip if keep != "nothing" else None
        files = self._entry.files if keep == "clips" else ()
        size = (strip.bytes if strip else 0) + sum(file.bytes for file in files)
        place = self._place + (0 if strip or not self._entry.strip else self._entry.strip.bytes)
        return Parts(strip, files, self._read(place, size))

    def frames(self, look: ClipSpec) -> NDArray[np.uint8]:
        """See `Origin.frames`; of a bank without clips, those of the strip."""
        if self.has_clip:
            with tempfile.TemporaryDirectory(prefix="m2df-") as folder:
                return shown_frames(open_source(self.restored(Path(folder))), look)
        strip = self._entry.strip
        if strip is None:
            raise ClipError(self.name, "the bank holds nothing of it to look at", "pack it anew from its folder")
        data = b"".join(self._read(self._place, strip.bytes))
        if sha256_bytes(data) != strip.digest:
            raise ClipError(self.name, "its strip does not match its hash", _HINT)
        try:
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
                count = picture.width // max(picture.height, 1)
                if not 1 <= count <= MAX_FRAMES or picture.height > _LARGEST_SIDE:
                    raise ClipError(self.name, "its strip is none", _HINT)
                whole = picture.convert("RGB").resize((count * look.size, look.size))
        except (OSError, Image.DecompressionBombError) as error:
            raise ClipError(self.name, f"its strip cannot be read: {first_line(error)}", _HINT) from None
        every = np.asarray(whole).reshape(look.size, -1, look.size, 3).swapaxes(0, 1)  # (T, S, S, 3)
        return np.ascontiguousarray(every[np.linspace(0, len(every) - 1, look.frames).round().astype(int)])

    def restored(self, folder: Path, name: str | None = None) -> Path:
        """See `Origin.restored`."""
        target = folder / (name or self._entry.name.partition("/")[2])
        place = self._place + (self._entry.strip.bytes if self._entry.strip else 0)
        for file in self._entry.files:
            path = target if file.name is None else target / file.name
            path.parent.mkdir(exist_ok=True)
            _write(path, self._read(place, file.bytes))
            place += file.bytes
        if SupportClip(target, self._entry.name, clip_stamp(target)).digest() != self._entry.digest:
            raise ClipError(self.name, "the clip does not match its hash, the bank was damaged", _HINT)
        return target

    def _read(self, place: int, count: int) -> Iterator[bytes]:
        while count:
            try:
                block = self._content.read(place, min(count, _BLOCK)) if self._content else b""
            except OSError as error:
                raise ClipError(self.name, error.strerror or str(error)) from None
            if not block:
                raise ClipError(self.name, "the bank ends early", "copy it again")
            place, count = place + len(block), count - len(block)
            yield block


def _blocks_of(path: Path) -> Iterator[bytes]:
    try:
        with open_regular(path) as file:
            while block := file.read(_BLOCK):
                yield block
    except OSError as error:
        raise ClipError(path, error.strerror or str(error), "check the path") from None


def _write(target: Path, blocks: Iterator[bytes]) -> None:
    """A new file. Raises OSError that names it."""
    try:
        with target.open("xb") as file:
            for block in blocks:
                file.write(block)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
