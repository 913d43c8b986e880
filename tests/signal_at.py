"""A signal at a state instead of a time: a process is sent one when it is about to do a certain thing.

Python tells audit hooks what it is about to do with a file ("open", "os.rename", "os.mkdir", ...), so a kill lands in
the middle of what it means on any machine, however busy.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

HOOK = """
import os, re, sys
os.environ.setdefault("SIGNAL_LEADER", str(os.getpid()))
seen = []
def hook(event, arguments):
    if event == {event!r} and re.search({path!r}, " ".join(map(str, arguments[:2]))):
        seen.append(event)
        if len(seen) == {nth}:
            if {group}:
                os.killpg(int(os.environ["SIGNAL_LEADER"]), {number})
            else:
                os.kill(os.getpid(), {number})
sys.addaudithook(hook)
"""


def signal_at(
    folder: Path, event: str, path: str, number: signal.Signals, *, nth: int = 1, group: bool = False, paths: str = ""
) -> dict[str, str]:
    """What the environment of a process needs, so that it is sent a signal at the n-th event on a path.

    Args:
        folder: For a file that the process must find as long as it starts others.
        event: An audit event of Python's whose first arguments are paths.
        path: Regular expression that is looked for in them.
        number: The signal.
        nth: Which of the events in one process.
        group: Whether the whole group of the process hears it, as a terminal's does, and whether those that it
            started may be the ones to do the thing; the process must lead a group of its own.
        paths: PYTHONPATH of the process, where it has one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = HOOK.format(event=event, path=path, nth=nth, group=group, number=int(number))
    (folder / "sitecustomize.py").write_text(text)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), paths or os.environ.get("PYTHONPATH", "")]))}


def wait_until_stopped(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Block until a process has stopped itself; one that ends instead is a failure."""
    found = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert found is not None
    assert found.si_code == os.CLD_STOPPED, f"ended with {found.si_status} before it came so far"
