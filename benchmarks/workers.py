"""Things to measure, each in a process of its own, that take turns: one runs while the others sleep.

In one process the thread pools of two engines compete: with two threads each on two cores, PyTorch's image tower
took 122 ms in turns with ONNX Runtime, and 6 ms alone. A process is started anew (spawned), so it holds only what
its own job imports.
"""

from __future__ import annotations

import multiprocessing
import pickle
import random
import re
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Protocol

import click

from m2df_runtime.errors import first_line

SETTLE = 0.02  # seconds between turns: threads of the last engine stop spinning within a few ms


class Job(Protocol):
    """What a process measures; it is pickled to get there."""

    @property
    def name(self) -> str: ...

    def start(self) -> Callable[[Any], Any]:
        """Called once in the process: load everything, and return what answers requests."""
        ...


class JobFailed(Exception):
    """A job could not start, or did not answer; the text says why."""


class Worker:
    """The process of a job, and the seconds it took to start.

    Raises:
        JobFailed: The job does not start.
    """

    def __init__(self, job: Job) -> None:
        self.name = job.name
        begin = time.monotonic()
        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=_serve, args=(job, end))
        self._process.start()
        end.close()
        try:
            self._exchange()
        except JobFailed:
            self.close()
            raise
        self.load_s = round(time.monotonic() - begin, 2)

    def ask(self, request: object) -> Any:  # noqa: ANN401 - what the job answers
        """Send a request and wait for the answer.

        Raises:
            JobFailed: It raises, or its process dies.
        """
        return self._exchange(request)

    def peak_mib(self) -> float:
        """Most memory the process has held so far.

        Raises:
            JobFailed: Its process dies.
        """
        return float(self._exchange(None))

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._join(10)

    def _exchange(self, *requests: object) -> Any:  # noqa: ANN401
        """Send what is given and receive one answer; a pipe that breaks on the way means that the process died."""
        try:
            for request in requests:
                self._pipe.send(request)
            done, value = self._pipe.recv()
        # EOFError where an answer should begin, OSError within one, BrokenPipeError or ConnectionResetError (OSErrors
        # too) while a request is sent, which is a matter of luck with a process that dies meanwhile.
        except (EOFError, OSError):
            self._join(60)
            raise JobFailed(f"its process ended with code {self._process.exitcode}") from None
        if not done:
            raise JobFailed(value)
        return value

    def _join(self, seconds: float) -> None:
        """Wait until the process has ended, and end it if it takes longer."""
        self._process.join(seconds)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(job: Job, pipe: Connection) -> None:
    """Answer requests until the other end closes or one of them fails."""
    loaded: list[Callable[[Any], Any]] = []
    with suppress(EOFError, ConnectionError, KeyboardInterrupt):  # nobody listens any more
        works = _reply(pipe, lambda: loaded.append(job.start()))
        while works:
            works = _reply(pipe, partial(_answer, loaded[0], pipe.recv_bytes()))


def _reply(pipe: Connection, call: Callable[[], Any]) -> bool:
    """Send what a call returns, or why it fails; a failed job is a result, and must not lose the others'."""
    works = True
    try:
        message = ForkingPickler.dumps((True, call()))
    except Exception as error:
        works, message = False, ForkingPickler.dumps((False, f"{type(error).__name__}: {first_line(error)}"))
    pipe.send_bytes(message)
    return works


def _answer(answer: Callable[[Any], Any], sent: bytes) -> Any:  # noqa: ANN401 - what the job answers
    request = pickle.loads(sent)
    return _peak_mib() if request is None else answer(request)


def _peak_mib() -> float:
    """Of this program; what getrusage says begins with the size of the process it was forked from."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE) if status.is_file() else None
    kilobytes = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kilobytes / 1024, 1)


@contextmanager
def started(jobs: Sequence[Job]) -> Iterator[tuple[list[Worker], dict[str, str]]]:
    """The processes of jobs, one after the other, and why those that are missing are; they end with the block."""
    workers: list[Worker] = []
    missing: dict[str, str] = {}
    try:
        for job in jobs:
            try:
                workers.append(Worker(job))
            except JobFailed as error:
                missing[job.name] = str(error)
                click.echo(f"left out: {job.name}: {error}", err=True)
        yield workers, missing
    finally:
        for worker in workers:
            worker.close()


def turns(workers: Sequence[Worker], seed: int = 0) -> Iterator[list[Worker]]:
    """The workers in a new random order each round, so that none is timed later than the rest."""
    shuffled = random.Random(seed)
    order = list(workers)
    while True:
        shuffled.shuffle(order)
        yield list(order)


def settle() -> None:
    """Wait until the threads of the last turn sleep."""
    time.sleep(SETTLE)
