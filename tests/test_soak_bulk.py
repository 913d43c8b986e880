"""Bulk runs that are killed at any moment, dozens of times: `make soak`."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parents[1]
KILLS, CLIPS = 40, 60


def test_kills_at_any_moment_lose_no_answer_and_repeat_none(
    tiny_bundle: Path, support_dir: Path, query_dir: Path, tmp_path: Path
) -> None:
    clips, out = tmp_path / "clips", tmp_path / "results.jsonl"
    clips.mkdir()
    for number in range(CLIPS):
        shutil.copy(query_dir / f"{('red', 'green', 'blue')[number % 3]}.mp4", clips / f"{number}.mp4")
    (clips / "broken.mp4").write_bytes(b"no video")
    command = [sys.executable, "-m", "m2df_runtime.commands.run", "--bundle", str(tiny_bundle)]
    command += ["--support", str(support_dir), "--query", str(clips), "--threads", "2", "--out", str(out)]

    def started() -> subprocess.Popen[bytes]:
        silent = subprocess.DEVNULL
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=silent, stderr=silent)

    def lines() -> dict[str, bytes]:
        """Whole lines by path; a kill may leave a part of one behind them, which the next run drops."""
        text = out.read_bytes() if out.exists() else b""
        found = [(json.loads(line)["path"], line) for line in text.splitlines(keepends=True) if line.endswith(b"\n")]
        assert len(dict(found)) == len(found)
        return dict(found)

    def size() -> int:
        return out.stat().st_size if out.exists() else 0

    start = time.monotonic()
    assert started().wait() == 1  # the broken one
    usual = time.monotonic() - start  # kills are spread over so much time
    whole = lines()
    assert len(whole) == CLIPS + 1
    out.unlink()

    moments = random.Random(0)
    killed = gone_on = 0
    before: dict[str, bytes] = {}
    while killed < KILLS:
        begin, process, wait = size(), started(), usual
        if killed % 2:  # every second one once there is a new answer, the others at any moment
            while process.poll() is None and size() <= begin:
                time.sleep(0.01)
            wait = 0.0
        try:
            process.wait(wait * moments.random())
        except subprocess.TimeoutExpired:
            killed += 1
            if killed % 4 < 2:
                process.kill()  # its processes leave by themselves
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        now = lines()
        assert before.items() <= now.items() <= whole.items()
        gone_on += 0 < len(before) < len(now)
        before = now
        if process.returncode == 1:
            assert now == whole
            out.unlink()
            before = {}
    started().wait()
    assert lines() == whole
    assert gone_on
