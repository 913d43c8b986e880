"""The last answers, kept so that they can be looked at, explained, and taught as what they really were."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.match.results import Prediction
from m2df_runtime.serve.limits import Limits
from m2df_runtime.serve.problems import Refused


@dataclass(frozen=True)
class Kept:
    """One answer.

    Attributes:
        id: Its name, which nobody can guess.
        prediction: The answer, with its features.
        bank: What it is from.
        clip: The clip itself, in a folder of the server's own.
        warning: What of the clip makes the answer doubtful; None where nothing does.
    """

    id: str
    prediction: Prediction
    bank: SupportBank
    clip: Path
    warning: str | None

    def record(self, topk: int | None = None) -> dict[str, object]:
        """What is sent of it, with the best `topk` classes or all of them."""
        return {"id": self.id, **self.prediction.record(topk), "warning": self.warning}


class Answers:
    """The newest answers of a server, as many as its limits allow.

    Args:
        folder: Where clips are kept; it is the server's own.
        limits: How many, and how large.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._kept: OrderedDict[str, tuple[Kept, int]] = OrderedDict()
        self._changing = threading.Lock()

    def keep(self, prediction: Prediction, bank: SupportBank, clip: Path, warning: str | None) -> Kept:
        """Keep an answer and its clip, which is moved."""
        name = secrets.token_hex(16)
        target = self._folder / f"{name}{clip.suffix}"
        shutil.move(clip, target)
        kept = Kept(name, prediction, bank, target, warning)
        with self._changing:
            self._kept[name] = (kept, target.stat().st_size)
            while len(self._kept) > self._limits.answers or (
                sum(size for _, size in self._kept.values()) > self._limits.answer_bytes and len(self._kept) > 1
            ):
                _, (old, _) = self._kept.popitem(last=False)
                old.clip.unlink(missing_ok=True)
        return kept

    def get(self, name: str) -> Kept:
        """Raises Refused where it is not kept, or no more."""
        with self._changing:
            found = self._kept.get(name)
        if found is None:
            raise Refused(404, "no_answer", "no such answer is kept", "ask again: only the newest are kept")
        return found[0]
