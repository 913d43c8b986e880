"""Work in a Python process of its own: its crash is a result, and what it leaves behind goes with the next one.

ONNX Runtime crashes on graphs it does not like (float16 LayerNormalization on a CPU is one), and other engines and
quantisers have their own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from m2df_runtime.errors import shortened
from m2df_runtime.files import temporary_folder


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status (negative: killed by that signal) and what it said last."""

    code: int
    said: str

    @property
    def failure(self) -> str:
        """What went wrong, in words; for a status other than 0."""
        if self.code < 0:
            return f"crashes ({signal.Signals(-self.code).name})"
        return f"fails: {self.said or f'exit status {self.code}'}"


def run_module(module: str, *arguments: Path) -> Ended:
    """Run a module with the paths that this process imports from, and wait for its end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    lines = done.stderr.strip().splitlines()
    return Ended(done.returncode, shortened(lines[-1].removeprefix("error: "), 400) if lines else "")


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder in the system's folder for temporary files, removed at the end; a killed user's by the next one."""
    with temporary_folder(Path(tempfile.gettempdir()) / "m2df") as folder:
        yield folder
