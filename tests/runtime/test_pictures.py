"""Clips that are pictures, as they lie on users' disks: cut, misnamed, mixed, turned, huge."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tiny_bundle import write_clip

from m2df_runtime.bank.folder import clip_stamp, read_support
from m2df_runtime.clips.listing import list_clips
from m2df_runtime.clips.opening import open_source
from m2df_runtime.errors import ClipError


def scene(count: int, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """Frames of a square that walks over noise, so that each takes kilobytes when coded."""
    frames = np.random.default_rng(3).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    for index in range(count):
        frames[index, 8:24, index * 4 : index * 4 + 12] = [230, 220, 40]
    return frames


def write_animation(path: Path, frames: NDArray[np.uint8]) -> Path:
    pictures = [Image.fromarray(frame) for frame in frames]
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=80, loop=0, **lossless)
    return path


def all_frames(path: Path) -> NDArray[np.uint8]:
    source = open_source(path)
    return source.read(range(source.n_frames))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_a_cut_animation_is_read_as_far_as_it_goes(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = write_animation(tmp_path / f"whole.{suffix}", scene(8))
    expected, data = all_frames(whole), whole.read_bytes()
    assert len(expected) == 8 and not caplog.records
    lengths = []
    for part in (0.4, 0.7, 0.999):
        path = tmp_path / f"cut {part}.{suffix}"
        path.write_bytes(data[: int(len(data) * part)])
        caplog.clear()
        frames = all_frames(path)
        assert caplog.messages == [f"{path}: the file is cut short; read as far as it goes, {len(frames)} frames"]
        np.testing.assert_array_equal(frames, expected[: len(frames)])
        lengths.append(len(frames))
    assert 1 <= lengths[0] < lengths[1] <= lengths[2] <= 7
    stump = tmp_path / f"stump.{suffix}"
    for size in {10, 20, 40, len(data) // 20}:
        stump.write_bytes(data[:size])
        with pytest.raises(ClipError, match=rf"stump\.{suffix}: "):
            all_frames(stump)


def test_a_png_shows_its_animation_without_the_picture_for_old_readers(tmp_path: Path) -> None:
    frames = scene(4)
    pictures = [Image.fromarray(frame) for frame in frames]
    path = tmp_path / "a.png"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], default_image=True, duration=[40, 80, 120])
    source = open_source(path)
    assert source.n_frames == 3
    np.testing.assert_allclose(source.times, [0, 0.04, 0.12])
    np.testing.assert_array_equal(source.read([0, 1, 2]), frames[1:])
    data = path.read_bytes()
    place = data.index(b"acTL")
    path.write_bytes(data[: place - 4] + chunk(b"acTL", struct.pack(">II", 0, 0)) + data[place + 16 :])
    np.testing.assert_array_equal(all_frames(path), frames[:1])  # an animation without frames is a still


def test_files_are_read_by_what_they_hold(tmp_path: Path) -> None:
    video = write_clip(tmp_path / "clip.mp4")
    expected = all_frames(video)
    for suffix in ("gif", "png", "webp"):
        (tmp_path / f"movie.{suffix}").write_bytes(video.read_bytes())
        np.testing.assert_array_equal(all_frames(tmp_path / f"movie.{suffix}"), expected)
    (tmp_path / "clip.y4m").write_bytes(b"")
    Image.fromarray(scene(1)[0]).save(tmp_path / "still.png")
    (tmp_path / "still.png").rename(tmp_path / "still.jpg")
    np.testing.assert_array_equal(all_frames(tmp_path / "still.jpg"), scene(1))
    (tmp_path / "noise.gif").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    for name in ("noise.gif", "script.png"):  # Pillow would have Ghostscript run the second one
        with pytest.raises(ClipError, match=rf"{name}: unreadable image: of no known format"):
            open_source(tmp_path / name)


def test_a_photo_with_previews_is_one_frame(tmp_path: Path) -> None:
    photo, preview = Image.new("RGB", (64, 48), (200, 0, 0)), Image.new("RGB", (16, 12))
    photo.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[preview])
    assert all_frames(tmp_path / "phone.jpg").shape == (1, 48, 64, 3)


def numbered(folder: Path, *shapes: str, count: int = 3) -> None:
    """Pictures whose grey is the place of their family; every `#` is the number."""
    folder.mkdir()
    for grey, shape in enumerate(shapes):
        for number in range(1, count + 1) if "#" in shape else (0,):
            Image.new("L", (8, 8), grey).save(folder / shape.replace("#", f"{number:05d}"))


@pytest.mark.parametrize(
    ("shapes", "clip"),
    [
        (("flow_x_#.jpg", "flow_y_#.jpg", "img_#.jpg"), 2),
        (("x_#.png", "y_#.png", "#.png"), 2),
        (("mask_#.png", "rgb_#.png", "depth_#.png"), 1),
        (("#_flow.png", "#.png", "cover.png"), 1),
        (("frame_#.png", "frame_#.jpg"), 1),
    ],
)
def test_one_family_of_names_is_the_clip(
    tmp_path: Path, shapes: tuple[str, ...], clip: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "jump" / "frames"
    folder.parent.mkdir()
    numbered(folder, *shapes)
    frames = all_frames(folder)
    assert (len(frames), frames.min(), frames.max()) == (3, clip, clip)
    (message,) = caplog.messages
    assert message.startswith(f"{folder}: reading the 3 pictures {shapes[clip]}; left out: ")
    for other in {*shapes} - {shapes[clip]}:
        assert other in message
    ((support,),) = read_support(tmp_path).classes.values()
    before = support.digest(), clip_stamp(folder).size
    (folder / shapes[1 - clip if clip < 2 else 0].replace("#", "00001")).write_bytes(b"changed")
    assert (support.digest(), clip_stamp(folder).size) == before  # other pictures do not matter


@pytest.mark.parametrize("names", [("a.png", "b.png"), ("1f8e.png", "e7a1.png", "c3.png", "d4.png", "a1b2.png")])
def test_names_without_a_family_are_all_the_clip(
    tmp_path: Path, names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    numbered(tmp_path / "frames", *names)
    assert open_source(tmp_path / "frames").n_frames == len(names)
    assert not caplog.records


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stills_are_upright_in_colour_and_grey(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(scene(1, 80, 48)[0])
    picture.save(tmp_path / "1.png", exif=exif)
    picture.save(tmp_path / "1.tif", exif=exif)
    smooth = Image.fromarray(np.kron(scene(1, 20, 12)[0], np.ones((40, 40, 1))).astype(np.uint8))
    smooth.save(tmp_path / "1.jpg", exif=exif, quality=95)  # 800 x 480
    for name in ("1.png", "1.tif", "1.jpg"):
        with Image.open(tmp_path / name) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        (found,) = open_source(tmp_path / name).pictures(np.array([0]))
        assert found.nbytes == 0
        np.testing.assert_array_equal(found.rgb(), np.asarray(upright))
        small = found.grey(40).astype(int)
        expected = upright.convert("L").reduce(upright.width // small.shape[1])
        assert np.abs(small - np.asarray(expected)).mean() < 1.5
        assert max(small.shape) == 40
        assert found.grey().shape == (upright.height, upright.width)


def gif_with_screen(width: int, height: int, frames: int) -> bytes:
    """A GIF of tiny frames on a large screen; 26 bytes a frame."""
    control = b"!\xf9\x04\x00\x04\x00\x00\x00"
    frame = control + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02D\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame * frames + b";"


def test_pictures_beyond_the_limits_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = scene(2)  # 3072 pixels
    for suffix in ("gif", "png", "webp"):
        write_animation(tmp_path / f"a.{suffix}", frames)
    (tmp_path / "folder").mkdir()
    picture = Image.fromarray(frames[0])
    for name in ("a.jpg", "a.tif", "a.bmp", "folder/1.png", "folder/2.png"):
        picture.save(tmp_path / name)
    (tmp_path / "grows.gif").write_bytes(gif_with_screen(8, 8, 2).replace(b",\0\0\0\0", b",\xf0\x0f\x01\0", 1))
    names = ("a.gif", "a.png", "a.webp", "a.jpg", "a.tif", "a.bmp", "folder", "grows.gif")
    monkeypatch.setenv("M2DF_MAX_PIXELS", "3072")
    for name in names[:-1]:
        assert all_frames(tmp_path / name).shape[1:] == (48, 64, 3)
    monkeypatch.setenv("M2DF_MAX_PIXELS", "3071")
    for name in names:
        with pytest.raises(ClipError, match=r"pixels is more than the limit of 3071 \(M2DF_MAX_PIXELS="):
            all_frames(tmp_path / name)
    assert [clip.name for clip in list_clips(tmp_path).clips] == ["a.gif", "a.png", "a.webp", "folder", "grows.gif"]
    (tmp_path / "long.gif").write_bytes(gif_with_screen(8000, 8000, 300))
    monkeypatch.undo()
    with pytest.raises(ClipError, match=r"long\.gif: more than 268 frames of 8000x8000 pixels"):
        open_source(tmp_path / "long.gif")


def test_pillows_own_limit_follows_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.fromarray(scene(1)[0]).save(tmp_path / "large.png")
    assert all_frames(tmp_path / "large.png").shape == (1, 48, 64, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_a_folder_of_large_photos_holds_one_at_a_time(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 6000).astype(np.uint8)
    photo = np.broadcast_to(ramp[None, :, None], (4000, 6000, 3))  # 72 MB; 1.9 GB when 33 are held, 320 MB so
    Image.fromarray(np.ascontiguousarray(photo)).save(tmp_path / "1.jpg")
    for number in range(2, 35):
        os.link(tmp_path / "1.jpg", tmp_path / f"{number}.jpg")
    script = (
        "import sys\n"
        "from m2df_runtime.pixels.spec import ClipSpec; from m2df_runtime.pixels.load import load_clip\n"
        "from m2df_runtime.clips.opening import open_source\n"
        "load_clip(open_source(sys.argv[1]), ClipSpec(frames=2, region='motion'))\n"
        # not ru_maxrss, which begins at what the process had from which this one was forked
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert int(done.stdout) < 500_000  # kB


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_side_data_neither_matter_nor_reach_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    frame = scene(1)[0]
    picture = Image.fromarray(frame)
    picture.save(tmp_path / "exif.png")
    data = (tmp_path / "exif.png").read_bytes()
    (tmp_path / "exif.png").write_bytes(data[:33] + chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff\x12") + data[33:])
    picture.save(tmp_path / "exif.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12\0\x03\xff", quality=95)
    palette = picture.quantize(16)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(16)))
    picture.save(tmp_path / "tags.tif", compression="tiff_lzw")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        for name in ("exif.png", "exif.jpg", "palette.png", "tags.tif"):
            assert all_frames(tmp_path / name).shape == (1, 48, 64, 3)
        assert list(warnings.filters) == before
    np.testing.assert_array_equal(all_frames(tmp_path / "exif.png")[0], frame)
    data = bytearray((tmp_path / "tags.tif").read_bytes())
    data[8:200] = bytes(192)  # what libtiff decodes
    (tmp_path / "tags.tif").write_bytes(data)
    caplog.clear()
    with pytest.raises(ClipError, match=r"tags\.tif: unreadable image"):
        all_frames(tmp_path / "tags.tif")
    picture.save(tmp_path / "samples.tif")
    data = (tmp_path / "samples.tif").read_bytes()
    samples = struct.pack("<HHIH", 0x0115, 3, 1, 3)  # SamplesPerPixel
    assert data.count(samples) == 1
    (tmp_path / "samples.tif").write_bytes(data.replace(samples, struct.pack("<HHIH", 0x0115, 3, 1, 0x2A00)))
    with pytest.raises(ClipError, match=r"samples\.tif: unreadable image"):
        all_frames(tmp_path / "samples.tif")
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe.gif")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "frames").mkdir()
    os.mkfifo(tmp_path / "frames" / "1.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.mp4"))
        for name, kind in {"pipe.mp4": "pipe", "pipe.gif": "pipe", "zero.png": "device", "s.mp4": "socket"}.items():
            with pytest.raises(ClipError, match=rf"{name}: a {kind}, not a file"):
                open_source(tmp_path / name)
    with pytest.raises(ClipError, match="a directory without images"):
        open_source(tmp_path / "frames")
    source = open_source(tmp_path / "frames" / "%d.png")  # a pattern is not looked through before it is read
    with pytest.raises(ClipError, match=r"1\.png: unreadable image: a pipe, not a file"):
        source.read([0])


def test_a_query_from_a_pipe_says_so(tiny_bundle: Path, support_dir: Path) -> None:
    read, write = os.pipe()
    os.close(write)
    command = [
        sys.executable,
        "-m",
        "m2df_runtime.commands.run",
        "--bundle",
        str(tiny_bundle),
        "--support",
        str(support_dir),
    ]
    done = subprocess.run(
        [*command, "--query", f"/dev/fd/{read}"], pass_fds=[read], capture_output=True, text=True, check=False
    )
    os.close(read)
    assert done.returncode == 2
    assert done.stderr == f"error: /dev/fd/{read}: a pipe, not a file (save the clip to a file and name that)\n"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("%0999999999d.png", "a number longer than a file's name can be"),
        (f"%0{'9' * 5000}d.png", "a number longer than a file's name can be|cannot be opened: File name too long"),
        ("%d_%d.png", "a pattern with several numbers"),
        ("%05d.png", "no file matches the pattern"),
        ("%s.png", "no such file"),
        ("\0.png", "no such file"),
    ],
)
def test_patterns_that_match_nothing_are_one_line(tmp_path: Path, pattern: str, message: str) -> None:
    (tmp_path / "0001.png").touch()
    with pytest.raises(ClipError, match=message) as caught:
        open_source(tmp_path / pattern)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pattern", ["%d.png", "%00d.png", "%01d.png", "%04d.png"])
def test_patterns_go_by_number_whatever_its_length(tmp_path: Path, pattern: str) -> None:
    for grey, number in enumerate(("0007", "0010", "9" * 30)):
        Image.new("L", (8, 8), grey).save(tmp_path / f"{number}.png")
    Image.new("L", (8, 8), 9).save(tmp_path / "\u0663.png")  # a digit, but not one that printf writes
    assert all_frames(tmp_path / pattern)[:, 0, 0, 0].tolist() == [0, 1, 2]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: data[: len(data) // 3] + bytes(len(data) // 3) + data[2 * len(data) // 3 :],
    "flipped": lambda data: bytes(byte ^ (0xFF if place % 7 == 3 else 0) for place, byte in enumerate(data)),
    "header": lambda data: data[:16] + bytes([255] * 16) + data[32:],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif", "jpg", "bmp", "ppm"])
def test_damaged_pictures_give_frames_or_a_reason(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix in ("gif", "png", "webp", "tif"):
        write_animation(path, scene(4))
    else:
        Image.fromarray(scene(1)[0]).save(path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    try:
        assert all_frames(path).dtype == np.uint8
    except ClipError as error:
        assert error.clip == str(path) and error.reason and "\n" not in str(error)
