"""A support folder as a zip, and back: what comes in is believed nothing, and nothing but clips comes out of it."""

from __future__ import annotations

import stat
import tempfile
import zipfile
import zlib
from pathlib import Path

from m2df_runtime.bank.contents import BankContents
from m2df_runtime.bank.folder import BACKGROUND, MAX_NAME, checked_label
from m2df_runtime.bundle.prompt_texts import class_key, spelling
from m2df_runtime.clips.folder_entries import passed_over
from m2df_runtime.clips.listing import VIDEO_SUFFIXES
from m2df_runtime.clips.pictures import ANIMATED_SUFFIXES, IMAGE_SUFFIXES
from m2df_runtime.errors import InputError, first_line, printable, shortened
from m2df_runtime.serve.problems import Refused
from m2df_runtime.teaching.folder_verbs import taught_from_bank

_MOST_ENTRIES = 20_000
_BLOCK = 1 << 20
_HINT = "send a zip that /v1/export wrote: one folder per class with its clips inside"


def pack(bank: BankContents) -> Path:
    """A zip of a bank's clips, in a temporary file that is the caller's.

    Raises:
        ClipError: A clip is gone.
        InputError: The bank was packed without its clips.
        OSError: The disk is full.
    """
    with tempfile.NamedTemporaryFile(prefix="m2df-", suffix=".zip", delete=False) as file:
        try:
            with zipfile.ZipFile(file, "w") as archive:
                for one in taught_from_bank(bank):
                    with tempfile.TemporaryDirectory(prefix="m2df-") as place:
                        clip = one.origin.restored(Path(place), one.name)
                        inside = [clip] if clip.is_file() else sorted(clip.iterdir())
                        for path in inside:
                            archive.write(path, f"{one.label}/{path.relative_to(place).as_posix()}")
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    return Path(file.name)


def unpack(file: Path, folder: Path, most: int) -> list[Path]:
    """Write the clips of a zip into a new folder. In a process of its own: an index alone may fill a memory.

    Args:
        file: The zip.
        folder: Where; it is made.
        most: Bytes that they may take together.

    Returns:
        The clips: files, and folders of frames.

    Raises:
        Refused: It is no zip, is damaged, holds something else than clips, or too much.
        OSError: The disk is full.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _unpacked(archive, folder, most)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise Refused(422, "archive", f"the zip cannot be read: {first_line(error)}", _HINT) from None


def _unpacked(archive: zipfile.ZipFile, folder: Path, most: int) -> list[Path]:
    every = archive.infolist()
    if len(every) > _MOST_ENTRIES:
        raise Refused(413, "too_large", f"the zip holds more than {_MOST_ENTRIES} entries", "send fewer clips")
    files = [info for info in every if not info.is_dir()]
    above = _folders_above(files)
    chosen = [(info, parts) for info in files if (parts := _checked(info, above))]
    if sum(info.file_size for info, _ in chosen) > most:
        raise Refused(413, "too_large", f"the clips in the zip take more than {most >> 20} MiB", "send fewer clips")
    keys = {(class_key(label), *map(spelling, inside)) for _, (label, *inside) in chosen}
    if len(keys) < len(chosen):
        raise Refused(422, "archive", "two entries of the zip have one name", _HINT)
    if not chosen:
        raise Refused(422, "archive", "the zip holds no clip", _HINT)
    folder.mkdir()
    clips: dict[Path, None] = {}
    left = most
    spelt: dict[str, str] = {}  # of classes that differ in capital letters alone, the first
    for info, (label, *inside) in chosen:
        parts = (spelt.setdefault(class_key(label), label), *inside)
        target = folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        left -= _write(archive, info, target, left, most)
        clips[folder / parts[0] / parts[1]] = None
    return [*clips]


def _write(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, left: int, most: int) -> int:
    """Bytes written: what an entry says of its size is believed by nobody."""
    written = 0
    with archive.open(info) as source, target.open("xb") as file:
        while block := source.read(_BLOCK):
            written += len(block)
            if written > left:
                raise Refused(413, "too_large", f"the clips in the zip take more than {most >> 20} MiB", "send fewer")
            file.write(block)
    return written


def _folders_above(files: list[zipfile.ZipInfo]) -> int:
    """How many folders lie above those of the classes: one where the support folder itself was put into the zip."""
    split = [info.filename.split("/") for info in files]
    paths = [parts for parts in split if not any(passed_over(part) for part in parts)]
    moving = (VIDEO_SUFFIXES | ANIMATED_SUFFIXES) - IMAGE_SUFFIXES
    deep = any(len(parts) > 3 or (len(parts) == 3 and Path(parts[2]).suffix.lower() in moving) for parts in paths)
    return int(deep and len({parts[0] for parts in paths}) == 1)


def _checked(info: zipfile.ZipInfo, above: int) -> tuple[str, ...] | None:
    """Class and clip, and perhaps frame, of an entry; None of one that systems and archivers add.

    Args:
        info: The entry.
        above: Folders above the class's.

    Raises:
        Refused: It is something else.
    """
    name = info.filename
    parts = tuple(name.split("/"))
    shown = repr(shortened(printable(name), 80))
    if info.flag_bits & 0x1:
        raise Refused(422, "archive", f"{shown} in the zip is encrypted", _HINT)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise Refused(422, "archive", f"{shown} in the zip is no file", _HINT)
    if any(
        part in ("", ".", "..") or "\\" in part or len(part.encode("utf-8", "replace")) > MAX_NAME for part in parts
    ):
        raise Refused(422, "archive", f"{shown} in the zip is no path of a clip", _HINT)
    if any(passed_over(part) for part in parts):
        return None
    parts = parts[above:]
    if not 2 <= len(parts) <= 3:
        raise Refused(422, "archive", f"{shown} in the zip lies in no class", _HINT)
    if parts[0] != BACKGROUND:
        try:
            checked_label(parts[0])
        except InputError as error:
            raise Refused(422, "archive", f"{shown} in the zip: {printable(error.message)}", _HINT) from None
    suffix = Path(parts[-1]).suffix.lower()
    fits = VIDEO_SUFFIXES | ANIMATED_SUFFIXES if len(parts) == 2 else IMAGE_SUFFIXES
    if suffix not in fits or not all(part.isprintable() for part in parts):
        raise Refused(422, "archive", f"{shown} in the zip is no clip", _HINT)
    return parts
