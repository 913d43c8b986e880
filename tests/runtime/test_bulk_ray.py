"""`m2df-run --out --engine ray`: the answers of this machine from a cluster, whatever ends there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from ray_nodes import Nodes, processes, until

ROOT = Path(__file__).parents[2]
ACTOR = "ray::_Process"

# A process that is about to read the frame HELD stops, and others do once as many as there are folders were stopped.
HOLD = """
import os, signal, sys
def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith("held/0.jpg"):
        for number in range({times}):
            try:
                os.mkdir({folder!r} + str(number))
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGSTOP)
            return
sys.addaudithook(hook)
"""


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "pip install 'm2df[ray]'"),
        ("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1: "),
        ("127.0.0.1:a", "no Ray cluster at 127.0.0.1:a: "),
        ("ray://127.0.0.1:10001", "m2df works on a machine of the cluster"),
    ],
)
def test_without_a_cluster_it_says_what_is_missing(
    run, query_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_ADDRESS", address)
    done = run("--query", query_dir, "--out", tmp_path / "a.jsonl", "--engine", "ray")
    assert done.returncode == 3 and message in done.stderr


@pytest.mark.slow
def test_a_cluster_answers_as_this_machine_does_whatever_ends(
    command, tiny_bundle: Path, support_dir: Path, query_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs the extra [ray]")
    clips, out = tmp_path / "clips", tmp_path / "ray.jsonl"
    shutil.copytree(query_dir, clips)
    (clips / "broken.mp4").write_bytes(b"no video")
    (clips / "held").mkdir()
    for number in range(6):
        Image.new("RGB", (64, 48), (220, 30, 30)).save(clips / "held" / f"{number}.jpg")
    options = ["--bundle", tiny_bundle, "--support", support_dir, "--query", clips, "--threads", 1, "--json"]
    options += ["--reject", "off"]
    here = command(*options, "--out", tmp_path / "local.jsonl")
    assert here.returncode == 1, here.stderr

    (tmp_path / "hook").mkdir()
    text = HOLD.format(times=2, folder=str(tmp_path / "hook" / "stopped-"))
    (tmp_path / "hook" / "sitecustomize.py").write_text(text)
    nodes = Nodes(paths=str(tmp_path / "hook"))
    try:
        words = [*map(str, options), "--out", str(out), "--engine", "ray"]

        def started() -> subprocess.Popen[str]:
            return subprocess.Popen(
                [sys.executable, "-m", "m2df_runtime.commands.run", *words],
                env={**nodes.environment, "PYTHONPATH": str(ROOT)}, start_new_session=True, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip

        def stopped() -> list[int]:
            return [*processes(nodes.head, state="T")]

        interrupted = started()
        until(lambda: stopped() or interrupted.poll() is not None)
        os.killpg(interrupted.pid, signal.SIGINT)
        assert interrupted.communicate()[1].endswith("error: interrupted\n") and interrupted.returncode == 130
        until(lambda: not [*processes(nodes.head, ACTOR)] and not stopped())
        begun = out.read_text().splitlines()

        process = started()
        until(lambda: stopped() or process.poll() is not None)
        for pid in processes(nodes.head, ACTOR):
            os.kill(pid, signal.SIGKILL)
        shown, said = process.communicate()
        assert re.search(r"^warning: a process on [\d.]+ ended: its worker process has died$", said, re.MULTILINE), said
        summary = json.loads(shown)
        assert process.returncode == 1
        assert {name: summary[name] for name in ("clips", "ok", "rejected", "failed")} == {
            "clips": 5, "ok": 4, "rejected": 0, "failed": 1,
        }  # fmt: skip
    finally:
        nodes.close()
    found = out.read_text().splitlines()
    assert 0 < len(begun) == len(found) - summary["answered"] < len(found)
    assert sorted(found) == sorted((tmp_path / "local.jsonl").read_text().splitlines())
