"""`m2df-run --window` with cameras: watched side by side, with recordings among them, until the end is asked for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from m2df_runtime.bundle.prompt_texts import class_called
from m2df_runtime.commands.console import report, say
from m2df_runtime.commands.queries import Query
from m2df_runtime.commands.recordings import Output, RecordingOptions, opened_stream, say_what_it_took, tell
from m2df_runtime.commands.until_signal import until_signal
from m2df_runtime.errors import CheckFailed, ClipError, InputError

if TYPE_CHECKING:
    from m2df_runtime import Matcher, Stream
    from m2df_runtime.clips.source import FrameSource, Rectangle
    from m2df_runtime.commands.outlets import Outlets
    from m2df_runtime.stream.camera_file import Camera
    from m2df_runtime.stream.sources.live import SourceState
    from m2df_runtime.stream.sources.timed import TimedFrames
    from m2df_runtime.stream.stream import Step

_UNREAD = 64  # steps that wait for whoever reads standard output; cameras drop frames meanwhile
_ASK = 0.1  # seconds after which a waiting thread asks whether it is still wanted


def watch_cameras(
    queries: Sequence[Query | Camera],
    matcher: Matcher,
    options: RecordingOptions,
    output: Output,
    roi: Rectangle | None,
    outlets: Outlets,
) -> None:
    """Print the events of cameras and recordings as they happen; one that fails does not stop the others.

    SIGTERM ends it with what is known until then, as does Ctrl-C.

    Raises:
        InputError: The options contradict each other or need recordings alone, or the bank has one class.
        ClipError: The only one failed for good.
        CheckFailed: Some of several did.
        KeyboardInterrupt: After Ctrl-C.
    """
    for name, asked in (
        ("--save-video", options.save_video),
        ("--picture", output.picture),
        ("--explain", output.explain),
    ):
        if asked:
            raise InputError(f"{name} needs recordings, and a camera is none", "leave it out, or name files alone")
    streams, failed = [], 0
    for query in queries:
        try:
            streams.append(_stream(query, matcher, options, roi, outlets))
        except ClipError as error:
            report(error)
            failed += 1
    failed += _told(streams, options, output, outlets, alone=len(queries) == 1)
    if failed:
        raise CheckFailed(f"{failed} of {len(queries)} could not be read to the end", "see the errors above")


def _stream(
    query: Query | Camera, matcher: Matcher, options: RecordingOptions, roi: Rectangle | None, outlets: Outlets
) -> Stream:
    from m2df_runtime.clips.opening import open_source
    from m2df_runtime.stream.camera_file import Camera
    from m2df_runtime.stream.sources.device import DeviceFrames
    from m2df_runtime.stream.sources.network import NetworkFrames

    if isinstance(query, Camera):
        return _of_file(query, matcher, outlets)
    source: FrameSource | TimedFrames
    if isinstance(query, Path):
        source = outlets.recording(open_source(query))
    elif isinstance(query, int):
        source = outlets.camera(DeviceFrames(query, _Said(outlets)))
    else:
        source = outlets.camera(NetworkFrames(query, _Said(outlets)))
    return opened_stream(source, matcher, options, roi, outlets)


def _of_file(camera: Camera, matcher: Matcher, outlets: Outlets) -> Stream:
    """The stream of a camera that `cameras.yaml` describes."""
    from m2df_runtime import Stream
    from m2df_runtime.stream.sources.file import FileFrames

    unknown = [label for label in camera.labels or () if class_called(matcher.bank.labels, label) is None]
    if unknown:
        say(f"warning: {camera.name}: told of nothing that is not taught: {', '.join(unknown)}")
    if isinstance(camera.source, Path):
        frames: TimedFrames = FileFrames(outlets.recording(camera.recording()))
    else:
        frames = outlets.camera(camera.frames(_Said(outlets)))
    stream = Stream.of_camera(matcher, camera, frames)
    outlets.watch(stream)
    return stream


def _told(
    streams: Sequence[Stream], options: RecordingOptions, output: Output, outlets: Outlets, *, alone: bool
) -> int:
    """Print what happens in all streams until they end. How many failed."""
    news: queue.Queue[tuple[Stream, Step | Exception | None]] = queue.Queue(_UNREAD)
    unwanted = threading.Event()
    threads = [
        threading.Thread(target=_follow, args=(stream, options.windows, outlets, news, unwanted), daemon=True)
        for stream in streams
    ]
    failed, left = 0, len(streams)

    def stop() -> None:
        for stream in streams:
            stream.stop()

    with until_signal(stop) as came:
        try:
            for thread in threads:
                thread.start()
            while left:
                stream, one = news.get()
                if one is None:
                    left -= 1
                    say_what_it_took(stream)
                elif not isinstance(one, Exception):
                    tell(one, options, output)
                elif alone:
                    raise one
                else:
                    report(one)
                    failed += 1
        finally:
            unwanted.set()
            stop()
            for thread in threads:
                thread.join()
            outlets.close(hurry=bool(came or left))
    return failed


def _follow(
    stream: Stream,
    every: bool,
    outlets: Outlets,
    news: queue.Queue[tuple[Stream, Step | Exception | None]],
    unwanted: threading.Event,
) -> None:
    def put(one: Step | Exception | None) -> None:
        while not unwanted.is_set():
            try:
                return news.put((stream, one), timeout=_ASK)
            except queue.Full:
                continue

    try:
        with closing(stream.steps(every=every)) as steps:
            for step in steps:
                outlets.step(step)  # whoever reads standard output stops none of them
                put(step)
    except Exception as error:  # whatever it is, it stops this stream alone
        put(error)
    put(None)


class _Said:
    """Tells the outlets how a camera is.

    On standard error it says so once for each change: a camera that is off is tried for days.
    """

    def __init__(self, outlets: Outlets) -> None:
        self._outlets = outlets
        self._last: tuple[str | None, ...] | None = None

    def __call__(self, state: SourceState) -> None:
        self._outlets.state(state)
        known = (state.state, state.cause, state.picture)
        if state.state in ("ended", "failed") or known == self._last:
            return
        if state.state == "connecting" and self._last is not None:
            return
        self._last = known
        say(state.text())
