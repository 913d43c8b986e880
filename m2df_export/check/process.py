"""Starts the process of one engine; a crash of it is a result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from m2df_export.check.worker import Request
from m2df_runtime.errors import shortened


def run_process(request: Request, folder: Path) -> tuple[int, str]:
    """Run a process; its exit status (negative: killed by that signal) and what it said last."""
    folder.mkdir()
    request.write(folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "m2df_export.check.worker", os.fspath(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    lines = done.stderr.strip().splitlines()
    return done.returncode, shortened(lines[-1].removeprefix("error: "), 400) if lines else ""


def failure(code: int, message: str) -> str:
    """How a process ended, as text, from what `run_process` returned."""
    if code < 0:
        return f"crashes ({signal.Signals(-code).name})"
    return f"fails: {message or f'exit status {code}'}"
