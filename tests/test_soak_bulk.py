"""Bulk runs that are killed at any moment, and clusters that lose their machines: `make soak`."""

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
from PIL import Image
from ray_nodes import Nodes, processes, until

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parents[1]
KILLS, CLIPS = 40, 60
NODES, FOLDERS = 4, 60

# The process that is about to read its fifth clip stops in the middle of it, and a clip that is called so is not there.
ODD_NODE = """
import errno, os, signal, sys
seen = []
def hook(event, arguments):
    path = str(arguments[0]) if arguments else ""
    if event in ("open", "os.listdir", "os.scandir") and "unseen" in path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    if event == "open" and path.endswith("/0.jpg"):
        seen.append(path)
        if len(seen) == 5:
            os.kill(os.getpid(), signal.SIGSTOP)
sys.addaudithook(hook)
"""


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


def test_a_cluster_that_loses_its_machines_loses_no_answer_and_repeats_none(
    tiny_bundle: Path, support_dir: Path, query_dir: Path, tmp_path: Path
) -> None:
    """A machine is taken away in the middle of a clip, one time after the other; the head answers what it had."""
    pytest.importorskip("ray", reason="needs the extra [ray]")
    clips, odd, changed = (tmp_path / name for name in ("clips", "odd", "changed"))
    for number in range(FOLDERS):
        folder = clips / f"{number}"
        folder.mkdir(parents=True)
        for frame in range(4):
            Image.new("RGB", (64, 48), (220, 30, number)).save(folder / f"{frame}.jpg")
    (clips / "broken.mp4").write_bytes(b"no video")
    for name, text in (("odd", ODD_NODE), ("changed", "import m2df_runtime\nm2df_runtime.__version__ = '0.0'")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sitecustomize.py").write_text(text)
    command = [sys.executable, "-m", "m2df_runtime.commands.run", "--bundle", str(tiny_bundle)]
    command += ["--support", str(support_dir), "--reject", "off", "--query"]
    here = subprocess.run([*command, str(clips), "--out", str(tmp_path / "here.jsonl")], cwd=ROOT, check=False)
    assert here.returncode == 1
    whole = sorted((tmp_path / "here.jsonl").read_text().splitlines())
    nodes = Nodes(cpus=0)

    def started(query: Path, out: str) -> subprocess.Popen[str]:
        ray = ["--out", str(tmp_path / out), "--engine", "ray"]
        return subprocess.Popen(
            [*command, str(query), *ray], cwd=ROOT, env=nodes.environment, stderr=subprocess.PIPE, text=True
        )

    def refused() -> str:
        process = started(clips / "unseen", "refused.jsonl")
        said = process.communicate()[1]
        assert process.returncode == 3, said
        return said.splitlines()[-1]

    try:
        shutil.copytree(clips / "0", clips / "unseen")
        assert "no machine of the Ray cluster has a processor" in refused()
        # What a machine lacks ends the run: its answers would be wrong, and faster than those of the others.
        for paths, message in ((odd, "unseen: not there on "), (changed, ": m2df 0.0, here ")):
            node = nodes.join(paths=str(paths))
            assert message in refused()
            nodes.kill(node)
        shutil.rmtree(clips / "unseen")

        nodes.join()
        for number in range(NODES):
            node = nodes.join(paths=str(odd))
            process = started(clips, f"{number}.jsonl")
            until(lambda node=node, process=process: [*processes(node, state="T")] or process.poll() is not None)
            nodes.kill(node)
            said = process.communicate()[1]
            assert process.returncode == 1 and "error: 1 of 61 clips failed" in said, said
            assert said.count("warning: a process on ") == 1, said
            assert sorted((tmp_path / f"{number}.jsonl").read_text().splitlines()) == whole
    finally:
        nodes.close()
