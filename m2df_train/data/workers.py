"""Runs a function over many clips in worker processes; results come in the order of the clips."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

from m2df_runtime.cpus import available_cpus
from m2df_runtime.deaf_children import deaf_children
from m2df_runtime.errors import EnvironmentMissing

Item = TypeVar("Item")
Value = TypeVar("Value")

_MOST_WORKERS = 16
_AHEAD = 8  # results that may wait besides four for every worker: 1.2 MB for each 8 frames of 224 pixels

_function: Callable[[Any], Any] | None = None
_said: set[str] = set()


def worker_count() -> int:
    """Worker processes for this machine: one for every processor that the process may use but one, at most 16."""
    return max(1, min(available_cpus() - 1, _MOST_WORKERS))


def ordered_map(function: Callable[[Item], Value], items: Iterable[Item], workers: int) -> Generator[Value, None, None]:
    """`map` in spawned processes, which are sent `function` once; 0 workers run it here.

    Processes, because decoders and renderers hold the interpreter's lock for half of their time; spawned, because a
    forked child hangs where its parent has used OpenCV's thread pool.

    Raises:
        EnvironmentMissing: A worker was killed, as a system does that is out of memory.
    """
    if workers <= 0:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_prepare, initargs=(function,)
    )
    waiting: deque[Future[Value]] = deque()
    try:
        for item in items:
            with deaf_children():  # a worker that is not ready yet would end with a traceback
                waiting.append(pool.submit(_call, item))
            if len(waiting) >= 4 * workers + _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise EnvironmentMissing("a process that reads clips was killed", "is memory short?") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare(function: Callable[[Any], Any]) -> None:
    """Make this process a worker: one OpenCV thread, Ctrl-C left to the parent, gone when the parent is."""
    import cv2

    from m2df_runtime.commands.console import setup_logging

    global _function
    _function = function
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setup_logging()
    for handler in logging.root.handlers:
        handler.addFilter(_once)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _once(record: logging.LogRecord) -> bool:
    """A damaged clip that is read for many episodes is worth one warning."""
    message = record.getMessage()
    if message in _said:
        return False
    _said.add(message)
    return True


def _leave_with_parent() -> None:
    """A killed parent closes nothing that a worker waits for."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _call(item: Any) -> Any:  # noqa: ANN401 - whatever the function takes and gives
    assert _function is not None
    return _function(item)
