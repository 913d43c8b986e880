"""One engine in a process of its own: what it answers to the shipped clips, and how long a query takes it.

In one process the thread pools of two engines compete: an image tower took 122 ms in turns with another engine on the
same two cores, and 6 ms alone. A process is started anew (spawned), so it holds only what its own engine loads.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends.model import Model
from m2df_runtime.bank.folder import read_support
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.prompt_texts import prompt_embeddings
from m2df_runtime.bundle.shipped import demo_queries, demo_support
from m2df_runtime.clips.listing import list_clips
from m2df_runtime.deaf_children import deaf_children
from m2df_runtime.engine_names import EngineName, RunPrecision
from m2df_runtime.errors import InputError, M2dfError, first_line
from m2df_runtime.match.reading import read_clip

Float = NDArray[np.float32]

_EPISODES, _SEED = 40, 0  # with the shipped clips 400 answers, of which a gate of 99.5 % lets two differ
_AWAKE = 0.5  # seconds; before a shorter query one runs that does not count, and wakes the process' threads and caches


class EngineFailed(Exception):
    """An engine could not start, or did not answer; the text says why."""


@dataclass(frozen=True)
class EngineSpec:
    """A bundle on a backend in a precision, with threads as in `Model`."""

    bundle: Path
    backend: EngineName
    precision: RunPrecision
    threads: int | None


@dataclass(frozen=True)
class Answers:
    """What an engine makes of the shipped clips.

    Attributes:
        features: Of all M clips [M, T, D].
        prototypes: Of each clip as the only one of its class [M, V, T, D].
        chosen: Column of the best class of each query of each 1-shot episode [E, Q].
    """

    features: Float
    prototypes: Float
    chosen: NDArray[np.int64]


class EngineProcess:
    """The process of an engine.

    Args:
        spec: What it opens.

    Raises:
        EngineFailed: The engine does not start.
    """

    def __init__(self, spec: EngineSpec) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, spec), daemon=True)
        with deaf_children():
            self._process.start()
        theirs.close()  # or its end would not be seen
        try:
            self._received()
        except EngineFailed:
            self.close()
            raise

    def answers(self) -> Answers:
        """What it answers to the shipped clips. Raises EngineFailed."""
        found = self._asked("answers")
        assert isinstance(found, Answers)
        return found

    def query(self) -> float:
        """Milliseconds of a whole query, from the file to the scores. Raises EngineFailed."""
        return float(self._asked("query"))

    def close(self) -> None:
        """End the process, which holds nothing that could be lost."""
        self._connection.close()
        self._process.kill()
        self._process.join()

    def _asked(self, what: str) -> Any:  # noqa: ANN401 - what that gives
        with suppress(OSError):  # it has ended, which is seen where it is waited for
            self._connection.send(what)
        return self._received()

    def _received(self) -> Any:  # noqa: ANN401
        try:
            done, value = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise EngineFailed(f"its process ended with code {self._process.exitcode}") from None
        if not done:
            raise EngineFailed(value)
        return value


def _serve(connection: Connection, spec: EngineSpec) -> None:
    """Answer what is asked for until nobody asks any more, or something fails."""
    logging.disable(logging.WARNING)  # what there is to warn of the first process has said
    with suppress(EOFError, OSError):
        opened = _replied(connection, lambda: _Opened(spec), sent=False)
        while opened:
            if _replied(connection, getattr(opened, connection.recv())) is None:
                return


def _replied(connection: Connection, call: Callable[[], Any], *, sent: bool = True) -> Any:  # noqa: ANN401
    """What a call returns, which is also sent, or only that it is done; None where it fails, and why is sent."""
    try:
        value = call()
    except M2dfError as error:
        connection.send((False, str(error)))
    except Exception as error:  # an engine may raise anything
        connection.send((False, f"{type(error).__name__}: {first_line(error)}"))
    else:
        connection.send((True, value if sent else None))
        return value
    return None


class _Opened:
    """The engine, and what it makes of the shipped clips, one by one, as queries are encoded."""

    def __init__(self, spec: EngineSpec) -> None:
        bundle = Bundle.open(spec.bundle)
        self._model = Model(bundle, backend=spec.backend, precision=spec.precision, threads=spec.threads)
        self._model.prepare("visual", "text", "support", "query")
        classes, queries = read_support(demo_support()).classes, list_clips(demo_queries()).clips
        if not queries:
            raise InputError("this installation has no demo clips", "install m2df again")
        labels = list(classes)
        clips = [(labels.index(label), clip.path) for label, own in classes.items() for clip in own]
        clips += [(labels.index(path.stem), path) for path in queries]
        rules = bundle.manifest.text.rules
        self._of = np.array([label for label, _ in clips])
        self._prompts = prompt_embeddings((rules.prompts(label) for label in labels), self._model.encode_texts)
        self._features = np.concatenate([self._model.encode_clips(self._read(path)[None]) for _, path in clips])
        pairs = zip(self._features, self._of, strict=True)
        made = [self._model.prototypes(own[None], self._prompts[c : c + 1]) for own, c in pairs]
        self._prototypes = np.stack(made)
        firsts = self._prototypes[[np.flatnonzero(self._of == label)[0] for label in range(len(labels))]]
        self._against = self._model.resident(self._prompts), self._model.resident(firsts)
        self._query = queries[0]
        self._seconds = 0.0

    def answers(self) -> Answers:
        """See `EngineProcess.answers`."""
        rng, chosen = np.random.default_rng(_SEED), []
        for _ in range(_EPISODES):
            support = np.array([rng.choice(np.flatnonzero(self._of == label)) for label in range(len(self._prompts))])
            queries = np.delete(self._features, support, axis=0)
            found = self._model.match(queries, self._prompts, self._prototypes[support])
            chosen.append(found.logits.argmax(axis=1))
        return Answers(self._features, self._prototypes, np.stack(chosen))

    def query(self) -> float:
        """See `EngineProcess.query`; against one clip of each class."""
        if self._seconds < _AWAKE:
            self._one_query()
        self._seconds = self._one_query()
        return 1000 * self._seconds

    def _one_query(self) -> float:
        start = perf_counter()
        features = self._model.encode_resident(self._read(self._query)[None])
        self._model.match(features, *self._against)
        return perf_counter() - start

    def _read(self, path: Path) -> NDArray[np.uint8]:
        return read_clip(path, self._model.bundle.manifest.clip).pixels
