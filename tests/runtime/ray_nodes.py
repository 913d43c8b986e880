"""Ray nodes on this machine: each is a session of processes of its own, as `ray start` makes them on several machines.

Ray gives its own processes fixed times to start, which a busy machine may exceed; a node that did not start is started
again.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from live_servers import closed_port

ROOT = Path(__file__).parents[2]
TRIES = 5


class Nodes:
    """Machines of a cluster that has a head from the beginning.

    Attributes:
        environment: What a command needs that is to use the cluster; nobody else can.
        head: The session of the first node.
    """

    def __init__(self, cpus: int = 1, paths: str = "") -> None:
        self._folder = folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # names of sockets are short
        self._started: dict[int, subprocess.Popen[str]] = {}
        # The runtime waits 30 s for its agent, and runs workers at a niceness of 15, unless told otherwise.
        own = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_agent_register_timeout_ms": "600000",
            "RAY_worker_register_timeout_seconds": "600",
            "RAY_worker_niceness": "0",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        self.environment = {**os.environ, **own}
        options = (
            f"--head --port 0 --ray-client-server-port PORT --no-monitor --include-dashboard false --temp-dir {folder}"
        )
        try:
            self.head, self.environment["RAY_ADDRESS"] = self._start(options.split(), cpus, paths)
        except BaseException:
            self.close()
            raise

    def join(self, cpus: int = 1, paths: str = "") -> int:
        """One more node, whose processes import from `paths` first. Returns its session."""
        return self._start(["--address", self.environment["RAY_ADDRESS"]], cpus, paths)[0]

    def _start(self, options: Sequence[str], cpus: int, paths: str) -> tuple[int, str]:
        """A node, and the address of the cluster."""
        environment = {**self.environment}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [paths, environment["PYTHONPATH"]]))
        for _ in range(TRIES):
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", str(cpus)]
            command += ["--object-store-memory", "80000000", "--log-color", "false", "--include-log-monitor", "false"]
            command += [str(closed_port()) if option == "PORT" else option for option in options]
            process = subprocess.Popen(
                command, env=environment, start_new_session=True, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            self._started[process.pid] = process
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if "will now block forever" in line:
                    found = re.search(r"ray start --address='([^']+)'", said)
                    return process.pid, found[1] if found else self.environment["RAY_ADDRESS"]
            self.kill(process.pid)
        raise RuntimeError(f"Ray does not start:\n{said}")

    def kill(self, session: int) -> None:
        """Take a node's power away."""
        while members := [*processes(session)]:
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._started[session].poll()

    def close(self) -> None:
        """Take all power away."""
        for session in self._started:
            self.kill(session)
        shutil.rmtree(self._folder, ignore_errors=True)


def processes(session: int, name: str = "", state: str = "RSDTt") -> Iterator[int]:
    """Processes of a session whose command line begins with `name`, and which are in one of these states of Linux."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            named = (folder / "cmdline").read_bytes().startswith(name.encode())
            if int(fields[3]) == session and fields[0] in state and named:
                yield int(folder.name)


def until(state) -> None:
    """Wait for it."""
    while not state():
        time.sleep(0.05)
