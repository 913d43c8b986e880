"""Reading clips: every kind of file a user may bring, made here with PyAV and Pillow."""

from __future__ import annotations

import logging
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from made_videos import decode_all, moving_square, write_video
from PIL import Image

from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.source import ArraySource
from m2df_runtime.errors import InputError

B_FRAMES = {"bf": "3", "g": "250", "x264-params": "b-adapt=0"}


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "options"),
    [
        ("bframes.mp4", "libx264", "yuv420p", B_FRAMES),
        ("bframes.mkv", "libx264", "yuv420p", B_FRAMES),
        ("bframes.ts", "libx264", "yuv420p", B_FRAMES),
        ("mpeg4.avi", "mpeg4", "yuv420p", {"bf": "2"}),
        ("vp9.webm", "libvpx-vp9", "yuv420p", {"deadline": "realtime"}),
        ("vp8.webm", "libvpx", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
        ("alpha.webm", "libvpx-vp9", "yuva420p", {"deadline": "realtime"}),
        ("ten_bit.mkv", "ffv1", "yuv420p10le", {}),
        ("grey.mkv", "ffv1", "gray", {}),
        ("alpha.mkv", "ffv1", "bgra", {}),
        ("mjpeg.avi", "mjpeg", "yuvj420p", {}),
    ],
)
def test_frames_equal_a_full_decode(
    tmp_path: Path, name: str, codec: str, pixels: str, options: dict[str, str]
) -> None:
    path = write_video(tmp_path / name, moving_square(40), codec, pixels, options=options)
    whole = decode_all(path)
    source = open_source(path)
    assert source.n_frames == len(whole) == 40
    assert source.fps == pytest.approx(25, abs=0.02)
    np.testing.assert_allclose(source.times, np.arange(40) / 25, atol=6e-4)
    order = [39, 3, 3, 0, 17, 38, 1]
    frames = source.read(order)
    assert frames.dtype == np.uint8 and frames.flags.c_contiguous
    np.testing.assert_array_equal(frames, whole[order])
    np.testing.assert_array_equal(source.read([5]), whole[[5]])


def test_variable_rate_times_come_from_the_file(tmp_path: Path) -> None:
    stamps = [0, 40, 80, 500, 540, 1500, 1533, 1566]
    path = write_video(tmp_path / "vfr.mkv", moving_square(8), stamps=stamps, options={"bf": "2"})
    source = open_source(path)
    np.testing.assert_allclose(source.times, np.asarray(stamps) / 1000, atol=1e-9)
    assert source.fps == pytest.approx(7 / 1.566)
    np.testing.assert_array_equal(source.read([6, 2]), decode_all(path)[[6, 2]])


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_video_is_upright(tmp_path: Path, rotation: int) -> None:
    path = write_video(tmp_path / "phone.mp4", moving_square(5), rotation=rotation)
    frame = open_source(path).read([0])[0]
    # PyAV's angle is counterclockwise, as is numpy's.
    np.testing.assert_array_equal(frame, np.rot90(decode_all(path)[0], rotation // 90))


@pytest.mark.parametrize(("width", "height"), [(63, 47), (1, 1), (130, 2)])
def test_odd_sizes(tmp_path: Path, width: int, height: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    path = write_video(tmp_path / "odd.mkv", frames, "ffv1", "bgr0")
    np.testing.assert_array_equal(open_source(path).read(range(4)), frames)


def test_one_frame(tmp_path: Path) -> None:
    source = open_source(write_video(tmp_path / "one.mp4", moving_square(1)))
    assert (source.n_frames, source.times.tolist(), source.fps) == (1, [0.0], 25.0)
    assert source.read([0, 0, 0]).shape == (3, 48, 64, 3)


def test_the_header_s_frame_count_is_not_believed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "lies.avi", moving_square(20), "mpeg4")
    data = bytearray(path.read_bytes())
    at = data.index(b"strh") + 8 + 32  # dwLength of the stream header
    assert int.from_bytes(data[at : at + 4], "little") == 20
    data[at : at + 4] = (999).to_bytes(4, "little")
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 999
    assert open_source(path).n_frames == 20


def test_truncated_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 48, 64, 3), dtype=np.uint8)  # so that data outweighs header
    path = write_video(tmp_path / "cut.mp4", noise, options={"g": "10"}, container_options={"movflags": "faststart"})
    whole = decode_all(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    source = open_source(path)
    assert 20 < source.n_frames < 40
    frames = source.read(range(source.n_frames))
    np.testing.assert_array_equal(frames[:15], whole[:15])


def test_a_frame_lost_in_the_middle_shifts_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "hole.mkv", moving_square(12), "mjpeg", "yuvj420p")
    whole = decode_all(path)
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()
    path.write_bytes(data.replace(packets[6], b"\x00" * len(packets[6])))
    source = open_source(path)
    assert source.n_frames == 12
    with caplog.at_level(logging.WARNING, logger="m2df_runtime"):
        frames = source.read(range(12))
    np.testing.assert_array_equal(frames[6], whole[5])  # the last one decoded before it
    np.testing.assert_array_equal(np.delete(frames, 6, axis=0), np.delete(whole, 6, axis=0))
    assert "1 of 12 frames cannot be decoded" in caplog.text


def test_raw_stream_without_time_stamps(tmp_path: Path) -> None:
    path = write_video(tmp_path / "raw.h264", moving_square(10), options={"bf": "2"})
    source = open_source(path)
    assert source.n_frames == 10 and (np.diff(source.times) > 0).all()
    np.testing.assert_array_equal(source.read([9, 4]), decode_all(path)[[9, 4]])


def test_names_with_spaces_colons_and_percent_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "file: 100% müde %d.mp4"
    write_video(tmp_path / "plain.mp4", moving_square(3)).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert open_source(name).n_frames == 3


def write_wav(path: Path) -> None:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(bytes(16000))


def test_audio_only_is_refused(tmp_path: Path) -> None:
    write_wav(tmp_path / "talk.wav")
    write_wav(tmp_path / "talk.mp4")
    for name in ("talk.wav", "talk.mp4"):
        with pytest.raises(InputError, match=rf"{name}: audio only"):
            open_source(tmp_path / name)


def test_bad_files_are_named_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a film\n" * 50)
    (tmp_path / "notes.txt").write_text("not a film\n" * 50)
    (tmp_path / "bad.gif").write_bytes(b"GIF89a\x00")
    whole = write_video(tmp_path / "whole.mp4", moving_square(10)).read_bytes()
    (tmp_path / "stump.mp4").write_bytes(whole[:200])
    (tmp_path / "folder.mp4").mkdir()
    for name, reason in {
        "missing.mp4": "no such file",
        "empty.mp4": "the file is empty",
        "text.mp4": "not a readable video",
        "notes.txt": "not a video",
        "bad.gif": "unreadable image",
        "stump.mp4": "not a readable video",
        "folder.mp4": "a directory without images",
        "gone_%03d.png": "no file matches the pattern",
        "gone/frame_%03d.png": "no such image sequence",
    }.items():
        with pytest.raises(InputError, match=reason) as caught:
            open_source(tmp_path / name)
        assert name in caught.value.message and caught.value.hint


def test_a_file_without_frames(tmp_path: Path) -> None:
    path = tmp_path / "none.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        out.start_encoding()
    with pytest.raises(InputError, match=r"none\.mkv: .*(no frames|not a readable video)"):
        open_source(path)


def test_video_whose_packets_are_all_noise(tmp_path: Path) -> None:
    path = write_video(tmp_path / "noise.mkv", moving_square(4), "mjpeg", "yuvj420p")
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()
    for packet in packets:
        data = data.replace(packet, b"\x00" * len(packet))
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"no frame can be decoded|not a readable video"):
        open_source(path).read([0])


def test_a_playlist_does_not_reach_other_addresses(tmp_path: Path) -> None:
    path = tmp_path / "list.mp4"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(InputError, match=r"list\.mp4"):
        open_source(path)


def test_frame_folder_in_natural_order(tmp_path: Path) -> None:
    frames = moving_square(12)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"frame_{index}.png")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    source = open_source(tmp_path)
    assert (source.n_frames, source.fps) == (12, 25.0)
    np.testing.assert_array_equal(source.read([11, 2, 2]), frames[[11, 2, 2]])


def test_pattern_with_alpha_grey_and_16_bit(tmp_path: Path) -> None:
    frames = moving_square(4)
    alpha = np.concatenate([frames[0], np.full((48, 64, 1), 7, dtype=np.uint8)], axis=2)
    Image.fromarray(alpha).save(tmp_path / "frame_0007.png")
    Image.fromarray(frames[1, :, :, 0]).save(tmp_path / "frame_0008.png")
    Image.fromarray(frames[2, :, :, 0].astype(np.uint16) * 257).save(tmp_path / "frame_0010.png")
    Image.fromarray(frames[3]).convert("P").save(tmp_path / "frame_0011.png")
    Image.fromarray(frames[3]).save(tmp_path / "other_0012.png")
    source = open_source(tmp_path / "frame_%04d.png")
    got = source.read(range(source.n_frames))
    assert got.shape == (4, 48, 64, 3)
    np.testing.assert_array_equal(got[0], frames[0])
    for index in (1, 2):
        np.testing.assert_array_equal(got[index], np.repeat(frames[index, :, :, :1], 3, axis=2))


def test_folder_errors_name_the_picture(tmp_path: Path) -> None:
    Image.fromarray(moving_square(1)[0]).save(tmp_path / "a.png")
    Image.fromarray(moving_square(1, 32, 32)[0]).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b\.png: 32x32 pixels where the frames before it have 64x48"):
        open_source(tmp_path).read([0, 1])
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(InputError, match=r"b\.png: unreadable image"):
        open_source(tmp_path).read([1])


def test_picture_turned_by_its_metadata_is_upright(tmp_path: Path) -> None:
    frame = moving_square(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(frame).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(open_source(tmp_path).read([0])[0], np.rot90(frame, -1))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animated_pictures_keep_their_durations(tmp_path: Path, suffix: str) -> None:
    frames = moving_square(5)
    durations = [100, 40, 300, 20, 60]
    pictures = [Image.fromarray(frame) for frame in frames]
    path = tmp_path / f"clip.{suffix}"
    extra = {"lossless": True} if suffix == "webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, **extra)
    source = open_source(path)
    assert source.n_frames == 5
    np.testing.assert_allclose(source.times, np.concatenate([[0], np.cumsum(durations)[:-1]]) / 1000)
    assert source.fps == pytest.approx(5 / 0.52)
    got = source.read([4, 0, 2, 2])
    tolerance = 40 if suffix == "gif" else 0  # a palette of 256 colours
    np.testing.assert_allclose(got.astype(int), frames[[4, 0, 2, 2]].astype(int), atol=tolerance)


def test_still_picture_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    Image.fromarray(moving_square(1)[0]).save(tmp_path / "still.jpg")
    assert open_source(tmp_path / "still.jpg").n_frames == 1


def test_pages_of_several_sizes_are_refused(tmp_path: Path) -> None:
    pages = [Image.new("RGB", size) for size in ((8, 8), (8, 8), (4, 6))]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    source = open_source(tmp_path / "pages.tif")
    assert source.read([0, 1]).shape == (2, 8, 8, 3)
    with pytest.raises(InputError, match=r"pages\.tif: 4x6 pixels where the frames before it have 8x8"):
        source.read([0, 1, 2])


def test_array_source() -> None:
    frames = moving_square(6)
    source = ArraySource(frames, fps=10.0)
    assert (source.n_frames, source.fps) == (6, 10.0)
    np.testing.assert_allclose(source.times, np.arange(6) / 10)
    np.testing.assert_array_equal(source.read([5, 5, 1]), frames[[5, 5, 1]])
    with pytest.raises(IndexError, match=r"outside 0\.\.5"):
        source.read([6])
    with pytest.raises(InputError, match="uint8"):
        ArraySource(frames.astype(np.float32))  # type: ignore[arg-type]
