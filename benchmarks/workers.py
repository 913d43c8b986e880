"""Things to measure, each in a process of its own, that take turns: one runs while the others sleep.

In one process the thread pools of two engines compete: with two threads each on two cores, PyTorch's image tower
took 122 ms in turns with ONNX Runtime, and 6 ms alone. A process is started anew (spawned), so it holds only what
its own job imports.
"""

from __future__ import annotations

import multiprocessing
import random
import re
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
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
            self._answer()
        except JobFailed:
            self.close()
            raise
        self.load_s = round(time.monotonic() - begin, 2)

    def ask(self, request: object) -> Any:  # noqa: ANN401 - what the job answers
        """Send a request and wait for the answer.

        Raises:
            JobFailed: It raises, or its process dies.
        """
        self._pipe.send(request)
        return self._answer()

    def peak_mib(self) -> float:
        """Most memory the process has held so far."""
        self._pipe.send(None)
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def _answer(self) -> Any:  # noqa: ANN401
        try:
            done, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(10)
            raise JobFailed(f"its process ended with code {self._process.exitcode}") from None
        if not done:
            raise JobFailed(value)
        return value


def _serve(job: Job, pipe: Connection) -> None:
    """Answer requests until the other end closes."""
    try:
        answer = job.start()
        pipe.send((True, None))
        while True:
            request = pipe.recv()
            result = _peak_mib() if request is None else answer(request)
            pipe.send((True, result))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:  # a failed job is a result, and must not lose the others'
        pipe.send((False, f"{type(error).__name__}: {first_line(error)}"))


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
    """The workers in a new random order each round, so that a machine that slows down slows all of them."""
    shuffled = random.Random(seed)
    order = list(workers)
    while True:
        shuffled.shuffle(order)
        yield list(order)


def settle() -> None:
    """Wait until the threads of the last turn sleep."""
    time.sleep(SETTLE)
