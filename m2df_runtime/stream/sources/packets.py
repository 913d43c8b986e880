"""What a connection brings, read on a thread of its own, and given to who decodes it as long as it is fresh.

Were it read between two frames that are decoded, a machine that does not keep up would leave it in the buffers of the
system and of FFmpeg. These hold seconds of video, of whose age nobody knows, and when they are full, the camera waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from m2df_runtime.stream.policy import Encoded, FreshestEncoded
from m2df_runtime.stream.sources.lateness import Lateness
from m2df_runtime.stream.sources.live import SourceLost

_NO_KEYFRAME = 15.0  # seconds after which it is opened again: more than cameras let pass between two

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream


def all_packets(container: InputContainer, stream: VideoStream) -> Iterator[Encoded[Packet[Any]]]:
    """Every packet of a stream, on this thread. Raises FFmpeg's errors."""
    return (Encoded(packet, time.monotonic()) for packet in container.demux(stream) if packet.size)


@contextmanager
def fresh_packets(
    container: InputContainer, stream: VideoStream, tick: float, tell_left_out: Callable[[int], None]
) -> Iterator[Iterator[Encoded[Packet[Any]]]]:
    """The packets of a stream as they are to be decoded; what reading raises is raised where they are taken.

    Args:
        container: The connection; it is read until the block is left, which waits for what FFmpeg reads then.
        stream: The stream of it.
        tick: Seconds of one unit of its stamps; 0 where they tell nothing.
        tell_left_out: Told how many are left out, each time that some are, on either thread.
    """
    waiting: FreshestEncoded[Packet[Any]] = FreshestEncoded(time.monotonic, tell_left_out)
    news = threading.Condition()  # guards `waiting`
    over: list[BaseException | None] = []  # why nothing more comes, when nothing does
    unwanted = threading.Event()

    def read() -> None:
        lateness, why = Lateness(time.monotonic), None
        try:
            for packet in container.demux(stream):
                if unwanted.is_set():
                    break
                if not packet.size:
                    continue  # says that the stream ended
                stamp = packet.pts if packet.dts is None else packet.dts
                late = lateness.of(stamp * tick if stamp is not None and tick else None)
                with news:
                    waiting.put(packet, packet.size, keyframe=packet.is_keyframe, late=late)
                    news.notify()
                    if waiting.missing > _NO_KEYFRAME:
                        raise SourceLost("codec", f"no keyframe for {_NO_KEYFRAME:g} s")
        except BaseException as error:  # whatever it is, it belongs to who takes the packets
            why = error
        with news:
            over.append(why)
            news.notify()

    def given() -> Generator[Encoded[Packet[Any]]]:
        while True:
            with news:
                while (packet := waiting.take()) is None and not over:
                    news.wait()
            if packet is None:
                break
            yield packet
        if over[0] is not None:
            raise over[0]

    reader = threading.Thread(target=read, name="m2df packets of a camera", daemon=True)
    reader.start()
    try:
        yield given()
    finally:
        unwanted.set()
        reader.join()
