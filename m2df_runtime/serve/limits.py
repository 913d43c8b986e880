"""What one server takes from its clients: sizes, lengths, numbers and times, and the counting of who asks how often."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_MOST_CLIENTS = 4096  # that are remembered; the longest unseen is forgotten


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Attributes:
        upload_bytes: Of a request's body.
        import_bytes: Of the body of an import, and of what it unpacks to.
        clip_seconds: Of a clip that is asked about or taught.
        uploads_per_minute: Requests with a body of one client address.
        at_once: Requests with a body that are received or worked on at a time.
        sessions: Live sessions at a time.
        listeners: Readers of events at a time.
        connections: Open at a time.
        decode_seconds: That one upload may be worked on in its process.
        decode_bytes: Memory of such a process.
        head_seconds: Until a request's head has come.
        pause_seconds: In which a client sends nothing of a body that it has begun.
        body_seconds: Until a whole body has come.
        answers: That are kept to be explained or taught.
        answer_bytes: Of their clips.
    """

    upload_bytes: int = 64 << 20
    import_bytes: int = 512 << 20
    clip_seconds: float = 60.0
    uploads_per_minute: int = 600
    at_once: int = 16
    sessions: int = 8
    listeners: int = 16
    connections: int = 512
    decode_seconds: float = 30.0
    decode_bytes: int = 2 << 30
    head_seconds: float = 10.0
    pause_seconds: float = 15.0
    body_seconds: float = 300.0
    answers: int = 64
    answer_bytes: int = 256 << 20


class Rate:
    """Lets each client do something so often in a minute, all at once or spread.

    Args:
        per_minute: How often.
        clock: Seconds that rise.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._most, self._clock = float(per_minute), clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client to what is left, and when that was

    def wait(self, client: str) -> float:
        """Counts one more; 0 where it may be, else the seconds until it may, and then it is not counted."""
        now = self._clock()
        left, since = self._left.pop(client, (self._most, now))
        left = min(self._most, left + (now - since) * self._most / 60)
        self._left[client] = (left - 1 if left >= 1 else left, now)
        while len(self._left) > _MOST_CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) * 60 / self._most
