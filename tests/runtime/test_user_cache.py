"""Where the cache folder is, and that one which others may have filled is not believed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from m2df_runtime import user_cache
from m2df_runtime.user_cache import cache_dir, has_cache

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _forget() -> None:
    user_cache._private.cache_clear()


def test_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative", "./cache", None):  # the specification: a relative path is invalid and ignored
        monkeypatch.delenv("XDG_CACHE_HOME") if value is None else monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_dir("banks") == tmp_path / "home" / ".cache" / "m2df" / "banks"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert cache_dir() == tmp_path / "other" / "m2df"
    assert cache_dir().stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "other"]


@pytest.mark.parametrize("whose", ["group", "others", "below", "another user's"])
def test_a_folder_that_others_can_fill_is_not_used(
    whose: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shared = tmp_path / "m2df" / "banks" if whose == "below" else tmp_path / "m2df"
    (tmp_path / "m2df" / "banks").mkdir(parents=True)
    if whose == "another user's":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    else:
        shared.chmod({"group": 0o775, "others": 0o777, "below": 0o757}[whose])
    found = cache_dir("banks")
    assert not found.is_relative_to(tmp_path) and cache_dir("banks") == found
    assert found.parent.stat().st_mode & 0o777 == 0o700
    (record,) = caplog.records
    assert str(shared) in record.getMessage() and "for this run only" in record.getMessage()


def test_without_a_home_nothing_guessable_is_used_and_nothing_stays(tmp_path: Path) -> None:
    """A user of a container without an entry in the password file."""
    code = (
        "import os, pwd, sys; pwd.getpwuid = lambda uid: {}[uid]; os.environ.pop('HOME', None)\n"
        "from m2df_runtime.user_cache import cache_dir\n"
        "folder = cache_dir('banks'); folder.mkdir(); (folder / 'bank').touch(); print(folder)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": "relative"}
    done = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]
    first, second = (Path(run.stdout.strip()) for run in done)
    assert first != second and first.parent.parent == tmp_path and not list(tmp_path.iterdir())
    assert done[0].stderr.count("\n") == 1 and "no home folder" in done[0].stderr


def test_a_folder_that_cannot_be_looked_into_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/" + "a" * 5000)  # an error of the system, for any user
    assert not has_cache("measured")


def test_no_place_at_all_is_an_error_of_writing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        (cache_dir("banks") / "bank").write_bytes(b"")
    monkeypatch.setattr("tempfile.mkdtemp", lambda **options: (_ for _ in ()).throw(FileNotFoundError()))
    monkeypatch.setattr(user_cache, "user_cache", lambda: None)
    with pytest.raises(NotADirectoryError):
        (cache_dir("banks") / "bank").write_bytes(b"")
