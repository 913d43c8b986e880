"""The support bank as users hold it: what a model knows of their actions, and the verbs that make it and change it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends.arrays import checked
from m2df_runtime.bank.contents import BankClip, BankContents, Members, encode, make_classes
from m2df_runtime.bank.folder import BACKGROUND, SupportClip, clip_stamp
from m2df_runtime.bank.follow import file_bank
from m2df_runtime.bank.origin import OnDisk
from m2df_runtime.bank.update import folder_bank
from m2df_runtime.bundle.prompt_texts import LabelRules, class_key
from m2df_runtime.clips.folder_entries import natural_key
from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.progress import Progress, silent

if TYPE_CHECKING:
    from m2df_runtime.backends.model import Model

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupportBank(BankContents):
    """Classes ready to be matched against, from one to five clips each. A bank never changes: `add` gives the next.

    Attributes:
        classes: In the natural order of their names.
        keys: What the numbers were computed with.
        calibration: What its own clips say of answers; None where not calibrated.
        background: Clips of what belongs to no class.
        model: What it was made with.
        rules: Labels to prompts.

    Example:
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

        Example:
            >>> import m2df_runtime as m2df
            >>> model = m2df.load()
            >>> m2df.SupportBank.of(model, "actions").save("gate.bank")
            >>> len(m2df.SupportBank.of(model, "gate.bank").labels)
            5
        """
        self.write(Path(path), keep="clips" if clips else "strips")

    def add(self, label: str, clips: Path | str | Iterable[Path | str]) -> SupportBank:
        """The next bank: these clips too show the action `label`, which may be new.

        Only these clips are encoded, only their class is made anew, and rejection is calibrated from stored features;
        the result equals that of a folder with the same clips. No folder is touched. A clip that is known already is
        said and skipped.

        Args:
            label: The class; of a new one the prompts follow from the bank's rules.
            clips: Paths of video files, frame folders or animated pictures.

        Raises:
            ClipError: A clip cannot be read.
            InputError: No clip, no label, or the same clip in another class.
            CheckFailed: What follows from the clips is not finite.

        Example:
            >>> import m2df_runtime as m2df
            >>> bank = m2df.SupportBank.of(m2df.load(), "actions")
            >>> taught = bank.add("wave", ["a.mp4", "b.mp4"])
            >>> len(bank.labels), len(taught.labels), len(taught.classes[-1].clips)
            (5, 6, 2)
        """
        if not label.strip():
            raise InputError("a class needs a label")
        own = next((entry for entry in self.classes if class_key(entry.label) == class_key(label)), None)
        label = own.label if own else label
        new = self._encoded(label, [Path(path) for path in ([clips] if isinstance(clips, str | Path) else clips)])
        if not new and own:
            return self
        if not new:
            raise InputError(f"class {label!r} is given no clip", "name at least one")
        members = sorted([*(own.clips if own else ()), *new], key=lambda clip: natural_key(clip.name))
        texts, prompts = (
            (own.texts, own.prompts) if own else (self.rules.descriptions(label), self.rules.prompts(label))
        )
        others = [entry.members for entry in self.classes if entry is not own]
        every = sorted(
            [*others, Members(label, texts, prompts, tuple(members))], key=lambda one: natural_key(one.label)
        )
        classes = make_classes(every, self.model, self)
        return replace(self, classes=classes, calibration=None).calibrated(self.model)

    def _encoded(self, label: str, paths: Iterable[Path]) -> list[BankClip]:
        """Clips that are new to the bank, with their features. Raises as `add`."""
        classes = {clip.digest: entry.label for entry in self.classes for clip in entry.clips}
        classes |= {clip.digest: BACKGROUND for clip in self.background}
        new: list[BankClip] = []
        for path in paths:
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
