"""How busy other programs keep the processors, which changes times, and which of two engines is the faster one."""

from __future__ import annotations

import os
import resource
from pathlib import Path

_STAT = Path("/proc/stat")


class OtherPrograms:
    """Watches the machine from its creation."""

    def __init__(self) -> None:
        self._ticks = _ticks()
        self._own = _own_seconds()

    def share(self) -> float | None:
        """Share of the machine's processor time that went to other processes, or to the host's other guests, so far.

        Child processes count as this program's once they have ended. None where the system does not say.
        """
        now = _ticks()
        if self._ticks is None or now is None:
            return None
        busy, total = (after - before for after, before in zip(now, self._ticks, strict=True))
        others = busy - (_own_seconds() - self._own)
        return round(max(others, 0.0) / max(total, 1e-9), 3)


def _ticks() -> tuple[float, float] | None:
    """Busy and total processor seconds of all cores since the system started; stolen time counts as busy."""
    if not _STAT.is_file():
        return None
    user, nice, system, idle, wait, *rest = (int(v) for v in _STAT.read_text().split("\n", 1)[0].split()[1:9])
    hertz = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + sum(rest)
    return busy / hertz, (busy + idle + wait) / hertz


def _own_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
