"""What takes minutes of load or dozens of kills: `make soak`.

Nothing here depends on when a kill lands: whatever the moment, what is asserted must hold.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parents[1]
KILLS = 60


def test_kills_at_any_moment_leave_a_bank_or_none(
    run_module, tiny_bundle: Path, support_dir: Path, query_dir: Path
) -> None:
    arguments = ["--bundle", tiny_bundle, "--support", support_dir, "--query", query_dir / "red.mp4", "--json"]
    started = time.monotonic()
    whole = run_module("m2df_runtime.commands.run", *arguments)
    usual = time.monotonic() - started  # kills are spread over so much time, wherever that is
    answer = json.loads(whole.stdout)["predictions"]
    moments = random.Random(0)
    killed = 0
    for number in range(KILLS):
        os.utime(support_dir / "red" / "0.mp4", (number, number))  # the bank has to be looked at, and at times written
        if number % 2:
            for bank in (support_dir / ".m2df").glob("*.bank"):
                bank.unlink()
        process = subprocess.Popen(
            [sys.executable, "-m", "m2df_runtime.commands.run", *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(usual * moments.uniform(0.3, 1.0))
        except subprocess.TimeoutExpired:
            process.kill()
            killed += process.wait() == -signal.SIGKILL
        done = run_module("m2df_runtime.commands.run", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (0, 1)  # how often it rejects
        assert json.loads(done.stdout)["predictions"] == answer
    assert killed
    left = sorted(path.name for path in (support_dir / ".m2df").iterdir())
    assert len(left) == 2 and left[1] == "lock"  # and nothing of those that were killed


def test_memory_does_not_grow_with_the_queries(
    run_module, tiny_bundle: Path, support_dir: Path, query_dir: Path
) -> None:
    peaks = []
    for count in (200, 5000):
        paths = "".join(f"{query_dir / 'red.mp4'}\n" for _ in range(count))
        arguments = ("--bundle", tiny_bundle, "--support", support_dir, "--query", "-", "--json")
        done = run_module("m2df_runtime.commands.run", *arguments, stdin=paths)
        assert (done.returncode, len(done.stdout.splitlines())) == (0, count), done.stderr
        peaks.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)  # the largest child so far
    assert peaks[1] - peaks[0] < 16  # MiB
