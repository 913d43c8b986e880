from __future__ import annotations

import errno
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from m2df_export.package import check_target, replacing, write_zip
from m2df_runtime.errors import InputError


def _bundle(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(content)
    return folder


def test_new_folder_appears_complete(tmp_path):
    target = tmp_path / "deep" / "bundle"
    with replacing(target) as work:
        (work / "manifest.json").write_text("new")
        assert not target.exists()
    assert (target / "manifest.json").read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["bundle"]


def test_old_bundle_stays_until_the_end_and_when_the_new_one_fails(tmp_path):
    target = _bundle(tmp_path / "bundle", "old")
    with pytest.raises(RuntimeError), replacing(target) as work:
        (work / "manifest.json").write_text("half")
        assert (target / "manifest.json").read_text() == "old"
        raise RuntimeError
    assert (target / "manifest.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_replacing_leaves_nothing_of_the_old_bundle(tmp_path):
    target = _bundle(tmp_path / "bundle", "old")
    (target / "visual.int8.onnx").write_text("old")
    with replacing(target) as work:
        (work / "manifest.json").write_text("new")
    assert [path.name for path in target.iterdir()] == ["manifest.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_folder_that_is_no_bundle_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a bundle"), replacing(tmp_path):
        pass
    file = tmp_path / "notes.txt"
    with pytest.raises(InputError, match="is a file"), replacing(file):
        pass
    assert file.read_text() == "mine"


def test_place_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    """A file system mounted read-only says so to root too, whom the bits of a folder do not stop."""
    monkeypatch.setattr("m2df_export.package.os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(InputError, match=rf"deep/bundle: {tmp_path} cannot be written \(name another"):
        check_target(tmp_path / "deep" / "bundle")


KILLED_BETWEEN_RENAMES = """
import os, signal, sys
from pathlib import Path
from m2df_export.package import replacing

rename = Path.rename

def once(path, target):
    rename(path, target)
    os.kill(os.getpid(), signal.SIGKILL)

Path.rename = once
with replacing(Path(sys.argv[1])) as work:
    (work / "manifest.json").write_text("new")
"""


def test_export_killed_between_its_renames_loses_nothing(tmp_path):
    target = _bundle(tmp_path / "bundle", "old")
    command = [sys.executable, "-c", KILLED_BETWEEN_RENAMES, str(target)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".old", ".tmp"]  # none of the two
    with pytest.raises(RuntimeError), replacing(target):
        assert (target / "manifest.json").read_text() == "old"  # the next export brings it back
        raise RuntimeError
    assert (target / "manifest.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_leavings_of_other_bundles_are_left_alone(tmp_path):
    for name in (".bundle.abc.tmp", ".bundle2.abc.tmp", ".other.abc.old"):
        (tmp_path / name).mkdir()
    with replacing(tmp_path / "bundle") as work:
        (work / "manifest.json").write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bundle2.abc.tmp", ".other.abc.old", "bundle"]


def test_full_disk_names_the_bundle_and_leaves_the_old_one(tmp_path):
    target = _bundle(tmp_path / "bundle", "old")
    with pytest.raises(OSError, match="bundle") as caught, replacing(target) as work, open("/dev/full", "w") as file:
        (work / "manifest.json").write_text("half")
        file.write("x")
        file.flush()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(target))
    assert (target / "manifest.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_link_to_a_bundle_is_followed(tmp_path):
    target = _bundle(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(target)
    with replacing(tmp_path / "link") as work:
        (work / "manifest.json").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (target / "manifest.json").read_text() == "new"


def test_zip_of_the_same_content_is_the_same(tmp_path):
    bundle = _bundle(tmp_path / "bundle", "content" * 100)
    first = write_zip(bundle, tmp_path / "a.zip").read_bytes()
    (bundle / "manifest.json").touch()
    assert write_zip(bundle, tmp_path / "b.zip").read_bytes() == first
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read("manifest.json") == b"content" * 100
