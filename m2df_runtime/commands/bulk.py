"""`m2df-run --out`: many clips, answered into a file with which a later run goes on."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from m2df_runtime.commands.console import emit, emit_json, stages
from m2df_runtime.commands.options import Command, Reject, with_options
from m2df_runtime.errors import CheckFailed, printable

if TYPE_CHECKING:
    from m2df_runtime import Matcher
    from m2df_runtime.bulk.local import LocalEngine
    from m2df_runtime.bulk.ray import RayEngine
    from m2df_runtime.bulk.results import Basis, Fields
    from m2df_runtime.clips.source import Rectangle

_TERMINATED = 143  # 128 + SIGTERM, what shells report for it

Engine = Literal["local", "ray"]
Shard = tuple[int, int]
"""Which of how many, from 1."""


@dataclass(frozen=True)
class BulkOptions:
    """Where the answers of many clips go, and which clips are done."""

    out: Path
    shard: Shard | None
    restart: bool
    retry_failed: bool
    engine: Engine | None

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> BulkOptions | None:
        """The options of bulk runs out of all options; None where answers are printed.

        Raises:
            UsageError: One of them without --out.
        """
        own = {one.name: options.pop(one.name) for one in fields(cls)}
        if own["out"] is not None:
            return cls(**own)
        for name, value in own.items():
            if value:
                raise click.UsageError(f"--{name.replace('_', '-')} needs --out, for example --out results.jsonl")
        return None


def parse_shard(ctx: click.Context, param: click.Parameter, value: str | None) -> Shard | None:
    """`i/n` with i from 1 to n. Raises BadParameter."""
    if value is None:
        return None
    which, _, count = value.partition("/")
    if not (which.isdecimal() and count.isdecimal() and 1 <= int(which) <= int(count)):
        raise click.BadParameter(f"{value!r} is not a part such as 1/4, the first of four", ctx, param)
    return int(which), int(count)


def bulk_options(command: Command) -> Command:
    """The options of bulk runs on a click command."""
    added = (
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            metavar="JSONL",
            help="Write one line per clip into a file, and go on with it: for thousands of clips.",
        ),
        click.option(
            "--shard",
            metavar="I/N",
            callback=parse_shard,
            help="Answer the i-th of n parts of the clips, for as many machines.",
        ),
        click.option(
            "--engine",
            type=click.Choice(("local", "ray")),
            help="Where: on this machine, or on a Ray cluster. [default: local]",
        ),
        click.option("--restart", is_flag=True, help="Empty the file of --out first."),
        click.option("--retry-failed", is_flag=True, help="Try clips again that failed in an earlier run."),
    )
    return with_options(command, added)


@dataclass(frozen=True)
class Asked:
    """What is asked of each clip, and of what: the options that m2df-run has besides."""

    topk: int
    roi: Rectangle | None
    reject: Reject
    miss_rate: float | None
    threads: int | None
    json: bool

    @property
    def settings(self) -> str:
        """The options that answers depend on, in words."""
        miss = "" if self.miss_rate is None else f" at a miss rate of {self.miss_rate:g}"
        region = "" if self.roi is None else f", region {','.join(map(str, self.roi))}"
        return f"top {self.topk}, rejection {self.reject}{miss}{region}"


def answer_all(clips: Sequence[Path], matcher: Matcher, options: BulkOptions, asked: Asked) -> None:
    """Answer clips into a file, those that it does not hold yet, and print a summary.

    SIGTERM and Ctrl-C end it; what is done is in the file.

    Raises:
        InputError: The file holds something else, or answers of another bundle or bank.
        OSError: The file cannot be written.
        CheckFailed: Some clips failed, now or in an earlier run.
    """
    from m2df_runtime.bulk.results import STATUSES, Basis, BulkClip, opened

    basis = Basis.of(matcher.model.bundle, matcher.bank, asked.settings)
    paths = [path for path in dict.fromkeys(map(os.fspath, clips)) if in_shard(path, options.shard)]
    every = [BulkClip.found(path) for path in paths]
    rules = {"restart": options.restart, "retry_failed": options.retry_failed}
    started = time.monotonic()
    with _until_terminated(), opened(options.out, basis, every, **rules) as results:
        left, rate = results.left, _Rate()
        answers = _answers([clip.path for clip in left], matcher, basis, options, asked)
        with closing(answers), stages("clips", len(left)) as advance:
            for number, found in answers:
                results.append(left[number], found)
                advance(1, rate.text())
        counts: dict[str, int] = {status: results.counts[status] for status in STATUSES}
    seconds = time.monotonic() - started
    summary: dict[str, Any] = {"out": os.fspath(options.out), "clips": len(every)}
    summary |= {**counts, "answered": len(left)}
    summary |= {"seconds": round(seconds, 3), "per_second": round(len(left) / seconds, 3)}
    if asked.json:
        emit_json(summary)
    else:
        emit(_text(summary))
    if counts["failed"]:
        raise CheckFailed(
            f"{counts['failed']} of {len(every)} clips failed", "their lines say why; --retry-failed tries them again"
        )


def _answers(
    paths: Sequence[str], matcher: Matcher, basis: Basis, options: BulkOptions, asked: Asked
) -> Generator[tuple[int, Fields]]:
    if paths:
        with closing(_engine(matcher, basis, options, asked)) as engine:
            yield from engine.answers(paths)


def _engine(matcher: Matcher, basis: Basis, options: BulkOptions, asked: Asked) -> LocalEngine | RayEngine:
    if options.engine == "ray":
        from m2df_runtime.bulk.ray import Opening, RayEngine

        model = matcher.model
        opening = Opening(
            bundle=os.path.abspath(model.bundle.path),
            backend=model.backend,
            precision=model.precision,
            region=model.bundle.manifest.clip.region,
            reject=asked.reject,
            miss_rate=asked.miss_rate,
            roi=asked.roi,
            topk=asked.topk,
            cpus=asked.threads or 1,
            basis=basis,
        )
        return RayEngine(matcher.bank, opening)
    from m2df_runtime.bulk.local import LocalEngine
    from m2df_runtime.cpus import available_cpus

    return LocalEngine(matcher, roi=asked.roi, topk=asked.topk, processes=asked.threads or available_cpus())


def in_shard(path: str, shard: Shard | None) -> bool:
    """Whether a path belongs to a part. It depends on the path alone, as it is spelled."""
    if shard is None:
        return True
    which, count = shard
    return int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:8], "big") % count == which - 1


def _text(summary: dict[str, Any]) -> str:
    before = summary["clips"] - summary["answered"]
    done = f"; {before} were done before" if before else ""
    return printable(
        f"{summary['out']}: {summary['clips']} clips, {summary['ok']} recognised, {summary['rejected']} unknown, "
        f"{summary['failed']} failed{done}; {summary['answered']} in {summary['seconds']:.1f} s, "
        f"{summary['per_second']:.3g} per second"
    )


class _Rate:
    """Clips per second since the first was done: before that, processes start."""

    def __init__(self) -> None:
        self._done = 0
        self._first = 0.0

    def text(self) -> str:
        """Count one, and say how many it is per second."""
        now = time.monotonic()
        self._done += 1
        if self._done == 1:
            self._first = now
            return ""
        return f"{(self._done - 1) / max(now - self._first, 1e-9):.3g}/s"


@contextmanager
def _until_terminated() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does: processes are ended, and the file is let go of."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(_TERMINATED)

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
