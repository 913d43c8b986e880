"""Writing files: what readers see, what a kill or a full disk leaves, and which errors name what."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from full_disk import file_size_limit

from m2df_runtime.files import atomic_file, atomic_write, exchange, sweep_dead, temporary_folder

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path, size: int) -> None:
    """A small file fails when it is flushed, a large one when it is written."""
    atomic_write(tmp_path / "file", b"old")
    with file_size_limit(5), pytest.raises(OSError, match="File too large") as caught:
        atomic_write(tmp_path / "file", bytes(size))
    assert caught.value.filename == str(tmp_path / "file")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_errors_name_the_file_and_not_the_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "below", tmp_path / "file" / "far" / "below", Path("/proc/none/below")):
        with pytest.raises(OSError) as caught:
            atomic_write(path, b"new")
        assert caught.value.filename == str(path)

    def read_only(**place: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".file.abc.m2df-tmp"))

    monkeypatch.setattr("tempfile.mkstemp", read_only)  # root may write everywhere
    with pytest.raises(PermissionError, match=f"Permission denied: '{tmp_path}/file'"):
        atomic_write(tmp_path / "file", b"new")


def test_errors_of_other_files_keep_their_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_file(tmp_path / "file"):
        (tmp_path / "elsewhere").read_bytes()
    assert not list(tmp_path.iterdir())


def test_only_files_are_replaced_and_links_stay(tmp_path: Path) -> None:
    real = tmp_path / "real" / "file"
    real.parent.mkdir()
    (tmp_path / "link").symlink_to(real)  # dangling at first
    for content in (b"one", b"two"):
        atomic_write(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink() and real.read_bytes() == content
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = sorted(path.name for path in tmp_path.iterdir())
    for name in ("pipe", "null", "real", "loop"):
        with pytest.raises(OSError, match="stands there") as caught:
            atomic_write(tmp_path / name, b"new")
        assert caught.value.errno == errno.EEXIST
    assert sorted(path.name for path in tmp_path.iterdir()) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from m2df_runtime.files import atomic_file, temporary_folder

folder = Path(sys.argv[1])
with atomic_file(folder / "file") as file, temporary_folder(folder / "folder") as work:
    (work / "inside").write_text("half")
    file.write(b"half")
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_killed_writers_left_goes_with_the_next_one_and_the_living_stay(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    for _ in range(2):
        assert subprocess.run([*command, "killed"], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # the second removed those of the first
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "slow"], cwd=ROOT, **options) as living:
        assert living.stdout.readline() == "writing\n"
        atomic_write(tmp_path / "other", b"new")
        assert len([path for path in tmp_path.iterdir() if path.name.endswith(".m2df-tmp")]) == 2
        living.communicate()
    assert living.returncode == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"half", "other": b"new"}


def test_writers_and_sweepers_do_not_disturb_each_other(tmp_path: Path) -> None:
    """A temporary is swept away in the moment before it is locked, too: its writer makes another one."""
    stop, failed = threading.Event(), []

    def sweep() -> None:
        while not stop.is_set():
            sweep_dead(tmp_path)

    def write(name: str) -> None:
        try:
            for number in range(60):
                atomic_write(tmp_path / name, f"{name} {number}".encode(), sweep=False)
                with temporary_folder(tmp_path / f"{name} folder") as work:
                    (work / "file").write_text("x")
        except OSError as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(name,)) for name in ("a", "b")]
    sweeper = threading.Thread(target=sweep)
    for thread in (sweeper, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    sweeper.join()
    assert not failed
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "a 59", "b": "b 59"}


def test_exchange(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange")
    assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()
    assert not exchange(tmp_path / "a", tmp_path / "none")
    assert (tmp_path / "a" / "b").exists()
