"""Fixtures of the runtime's tests: m2df-run inside this process."""

from __future__ import annotations

import io
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from m2df_runtime.commands.console import guarded
from m2df_runtime.commands.run import cli


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run m2df-run inside this process, with the exit codes and streams of a process of its own."""

    def call(*args: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        monkeypatch.delenv("M2DF_DEBUG", raising=False)
        capsys.readouterr()
        code = guarded(lambda: cli.main([str(arg) for arg in args], "m2df-run", standalone_mode=False))
        return subprocess.CompletedProcess(args, code, *capsys.readouterr())

    return call


@pytest.fixture
def run(command, tiny_bundle: Path, support_dir: Path):
    """`command` on the tiny bundle and the support folder of three colours."""
    return partial(command, "--bundle", tiny_bundle, "--support", support_dir)


@pytest.fixture
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No frame or window of a camera is left out because the machine is busy."""
    from live_servers import LONGEST

    from m2df_runtime.stream import stream
    from m2df_runtime.stream.policy import Freshest, FreshestEncoded
    from m2df_runtime.stream.sources import live, packets

    monkeypatch.setattr(live, "Freshest", partial(Freshest, budget=LONGEST))
    monkeypatch.setattr(stream, "BUDGET", LONGEST)
    monkeypatch.setattr(packets, "FreshestEncoded", partial(FreshestEncoded, budget=LONGEST))
