"""What a user teaches: a support folder or a bank file, and the verbs that change it, each as a whole or not at all."""

from __future__ import annotations

import csv
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bank.changes import changing, undo, undoing
from m2df_runtime.bank.contents import BankContents, Past, make_classes, read_stored
from m2df_runtime.bank.folder import BACKGROUND, checked_label, found_class, list_support
from m2df_runtime.bank.follow import described, followed
from m2df_runtime.bank.origin import InBank
from m2df_runtime.bank.update import bank_name
from m2df_runtime.bundle.prompt_texts import class_called, spelling, text_from_folder
from m2df_runtime.clips.folder_entries import named, passed_over
from m2df_runtime.errors import InputError
from m2df_runtime.files import locked, temporary_folder
from m2df_runtime.progress import Progress, silent
from m2df_runtime.teaching import folder_verbs
from m2df_runtime.teaching.folder_verbs import counted
from m2df_runtime.teaching.overview import SupportView, is_bank_file, view_of
from m2df_runtime.teaching.record import record

if TYPE_CHECKING:
    from m2df_runtime.backends.model import Model
    from m2df_runtime.bundle.prompt_texts import LabelRules

Clips = Path | str | Iterable[Path | str]


class Support:
    """A support folder or a bank file, to be changed.

    A folder is the truth as long as there is one; a bank file is what travels. Both have the same verbs. Each waits
    for others that change the same, is made as a whole or not at all, whatever is killed, and returns in words what
    it changed. A process that matches with it goes on with what it has read.

    Args:
        path: The folder, which `add` makes where it is not there, or a file that `pack` wrote.
        model: The opened bundle, or how to open it once it is needed; None opens the newest as `load` does.
        rules: Labels to prompts, also of what it holds already; None as in `SupportBank.of`.
        progress: Shows the encoding of clips.

    Examples:
        >>> import m2df_runtime as m2df
        >>> support = m2df.Support("actions", m2df.load())
        >>> support.add("wave", ["a.mp4", "b.mp4"])
        "added class 'wave' with 2 clips: a.mp4, b.mp4"
        >>> support.undo()
        "undone: added class 'wave' with 2 clips: a.mp4, b.mp4"
        >>> support.pack("gate.bank")
        'packed 5 classes with 10 clips into gate.bank'
        >>> m2df.Support("gate.bank").remove("clap")
        "removed class 'clap' with 2 clips"
    """

    def __init__(
        self,
        path: Path | str,
        model: Model | Callable[[], Model] | None = None,
        rules: LabelRules | None = None,
        *,
        progress: Progress = silent,
    ) -> None:
        self.path, self.rules = Path(path), rules
        self._model = model
        self._progress = progress

    @property
    def model(self) -> Model:
        """The opened bundle."""
        if self._model is None:
            from m2df_runtime.backends.model import load

            self._model = load()
        if callable(self._model):
            self._model = self._model()
        return self._model

    @property
    def _rules(self) -> LabelRules:
        return self.rules or self.model.bundle.manifest.text.rules

    @property
    def is_file(self) -> bool:
        """Whether it is a bank file.

        Raises:
            InputError: It has the name of one, and is not there.
        """
        return is_bank_file(self.path)

    def view(self) -> SupportView:
        """What it holds; needs no model.

        Raises:
            InputError: It is neither a folder nor a bank file, or a damaged one.

        Examples:
            >>> import m2df_runtime as m2df
            >>> view = m2df.Support("actions").view()
            >>> [(entry.label, len(entry.clips)) for entry in view.classes][:2]
            [('clap', 2), ('golf_swing', 2)]
        """
        return view_of(self.path, self.rules)

    def add(self, label: str, clips: Clips) -> str:
        """Teach an action: these clips show it, too. A folder gets copies of them; only they are encoded.

        Args:
            label: The class, which may be new. Of one that differs in capital letters alone, it is that.
            clips: Paths of video files, frame folders or animated pictures.

        Raises:
            ClipError: A clip cannot be read.
            InputError: No clip, no label or one that no folder can have, or the same clip in another class.
            OSError: The place cannot be written.
        """
        checked_label(label)
        there = self.is_file or os.path.isdir(self.path)
        own = (class_called((entry.label for entry in self.view().classes), label) if there else None) or label
        did = self._taught(own, clips)
        capitals = spelling(own) != spelling(label)
        return f"{did}; {label!r} differs from {own!r} in capital letters alone" if capitals else did

    def record(self, label: str, source: Path | str, *, seconds: float | None = None, trim: bool = True) -> str:
        """Teach an action by a clip that is recorded now.

        Args:
            label: The class, which may be new.
            source: A file, a camera's address, or its number on this machine.
            seconds: How long to look; None for all of a file, and for 3 s of a camera.
            trim: Cut off the ends in which nothing moves.

        Raises:
            ClipError: The source cannot be read.
            InputError: Nothing moves, or a label that no folder can have.
            OSError: The place cannot be written.
        """
        checked_label(label)
        with tempfile.TemporaryDirectory(prefix="m2df-") as place:
            clip = Path(place, time.strftime("recorded-%Y%m%d-%H%M%S.mp4"))
            length = record(source, clip, seconds=seconds, trim=trim)
            return f"{self.add(label, [clip])} ({length:.1f} s)"

    def background(self, clips: Clips) -> str:
        """Teach what nothing looks like: clips of what belongs to no class. Raises as `add`."""
        return self._taught(BACKGROUND, clips)

    def remove(self, name: str) -> str:
        """Forget a class, or the clip `class/clip`. A folder keeps it out of sight until `purge`.

        Raises:
            InputError: There is no such class or clip, or it is the only class of a file.
            OSError: The place cannot be written.
        """
        if not self.is_file:
            return folder_verbs.remove(self.path, name)

        def removed(bank: SupportBank) -> tuple[SupportBank, str]:
            new = bank.remove(name, calibrated=False)
            gone = [label for label in bank.labels if label not in new.labels]
            count = len(bank.clips) - len(new.clips)
            return new, f"removed class {gone[0]!r} with {counted(count, 'clip')}" if gone else f"removed {name}"

        return self._changed(removed)

    def rename(self, label: str, new: str, *, join: bool = False) -> str:
        """Correct a class's name, or find that two classes are one.

        Args:
            label: The class.
            new: Its name from now on.
            join: That of another class, to which its clips are added.

        Raises:
            InputError: There is no such class; the new name is taken, or none with `join`.
            OSError: The place cannot be written.
        """
        if not self.is_file:
            return folder_verbs.rename(self.path, label, new, join=join)

        def renamed(bank: SupportBank) -> tuple[SupportBank, str]:
            own = found_class(self.path, bank.labels, label)
            made = bank.rename(own, new, join=join, calibrated=False)
            if join:
                return made, f"joined class {own!r} to {found_class(self.path, bank.labels, new)!r}"
            return made, f"renamed class {own!r} to {new!r}"

        return self._changed(renamed)

    def merge(self, other: Path | str) -> str:
        """Take over the classes, clips and background of another folder or bank file, which stays as it is.

        Raises:
            InputError: It cannot be used, has a clip that is of another class here, or was packed without clips that
                are needed.
            OSError: The place cannot be written.
        """
        is_file = self.is_file
        if self.path.exists() and os.path.exists(other) and os.path.samefile(self.path, other):
            raise InputError(f"{other}: is merged with itself", "name another folder or bank file")
        found = self._bank_of(other)
        if is_file:

            def merged(bank: SupportBank) -> tuple[SupportBank, str]:
                new = bank.merge(found, calibrated=False)
                return new, _merged(other, len(new.clips) - len(bank.clips), len(new.labels) - len(bank.labels))

            return self._changed(merged)
        taught = folder_verbs.taught_from_bank(found)
        return self._put(taught, lambda added, new: _merged(other, len(added), len(new)))

    def replace(self, other: Path | str) -> str:
        """Take over what another folder or bank file holds in place of all that is here. The other stays as it is.

        Raises:
            InputError: It cannot be used, or was packed without clips that are needed.
            OSError: The place cannot be written.
        """
        is_file = self.is_file
        found = self._bank_of(other)
        did = f"replaced everything by {_size(found)}"
        if is_file:
            return self._changed(lambda bank: (found, did))
        taught = folder_verbs.taught_from_bank(found)
        folder_verbs.replace(self.path, taught, self.model, self._rules, self._progress, did)
        return did

    def undo(self) -> str:
        """Take the last change back; the next `undo` makes it again.

        Raises:
            InputError: There is none, or a folder was changed by hand since.
            OSError: The place cannot be written.
        """
        if not self.is_file:
            list_support(self.path)
            with changing(self.path):
                return undo(self.path)
        with locked(self.path):
            bank, past, *_ = followed(self.path, self.model, self._progress)
            if past is None:
                raise InputError(f"{self.path}: nothing to undo", "a bank file knows its last change alone")
            before = SupportBank(
                make_classes(past.classes, self.model, bank),
                bank.keys,
                background=past.background,
                model=self.model,
                rules=self._rules,
            )
            did = undoing(past.did)
            before.write(self.path, _past(did, bank), keep="clips")
        return did

    def purge(self) -> str:
        """Delete what was removed; the last change can be undone no more.

        Raises:
            OSError: The place cannot be written.
        """
        if not self.is_file:
            return folder_verbs.purge(self.path)
        with locked(self.path):
            bank, past = read_stored(self.path)
            size = self.path.stat().st_size
            bank.write(self.path, keep="clips")
            gone = size - self.path.stat().st_size
        return f"purged what was removed, {gone / 1e6:.1f} MB" if past else "purged nothing"

    def pack(self, out: Path | str, *, clips: bool = True) -> str:
        """Write one file that travels: the bank with its clips.

        Args:
            out: The file; a bank that is there is replaced.
            clips: Without them the file is smaller, and cannot follow a new bundle or pixel version.

        Raises:
            InputError: The support cannot be used, or another file stands there.
            ClipError: A clip is gone.
            OSError: The place cannot be written.
        """
        out = Path(out)
        if out.exists():
            read_stored(out)  # raises where it is no bank
        bank = self._bank_of(self.path)
        bank.save(out, clips=clips)
        return f"packed {_size(bank)} into {out}"

    def unpack(self, out: Path | str) -> str:
        """Write a support folder with the clips of a bank file.

        Args:
            out: The folder; it must not be there, or be empty.

        Raises:
            InputError: It is no bank file or was packed without clips, or something stands there.
            ClipError: A clip in it is damaged.
            OSError: The place cannot be written.
        """
        out = Path(out)
        if not self.is_file:
            raise InputError(f"{self.path}: is no bank file", "bank unpack makes a folder of one")
        if os.path.lexists(out) and not (out.is_dir() and not os.listdir(out)):
            raise InputError(f"{out}: something stands there", "name a new folder")
        bank = read_stored(self.path).bank
        lacking = [clip.name for clip in bank.clips.values() if not (clip.origin and clip.origin.has_clip)]
        if lacking:
            raise InputError(f"{self.path}: it was packed without its clips", f"it lacks {named(lacking)}")
        for clip in bank.clips.values():
            label, _, name = clip.name.partition("/")
            if label != BACKGROUND:
                checked_label(label)
            if passed_over(name):
                raise InputError(f"{self.path}: {clip.name}: no clip of a folder is called so", "teach it anew")
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(out) as place:
            work = place / "whole"
            work.mkdir()
            for clip in bank.clips.values():
                label, _, name = clip.name.partition("/")
                (work / label).mkdir(exist_ok=True)
                assert isinstance(clip.origin, InBank)  # clips of a bank file
                clip.origin.restored(work / label, name)
            bank.write(work / bank_name(bank.keys.visual))
            rows = [(entry.label, text) for entry in bank.classes for text in entry.texts]
            own = any(entry.texts != (text_from_folder(entry.label),) for entry in bank.classes)
            if own:
                _write_labels(work / "labels.csv", rows)
            work.rename(out)
        said = f"; its texts are in {out / 'labels.csv'}, for --labels" if own else ""
        return f"unpacked {_size(bank)} into {out}{said}"

    def _taught(self, label: str, clips: Clips) -> str:
        paths = [Path(path) for path in ([clips] if isinstance(clips, str | Path) else clips)]
        if not paths:
            raise InputError(f"class {label!r} is given no clip", "name at least one")
        if not self.is_file:
            taught = folder_verbs.taught_from(label, paths, self.model)
            return self._put(taught, _added)

        def added(bank: SupportBank) -> tuple[SupportBank, str]:
            new = (
                bank.add_background(paths, calibrated=False)
                if label == BACKGROUND
                else bank.add(label, paths, calibrated=False)
            )
            names = [clip.name for digest, clip in new.clips.items() if digest not in bank.clips]
            split = [(own, name) for own, _, name in (name.partition("/") for name in names)]
            return new, _added(split, [one for one in new.labels if one not in bank.labels]) if split else ""

        return self._changed(added)

    def _put(self, taught: list[folder_verbs.Taught], did: Callable[[list[tuple[str, str]], list[str]], str]) -> str:
        return folder_verbs.put(self.path, taught, self.model, self._rules, self._progress, did) or _NOTHING

    def _bank_of(self, path: Path | str) -> SupportBank:
        return SupportBank.of(self.model, path, self.rules, progress=self._progress)

    def _changed(self, verb: Callable[[SupportBank], tuple[SupportBank, str]]) -> str:
        """Let a verb make the next bank of a file, and write it."""
        with locked(self.path):
            found = followed(self.path, self.model, self._progress)
            worded = described(found.bank, self.rules, self.model) if self.rules else found.bank
            bank = SupportBank(**vars(worded), model=self.model, rules=self._rules)
            new, did = verb(bank)
            if new is bank:
                return _NOTHING
            whole = all(clip.origin and clip.origin.has_clip for clip in bank.clips.values())
            new.write(self.path, _past(did, found.bank), keep="clips" if whole else "strips")
        return did


_NOTHING = "nothing changed"


def _write_labels(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    with path.open("x", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("class", "text"), *rows])


def _past(did: str, bank: BankContents) -> Past:
    return Past(did, tuple(entry.members for entry in bank.classes), bank.background)


def _added(added: list[tuple[str, str]], new: list[str]) -> str:
    (label,) = {label for label, _ in added}
    names = named(name for _, name in added)
    if label == BACKGROUND:
        return f"added {counted(len(added), 'clip')} to the background: {names}"
    if new:
        return f"added class {label!r} with {counted(len(added), 'clip')}: {names}"
    return f"added {counted(len(added), 'clip')} to class {label!r}: {names}"


def _merged(other: Path | str, clips: int, classes: int) -> str:
    return f"merged {other}: {counted(clips, 'new clip')}, {classes} new class{'' if classes == 1 else 'es'}"


def _size(bank: BankContents) -> str:
    count = len(bank.labels)
    return f"{count} class{'' if count == 1 else 'es'} with {counted(sum(len(e.clips) for e in bank.classes), 'clip')}"
