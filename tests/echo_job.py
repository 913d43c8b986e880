"""A job for the benchmarks' processes that answers with what it is sent, and dies where it is told to.

A module of its own, because a process started for it imports what is here, and nothing should be.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True)
class Echo:
    name: str

    def start(self) -> Callable[[Any], Any]:
        if self.name == "stillborn":
            os._exit(4)
        if self.name == "unreadable":
            raise EOFError("the file is cut")
        return answer


def answer(request: object) -> object:
    if request == "pid":
        return os.getpid()
    if request == "die":
        os._exit(3)
    if request == "die while answering":
        (pipe,) = (thing for thing in gc.get_objects() if isinstance(thing, Connection) and thing.writable)
        os.write(pipe.fileno(), b"\0\0\1\0half of 256 bytes")
        os._exit(5)
    return (lambda: request) if request == "cannot be pickled" else request
