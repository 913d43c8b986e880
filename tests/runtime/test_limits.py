"""Bounds on what is decoded, and opening only what is a file."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from m2df_runtime.clips.limits import MAX_BYTES, MAX_PIXELS, check_bytes, check_pixels, max_pixels
from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.regular_files import open_regular


def test_pixels_and_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("M2DF_MAX_PIXELS", raising=False)
    for width, height in ((7680, 4320), (8064, 6048), (8192, 8192)):
        check_pixels("photo.png", width, height)
    with pytest.raises(ClipError, match=rf"photo\.png: 8193x8192 pixels .*{MAX_PIXELS}.*M2DF_MAX_PIXELS=67117056"):
        check_pixels("photo.png", 8193, 8192)
    monkeypatch.setenv("M2DF_MAX_PIXELS", "67117056")
    check_pixels("photo.png", 8193, 8192)
    check_bytes("clip.mp4", 21, 7680, 4320)
    with pytest.raises(ClipError, match=rf"clip\.mp4: 22 frames of 7680x4320 pixels .*{MAX_BYTES}"):
        check_bytes("clip.mp4", 22, 7680, 4320)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1e9", "9" * 400])
def test_a_pixel_limit_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M2DF_MAX_PIXELS", text)
    with pytest.raises(InputError, match=r"M2DF_MAX_PIXELS=.* is not a number of pixels"):
        max_pixels()


def test_only_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"abc")
    with open_regular(tmp_path / "a.bin") as file:
        assert file.read() == b"abc"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name, kind in {"pipe": "a pipe", "zero": "a device", "socket": "a socket", ".": "a folder"}.items():
            with pytest.raises(OSError) as caught:
                open_regular(tmp_path / name)
            assert caught.value.strerror == f"{kind}, not a file"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
