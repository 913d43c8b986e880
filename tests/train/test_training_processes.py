"""Two processes train what one trains, whoever starts them, and stop together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from shutil import which

import pytest
import torch
from live_servers import closed_port
from safetensors.torch import load_file
from signal_at import signal_at
from small_runs import tiny_backbone, video_recipe, write_clips, write_model

from m2df_runtime.progress import silent
from m2df_train.recipe.recipe import dump_recipe, load_recipe
from m2df_train.training.processes import Processes
from m2df_train.training.trainer import train

# With GPUs the processes would each take one of their own.
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="processes that share a CPU")

ROOT = Path(__file__).parents[2]


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("accelerate.commands.launch", "--num_machines", "1", "--num_processes", "2", "--mixed_precision", "no")


def start(launcher: Sequence[object], *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """A training run under a launcher, on this machine."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, launcher), "-m", "m2df_train.commands.train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **environment,
        },
        start_new_session=True,
    )


def train_alone(recipe: Path, out: Path) -> None:
    """The same run in this process, with as many threads as theirs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(load_recipe(str(recipe)), out, silent, Processes())
    torch.set_num_threads(threads)


def assert_same_weights(one: Path, two: Path) -> None:
    for name in ("last.safetensors", "best.safetensors"):
        expected, found = load_file(one / name), load_file(two / name)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=f"{name} {key}")


@pytest.mark.slow
def test_two_processes_stop_together_and_give_the_weights_of_one(tmp_path: Path) -> None:
    """Stopped under torchrun, and gone on with under `accelerate launch`."""
    if which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") is None:
        pytest.skip("no mpirun; the extra dev brings one")
    model = write_model(tmp_path / "model", tiny_backbone("vit"))
    # Three episodes per update: one process has two of them, the other one.
    recipe = video_recipe(
        write_clips(tmp_path / "clips"),
        model,
        tuning={"strategy": "full"},
        train={"episodes": 12, "per_update": 3, "validate_every": 6},
    )
    file, out = tmp_path / "small.yaml", tmp_path / "two"
    file.write_text(dump_recipe(recipe))
    arguments = ("--recipe", file, "--out", out)

    saves = signal_at(tmp_path / "stop", "os.rename", r"/episodic\.pt$", signal.SIGINT, group=True)
    both = start(TORCHRUN, *arguments, **saves)
    _, errors = both.communicate()
    assert both.returncode != 0
    assert errors.count("error: stopped after") == 1, errors

    # On CPUs Accelerate leaves it to MPI to start them.
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost:2\n")
    mpi = ("--cpu", "--mpirun_hostfile", hosts, "--main_process_port", closed_port())
    both = start((*ACCELERATE, *mpi), *arguments, "--resume")
    output, errors = both.communicate()
    assert both.returncode == 0, errors
    assert output.count("accuracy on test classes") == 1  # not two runs that know nothing of each other

    train_alone(file, tmp_path / "one")
    assert_same_weights(tmp_path / "one", out)


@pytest.mark.slow
def test_accelerate_launch_that_starts_one_process_alone_says_so(tmp_path: Path) -> None:
    alone = start((*ACCELERATE, "--cpu"), "--recipe", "demo", "--set", "train.precision=fp16", "--out", tmp_path / "a")
    _, errors = alone.communicate()
    assert "started one process alone" in errors
    assert "error: train.precision fp16 needs a GPU" in errors
