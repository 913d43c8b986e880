"""Video files as cameras, cutters and old programs really leave them: every frame, once, in its order and shape."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from made_videos import decode_all, moving_square, number_of, numbered, write_video
from PIL import Image, ImageOps

from m2df_runtime.clips.opening import open_source
from m2df_runtime.errors import ClipError
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.pixels.spec import ClipSpec


def numbers(path: Path) -> list[int]:
    source = open_source(path)
    return [number_of(frame) for frame in source.read(range(source.n_frames))]


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture):
    """Fails where a warning was given."""
    caplog.set_level(logging.WARNING, logger="m2df_runtime")
    yield
    assert not caplog.records, caplog.text


def remuxed(source: Path, target: Path, first: int = 0) -> Path:
    """The packets of a file from number `first` on, in another container."""
    with av.open(str(source)) as opened, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(opened.streams.video[0])
        for number, packet in enumerate(opened.demux(video=0)):
            if packet.dts is not None and number >= first:
                packet.stream = stream
                out.mux(packet)
    return target


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.usefixtures("quiet")
def test_avi_keeps_no_presentation_stamps(tmp_path: Path, codec: str) -> None:
    made = write_video(tmp_path / "made.ts", numbered(60), codec, options={"bf": "2", "g": "30"})
    path = remuxed(made, tmp_path / "copied.avi")
    source = open_source(path)
    assert numbers(path) == list(range(60))
    np.testing.assert_allclose(source.times, np.arange(60) / 25, atol=0.04)
    np.testing.assert_array_equal(source.read([31, 4, 59]), decode_all(made)[[31, 4, 59]])


# Codecs by how their groups of pictures end: closed, open, refreshed bit by bit, every frame a key, hidden frames.
GROUPS = [
    ("closed.mp4", "libx264", {"g": "24"}),
    ("open.mkv", "libx264", {"g": "24", "x264-params": "open-gop=1:bframes=3:scenecut=0"}),
    ("stream.ts", "libx264", {"g": "24"}),
    ("refresh.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=24"}),
    ("open.mp4", "libx265", {"x265-params": "keyint=24:open-gop=1:log-level=none"}),
    ("open.mpg", "mpeg2video", {"g": "12", "bf": "2"}),
    ("part2.mp4", "mpeg4", {"g": "12", "bf": "2"}),
    ("vp9.webm", "libvpx-vp9", {"g": "24", "deadline": "realtime", "cpu-used": "8"}),
    ("hidden.webm", "libvpx", {"g": "24", "deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    ("av1.mkv", "libsvtav1", {"g": "24", "preset": "12"}),
    ("keys.mov", "mjpeg", {}),
]


@pytest.mark.parametrize(("name", "codec", "options"), GROUPS, ids=[name for name, *_ in GROUPS])
@pytest.mark.usefixtures("quiet")
def test_frames_far_apart_equal_those_of_a_full_decode(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / name, numbered(100), codec, pixels, options=options)
    whole = decode_all(path)
    source = open_source(path)
    assert source.n_frames == len(whole) == 100
    for wanted in ([99], [0, 60], [6, 18, 31, 43, 56, 68, 81, 93], [23, 24, 25, 47, 48, 49]):
        np.testing.assert_array_equal(source.read(wanted), whole[wanted])
        assert [number_of(frame) for frame in source.read(wanted)] == wanted


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.usefixtures("quiet")
def test_pictures_with_exif_in_a_video(tmp_path: Path, orientation: int) -> None:
    """FFmpeg hands the whole of EXIF on as side data of a kind that PyAV does not know."""
    frames = moving_square(6)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "camera"
    path = tmp_path / "camera.avi"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for index, frame in enumerate(frames):
            jpeg = io.BytesIO()
            Image.fromarray(frame).save(jpeg, "JPEG", exif=exif, quality=95)
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 25)
            out.mux(packet)
    shown = open_source(path).read(range(6))
    upright = Image.open(io.BytesIO(jpeg.getvalue()))
    expected = np.asarray(ImageOps.exif_transpose(upright).convert("RGB")).astype(int)
    assert np.abs(shown[5].astype(int) - expected).mean() < 3


def with_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Writes a, b, c, d into the display matrix of the file's track header."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    for place, value in zip((0, 4, 12, 16), matrix, strict=True):
        data[at + place : at + place + 4] = (value << 16).to_bytes(4, "big", signed=True)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
        ((1, 0, 0, -1), lambda frame: frame[::-1]),
        ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
    ],
    ids=["mirrored", "upside-down", "transposed", "turned"],
)
def test_mirrored_and_turned_frames_in_colour_and_grey(
    tmp_path: Path, matrix: tuple[int, int, int, int], shown
) -> None:
    path = write_video(tmp_path / "front.mp4", moving_square(4))
    plain = open_source(path)
    colour, grey = plain.read([2])[0], next(plain.pictures(np.asarray([2]))).grey(32)
    with_matrix(path, matrix)
    source = open_source(path)
    np.testing.assert_array_equal(source.read([2])[0], shown(colour))
    np.testing.assert_array_equal(next(source.pictures(np.asarray([2]))).grey(32), shown(grey))


def test_a_codec_without_decoder_is_named(tmp_path: Path) -> None:
    path = write_video(tmp_path / "new.mp4", moving_square(4))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz9").replace(b"avcC", b"zzzC"))
    with pytest.raises(ClipError, match=r"new\.mp4: its video codec is unknown"):
        open_source(path)


@pytest.mark.usefixtures("quiet")
def test_tags_that_are_not_unicode(tmp_path: Path) -> None:
    path = tmp_path / "title.mp4"
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "Muede Leute"
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in moving_square(5):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"Muede", b"M\xfc\xe4\xffe"))
    assert open_source(path).n_frames == 5


@pytest.mark.usefixtures("quiet")
def test_a_still_picture_s_track_before_the_video_is_not_the_clip(tmp_path: Path) -> None:
    path = tmp_path / "thumb.mov"
    with av.open(str(path), "w") as out:
        still = out.add_stream("mjpeg", rate=25)
        still.width, still.height, still.pix_fmt = 160, 96, "yuvj420p"
        video = out.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 160, 96, "yuv420p"
        grey = np.full((96, 160, 3), 90, np.uint8)
        out.mux(still.encode(av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(format="yuvj420p")))
        for frame in numbered(40):
            out.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(video.encode(None))
        out.mux(still.encode(None))
    assert numbers(path) == list(range(40))


@pytest.mark.parametrize("late", [2, 59])
def test_a_jump_of_the_clock_counts_as_one_frame_time(
    tmp_path: Path, late: int, caplog: pytest.LogCaptureFixture
) -> None:
    stamps = [40 * index + (10_000_000 if index >= late else 0) for index in range(60)]
    path = write_video(tmp_path / "jump.mkv", numbered(60), stamps=stamps, options={"bf": "0"})
    source = open_source(path)
    np.testing.assert_allclose(source.times, np.arange(60) / 25, atol=2e-3)
    assert source.fps == pytest.approx(25, abs=0.05)
    assert "clock jumps by 10000 s" in caplog.text
    clip = load_clip(source, ClipSpec(size=96, interpolation="bilinear"))
    assert len({frame.tobytes() for frame in clip}) == 8


def test_long_still_pictures_are_no_jump(tmp_path: Path) -> None:
    stamps = [0, 5000, 9000, 14000, 20000]  # a slide show
    path = write_video(tmp_path / "slides.mkv", numbered(5), stamps=stamps, options={"bf": "0"})
    np.testing.assert_allclose(open_source(path).times, np.asarray(stamps) / 1000, atol=2e-3)


def test_what_is_sampled_more_often_than_frames_differ_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stamps = [10 * index for index in range(20)] + [1900]
    path = write_video(tmp_path / "uneven.mkv", numbered(21), stamps=stamps, options={"bf": "0"})
    load_clip(open_source(path), ClipSpec(size=32))
    assert "uneven.mkv: its frames are so uneven in time that" in caplog.text


@pytest.mark.usefixtures("quiet")
def test_a_recording_that_starts_inside_a_group_of_pictures(tmp_path: Path) -> None:
    made = write_video(tmp_path / "made.ts", numbered(90), options={"g": "50", "bf": "0", "sc_threshold": "0"})
    path = remuxed(made, tmp_path / "cut.ts", first=20)
    assert numbers(path) == list(range(50, 90))


@pytest.mark.parametrize(("ratio", "size"), [(Fraction(64, 45), (96, 228)), (Fraction(1, 2), (192, 160))])
@pytest.mark.usefixtures("quiet")
def test_pixels_that_are_not_square_are_shown_in_the_display_s_aspect(
    tmp_path: Path, ratio: Fraction, size: tuple[int, int]
) -> None:
    path = tmp_path / "wide.mp4"
    frames = numbered(10)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = ratio
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    picture = next(open_source(path).pictures(np.asarray([5])))
    assert picture.rgb().shape[:2] == size == picture.grey().shape
    expected = cv2.resize(frames[5], size[::-1], interpolation=cv2.INTER_LINEAR).astype(int)
    assert np.abs(picture.rgb().astype(int) - expected).mean() < 10
    assert max(picture.grey(80).shape) == 80


def test_a_stream_that_changes_its_size_keeps_the_first_with_black_beside(tmp_path: Path) -> None:
    wide = write_video(tmp_path / "wide.h264", moving_square(6, 64, 48), options={"bf": "0"})
    tall = write_video(tmp_path / "tall.h264", moving_square(6, 48, 64), options={"bf": "0"})
    path = tmp_path / "turned.h264"
    path.write_bytes(wide.read_bytes() + tall.read_bytes())
    frames = open_source(path).read(range(12))
    assert frames.shape == (12, 48, 64, 3)
    assert frames[11, :, :12].max() < 8 and frames[11, :, 14:50].mean() > 40  # 36 of 64 columns


def test_brightness_is_that_of_the_colours(tmp_path: Path) -> None:
    for name, codec, pixels in [
        ("l.mp4", "libx264", "yuv420p"),
        ("f.avi", "mjpeg", "yuvj420p"),
        ("t.mkv", "ffv1", "yuv420p10le"),
    ]:
        path = write_video(tmp_path / name, moving_square(3, 400, 240), codec, pixels)
        picture = next(open_source(path).pictures(np.asarray([1])))
        grey = cv2.cvtColor(picture.rgb(), cv2.COLOR_RGB2GRAY).astype(int)
        assert np.abs(picture.grey() - grey).mean() < 1.2
        small = cv2.resize(grey.astype(np.float32), (320, 192), interpolation=cv2.INTER_AREA)
        assert np.abs(picture.grey(320) - small).mean() < 1.2


def test_a_damaged_file_is_read_alike_every_time(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", numbered(30), options={"g": "12", "bf": "2"}).read_bytes()
    readable = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        data = bytearray(whole)
        for at in rng.integers(600, len(data), 12).tolist():
            data[at] ^= int(rng.integers(1, 256))
        path = tmp_path / f"{seed}.mkv"
        path.write_bytes(data)
        answers = set()
        for _ in range(3):
            try:
                source = open_source(path)
                answers.add(source.read(range(0, source.n_frames, 3)).tobytes())
                readable += 1
            except ClipError as error:
                answers.add(error.reason.encode())
        assert len(answers) == 1, seed
    assert readable > 60


def peak_of(code: str) -> int:
    """Peak memory in MB that the code prints. Not of `getrusage`, which counts the process that forked this one."""
    script = (
        "import gc, cv2, av\nfrom pathlib import Path\n"
        "from m2df_runtime.clips.opening import open_source\n"
        "from m2df_runtime.pixels.load import load_clip\nfrom m2df_runtime.pixels.spec import ClipSpec\n"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) // 1024\n"
        f"{code}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_reading_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write_video(tmp_path / "phone.mp4", np.repeat(moving_square(6, 1280, 720), 2, axis=0), rotation=90)
    grown = peak_of(
        f"path = Path({str(path)!r})\nfor _ in range(3): open_source(path).read(range(0, 12, 2))\n"
        "gc.disable(); before = peak()\n"
        "for _ in range(25): open_source(path).read(range(0, 12, 2))\nprint(peak() - before)"
    )
    assert grown < 60  # 25 reads of 6 frames are 410 MB


def test_a_4k_clip_stays_within_500_megabytes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "4k.mp4", moving_square(20, 3840, 2160), options={"preset": "ultrafast"})
    loads = [
        f"load_clip(open_source(Path({str(path)!r})), ClipSpec(size=112, region={region!r}, channels={channels!r}))"
        for region, channels in [("motion", "motion"), ("motion", "rgb"), ("full", "rgb")]
    ]
    assert peak_of("\n".join([*loads, "print(peak())"])) < 500


def test_too_large_a_picture_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "large.mp4", moving_square(3, 128, 96))
    monkeypatch.setenv("M2DF_MAX_PIXELS", "10000")
    with pytest.raises(ClipError, match=r"large\.mp4: 128x96 pixels is more than the limit of 10000"):
        open_source(path)
