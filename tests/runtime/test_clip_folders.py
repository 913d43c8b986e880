"""Finding clips: what folders, globs and support folders give, what is passed over, and what is named."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tiny_bundle import write_clip

from m2df_runtime.bank.folder import read_support
from m2df_runtime.clips.listing import clips_below, list_clips
from m2df_runtime.commands.queries import expand_queries
from m2df_runtime.errors import InputError
from m2df_train.data.clips import folder_clips


def picture(path: Path, frames: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = [Image.new("RGB", (8, 8), (index * 40, 0, 0)) for index in range(frames)]
    first.save(path, **({"save_all": True, "append_images": others} if others else {}))
    return path


def empty(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def unlisted() -> Iterator[Path]:
    """A folder that this process may look into, with a folder `private` in it that it may not list."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        empty(root / "private" / "a.mp4")
        (root / "private").chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield root
        finally:
            os.seteuid(user)
            (root / "private").chmod(0o755)


def irregular_entries(folder: Path) -> list[str]:
    """A pipe, a device, a socket and links that lead nowhere, named as clips; how a listing names them."""
    folder.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / "pipe.mp4")
    (folder / "zero.mp4").symlink_to("/dev/zero")
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    (folder / "round.mp4").symlink_to("round.mp4")
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(folder)  # a socket's path has at most 107 bytes
        server.bind("socket.mp4")
        os.chdir(here)
    return [
        "gone.mp4 (a link to nothing)",
        "pipe.mp4 (a pipe)",
        "round.mp4 (Too many levels of symbolic links)",
        "socket.mp4 (a socket)",
        "zero.mp4 (a device)",
    ]


def test_a_folders_clips_in_natural_order(tmp_path: Path) -> None:
    for name in ("clip 10.mp4", "clip 2.MKV", ".hidden.mp4", "raw.h264", "x.265", "tape.dv", "a.m2v", "a.y4m"):
        empty(tmp_path / name)
    picture(tmp_path / "anim.gif")
    picture(tmp_path / "anim.png", 2)
    picture(tmp_path / "anim2.gif", 2)
    write_clip(tmp_path / "movie.mp4").rename(tmp_path / "movie.gif")
    empty(tmp_path / "notes.txt")
    picture(tmp_path / "frames" / "1.png")
    picture(tmp_path / "poster" / "1.png")
    empty(tmp_path / "poster" / "1.mp4")
    (tmp_path / "nothing").mkdir()
    listing = list_clips(tmp_path)
    assert [clip.name for clip in listing.clips] == [
        *("a.m2v", "a.y4m", "anim2.gif", "anim.png", "clip 2.MKV", "clip 10.mp4", "frames", "movie.gif"),
        *("raw.h264", "tape.dv", "x.265"),
    ]
    assert listing.ignored == ["anim.gif", "notes.txt", "nothing", "poster (a folder of clips)"]
    with pytest.raises(InputError, match="cannot be listed"):
        list_clips(tmp_path / "missing")


def test_only_files_are_clips(tmp_path: Path) -> None:
    names = irregular_entries(tmp_path / "jump")
    clip = write_clip(tmp_path / "jump" / "a.mp4")
    assert list_clips(tmp_path / "jump") == clips_below(tmp_path / "jump") == ([clip], names)
    found = read_support(tmp_path)
    assert [entry.path for entry in found.classes["jump"]] == [clip]
    assert found.warnings[0] == f"{tmp_path / 'jump'}: ignored, not clips: {', '.join(names)}"


@pytest.mark.parametrize("system", ["@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN", "lost+found", ".thumbs"])
def test_folders_of_the_system_are_passed_over(
    tmp_path: Path, system: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "bend" / "a.mp4")
    for place in (tmp_path, tmp_path / "bend"):
        picture(place / system / "a.mp4" / "thumb.jpg")
        empty(place / system / "b.mp4")
    monkeypatch.chdir(tmp_path)
    for query in (tmp_path, tmp_path / "bend", tmp_path / "*", tmp_path / "*" / "*.mp4", tmp_path / "**" / "*.mp4"):
        assert expand_queries([str(query)], []) == [clip]
    assert expand_queries(["**/*.mp4"], []) == [Path("bend/a.mp4")]
    assert read_support(tmp_path).classes.keys() == {"bend"}
    assert [clip.name for clip in folder_clips(tmp_path)[0]] == ["bend/a.mp4"]
    assert not caplog.records
    assert expand_queries([f"{tmp_path}/{system}/*.mp4"], [])  # asked for by name


def test_a_folder_that_may_not_be_listed_is_named_and_passed_by(
    unlisted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.seteuid(os.getuid())
    clip = empty(unlisted / "jump" / "a.mp4")
    if os.getuid() == 0:
        os.seteuid(65534)
    assert expand_queries([str(unlisted)], []) == [clip]
    assert expand_queries([str(unlisted / "**" / "*.mp4")], []) == [clip]
    assert caplog.messages == [
        f"{unlisted}: not read, not clips: private (Permission denied)",
        f"{unlisted}: not looked into: {unlisted / 'private'} (Permission denied)",
    ]
    assert list_clips(unlisted).ignored == ["jump (a folder of clips)", "private (Permission denied)"]
    found = read_support(unlisted)
    assert found.classes.keys() == {"jump"}
    assert f"{unlisted / 'private'}: cannot be listed: Permission denied; class left out" in found.warnings
    with pytest.raises(InputError, match="private: cannot be listed: Permission denied"):
        expand_queries([str(unlisted / "private")], [])


def test_links_that_loop_end(tmp_path: Path) -> None:
    for name in "abcdefgh":  # 8 ** 40 paths, were links followed for as long as the system does
        (tmp_path / "deep" / name).mkdir(parents=True)
    for folder in sorted((tmp_path / "deep").iterdir()):
        for name in "stuvwxyz":
            (folder / name).symlink_to(tmp_path / "deep")
    clip = empty(tmp_path / "deep" / "h" / "clip.mp4")
    for query in (tmp_path, tmp_path / "deep", tmp_path / "**" / "*.mp4", tmp_path / "**" / "h" / "**"):
        assert [path.resolve() for path in expand_queries([str(query)], [])] == [clip.resolve()]
    assert list_clips(tmp_path / "deep").clips == []


def test_queries_expand_in_order(query_dir: Path, tmp_path: Path) -> None:
    frames = tmp_path / "all" / "frames"
    picture(frames / "0.png")
    nested = empty(tmp_path / "all" / "jump" / "a.mp4")
    deeper = empty(tmp_path / "all" / "jump" / "more" / "deep" / "a.mp4")
    empty(tmp_path / "all" / ".hidden" / "b.mp4")
    assert expand_queries([str(tmp_path / "all")], []) == [frames, nested, deeper]
    assert expand_queries([str(frames)], []) == [frames]
    assert expand_queries([str(tmp_path / "all" / "*" / "**" / "*.mp4")], []) == [nested, deeper]
    assert expand_queries([str(tmp_path / "all" / "**")], []) == [frames, nested, deeper]
    assert expand_queries([str(query_dir / "[rb]*.mp4")], []) == [query_dir / "blue.mp4", query_dir / "red.mp4"]
    assert expand_queries(["-", "x.mp4"], ["a.mp4\n", "b c.mp4\r\n"]) == [Path("a.mp4"), Path("b c.mp4"), Path("x.mp4")]
    assert expand_queries(["RTSP://camera/1", "-", "0"], ["7\n", "x.mp4\n"]) == ["rtsp://camera/1", 7, Path("x.mp4"), 0]


def test_what_a_query_folder_skips_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = empty(tmp_path / "a.mp4")
    for name in ("labels.csv", "noext", "poster.png", "sub/movie.bin", "sub/x.part", "z.txt", "zz.txt"):
        empty(tmp_path / name)
    assert expand_queries([str(tmp_path)], []) == [clip]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages[0] == (
        f"{tmp_path}: not read, not clips: poster.png, labels.csv, noext, sub/movie.bin, sub/x.part and 2 more"
    )
    clip.unlink()
    (tmp_path / "poster.png").unlink()
    with pytest.raises(InputError, match=r"no clips in this folder, only labels\.csv, noext, sub/movie\.bin"):
        expand_queries([str(tmp_path)], [])


def test_one_argument_that_names_nothing_does_not_end_a_batch(tmp_path: Path) -> None:
    clip = empty(tmp_path / "a.mp4")
    (tmp_path / "nothing").mkdir()
    others = [tmp_path / "nothing", tmp_path / "x*.mp4"]
    for other in others:
        with pytest.raises(InputError, match=r"no clips in this folder|no file matches"):
            expand_queries([str(other)], [])
    assert expand_queries(["-"], [f"{path}\n" for path in (*others, clip)]) == [*others, clip]
