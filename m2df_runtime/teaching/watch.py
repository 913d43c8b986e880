"""A matcher that follows what is taught while it runs: it goes over to each new state of its support as a whole."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bank.folder import list_support
from m2df_runtime.errors import M2dfError

if TYPE_CHECKING:
    from m2df_runtime.bundle.prompt_texts import LabelRules
    from m2df_runtime.match.matcher import Matcher

_LEAVE = 0.3  # seconds that the thread gets to end
EVERY = 1.0  # seconds; to look at 500 clips takes a few milliseconds

_log = logging.getLogger(__name__)


class SupportWatch:
    """Lets a matcher answer from what its support folder or bank file becomes.

    While it is entered, a thread looks every now and then; `look` does so at once. What changed is read and encoded
    beside the answers, and each answer is from one bank as a whole. A support that cannot be used leaves the matcher as
    it is, and a warning says why, once.

    Args:
        matcher: Its bank is swapped.
        support: The folder or bank file that the bank is of.
        rules: Labels to prompts, as they were given to `SupportBank.of`.
        every: Seconds from one look to the next.

    Examples:
        >>> import m2df_runtime as m2df
        >>> model = m2df.load()
        >>> matcher = m2df.Matcher(model, m2df.SupportBank.of(model, "actions"))
        >>> watch = m2df.SupportWatch(matcher, "actions")
        >>> said = m2df.Support("actions", model).add("wave", ["a.mp4", "b.mp4"])
        >>> watch.look(), "wave" in matcher.bank.labels
        (True, True)
        >>> with watch:  # from here on somebody looks every second
        ...     label = matcher.predict("clip.mp4").label
    """

    def __init__(
        self, matcher: Matcher, support: Path | str, rules: LabelRules | None = None, *, every: float = EVERY
    ) -> None:
        self._matcher, self._path, self._rules, self._every = matcher, Path(support), rules, every
        self._seen = self._signs()
        self._said: str | None = None
        self._looking = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> SupportWatch:
        self._thread = threading.Thread(target=self._watch, name="m2df watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(_LEAVE)  # it may be encoding clips, of which nothing will come

    def look(self) -> bool:
        """Look now; returns whether the matcher answers from a new bank."""
        return self._follow(self._signs())

    def _watch(self) -> None:
        last = self._seen
        while not self._stop.wait(self._every):
            signs = self._signs()
            if signs == last:  # a clip that is being copied by hand is another one at every look
                self._follow(signs)
            last = signs

    def _follow(self, signs: object) -> bool:
        with self._looking:
            if signs == self._seen:
                return False
            self._seen = signs
            try:
                bank = SupportBank.of(self._matcher.model, self._path, self._rules)
                if threading.current_thread() is self._thread and self._stop.is_set():
                    return False
                self._matcher.swap(bank)
            except (M2dfError, OSError) as error:
                if str(error) != self._said:
                    _log.warning("%s; going on with what was taught before", error)
                self._said = str(error)
                return False
            self._said = None
            return True

    def _signs(self) -> object:
        """What differs where the support changed; decodes and hashes nothing."""
        try:
            if not os.path.isdir(self._path):
                found = self._path.stat()
                return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
            return [(clip.name, clip.stamp) for clip in list_support(self._path).clips]
        except (M2dfError, OSError) as error:
            return str(error)
