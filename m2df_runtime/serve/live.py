"""A browser's camera over a WebSocket: frames come in one by one, scores and events go out as they are known.

A frame is acknowledged when it is looked at. A client that waits for that before it sends the next one never has
frames that grow old.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress

import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocket, WebSocketDisconnect

from m2df_runtime.clips.source import Picture
from m2df_runtime.errors import ClipError, InputError, M2dfError
from m2df_runtime.serve.decoding import jpeg_frame
from m2df_runtime.serve.problems import Refused
from m2df_runtime.serve.service import Service
from m2df_runtime.stream.sources.given import GivenFrames
from m2df_runtime.stream.sources.timed import TimedFrames
from m2df_runtime.stream.stream import Step, Stream

_LONGEST_WINDOW = 10.0  # seconds; the frames of one are held
_CLOSEST = 1 / 61  # seconds between two frames that are looked at: more would fill the memory
_LONGEST_REASON = 120  # bytes
_HELLO_SECONDS = 5.0  # until the first message
_IDLE_SECONDS = 60.0  # without a frame
_LAST_SECONDS = 0.3  # for the last words
_WAITING = 256  # messages for a client that does not read; it is let go
_FRAME_HINT = "send its seconds as 8 bytes (a little-endian double), then a JPEG"
_HELLO_HINT = 'send {"type": "hello", "token": null}, with the token where there is one'
_HEAD = struct.Struct("<d")
# Of the range that is for applications.
TOKEN, BAD, TEACH, IDLE, SLOW, UNREADABLE, BUSY = 4401, 4400, 4409, 4408, 4413, 4422, 4429
_GOING_AWAY, _FAULT = 1001, 1011

_log = logging.getLogger(__name__)

_Frame = tuple[float, NDArray[np.uint8]]


class _Frames(GivenFrames):
    """What a browser sends; its clock is tied to the wall's at the first frame."""

    def __init__(self, pairs: Iterator[_Frame], name: str) -> None:
        self._ahead = pairs
        super().__init__(self._all(), name)

    def parts(self) -> Generator[TimedFrames]:
        """See `TimedFrames.parts`."""
        self._first = next(self._ahead, None)
        if self._first is not None:
            self.began = time.time() - self._first[0]
            yield self

    def _all(self) -> Iterator[tuple[float, NDArray[np.uint8] | Picture]]:
        if self._first is not None:
            yield self._first
        yield from self._ahead


class Session:
    """One client with a camera.

    Args:
        socket: Its connection, accepted.
        service: What answers.
        name: What its events call it.
    """

    def __init__(self, socket: WebSocket, service: Service, name: str) -> None:
        self._socket, self._service, self._name = socket, service, name
        self._loop = asyncio.get_running_loop()
        self._frames: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue(1)
        self._said: asyncio.Queue[dict[str, object] | None] = asyncio.Queue()
        self._close = (1000, "")
        self._ended = asyncio.Event()
        self._over = threading.Event()  # the same for its thread

    async def run(self, window: str | None, stride: str | None) -> None:
        """Look at what comes until either side ends it; seconds are as the client gave them."""
        try:
            seconds = _seconds("window", window), _seconds("stride", stride)
            stream = await run_in_threadpool(self._stream, *seconds)
        except (Refused, M2dfError) as error:
            await self._refuse(error)
            return
        looking = threading.Thread(target=self._look, args=(stream,), name="m2df live", daemon=True)
        await self._socket.send_json({"type": "ready", "window": stream.window, "stride": stream.stride})
        looking.start()
        receiving = asyncio.create_task(self._receive())
        sending = asyncio.create_task(self._send())
        for task in (receiving, sending):
            task.add_done_callback(lambda _: self._ended.set())
        try:
            await self._ended.wait()
            await asyncio.wait((sending,), timeout=_LAST_SECONDS)
        finally:
            self._over.set()
            stream.stop()
            receiving.cancel()
            with suppress(asyncio.QueueFull):
                self._frames.put_nowait(None)  # whoever waits for a frame waits no more
            sending.cancel()
            await asyncio.gather(receiving, sending, return_exceptions=True)
        with suppress(RuntimeError, WebSocketDisconnect, OSError):
            await self._socket.close(*self._close)

    def stop(self) -> None:
        """End it, on the server's loop."""
        self._end(_GOING_AWAY, "the server ends")

    def _stream(self, window: float | None, stride: float | None) -> Stream:
        source = _Frames(self._pairs(), self._name)
        try:
            return Stream(self._service.matcher, source, window=window, stride=stride)
        except InputError as error:
            if len(self._service.matcher.bank.labels) < 2:
                raise Refused(409, "one_class", "one action is taught, every window would be it", error.hint) from None
            raise

    async def _refuse(self, error: Refused | M2dfError) -> None:
        found = error if isinstance(error, Refused) else self._service.refused(error)
        await self._socket.send_json({"type": "error", **found.record()})
        await self._socket.close(TEACH if found.status == 409 else BAD, _short(found.message))

    # On the server's loop

    async def _receive(self) -> None:
        while True:
            try:
                message = await asyncio.wait_for(self._socket.receive(), _IDLE_SECONDS)
            except asyncio.TimeoutError:
                return self._end(IDLE, "no frame came")
            if message["type"] == "websocket.disconnect":
                return self._end(1000, "")
            data = message.get("bytes")
            if data is None:
                return self._fail(BAD, Refused(422, "input", "a message is no frame", _FRAME_HINT))
            at = _HEAD.unpack_from(data)[0] if len(data) > _HEAD.size else math.nan
            if not abs(at) < 1e12:  # not a number, too
                return self._fail(BAD, Refused(422, "input", "a frame has no time", _FRAME_HINT))
            await self._frames.put((at, data[_HEAD.size :]))

    async def _send(self) -> None:
        while (message := await self._said.get()) is not None:
            await self._socket.send_text(json.dumps(message, allow_nan=False))

    def _tell(self, message: dict[str, object]) -> None:
        if self._said.qsize() >= _WAITING:
            self._end(SLOW, "the client does not read")
        else:
            self._said.put_nowait(message)

    def _fail(self, code: int, error: Refused) -> None:
        self._said.put_nowait({"type": "error", **error.record()})
        self._end(code, error.message)

    def _end(self, code: int, reason: str) -> None:
        self._close = (code, _short(reason))
        self._said.put_nowait(None)
        self._ended.set()

    # On a thread of its own

    def _look(self, stream: Stream) -> None:
        try:
            with closing(stream.steps()) as steps:
                for step in steps:
                    self._told(step)
        except (M2dfError, OSError) as error:
            code = UNREADABLE if isinstance(error, ClipError) else BAD
            self._later(self._fail, code, self._service.refused(error))
        except Exception:
            _log.exception("a live session failed")
            self._later(self._fail, _FAULT, Refused(500, "fault", "the server failed", "see its log"))

    def _pairs(self) -> Iterator[_Frame]:
        last = -math.inf
        while not self._over.is_set():
            one = self._later_wait()
            if one is None:
                return
            at, data = one
            frame = None if 0 <= at - last < _CLOSEST else jpeg_frame(data)
            self._later(self._tell, {"type": "ack", "time": at})
            if frame is not None:
                last = at
                yield at, frame

    def _later_wait(self) -> tuple[float, bytes] | None:
        try:
            return asyncio.run_coroutine_threadsafe(self._frames.get(), self._loop).result()
        except RuntimeError:  # the loop is closed
            return None

    def _told(self, step: Step) -> None:
        answer = step.answer
        self._service.metrics.step(step)
        if answer:
            record = answer.record()
            labels = answer.scores
            record |= {"type": "scores", "none": float(answer.still or record["rejected"] is True)}
            if answer.prediction is None:
                zero = {"probability": 0.0, "distance": None, "score": 0.0}
                record["classes"] = [{"label": label, **zero} for label in labels]
            self._later(self._tell, record)
        for event in step.events:
            self._later(self._tell, {"type": "event", "event": event.record()})
            self._service.board.tell(event.record())

    def _later(self, call: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(call, *arguments)


def _short(reason: str) -> str:
    """As much of it as a closing message holds."""
    return reason.encode()[:_LONGEST_REASON].decode(errors="ignore")


def _seconds(what: str, text: str | None) -> float | None:
    try:
        found = None if text is None else float(text)
    except ValueError:
        found = math.nan
    if found is not None and not 0 < found <= _LONGEST_WINDOW:
        raise Refused(422, "input", f"{what} is no number of seconds from 0 to {_LONGEST_WINDOW:g}", "such as window=2")
    return found


async def hello(socket: WebSocket, allows: Callable[[str | None], bool], allowed: bool) -> bool:
    """Wait for a client's first message, which holds its token; False where that is wrong, and it is let go.

    Args:
        socket: The connection, accepted.
        allows: Whether a token is the right one.
        allowed: Whether the request itself had it.
    """
    try:
        message = await asyncio.wait_for(socket.receive(), _HELLO_SECONDS)
        said = json.loads(message.get("text") or "")
        token = said["token"]
        if said["type"] == "hello" and (allowed or (isinstance(token, str | None) and allows(token))):
            return True
        code, error = TOKEN, Refused(401, "token", "the token is missing or wrong", "enter the token of the server")
    except asyncio.TimeoutError:
        code, error = IDLE, Refused(408, "slow", "no first message came", _HELLO_HINT)
    except (ValueError, KeyError, TypeError, RecursionError):
        code, error = BAD, Refused(422, "input", "the first message is no hello", _HELLO_HINT)
    with suppress(RuntimeError, WebSocketDisconnect, OSError):
        await socket.send_json({"type": "error", **error.record()})
        await socket.close(code, _short(error.message))
    return False
