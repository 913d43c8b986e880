from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from m2df_export.bundle import check_target, replacing, write_zip
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
    monkeypatch.setattr("m2df_export.bundle.os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(InputError, match=rf"deep/bundle: {tmp_path} cannot be written \(name another"):
        check_target(tmp_path / "deep" / "bundle")


@pytest.fixture(params=["exchanged", "renamed twice"])
def way(request, monkeypatch):
    """How the folders change places; NFS has no way to exchange them."""
    if request.param == "renamed twice":
        monkeypatch.setattr("m2df_export.bundle.exchange", lambda first, second: False)
    return request.param


KILLED = """
import os, signal, sys
from pathlib import Path
from m2df_export import bundle as package

def killed(*paths):
    renaming(*paths)
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "exchanged":
    renaming, package.exchange = package.exchange, killed
else:
    renaming, Path.rename, package.exchange = Path.rename, killed, lambda *paths: False
with package.replacing(Path(sys.argv[1])) as work:
    (work / "manifest.json").write_text("new")
"""


@pytest.mark.parametrize("way", ["exchanged", "renamed twice"])
def test_export_killed_after_its_first_rename_loses_nothing(tmp_path, way):
    target = _bundle(tmp_path / "bundle", "old")
    command = [sys.executable, "-c", KILLED, str(target), way]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    names = sorted(path.name.split(".")[-1] for path in tmp_path.iterdir())
    assert names == (["bundle", "m2df-tmp"] if way == "exchanged" else ["m2df-tmp", "old"])
    expected = "new" if way == "exchanged" else "old"  # which the next export brings back
    with pytest.raises(RuntimeError), replacing(target):
        assert (target / "manifest.json").read_text() == expected
        raise RuntimeError
    assert (target / "manifest.json").read_text() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


READER = """
import sys
from pathlib import Path
from m2df_runtime.bundle.bundle import Bundle

names, opened = set(), 0
print("reading", flush=True)
while not Path(sys.argv[2]).exists() or not opened:
    names.add(Bundle.open(sys.argv[1]).manifest.name)
    opened += 1
print(*sorted(names))
"""


def test_who_opens_a_bundle_during_exports_finds_one(tmp_path, tiny_bundle):
    target = Path(shutil.copytree(tiny_bundle, tmp_path / "bundles" / "mine"))
    text = (target / "manifest.json").read_text()
    command = [sys.executable, "-c", READER, str(target), str(tmp_path / "done")]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None and reader.stdout.readline() == "reading\n"
        for number in range(50):
            with replacing(target) as work:
                for path in tiny_bundle.iterdir():
                    shutil.copy(path, work)
                name = f"number {'1' * (number % 40)}"  # no two manifests in a row are of one size
                (work / "manifest.json").write_text(text.replace('"tiny"', f'"{name}"', 1))
            assert reader.poll() is None
        (tmp_path / "done").touch()
        found = reader.communicate()[0]
    assert reader.returncode == 0 and "number" in found
    assert [path.name for path in target.parent.iterdir()] == ["mine"]


def test_engines_of_the_old_bundle_stay(tmp_path, way):
    target = _bundle(tmp_path / "bundle", "old")
    (target / "engines" / "sm90").mkdir(parents=True)
    with replacing(target) as work:
        (work / "manifest.json").write_text("new")
    assert (target / "manifest.json").read_text() == "new" and (target / "engines" / "sm90").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_lives_or_is_not_ours_is_left_alone(tmp_path):
    """Temporaries of other bundles go too, where nobody writes them any more."""
    for name in (".bundle.abc.tmp", ".other.abc.m2df-tmp", "other.m2df-tmp"):
        (tmp_path / name).mkdir()
    with replacing(tmp_path / "second") as second:
        (second / "manifest.json").write_text("second")
        with replacing(tmp_path / "bundle") as work:
            (work / "manifest.json").write_text("new")
        assert (second / "manifest.json").read_text() == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bundle.abc.tmp", "bundle", "other.m2df-tmp", "second"]


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
