"""What a server does for its clients, with the runtime's own objects; it knows nothing of HTTP.

One support, the matcher that follows it, the answers that are kept, and events for whoever reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from m2df_runtime import __version__
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bank.contents import BankClip, keys_of
from m2df_runtime.bank.folder import BACKGROUND, ClassTaken
from m2df_runtime.bank.lint import Finding, lint
from m2df_runtime.bundle.prompt_texts import class_called
from m2df_runtime.clips.source import DEFAULT_FPS
from m2df_runtime.cpus import available_cpus
from m2df_runtime.errors import ClipError, InputError, M2dfError
from m2df_runtime.match.matcher import Matcher
from m2df_runtime.match.reading import ReadClip
from m2df_runtime.match.results import Prediction
from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.pixels.thumbnails import strip_jpeg
from m2df_runtime.serve.answers import Answers, Kept
from m2df_runtime.serve.archive import pack
from m2df_runtime.serve.board import Board
from m2df_runtime.serve.limits import Limits
from m2df_runtime.serve.problems import Refused, refused
from m2df_runtime.serve.uploads import Received
from m2df_runtime.serve.workers import Workers
from m2df_runtime.show.explain import explain
from m2df_runtime.show.filmstrip import display_spec
from m2df_runtime.sinks.metrics import Metrics
from m2df_runtime.stream.default_window import default_window
from m2df_runtime.teaching.overview import ClipView, SupportView
from m2df_runtime.teaching.support import Support
from m2df_runtime.teaching.watch import SupportWatch

if TYPE_CHECKING:
    from m2df_runtime.backends.model import Model

_STRIPS = 512  # that are kept; each takes about 15 kB
_NO_CLASS = Refused(409, "nothing_taught", "nothing is taught yet", "teach an action: POST /v1/classes/NAME/clips")


class Service:
    """A support as a server has it, for any number of threads.

    Args:
        support: The folder, which need not be there yet, or bank file.
        limits: What is taken from clients.
        reject: As `Matcher` has it.
        miss_rate: As `Matcher` has it.

    Attributes:
        support: It.
        limits: Those.
        answers: The last answers.
        board: Events of all live sessions.
        metrics: What is counted of answers and sessions.
        workers: Where uploads are decoded.
    """

    def __init__(
        self,
        support: Support,
        limits: Limits,
        *,
        reject: Literal["auto", "off"] | float = "auto",
        miss_rate: float | None = None,
    ) -> None:
        self.support, self.limits = support, limits
        self._reject, self._miss_rate = reject, miss_rate
        self._held = ExitStack()
        self._folder = Path(self._held.enter_context(tempfile.TemporaryDirectory(prefix="m2df-serve-")))
        (self._folder / "answers").mkdir()
        self.answers = Answers(self._folder / "answers", limits)
        self.board = Board(limits.listeners)
        self.metrics = Metrics(support.model)
        self.workers = Workers(min(available_cpus(), 8), limits)
        self._changing = threading.RLock()
        self._watch: SupportWatch | None = None  # while something is taught
        self._matcher: Matcher | None = None  # once something was; the same from then on, since cameras hold it
        self._strips: OrderedDict[str, bytes] = OrderedDict()
        self._linted: tuple[SupportBank, tuple[Finding, ...]] | None = None
        self.ready = False
        self._follow()

    @property
    def model(self) -> Model:
        """The opened bundle."""
        return self.support.model

    def warm(self) -> None:
        """Load what the first answer needs."""
        self.workers.warm()
        spec = self.model.bundle.manifest.clip
        pixels = np.zeros((spec.frames, spec.size, spec.size, 3), np.uint8)
        blank = ReadClip("nothing", pixels, 0.0, 0.0, None, spec.frames / DEFAULT_FPS)
        if matcher := self._open_matcher:
            matcher.answer([blank])
        else:
            self.model.encode_clips(pixels[None], [blank.name])
        self.ready = True

    def close(self) -> None:
        """End all that goes on, and remove what was kept of clients."""
        self.workers.close()
        self.board.close()
        with self._changing:
            self._unwatch()
        self._held.close()

    def refused(self, error: M2dfError | OSError) -> Refused:
        """What a client is told of an error: nothing of where things are on this machine."""
        return refused(error, self._folder, self.support.path)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for what one request sends, which goes with it."""
        with tempfile.TemporaryDirectory(dir=self._folder) as place:
            yield Path(place)

    @property
    def matcher(self) -> Matcher:
        """What answers now. Raises Refused where nothing is taught."""
        found = self._open_matcher
        if found is None:
            self._follow()  # somebody may have put clips into the folder by hand
            found = self._open_matcher
        if found is None:
            raise _NO_CLASS
        return found

    @property
    def labels(self) -> tuple[str, ...]:
        """Classes that are taught now."""
        found = self._open_matcher
        return found.bank.labels if found else ()

    @property
    def _open_matcher(self) -> Matcher | None:
        return self._matcher if self._watch else None

    def _unwatch(self) -> None:
        if self._watch:
            self._watch.__exit__(None, None, None)
            self._watch = None

    def _follow(self) -> None:
        """Answer from what the support is now."""
        with self._changing:
            if not self._view().classes:
                self._unwatch()
            elif self._watch:
                self._watch.look()
            else:
                bank = SupportBank.of(self.model, self.support.path, self.support.rules)
                if self._matcher:
                    self._matcher.swap(bank)
                else:
                    self._matcher = self._matcher_of(bank)
                self._watch = SupportWatch(self._matcher, self.support.path, self.support.rules).__enter__()

    def _matcher_of(self, bank: SupportBank) -> Matcher:
        return Matcher(self.model, bank, reject=self._reject, miss_rate=self._miss_rate)

    def _change(self, verb: Callable[[], str]) -> str:
        with self._changing:
            try:
                return verb()
            finally:
                self._follow()

    # Asking

    def predict(self, received: Received, folder: Path) -> Kept:
        """The answer to a clip.

        Raises:
            Refused: Nothing is taught, or the clip cannot be used.
        """
        matcher = self.matcher
        path = received.path or self._kept(received, folder, trim=False)[0]
        read = replace(self.workers.read(path, received.said, self._spec, None), name=received.name)
        bank, answer = _answer(matcher, read)
        self.metrics.answered(answer.timings)
        warning = "one picture, which shows no action (send a video)" if read.single else None
        return self.answers.keep(answer, bank, path, warning)

    def answer_strip(self, name: str) -> bytes:
        """JPEG of the frames that an answer is from, side by side. Raises Refused where it is not kept."""
        frames = self._looked_at(self.answers.get(name)).frames
        assert frames is not None
        return strip_jpeg(frames)

    def explain(self, name: str) -> str:
        """Why an answer is what it is, as a page. Raises Refused where it is not kept, and as `show.explain`."""
        kept = self.answers.get(name)
        return explain(self._looked_at(kept), self._matcher_of(kept.bank))

    def _looked_at(self, kept: Kept) -> Prediction:
        """An answer with its frames. Few are looked at, and reading frames takes as long again as answering does."""
        try:
            read = self.workers.read(kept.clip, kept.prediction.query, self._spec, display_spec(self._spec))
        except Refused:
            self.answers.get(kept.id)  # it may have gone meanwhile, which is then said
            raise
        return replace(kept.prediction, frames=read.frames)

    @property
    def _spec(self) -> ClipSpec:
        return self.model.bundle.manifest.clip

    # Teaching

    def add(
        self, label: str, received: Sequence[Received], folder: Path, *, trim: bool, cut: float | None = None
    ) -> str:
        """Teach clips; of the label `BACKGROUND`, what nothing looks like.

        Raises:
            Refused: A clip cannot be used, is too long, or nothing moves in one that is to be trimmed.
            InputError: As `Support.add`.
        """
        clips: list[Path] = []
        for number, one in enumerate(received, 1):
            place = folder / f"kept-{number}"
            place.mkdir()
            clips += self._kept(one, place, trim=trim, cut=cut)
        background = label == BACKGROUND
        return self._change(lambda: self.support.background(clips) if background else self.support.add(label, clips))

    def _kept(self, one: Received, place: Path, *, trim: bool, cut: float | None = None) -> list[Path]:
        """The clips that are made of what was sent; a file that is kept as it is was read in another process before."""
        if one.path and not trim and cut is None:
            self.workers.read(one.path, one.said, self._spec, None)
            return [one.path]
        return self.workers.keep(
            one.said,
            place,
            Path(one.name).stem,
            path=one.path,
            frames=one.frames,
            times=one.times,
            trim=trim,
            cut=cut,
        )

    def remove(self, label: str, clip: str | None = None) -> str:
        """Forget a class, or one of its clips by its id. Raises Refused where there is none."""
        name = _label(self._view(), label) if clip is None else self._clip(label, clip)
        return self._change(lambda: self.support.remove(name))

    def rename(self, label: str, new: str, *, join: bool) -> str:
        """Correct a class's name. Raises Refused where there is none or the new one is taken; as `Support.rename`."""
        name = _label(self._view(), label)
        try:
            return self._change(lambda: self.support.rename(name, new, join=join))
        except ClassTaken as error:
            raise Refused(409, "class_taken", error.message, 'send "join": true to make the two one') from None

    def undo(self) -> str:
        """Take the last change back. Raises as `Support.undo`."""
        if not os.path.exists(self.support.path):
            raise Refused(409, "nothing_to_undo", "nothing to undo", "nothing was taught yet")
        return self._change(self.support.undo)

    def replace(self, archive: Path, folder: Path) -> str:
        """Take a zip's clips in place of all that is taught, as one change.

        Raises:
            Refused: The zip or a clip in it cannot be used.
            InputError: As `Support.replace`.
        """
        place = folder / "clips"
        for clip in self.workers.unpack(archive, place):
            self.workers.read(clip, clip.relative_to(place).as_posix(), self._spec, None)
        try:
            return self._change(lambda: self.support.replace(place))
        except InputError as error:
            raise InputError(error.message.replace(f"{place}/", "").replace(f"{place}: ", ""), error.hint) from None

    def export(self) -> Path:
        """A zip of all clips, in a file that is the caller's. Raises Refused where nothing is taught."""
        return pack(self.matcher.bank)

    # Looking

    def view(self) -> dict[str, object]:
        """All that is taught, as it is sent to clients."""
        found, matcher = self._view(), self._open_matcher
        rejection = matcher.rejection if matcher else None
        return {
            "classes": [
                {
                    "label": entry.label,
                    "texts": list(entry.texts),
                    "closest": entry.closest,
                    "similarity": entry.similarity,
                    "clips": [_clip_record(clip) for clip in entry.clips],
                }
                for entry in found.classes
            ],
            "background": {"clips": [_clip_record(clip) for clip in found.background]},
            "last_change": found.last_change,
            "rejection": matcher.about_rejection if matcher else "not calibrated: teach an action",
            "threshold": rejection.threshold if rejection else None,
            "calibrated": bool(matcher and matcher.bank.calibration),
            "window": default_window(matcher.bank) if matcher else None,
            "bundle": self.model.bundle.manifest.name,
            "keys": keys_of(self.model.bundle).model_dump(),
            "version": __version__,
            "state": _state(found),
        }

    def findings(self) -> list[dict[str, object]]:
        """What looks wrong in what is taught."""
        bank = self.matcher.bank
        with self._changing:
            if self._linted is None or self._linted[0] is not bank:
                self._linted = bank, lint(bank)
            return [finding.record() for finding in self._linted[1]]

    def strip(self, label: str, clip: str) -> bytes:
        """JPEG of a clip's frames side by side. Raises Refused where there is no such clip."""
        name = self._clip(label, clip)
        bank = self.matcher.bank
        every: list[BankClip] = [*(one for entry in bank.classes for one in entry.clips), *bank.background]
        found = next((one for one in every if one.name == name and one.origin), None)
        if found is None or found.origin is None:
            raise Refused(404, "no_strip", "this clip cannot be read, and is not used", "remove it, and teach it again")
        kept = self._strips.get(found.digest)
        if kept is None:
            kept = strip_jpeg(found.origin.frames(display_spec(self._spec)))
            self._strips[found.digest] = kept
            while len(self._strips) > _STRIPS:
                self._strips.popitem(last=False)
        return kept

    def _view(self) -> SupportView:
        """All that is taught; nothing where the folder is not there yet."""
        there = os.path.exists(self.support.path)
        return self.support.view() if there else SupportView(self.support.path, (), (), None)

    def _clip(self, label: str, clip: str) -> str:
        view = self._view()
        name = label if label == BACKGROUND else _label(view, label)
        found = next((one.name for one in view.clips_of(name) if clip_id(one.name) == clip), None)
        if found is None:
            raise Refused(404, "no_clip", "there is no such clip", "GET /v1/classes names them")
        return found


def _label(view: SupportView, label: str) -> str:
    found = class_called((one.label for one in view.classes), label)
    if found is None:
        raise Refused(404, "no_class", "there is no such class", "GET /v1/classes names them")
    return found


def _answer(matcher: Matcher, read: ReadClip) -> tuple[SupportBank, Prediction]:
    """An answer, and the bank that it is from."""
    while True:
        bank = matcher.bank
        (answer,) = matcher.answer([read])
        if isinstance(answer, ClipError):
            raise answer
        if matcher.bank is bank:
            return bank, answer


def clip_id(name: str) -> str:
    """What a clip `class/clip` is called in addresses."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def recording_stem() -> str:
    """What a recording that is taught now is called."""
    return time.strftime("recorded-%Y%m%d-%H%M%S")


def _clip_record(clip: ClipView) -> dict[str, object]:
    name = clip.name.partition("/")[2]
    return {"id": clip_id(clip.name), "name": name, "seconds": clip.seconds, "bytes": clip.bytes}


def _state(view: SupportView) -> str:
    """A key that differs after every change."""
    clips = [clip for clips in (*(one.clips for one in view.classes), view.background) for clip in clips]
    every = [(clip.name, clip.bytes) for clip in clips]
    return hashlib.sha256(json.dumps([every, view.last_change]).encode("utf-8", "replace")).hexdigest()[:16]


def copied_answer(kept: Kept, folder: Path) -> Received:
    """The clip of an answer, to be taught."""
    path = folder / f"{recording_stem()}{kept.clip.suffix}"
    shutil.copy(kept.clip, path)
    return Received(path.name, path.name, path)
