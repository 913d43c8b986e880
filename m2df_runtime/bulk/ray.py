"""Many clips on a Ray cluster: its processes read and answer them, and this one hands them out and hears the answers.

Ray starts processes where there is room and tells when one has ended; which clips are still to be answered is known
here alone, so that whatever ends on other machines, a clip is done once.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Literal, NoReturn, cast

import m2df_runtime
from m2df_runtime.backends.model import load
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bulk.local import BATCH, Kept, LocalEngine
from m2df_runtime.bulk.results import Basis, Fields, failed
from m2df_runtime.clips.source import Rectangle
from m2df_runtime.engine_names import ON_CPU, BackendName, RunPrecision
from m2df_runtime.errors import EnvironmentMissing, InputError, M2dfError, shortened
from m2df_runtime.match.matcher import Matcher

_GIVEN = 2  # calls that an actor holds: the one it answers, and the next
_CLIPS = 4  # of a call, for each of its processors: they are read at once, and done again where their machine is lost
_DEATHS = 3  # at one clip, before that is what failed: the second and third time it is alone in its call
_STARTS = 3  # of a process and those in its place that end before they are up, before the run ends
_LONGEST_CONNECT = 10.0  # seconds
_LOOK = 5.0  # seconds after which it is asked anew which machines there are
_PATIENCE = 12  # looks at a cluster on which nothing starts, before a line says so

_SAME = "all machines of the cluster need the same"

_log = logging.getLogger(__name__)

Given = tuple[int, str]
"""The number of a clip among those that are asked for, and its path."""


@dataclass(frozen=True)
class Opening:
    """What every process makes its matcher of, and how it answers.

    Attributes:
        bundle: Path of the bundle, the same on all machines.
        backend: A name that `load` takes.
        precision: As in `load`.
        region: As in `load`.
        reject: As in `Matcher`.
        miss_rate: As in `Matcher`.
        roi: As in `LocalEngine`.
        topk: As in `LocalEngine`.
        cpus: Processors of each process.
        basis: What the answers must rest on.
    """

    bundle: str
    backend: str
    precision: RunPrecision
    region: Literal["full", "motion"]
    reject: Literal["auto", "off"] | float
    miss_rate: float | None
    roi: Rectangle | None
    topk: int | None
    cpus: int
    basis: Basis


class RayEngine:
    """Answers clips on the cluster that RAY_ADDRESS names, else on the one that this machine is a part of.

    Args:
        bank: What is matched against.
        opening: What every process makes its matcher of.

    Raises:
        EnvironmentMissing: Ray is not installed, there is no cluster, or no machine of it is large enough.
    """

    def __init__(self, bank: SupportBank, opening: Opening) -> None:
        self._opening = opening
        self._actors: list[_Actor] = []
        self._deaths: Counter[int] = Counter()
        self._again: list[int] = []  # how often those that are to be replaced were started
        self._idle = 0
        self._room, self._looked = 0, -_LOOK
        with ExitStack() as cluster:
            self._ray = cluster.enter_context(_connected())
            if not self._room_now():
                what = "a processor" if opening.cpus == 1 else f"{opening.cpus} processors"
                what += "" if opening.backend in ON_CPU else " and a GPU"
                raise EnvironmentMissing(f"no machine of the Ray cluster has {what}", "see ray status, and --threads")
            with tempfile.TemporaryDirectory() as folder:
                bank.write(Path(folder, "bank"))
                self._bank = self._ray.put(Path(folder, "bank").read_bytes())
            gpus = 0 if opening.backend in ON_CPU else 1
            options = {"num_cpus": opening.cpus, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
            self._process = self._ray.remote(**options)(_Process)
            self._cluster = cluster.pop_all()

    def answers(self, paths: Sequence[str]) -> Generator[tuple[int, Fields]]:
        """Answer clips, in the order in which they are done; one call at a time.

        Yields:
            The number of a clip in `paths`, and what is known of it.

        Raises:
            EnvironmentMissing: Processes do not start, or a machine lacks what this one has.
            M2dfError: What a process met.
        """
        waiting = deque((number, os.path.abspath(path)) for number, path in enumerate(paths))
        left = len(waiting)
        self._deaths.clear()
        while left:
            with _interruptible():
                found = self._next(waiting, left)
            left -= len(found)
            yield from found

    def close(self) -> None:
        """Leave the cluster; its processes that answered end."""
        self._cluster.close()

    def _next(self, waiting: deque[Given], left: int) -> list[tuple[int, Fields]]:
        """Give out clips, and wait a while for answers."""
        self._staff(left)
        self._give(waiting)
        by_call = {actor.calls[0].reference: actor for actor in self._actors if actor.calls}
        done, _ = self._ray.wait([*by_call], timeout=_LOOK)
        self._idle = 0 if done else self._idle + 1
        if self._idle == _PATIENCE and not any(actor.machine for actor in self._actors):
            _log.warning("nothing has started on the Ray cluster yet: see ray status for what uses its processors")
        return [found for reference in done for found in self._heard(by_call[reference], waiting)]

    def _staff(self, work: int) -> None:
        """As many processes as there is work and room for; one at least, which tells Ray what is needed."""
        if time.monotonic() - self._looked > _LOOK:
            self._room, self._looked = self._room_now(), time.monotonic()
        opening = self._opening
        wanted = min(max(1, self._room), -(-work // opening.cpus))
        while len(self._actors) < wanted:
            handle = self._process.remote()
            first = (handle.about.remote(), handle.open.remote(opening, self._bank))
            starts = self._again.pop() + 1 if self._again else 1
            self._actors.append(_Actor(handle, deque(_Call(reference, []) for reference in first), starts))

    def _room_now(self) -> int:
        """How many processes have room on the machines that there are now."""
        has = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cpus = [int(one.get("CPU", 0)) // self._opening.cpus for one in has]
        if self._opening.backend in ON_CPU:
            return sum(cpus)
        return sum(min(room, int(one.get("GPU", 0))) for room, one in zip(cpus, has, strict=True))

    def _give(self, waiting: deque[Given]) -> None:
        """Give clips to those that are up: fewer of them towards the end, so that all end at about the same time."""
        most = _CLIPS * self._opening.cpus if self._opening.backend in ON_CPU else 2 * BATCH
        for actor in self._actors:
            while actor.up and waiting and len(actor.calls) < _GIVEN:
                count = min(most, max(1, len(waiting) // (2 * len(self._actors))))
                clips = [waiting.popleft()]
                while len(clips) < count and waiting and not {clips[0][0], waiting[0][0]} & self._deaths.keys():
                    clips.append(waiting.popleft())
                reference = actor.handle.answer.remote([path for _, path in clips])
                actor.calls.append(_Call(reference, clips))

    def _heard(self, actor: _Actor, waiting: deque[Given]) -> Generator[tuple[int, Fields]]:
        """What a call gave; where its process is lost, its clips wait again."""
        call = actor.calls[0]
        try:
            said = self._ray.get(call.reference)
        except self._ray.exceptions.RayTaskError as error:
            raise getattr(error, "cause", None) or error from None
        except self._ray.exceptions.RayError as error:
            _check_imported(str(error))
            yield from self._bury(actor, _cause(error), waiting)
            return
        actor.calls.popleft()
        if not actor.machine:
            actor.machine, version = said
            if version != m2df_runtime.__version__:
                raise EnvironmentMissing(f"on {actor.machine}: m2df {version}, here {m2df_runtime.__version__}", _SAME)
            return
        if not actor.up:
            actor.up = True
            self._again.clear()
            return
        found, warnings = said
        for warning in warnings:
            _log.warning("%s", warning)
        for place, fields in found:
            number, path = call.clips[place]
            if fields.get("error", {}).get("code") == "missing" and os.path.exists(path):
                problem = f"{path}: not there on {actor.machine}, one of the cluster's machines"
                raise EnvironmentMissing(problem, "all of them must see the clips under the same paths")
            yield number, fields

    def _bury(self, actor: _Actor, how: str, waiting: deque[Given]) -> Generator[tuple[int, Fields]]:
        """Let others answer what a process left, but not a clip at which processes ended where that is one too many."""
        self._actors.remove(actor)
        self._looked = -_LOOK
        _log.warning("a process on %s ended: %s", actor.machine or "the cluster", how)
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor.handle)  # it may live beyond a network that does not
        if not actor.up:
            self._again.append(actor.starts)
            if actor.starts == _STARTS:
                raise EnvironmentMissing(f"processes on the Ray cluster do not start: {how}", "is memory short?")
        left = [clip for call in actor.calls for clip in call.clips]
        for number, _ in actor.calls[0].clips:
            self._deaths[number] += 1
        waiting.extendleft(clip for clip in reversed(left) if self._deaths[clip[0]] < _DEATHS)
        for number, _ in left:
            if self._deaths[number] >= _DEATHS:
                yield number, failed("crashed", f"answering it ended {_DEATHS} processes: {how}")


@dataclass
class _Call:
    """What a process was asked: where its answer will be, and the clips that it is about."""

    reference: Any
    clips: list[Given]


@dataclass
class _Actor:
    """A process on some machine, as it is seen from here.

    Attributes:
        handle: Ray's.
        calls: What it was asked and has not answered, in that order: first what it is, then to open the bundle.
        starts: Which of several starts in its place this is, from 1.
        machine: Address of the machine that it is on; empty until it has said so.
        up: Whether it can answer.
    """

    handle: Any
    calls: deque[_Call]
    starts: int
    machine: str = ""
    up: bool = False


class _Process:
    """One of the processes of the cluster, as it is seen there."""

    def about(self) -> tuple[str, str]:
        """The machine's address, and its version of m2df, which what it is asked later depends on."""
        import ray

        self._machine = str(ray.util.get_node_ip_address())
        return self._machine, m2df_runtime.__version__

    def open(self, opening: Opening, bank: bytes) -> None:
        """Be ready to answer.

        Raises:
            EnvironmentMissing: The machine lacks something, or has another bundle.
        """
        vars(sys.modules["__main__"]).pop("__file__", None)  # those that read would import it, and Ray with it
        try:
            backend = cast(BackendName, opening.backend)
            model = load(opening.bundle, backend, opening.precision, opening.cpus, region=opening.region)
        except (M2dfError, OSError) as error:
            raise EnvironmentMissing(f"on {self._machine}: {error}") from None
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "bank").write_bytes(bank)
            try:
                taught = SupportBank.of(model, Path(folder, "bank"))
                same = Basis.of(model.bundle, taught, opening.basis.settings) == opening.basis
            except InputError:  # it does not fit the bundle
                same = False
        if not same:
            raise EnvironmentMissing(f"on {self._machine}: {opening.bundle} is another bundle than here", _SAME)
        matcher = Matcher(model, taught, reject=opening.reject, miss_rate=opening.miss_rate)
        self._engine = LocalEngine(matcher, roi=opening.roi, topk=opening.topk, processes=opening.cpus)
        self._warnings: list[str] = []
        logging.root.addHandler(Kept(self._warnings))

    def answer(self, paths: Sequence[str]) -> tuple[list[tuple[int, Fields]], list[str]]:
        """Answer clips. Returns what `LocalEngine.answers` yields, and warnings."""
        self._warnings.clear()
        return [*self._engine.answers(paths)], self._warnings.copy()


@contextmanager
def _connected() -> Iterator[ModuleType]:
    """Ray, as a part of a cluster.

    Raises:
        EnvironmentMissing: It is not installed, or there is no cluster.
    """
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it sends them unless told otherwise
    try:
        import ray
    except ImportError as error:
        raise EnvironmentMissing(f"Ray cannot be used: {error}", "pip install 'm2df[ray]'") from None
    kept = signal.getsignal(signal.SIGTERM)
    # It prints what happens on other machines to standard output.
    with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stdout(nothing):
        try:
            ray.init("auto", log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # its errors share no public base class
            hint = "RAY_ADDRESS names one; ray start --head begins one on this machine"
            raise EnvironmentMissing(f"no Ray cluster: {shortened(_one_line(error))}", hint) from None
        finally:
            signal.signal(signal.SIGTERM, kept)  # Ray puts its own there
        try:
            yield cast(ModuleType, ray)
        finally:
            ray.shutdown()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Hear SIGTERM where Ray is at work, which ends the process at an exception of a handler that is no Ctrl-C's."""
    kept, heard = signal.getsignal(signal.SIGTERM), False

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal heard
        heard = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if heard and callable(kept):
            kept(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, kept)


def _check_address(address: str) -> None:
    """Ray itself tries for minutes. Raises EnvironmentMissing."""
    if address.startswith("ray://"):
        raise EnvironmentMissing(f"{address}: m2df works on a machine of the cluster", "RAY_ADDRESS is HOST:PORT there")
    host, colon, port = address.rpartition(":")
    if colon:
        try:
            socket.create_connection((host.strip("[]"), int(port)), _LONGEST_CONNECT).close()
        except (OSError, ValueError, OverflowError) as error:
            raise EnvironmentMissing(f"no Ray cluster at {address}: {error}", "check RAY_ADDRESS") from None


def _check_imported(said: str) -> None:
    """All that the beginning of a process does is to import m2df. Raises EnvironmentMissing."""
    if "error raised in its creation task" in said:
        machine = re.search(r"\bip=([^,)]+)", said)
        last = said.strip().splitlines()[-1].strip()
        raise EnvironmentMissing(f"on {machine[1] if machine else 'the Ray cluster'}: {last}", "install m2df there")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _cause(error: BaseException) -> str:
    """Why a process ended: of what Ray says over many lines the reason."""
    text = _one_line(error)
    return text.partition(" because ")[2].partition(". ")[0] or shortened(text)
