"""Two processes train what one trains, and stop together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import tiny_backbone, video_recipe, write_clips, write_model

from m2df_train.progress import Silent
from m2df_train.recipe import dump_recipe, load_recipe
from m2df_train.training.processes import Processes
from m2df_train.training.trainer import train

ROOT = Path(__file__).parents[2]


def start(*arguments: object) -> subprocess.Popen[str]:
    """Two processes on this machine, which find a free port themselves."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [*launcher, "-m", "m2df_train.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


@pytest.mark.slow
def test_two_processes_stop_together_and_give_the_weights_of_one(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", tiny_backbone("vit"))
    # Three episodes per update: one process has two of them, the other one.
    recipe = video_recipe(
        write_clips(tmp_path / "clips"),
        model,
        tuning={"strategy": "full"},
        train={"episodes": 30, "per_update": 3, "validate_every": 6},
    )
    file, out = tmp_path / "small.yaml", tmp_path / "two"
    file.write_text(dump_recipe(recipe))
    arguments = ("--recipe", file, "--out", out)

    both = start(*arguments)
    while not (out / "episodic.pt").exists():
        assert both.poll() is None, both.communicate()[1]
        time.sleep(0.02)
    os.killpg(both.pid, signal.SIGINT)
    _, errors = both.communicate(timeout=300)
    assert both.returncode != 0
    assert errors.count("error: stopped after") == 1, errors

    both = start(*arguments, "--resume")
    output, errors = both.communicate(timeout=300)
    assert both.returncode == 0, errors
    assert output.count("accuracy on test classes") == 1

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(load_recipe(str(file)), tmp_path / "one", Silent(), Processes())
    torch.set_num_threads(threads)
    for name in ("last.safetensors", "best.safetensors"):
        one, two = load_file(tmp_path / "one" / name), load_file(out / name)
        assert one.keys() == two.keys()
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=0, atol=1e-6, msg=f"{name} {key}")
