"""The support bank as users hold it: what a model knows of their actions, and the verbs that make it and change it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends.arrays import checked
from m2df_runtime.bank.contents import BankClass, BankClip, BankContents, Members, encode, make_classes
from m2df_runtime.bank.folder import (
    BACKGROUND,
    SupportClip,
    checked_label,
    clip_stamp,
    found_class,
    free_name,
    renamed_onto,
)
from m2df_runtime.bank.follow import file_bank
from m2df_runtime.bank.origin import OnDisk
from m2df_runtime.bank.update import folder_bank
from m2df_runtime.bundle.prompt_texts import LabelRules, class_called
from m2df_runtime.clips.folder_entries import named, natural_key
from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.progress import Progress, silent

if TYPE_CHECKING:
    from m2df_runtime.backends.model import Model

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupportBank(BankContents):
    """Classes ready to be matched against, from one to five clips each. A bank never changes: its verbs give the next.

    Attributes:
        classes: In the natural order of their names.
        keys: What the numbers were computed with.
        calibration: What its own clips say of answers; None where not calibrated.
        background: Clips of what belongs to no class.
        model: What it was made with.
        rules: Labels to prompts.

    Examples:
        >>> import m2df_runtime as m2df
        >>> bank = m2df.SupportBank.of(m2df.load(), "actions")
        >>> bank.labels
        ('clap', 'golf_swing', 'high_knees', 'punch_person', 'side_bend')
        >>> bank.classes[1].prompts
        ('a photo of golf swing',)
    """

    model: Model = field(kw_only=True, repr=False, compare=False)
    rules: LabelRules = field(kw_only=True, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        model: Model,
        support: Path | str,
        rules: LabelRules | None = None,
        *,
        in_cache: bool = False,
        progress: Progress = silent,
    ) -> SupportBank:
        """The bank of a support folder or of a bank file, brought up to date.

        That of a folder is kept beside it, and clips that changed are encoded anew. A file of another bundle is
        encoded anew from the clips inside it. It is calibrated where an action has a second clip. What is new is stored
        where it can be.

        Args:
            model: The opened bundle.
            support: A folder with one sub-folder per class, named as the class is, with its clips; or a file that
                `save` wrote.
            rules: Labels to prompts; None takes the bundle's, and of classes in a file the texts that it holds.
            in_cache: Keep a folder's bank in the user's cache folder even where the support folder is writable.
            progress: Shows the encoding of clips.

        Raises:
            InputError: The folder holds no usable class, or the same clip in two classes; the file is damaged, or of
                another bundle and without clips.
        """
        path, own = Path(support), rules or model.bundle.manifest.text.rules
        if os.path.isfile(path):
            found = file_bank(path, model, rules, progress)
        else:
            found = folder_bank(path, model, own, in_cache=in_cache, progress=progress)
        return cls(**vars(found), model=model, rules=own)

    def save(self, path: Path | str, *, clips: bool = True) -> None:
        """Write the bank to one file, atomically; `of` reads it wherever it is carried.

        Args:
            path: The file.
            clips: With the clips themselves, so that it can follow a new model; otherwise with a strip of their
                frames alone.

        Raises:
            OSError: The place cannot be written.
            InputError: A name that is not Unicode or is too long, or more clips than a bank holds.
            ClipError: A clip is gone, or was changed since it was encoded.

        Examples:
            >>> import m2df_runtime as m2df
            >>> model = m2df.load()
            >>> m2df.SupportBank.of(model, "actions").save("gate.bank")
            >>> len(m2df.SupportBank.of(model, "gate.bank").labels)
            5
        """
        self.write(Path(path), keep="clips" if clips else "strips")

    def add(self, label: str, clips: Path | str | Iterable[Path | str], *, calibrated: bool = True) -> SupportBank:
        """The next bank: these clips too show the action `label`, which may be new.

        Only these clips are encoded, only their class is made anew, and rejection is calibrated from stored features;
        the result equals that of a folder with the same clips. No folder is touched. A clip that is known already is
        said and skipped.

        Args:
            label: The class; of a new one the prompts follow from the bank's rules.
            clips: Paths of video files, frame folders or animated pictures.
            calibrated: Also calibrate rejection, where the classes have enough clips; here and in the other verbs.

        Raises:
            ClipError: A clip cannot be read.
            InputError: No clip, no label or one that no folder can have, or the same clip in another class.
            CheckFailed: What follows from the clips is not finite.

        Examples:
            >>> import m2df_runtime as m2df
            >>> bank = m2df.SupportBank.of(m2df.load(), "actions")
            >>> taught = bank.add("wave", ["a.mp4", "b.mp4"])
            >>> len(bank.labels), len(taught.labels), len(taught.classes[-1].clips)
            (5, 6, 2)
        """
        own = self._like(checked_label(label))
        new = self._encoded(own.label if own else label, clips)
        if not new and own:
            return self
        if not new:
            raise InputError(f"class {label!r} is given no clip", "name at least one")
        return self._next([*self._others(own), self._grown(own, label, new)], self.background, calibrated)

    def add_background(self, clips: Path | str | Iterable[Path | str], *, calibrated: bool = True) -> SupportBank:
        """The next bank: these clips too show what belongs to no class. Raises as `add`.

        Examples:
            >>> import m2df_runtime as m2df
            >>> bank = m2df.SupportBank.of(m2df.load(), "actions").add_background("a.mp4")
            >>> [clip.name for clip in bank.background]
            ['_background/a.mp4']
        """
        new = self._encoded(BACKGROUND, clips)
        if not new:
            return self
        background = (*self.background, *_named_after(BACKGROUND, new, self.background))
        return self._next(self._others(None), background, calibrated)

    def remove(self, name: str, *, calibrated: bool = True) -> SupportBank:
        """The next bank: without a class, or without the clip `class/clip`; a class goes with its last clip.

        Raises:
            InputError: There is no such class or clip, or it is the only class.

        Examples:
            >>> import m2df_runtime as m2df
            >>> bank = m2df.SupportBank.of(m2df.load(), "actions")
            >>> bank.remove("clap").labels
            ('golf_swing', 'high_knees', 'punch_person', 'side_bend')
        """
        label, _, clip = name.partition("/")
        if label == BACKGROUND:
            return self._next(self._others(None), self._without(BACKGROUND, self.background, clip), calibrated)
        own = self.classes[self.labels.index(found_class(Path("the bank"), self.labels, label))]
        left = self._without(own.label, own.clips, clip)
        others = self._others(own)
        if not left and not others:
            raise InputError(f"{own.label!r} is the only class, and a bank needs one", "add another one first")
        return self._next([*others, *([own.members._replace(clips=left)] if left else [])], self.background, calibrated)

    def rename(self, label: str, new: str, *, join: bool = False, calibrated: bool = True) -> SupportBank:
        """The next bank: a class has another name.

        Its text follows where it came from the name; a text of its own stays.

        Args:
            label: The class.
            new: Its name from now on.
            join: That of another class, to which its clips are added.
            calibrated: See `add`.

        Raises:
            InputError: There is no such class; the new name is taken, or none with `join`.

        Examples:
            >>> import m2df_runtime as m2df
            >>> bank = m2df.SupportBank.of(m2df.load(), "actions").rename("clap", "applaud")
            >>> bank.labels[0], bank.classes[0].prompts
            ('applaud', ('a photo of applaud',))
        """
        own = self.classes[self.labels.index(found_class(Path("the bank"), self.labels, label))]
        other = renamed_onto(self.labels, own.label, new, join)
        if other:
            target = self.classes[self.labels.index(other)]
            kept = [entry for entry in self._others(own) if entry.label != other]
            return self._next([*kept, self._grown(target, other, own.clips)], self.background, calibrated)
        derived = own.texts == self.rules.descriptions(own.label)
        texts = self.rules.descriptions(new) if derived else own.texts
        prompts = self.rules.prompts(new) if derived else own.prompts
        made = Members(new, texts, prompts, _named_after(new, own.clips))
        return self._next([*self._others(own), made], self.background, calibrated)

    def merge(self, other: SupportBank, *, calibrated: bool = True) -> SupportBank:
        """The next bank: with the classes, clips and background of another one, too. Nothing is encoded.

        Raises:
            InputError: It was made with another bundle, or has a clip that is of another class here.
        """
        if other.keys != self.keys:
            raise InputError("the two banks were made with different bundles", "open both with the same one")
        home = {clip.digest: entry.label for entry in self.classes for clip in entry.clips}
        home |= {clip.digest: BACKGROUND for clip in self.background}
        members = {entry.label: entry.members for entry in self.classes}
        background = self.background
        for entry in (*(one.members for one in other.classes), Members(BACKGROUND, (), (), other.background)):
            own = self._like(entry.label)
            label = own.label if own else entry.label
            for clip in entry.clips:
                if home.get(clip.digest, label) != label:
                    raise InputError(
                        f"{clip.name}: the same clip stands in class {home[clip.digest]!r}", "remove one of the two"
                    )
            new = [clip for clip in entry.clips if clip.digest not in home]
            if new and label == BACKGROUND:
                background = (*background, *_named_after(BACKGROUND, new, background))
            elif new and own:
                members[label] = self._grown(own, label, new)
            elif new:
                members[label] = entry._replace(clips=tuple(new))
        if sum(len(entry.clips) for entry in members.values()) + len(background) == len(self.clips):
            return self
        return self._next(members.values(), background, calibrated)

    def _next(self, members: Iterable[Members], background: tuple[BankClip, ...], calibrated: bool) -> SupportBank:
        every = sorted(members, key=lambda entry: natural_key(entry.label))
        made = replace(self, classes=make_classes(every, self.model, self), background=background, calibration=None)
        return made.calibrated(self.model) if calibrated else made

    def _like(self, label: str) -> BankClass | None:
        """The class that is called so."""
        found = class_called(self.labels, label)
        return None if found is None else self.classes[self.labels.index(found)]

    def _others(self, own: BankClass | None) -> list[Members]:
        return [entry.members for entry in self.classes if entry is not own]

    def _grown(self, own: BankClass | None, label: str, new: Sequence[BankClip]) -> Members:
        """A class with more clips; a new one where there is none yet."""
        if own is None:
            return Members(label, self.rules.descriptions(label), self.rules.prompts(label), _by_name(new))
        return own.members._replace(clips=_by_name((*own.clips, *_named_after(own.label, new, own.clips))))

    def _without(self, label: str, clips: tuple[BankClip, ...], name: str) -> tuple[BankClip, ...]:
        """Clips without one; none without a name. Raises InputError where there is no such clip."""
        if name and f"{label}/{name}" not in [clip.name for clip in clips]:
            names = (clip.name.partition("/")[2] for clip in clips)
            raise InputError(f"class {label!r} has no clip {name!r}", f"there are: {named(names)}")
        return tuple(clip for clip in clips if name and clip.name != f"{label}/{name}")

    def _encoded(self, label: str, clips: Path | str | Iterable[Path | str]) -> list[BankClip]:
        """Clips that are new to the bank, with their features. Raises as `add`."""
        classes = {clip.digest: entry.label for entry in self.classes for clip in entry.clips}
        classes |= {clip.digest: BACKGROUND for clip in self.background}
        new: list[BankClip] = []
        for path in map(Path, [clips] if isinstance(clips, str | Path) else clips):
            try:
                clip = SupportClip(path, f"{label}/{path.name}", clip_stamp(path))
                digest = clip.digest()
            except OSError as error:
                raise ClipError(path, error.strerror or str(error), "check the path") from None
            known = classes.get(digest)
            if known is None:
                origin = OnDisk(clip, self.model.bundle.manifest.clip)
                new.append(BankClip(clip.name, digest, clip.stamp, *encode(path, self.model), origin))
                classes[digest] = label
            elif known != label:
                raise InputError(f"{path}: the same clip stands in class {known!r}", "teach it as one of the two")
            else:
                _log.warning("%s: class %r has this clip already, used once", path, label)
        return new

    def nearest_clip(self, features: NDArray[np.float32], label: str) -> BankClip:
        """The support clip of a class most like a query [T, D]: highest cosine between means over frames.

        Raises:
            InputError: The array has another type or shape, or the bank has no such class.
        """
        manifest = self.model.bundle.manifest
        checked("features", features, "float32", T=manifest.clip.frames, D=manifest.dim)
        if label not in self.labels:
            raise InputError(f"the bank has no class {label!r}", f"it has {', '.join(self.labels)[:200]}")
        entry = self.classes[self.labels.index(label)]
        means = np.concatenate([entry.features, features[None]]).mean(axis=1)  # (K + 1, D)
        means /= np.linalg.norm(means, axis=1, keepdims=True) + 1e-12
        return entry.clips[int(np.argmax(means[:-1] @ means[-1]))]


def _by_name(clips: Iterable[BankClip]) -> tuple[BankClip, ...]:
    return tuple(sorted(clips, key=lambda clip: natural_key(clip.name)))


def _named_after(label: str, clips: Iterable[BankClip], others: Iterable[BankClip] = ()) -> tuple[BankClip, ...]:
    """Clips as they are called in a class that has others already."""
    taken = {clip.name.partition("/")[2] for clip in others}
    named_clips = []
    for clip in clips:
        name = free_name(clip.name.partition("/")[2], taken)
        taken.add(name)
        named_clips.append(replace(clip, name=f"{label}/{name}"))
    return tuple(named_clips)
