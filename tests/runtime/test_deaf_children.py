"""Processes that Ctrl-C is not for, the first one included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import multiprocessing, os, signal, time
from m2df_runtime.deaf_children import deaf_children

def blocked(pid):
    line = next(line for line in open(f"/proc/{pid}/status") if line.startswith("SigBlk"))
    return {number for number in (signal.SIGINT, signal.SIGTERM) if int(line.split()[1], 16) >> number - 1 & 1}

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    for _ in range(2):
        process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(5,))
        with deaf_children():
            process.start()
        assert blocked(process.pid) == {signal.SIGINT, signal.SIGTERM}, blocked(process.pid)
        process.kill()
        process.join()
        assert blocked(os.getpid()) == {signal.SIGTERM}
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc says what a process has blocked")
def test_no_process_hears_what_it_was_started_without(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    done = subprocess.run(
        [sys.executable, tmp_path / "code.py"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
