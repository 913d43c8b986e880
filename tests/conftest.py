"""Fixtures of all tests: the shared inputs, a tiny real bundle, and clips."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, and no failure because a busy machine is slow to draw them.
settings.register_profile("m2df", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("m2df")

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"


def pytest_configure() -> None:
    """Hear Ctrl-C: a shell that starts the tests in the background has them ignore it, and whatever they start too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one process per core that this one may use (pytest-xdist counts the machine's physical ones).

    More than eight share too little work to be worth the seconds that each takes to import PyTorch.
    """
    return min(len(os.sched_getaffinity(0)), 8)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference values and real clips that developers have beside the project."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared inputs at {SHARED}, which are not part of the product")
    return SHARED


@pytest.fixture(params=["golden", "whole"])
def reference_dir(request: pytest.FixtureRequest) -> Path:
    """The golden values that come with the tests, then the whole reference that they are a part of."""
    if request.param == "golden":
        return ROOT / "tests" / "golden"
    return Path(request.getfixturevalue("shared_dir")) / "reference"


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Write a folder once for all processes of the run: `once(name, write)`, read only.

    What `write` makes must not depend on the process; the others wait for the first.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base

    def get(name: str, write: Callable[[Path], None]) -> Path:
        folder = shared / name
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():  # or the one before failed
                work = Path(tempfile.mkdtemp(dir=shared))
                write(work)
                work.rename(folder)
        return folder

    return get


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests, and what they share, out of the user's cache folder, which says which engine is the fastest here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle directory with real graphs of a few kilobytes. Read it only; copy it to change it."""
    from tiny_bundle import write_bundle

    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def _support_master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_bundle import write_support

    return write_support(tmp_path_factory.mktemp("clips") / "support", shots=2)


@pytest.fixture
def support_dir(_support_master: Path, tmp_path: Path) -> Path:
    """A support folder of three classes (red, green, blue) with two clips each, for one test to change."""
    return Path(shutil.copytree(_support_master, tmp_path / "support"))


@pytest.fixture(scope="session")
def query_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three query clips, red.mp4, green.mp4 and blue.mp4, that are in no support folder."""
    from tiny_bundle import write_clip

    folder = tmp_path_factory.mktemp("queries")
    for colour in ("red", "green", "blue"):
        write_clip(folder / f"{colour}.mp4", colour, seed=9)
    return folder


@pytest.fixture
def run_module() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command of the toolkit in its own process: `run_module("m2df_runtime.commands.run", "--help")`."""

    def run(
        module: str, *args: object, stdin: str = "", cwd: Path = ROOT, **env: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *map(str, args)]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": paths, **env}
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, cwd=cwd, env=environment, check=False
        )

    return run


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in this process, which has PyTorch loaded already: `run_here(cli, "--data", folder)`.

    Exit code, standard output and error are those of the process; what depends on one takes `run_module`.
    """
    from m2df_runtime.commands.console import guarded

    def run(command: click.Command, *args: object) -> subprocess.CompletedProcess[str]:
        words = [str(arg) for arg in args]
        code = guarded(lambda: command.main(words, standalone_mode=False))
        return subprocess.CompletedProcess(words, code, *capsys.readouterr())

    return run
