"""Many clips on one machine: processes read them, and this one answers what they have read.

Processes, because decoders hold Python's lock for half of their time, and because a clip may bring its decoder down: a
process that ends is replaced, and a clip at which two ended is reported.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TypeVar, cast

from m2df_runtime.bulk.results import Fields, answered, failed
from m2df_runtime.clips.source import Rectangle
from m2df_runtime.deaf_children import deaf_children
from m2df_runtime.engine_names import ON_CPU
from m2df_runtime.errors import ClipError, EnvironmentMissing
from m2df_runtime.match.matcher import Matcher
from m2df_runtime.match.reading import ReadClip, read_clip
from m2df_runtime.pixels.spec import ClipSpec

_GIVEN = 2  # clips that a process holds: the one it reads, and the next
_DEATHS = 2  # at one clip, before that is what failed
BATCH = 32  # clips that a GPU answers at once, of those that wait
_ASK = 0.1  # seconds after which a waiting thread asks whether it is still wanted

Item = TypeVar("Item")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """How clips are read: the bundle's preprocessing, and the rectangle that is cut out first."""

    spec: ClipSpec
    roi: Rectangle | None = None


@dataclass(frozen=True)
class Failure:
    """Why a clip has no answer: a word for programs, and what is wrong."""

    code: str
    text: str


_Read = tuple[int, ReadClip | Failure]


class LocalEngine:
    """Answers clips on this machine.

    On a CPU each clip is answered by itself: its frames fill a batch already, and with graphs whose int8 scales follow
    from what they are given an answer would depend on its neighbours.

    Args:
        matcher: What answers.
        roi: x, y, width, height, cut out of each clip first.
        topk: Classes of each answer; None for all.
        processes: How many read.
    """

    def __init__(self, matcher: Matcher, *, roi: Rectangle | None, topk: int | None, processes: int) -> None:
        matcher.model.prepare("visual", "query")
        self._matcher = matcher
        self._topk = topk
        most = 1 if matcher.model.backend in ON_CPU else BATCH
        self._readers = Readers(Reading(matcher.model.bundle.manifest.clip, roi), processes, most)

    def answers(self, paths: Sequence[str]) -> Generator[tuple[int, Fields]]:
        """Answer clips, in the order in which they are done.

        Yields:
            The number of a clip in `paths`, and what is known of it.

        Raises:
            EnvironmentMissing: Processes end before they have read anything.
            InputError: The engine fails.
        """
        for batch in self._readers.read(paths):
            read = [(number, one) for number, one in batch if isinstance(one, ReadClip)]
            yield from ((number, failed(one.code, one.text)) for number, one in batch if isinstance(one, Failure))
            found = self._matcher.answer([one for _, one in read])
            for (number, _), answer in zip(read, found, strict=True):
                if isinstance(answer, ClipError):
                    yield number, failed("not-finite", _text(answer))
                else:
                    yield number, answered(answer, self._topk)

    def close(self) -> None:
        """End the processes that read, wherever they are."""
        self._readers.close()


class Readers:
    """Processes that read clips, and a thread that deals with them while inference runs.

    Args:
        reading: How clips are read.
        processes: How many there are at most; they start when there is something to read.
        most: Clips that are handed out at once, of those that wait.
    """

    def __init__(self, reading: Reading, processes: int, most: int = 1) -> None:
        self._reading = reading
        self._processes = processes
        self._most = most
        self._waiting: deque[tuple[int, str]] = deque()
        self._ready: queue.Queue[_Read | Exception] = queue.Queue(2 * processes + most)
        self._deaths: Counter[int] = Counter()
        self._readers: list[_Reader] = []
        self._unwanted = threading.Event()
        self._news, self._tell = multiprocessing.Pipe(duplex=False)
        self._dealing = threading.Thread(target=self._deal, daemon=True)
        self._dealing.start()

    def read(self, paths: Sequence[str]) -> Generator[list[_Read]]:
        """Read clips, in the order in which they are ready; one call at a time, and to its end.

        Yields:
            Numbers of clips in `paths`, and the clips, or why they cannot be read.

        Raises:
            EnvironmentMissing: Processes end before they have read anything.
        """
        self._deaths.clear()
        self._waiting.extend(enumerate(paths))
        self._tell.send(None)
        left = len(paths)
        while left:
            batch = [_of(self._ready.get())]
            with suppress(queue.Empty):
                while len(batch) < self._most:
                    batch.append(_of(self._ready.get_nowait()))
            left -= len(batch)
            yield batch

    def close(self) -> None:
        """End the processes, wherever they are."""
        self._unwanted.set()
        self._dealing.join()
        self._news.close()
        self._tell.close()

    def _deal(self) -> None:
        # Processes inherit it: what a terminal or a scheduler sends to all of them is for the first alone to hear.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            while not self._unwanted.is_set():
                self._staff()
                for reader in self._readers:
                    reader.take(self._waiting)
                by_connection = {reader.connection: reader for reader in self._readers}
                for connection in wait([self._news, *by_connection], _ASK):
                    if connection is self._news:
                        self._news.recv()
                    else:
                        self._hear(by_connection[cast(Connection, connection)])
        except Exception as error:  # for whoever waits for clips
            self._put(error)
        finally:
            for reader in self._readers:
                reader.end()

    def _staff(self) -> None:
        """As many processes as there is work for."""
        work = len(self._waiting) + sum(len(reader.given) for reader in self._readers)
        while len(self._readers) < min(self._processes, work):
            self._readers.append(_Reader(self._reading))

    def _hear(self, reader: _Reader) -> None:
        """Take what a process has to say, or its end.

        Raises:
            EnvironmentMissing: It ended before it was up.
        """
        try:
            found = reader.receive()
        except (EOFError, OSError):
            self._readers.remove(reader)
            self._bury(reader)
        else:
            if found is not None:
                self._put(found)

    def _bury(self, reader: _Reader) -> None:
        """Let others read what a process left, but not the clip at which it ended where that is one too many."""
        reader.end(grace=1.0)
        if not reader.works:
            raise EnvironmentMissing(f"a process that reads clips did not start: {reader.how}", "is memory short?")
        self._waiting.extendleft(list(reader.given)[:0:-1])
        for number, path in list(reader.given)[:1]:
            self._deaths[number] += 1
            if self._deaths[number] < _DEATHS:
                self._waiting.appendleft((number, path))
            else:
                self._put((number, Failure("crashed", f"reading it ended {_DEATHS} processes: {reader.how}")))

    def _put(self, item: _Read | Exception) -> None:
        while not self._unwanted.is_set():
            with suppress(queue.Full):
                return self._ready.put(item, timeout=_ASK)


def _of(item: Item | Exception) -> Item:
    if isinstance(item, Exception):
        raise item
    return item


class _Reader:
    """A process that reads clips.

    Attributes:
        connection: Where it answers.
        given: The clips that it was given and has not answered yet, in their order.
        works: Whether it is up and has said so.
        how: How it ended.
    """

    def __init__(self, reading: Reading) -> None:
        context = multiprocessing.get_context("spawn")  # a forked child hangs where OpenCV's threads were in use
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, reading), daemon=True)
        with deaf_children():
            self._process.start()
        theirs.close()  # or its end would not be seen
        self.given: deque[tuple[int, str]] = deque()
        self.works = False
        self.how = ""

    def take(self, waiting: deque[tuple[int, str]]) -> None:
        """Be given clips, as many as it may hold."""
        while waiting and self.works and len(self.given) < _GIVEN:
            self.given.append(waiting.popleft())
            with suppress(OSError):  # it has ended, which is seen where it is waited for
                self.connection.send(self.given[-1][1])

    def receive(self) -> _Read | None:
        """A clip; None where it only says that it is up. Raises EOFError or OSError where it has ended."""
        message = self.connection.recv()
        if message is None:
            self.works = True
            return None
        found, warnings = message
        for warning in warnings:
            _log.warning("%s", warning)
        return self.given.popleft()[0], found

    def end(self, grace: float = 0.0) -> None:
        """End the process, which holds nothing that could be lost; one that ends by itself has `grace` seconds."""
        self._process.join(grace)
        self._process.kill()
        self._process.join()
        self.connection.close()
        code = self._process.exitcode or 0
        self.how = signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _serve(connection: Connection, reading: Reading) -> None:
    """Read what is asked for, in a process of its own, until nobody asks any more."""
    import cv2

    cv2.setNumThreads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    said: list[str] = []
    logging.captureWarnings(True)
    logging.root.addHandler(Kept(said))
    with suppress(EOFError, OSError):
        connection.send(None)
        while True:
            found = _read(connection.recv(), reading)
            connection.send((found, said.copy()))
            said.clear()


class Kept(logging.Handler):
    """Keeps warnings, which the first process then gives."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())


def _leave_with_parent() -> None:
    """Whoever is killed closes nothing that a process in the middle of a clip would notice."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _read(path: str, reading: Reading) -> ReadClip | Failure:
    try:
        return read_clip(path, reading.spec, roi=reading.roi)
    except ClipError as error:
        gone = isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)
        return Failure("missing" if gone else "unreadable", _text(error))
    except Exception as error:  # whatever it is, a hundred thousand other clips do not suffer from it
        return Failure("fault", f"{type(error).__name__}: {error}")


def _text(error: ClipError) -> str:
    return f"{error.reason} ({error.hint})" if error.hint else error.reason
