"""Caches of features and frames: real clips, kills, several processes, full disks and bounds."""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import cache_user
import numpy as np
import pytest
from cache_user import LOADER, SPEC, VIEWS, encode, encoder
from full_disk import file_size_limit
from numpy.typing import NDArray
from tiny_bundle import write_clip

from m2df_runtime.clips.opening import open_source
from m2df_runtime.errors import ClipError, EnvironmentMissing, InputError
from m2df_runtime.pixels.load import load_clip
from m2df_train.cache.features import Encoding, FeatureCache, identity_of
from m2df_train.data.augment import DeployedLoader
from m2df_train.data.clips import folder_clips
from m2df_train.data.frame_cache import FrameCache, StoredFrames
from m2df_train.data.workers import ordered_map

ROOT = Path(__file__).parents[2]
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of four videos."""
    folder = tmp_path_factory.mktemp("clips")
    for colour in COLOURS:
        for number in range(4):
            write_clip(folder / colour / f"{number}.mp4", colour, seed=number, frames=8)
    return folder


@pytest.fixture
def clips(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "clips"))


@pytest.fixture(scope="module")
def expected(written: Path) -> NDArray[np.float32]:
    """Features of all clips, without any cache: [12, views, T, 6]."""
    found = folder_clips(written)[0]
    return np.stack([encoder(np.concatenate([LOADER(clip, [view]) for view in range(VIEWS)])) for clip in found])


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# --- features ---------------------------------------------------------------------------------------------------------


def test_features_are_encoded_once(clips, tmp_path, expected):
    first = encode(clips, tmp_path / "cache")
    np.testing.assert_array_equal(first.values, expected)
    assert first.values.dtype == np.float32 and first.kept == tuple(range(12)) and first.skipped == ()
    again = encode(clips, tmp_path / "cache", works=False)
    assert again.values.tobytes() == first.values.tobytes()
    assert isinstance(again.values.base, np.memmap) or isinstance(again.values, np.memmap)
    again.values[:] = 0  # in memory alone
    np.testing.assert_array_equal(encode(clips, tmp_path / "cache", works=False).values, expected)
    np.testing.assert_array_equal(encode(clips, tmp_path / "other").values, expected)


def test_another_model_or_content_is_encoded_anew(clips, tmp_path, expected):
    encode(clips, tmp_path / "cache")
    write_clip(clips / "green" / "1.mp4", "green", seed=77, frames=8)
    calls: list[int] = []

    def counting(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        calls.append(len(pixels))
        return encoder(pixels)

    cache, found = FeatureCache(tmp_path / "cache", 1 << 30), folder_clips(clips)[0]
    values = cache.encode(Encoding(counting, "model", LOADER, views=VIEWS), found, workers=0).values
    assert sum(calls) == VIEWS
    changed = [clip.name for clip in found].index("green/1.mp4")
    rest = np.delete(np.arange(12), changed)
    np.testing.assert_array_equal(values[rest], expected[rest])
    assert not np.array_equal(values[changed], expected[changed])
    cache.encode(Encoding(counting, "another model", LOADER, views=VIEWS), found, workers=0)
    assert sum(calls) == VIEWS + 12 * VIEWS


def test_more_views_or_clips_cost_only_themselves(clips, tmp_path, expected):
    cache, found = FeatureCache(tmp_path, 1 << 30), folder_clips(clips)[0]
    cache.encode(Encoding(encoder, "model", LOADER, views=VIEWS), found[:5], workers=0)
    done: list[int] = []
    encoded = cache.encode(Encoding(encoder, "model", LOADER, views=VIEWS), found[::-1], workers=0, advance=done.append)
    np.testing.assert_array_equal(encoded.values, expected[::-1])
    assert done[0] == 5 and sum(done) == 12
    one = cache.encode(Encoding(partial(pytest.fail, "encoded again"), "model", LOADER), found, workers=0)
    np.testing.assert_array_equal(one.values, expected[:, :1])


def test_an_unreadable_clip_is_named_and_left_out(clips, tmp_path, expected, caplog):
    (clips / "blue" / "2.mp4").write_bytes((clips / "blue" / "2.mp4").read_bytes()[:300])
    (clips / "red" / "0.mp4").write_bytes(b"not a video at all")
    for cached in (False, True):  # the second time the others are there already
        caplog.clear()
        with caplog.at_level(logging.WARNING, "m2df_train"):
            encoded = encode(clips, tmp_path / "cache", works=not cached)
        names = [clip.name for clip in folder_clips(clips)[0]]
        broken = [names.index("blue/2.mp4"), names.index("red/0.mp4")]
        assert encoded.kept == tuple(n for n in range(12) if n not in broken)
        np.testing.assert_array_equal(encoded.values, expected[list(encoded.kept)])
        assert len(encoded.skipped) == 2 and len(caplog.records) == 3
        assert caplog.records[-1].getMessage() == "2 of 12 clips are left out, for the reasons above"
        assert "blue/2.mp4" in encoded.skipped[0] and "red/0.mp4" in caplog.text


def bad_blue(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """No number for clips that are bluest."""
    colours = pixels.mean(axis=(1, 2, 3))
    return np.where((colours.argmax(axis=1) == 2)[:, None, None], np.float32("nan"), encoder(pixels))


def refusing_blue(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """As an engine does: the whole batch, and which clip it was is not said."""
    features = bad_blue(pixels)
    if not np.isfinite(features).all():
        raise ClipError("clip 1", "the visual graph gives numbers that are not finite")
    return features


@pytest.mark.parametrize("encode_clips", [bad_blue, refusing_blue])
def test_a_clip_without_finite_features_is_named_and_left_out(clips, tmp_path, expected, caplog, encode_clips):
    cache, found = FeatureCache(tmp_path / "cache", 1 << 30), folder_clips(clips)[0]
    order = found[2:] + found[:2]  # batches of blue clips alone, of both, and of others
    rest = [place for place, clip in enumerate(order) if clip.label != "blue"]
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "m2df_train"):
            encoded = cache.encode(Encoding(encode_clips, "model", LOADER, views=VIEWS, batch=4), order, workers=0)
        assert encoded.kept == tuple(rest)
        np.testing.assert_array_equal(encoded.values, np.roll(expected, -2, axis=0)[rest])
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == 5 and messages[-1].startswith("4 of 12 clips are left out")
        for number, message in enumerate(sorted(messages[:-1])):
            assert message.startswith(f"blue/{number}.mp4: ") and "not finite" in message
    with pytest.raises(InputError, match="none of the 4 clips"):
        cache.encode(
            Encoding(encode_clips, "model", LOADER), [clip for clip in found if clip.label == "blue"], workers=0
        )


def test_nothing_readable_is_an_error(clips, tmp_path):
    for file in clips.rglob("*.mp4"):
        file.write_bytes(b"nothing")
    with pytest.raises(InputError, match="none of the 12 clips can be read"):
        encode(clips, tmp_path / "cache")
    with pytest.raises(InputError, match="no clips"):
        FeatureCache(None, 0).encode(Encoding(encoder, "model", LOADER), [], workers=0)


@pytest.mark.parametrize("folder", [None, "cache"])
def test_worker_processes_change_nothing(clips, tmp_path, expected, folder):
    (clips / "green" / "3.mp4").write_bytes(b"broken")
    cache = FeatureCache(folder and tmp_path / folder, 1 << 30)
    found = folder_clips(clips)[0]
    encoded = cache.encode(Encoding(encoder, "model", LOADER, views=VIEWS), found, workers=2)  # 36 reads: two workers
    np.testing.assert_array_equal(encoded.values, expected[list(encoded.kept)])
    assert len(encoded.kept) == 11 and not FeatureCache(None, 1).lasting


def test_a_killed_run_goes_on_where_it_was_and_two_run_at_once(clips, tmp_path, expected):
    """SIGKILL in the middle, then two processes on one cache, then everything is there."""
    for _ in range(2):  # 36 clips of 3 views
        for colour in COLOURS:
            for file in sorted((clips / colour).iterdir()):
                shutil.copy(file, file.with_name(f"{len(list((clips / colour).iterdir()))}.mp4"))
    whole = encode(clips, tmp_path / "reference").values
    killed = start(clips, tmp_path / "cache", workers=1, stdin=subprocess.PIPE)
    assert killed.stdout is not None and killed.stdin is not None
    for _ in range(8):
        killed.stdin.write("\n")
        killed.stdin.flush()
        assert killed.stdout.readline() == "encoded\n"
    workers = [os.pidfd_open(pid) for pid in children(killed.pid)]
    killed.kill()
    killed.wait()
    for worker in workers:  # which end when nobody takes their clips any more
        select.select([worker], [], [])
        os.close(worker)
    safe = sum(len(np.load(table)) for table in (tmp_path / "cache").rglob("*.npy"))
    assert 7 * 4 <= safe <= 8 * 4  # of the seven calls before the last one
    left = whole.shape[0] * VIEWS - safe
    both = [start(clips, tmp_path / "cache", workers=0) for _ in range(2)]
    calls = [process.communicate()[0].count("encoded") for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert max(calls) <= -(-(left + VIEWS) // 4)
    np.testing.assert_array_equal(encode(clips, tmp_path / "cache", works=False).values, whole)


def start(clips: Path, cache: Path, *, workers: int, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, cache_user.__file__, str(clips), str(cache), str(workers)]
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True, env=environment)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("damage", [b"", b"\xff", b"\x93NUMPY\x01\x00\xff\xff", 1, 34, 100, 128, 300])
def test_a_damaged_table_is_made_again(clips, tmp_path, expected, damage):
    cache = tmp_path / "cache"
    encode(clips, cache)
    (file,) = cache.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:damage] if isinstance(damage, int) else damage * 200)
    np.testing.assert_array_equal(encode(clips, cache).values, expected)
    np.save(file, np.zeros(3))  # a whole one of something else
    np.testing.assert_array_equal(encode(clips, cache, works=False).values, expected)


def test_identities_not_used_for_longest_give_way(clips, tmp_path, expected):
    found = folder_clips(clips)[0]
    FeatureCache(tmp_path / "one", 1 << 30).encode(Encoding(encoder, "a", LOADER, views=VIEWS), found, workers=0)
    one = size_of(tmp_path / "one")
    cache = FeatureCache(tmp_path / "cache", int(2.5 * one))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "somebody's").mkdir()

    def used(name: str) -> bool:
        calls: list[int] = []

        def count(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            calls.append(1)
            return encoder(pixels)

        values = cache.encode(Encoding(count, name, LOADER, views=VIEWS), found, workers=0).values
        np.testing.assert_array_equal(values, expected)
        for folder in (tmp_path / "cache").iterdir():  # uses may follow each other faster than a file's clock ticks
            os.utime(folder, (folder.stat().st_atime, folder.stat().st_mtime - 1000))
        return not calls

    assert [used(name) for name in "abacab"] == [False, False, True, False, True, False]
    assert size_of(tmp_path / "cache") == 2 * one
    assert (tmp_path / "cache" / "somebody's").is_dir()


@pytest.mark.parametrize("bound", [100, 500, 3000])
def test_more_than_the_bound_stays_in_memory(clips, tmp_path, expected, caplog, bound):
    found = folder_clips(clips)[0]
    cache = FeatureCache(tmp_path / "cache", bound, "what is bearable")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "m2df_train"):
            encoded = cache.encode(Encoding(encoder, "model", LOADER, views=VIEWS, batch=1), found, workers=0)
        np.testing.assert_array_equal(encoded.values, expected)
        (record,) = caplog.records
        assert "cache: these features are more than what is bearable; the others stay" in record.getMessage()
        assert bound - 400 < size_of(tmp_path / "cache") <= bound  # a row takes 132 bytes, a table's head 128


@pytest.mark.parametrize("limit", [0, 100, 1000])
def test_a_full_disk_ends_the_keeping_but_not_the_work(clips, tmp_path, expected, caplog, capsys, limit):
    # `capsys` takes warnings in memory; a file for them would meet the limit too.
    found = folder_clips(clips)[0]
    frames = FrameCache(tmp_path / "frames", 1 << 30)
    with caplog.at_level(logging.WARNING, "m2df_train"), file_size_limit(limit):
        values = FeatureCache(tmp_path / "cache", 1 << 30).encode(
            Encoding(encoder, "model", LOADER, views=VIEWS), found, workers=0
        )
        pixels = DeployedLoader(SPEC.model_copy(update={"sampler": "uniform"}), frames)(found[0], [0])[0]
    np.testing.assert_array_equal(values.values, expected)
    assert pixels.shape == (4, 32, 32, 3) and not list(tmp_path.glob("frames/*.frames"))
    assert [record.getMessage().partition(":")[2][:30] for record in caplog.records] == [
        " features cannot be kept: File",
        " no more frames are kept: File",
    ]
    np.testing.assert_array_equal(encode(clips, tmp_path / "cache").values, expected)


def test_an_identity_tells_its_parts_apart():
    parts = [("a", "b"), ("ab",), ("a", "b", ""), ("b", "a")]
    assert len({identity_of(*part) for part in parts}) == len(parts)


def warn(number: int) -> int:
    logging.getLogger("m2df_runtime.clips.video_file").warning("clip.mp4: damaged")
    return os.kill(os.getpid(), signal.SIGKILL) or 0 if number == 30 else number


def test_a_worker_says_a_thing_once_and_may_be_killed(capfd):
    results = ordered_map(warn, range(40), 1)
    assert [next(results) for _ in range(10)] == list(range(10))
    with pytest.raises(EnvironmentMissing, match="was killed"):
        list(results)
    assert capfd.readouterr().err == "warning: clip.mp4: damaged\n"


def test_workers_load_no_pytorch():
    code = "import sys, m2df_train.data.splits, m2df_train.cache.features, m2df_train.data.augment; "
    code += "import m2df_train.data.generated; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# --- frames -----------------------------------------------------------------------------------------------------------


def stored(seed: int, count: int = 4) -> StoredFrames:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (count, 20, 30, 3), dtype=np.uint8)
    return StoredFrames(frames, np.arange(count) * 2, np.arange(2 * count) / 30, 29.97)


def assert_same(found: StoredFrames, expected: StoredFrames) -> None:
    for name in ("frames", "at", "times"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.fps == expected.fps


def never() -> StoredFrames:
    raise AssertionError("made again")


def test_frames_are_read_back_as_they_were(tmp_path):
    cache = FrameCache(tmp_path, 1 << 30)
    for key, count in (("a", 4), ("b", 1)):
        assert_same(cache.frames(key, "r", lambda count=count: stored(1, count)), stored(1, count))
        found = cache.frames(key, "r", never)
        assert_same(found, stored(1, count))
        assert isinstance(found.frames, np.memmap)
    assert_same(cache.frames("a", "another", lambda: stored(2)), stored(2))
    assert_same(FrameCache(tmp_path, 1 << 30).frames("a", "r", never), stored(1))


@pytest.mark.parametrize("keep", [0, 5, 130, 400, 2000])
def test_a_damaged_file_is_made_again(tmp_path, keep):
    cache = FrameCache(tmp_path, 1 << 30)
    cache.frames("a", "r", lambda: stored(1))
    (file,) = tmp_path.glob("*.frames")
    file.write_bytes(file.read_bytes()[:keep])
    assert_same(cache.frames("a", "r", lambda: stored(1)), stored(1))
    assert_same(cache.frames("a", "r", never), stored(1))


def test_frames_keep_to_the_bound(tmp_path):
    FrameCache(tmp_path / "one", 1 << 30).frames("a", "r", lambda: stored(1))
    (one,) = (file.stat().st_size for file in (tmp_path / "one").glob("*.frames"))
    folder = tmp_path / "cache"
    old = FrameCache(folder, 3 * one)
    for seed in range(5):
        assert_same(old.frames(str(seed), "r", lambda seed=seed: stored(seed)), stored(seed))
    for seed in range(3):  # the first ones stay: all were used by this run
        old.frames(str(seed), "r", never)
    with pytest.raises(AssertionError, match="made again"):
        old.frames("4", "r", never)
    (left,) = (folder / ".left.m2df-tmp",)
    left.write_bytes(b"of a killed process")
    for number, file in enumerate([*sorted(folder.glob("*.frames")), left]):
        os.utime(file, (1e9 + number, 1e9 + number))
    new = FrameCache(folder, 3 * one)
    new.frames("1", "r", never)  # used by the new run
    for seed in (10, 11, 12):
        new.frames(str(seed), "r", lambda seed=seed: stored(seed))
    for key in ("1", "10", "11"):
        new.frames(key, "r", never)
    assert len(list(folder.glob("*.frames"))) == 3 and not left.exists()


@pytest.mark.parametrize("written", [b"", b"12x", b"-5", b"\0\0\0", b"9" * 5000])
def test_a_damaged_count_of_the_frames_is_made_again(tmp_path, written):
    FrameCache(tmp_path / "one", 1 << 30).frames("a", "r", lambda: stored(1))
    (one,) = (file.stat().st_size for file in (tmp_path / "one").glob("*.frames"))
    cache = FrameCache(tmp_path / "cache", 3 * one)
    for seed in range(2):
        cache.frames(str(seed), "r", lambda seed=seed: stored(seed))
    (counter,) = (file for file in (tmp_path / "cache").iterdir() if file.suffix != ".frames")
    counter.write_bytes(written)
    for seed in range(2, 5):
        assert_same(cache.frames(str(seed), "r", lambda seed=seed: stored(seed)), stored(seed))
    for seed in range(3):
        cache.frames(str(seed), "r", never)
    assert len(list((tmp_path / "cache").glob("*.frames"))) == 3


def kept_frames(cache: FrameCache, seed: int) -> bytes:
    return cache.frames(str(seed % 8), "r", partial(stored, seed % 8)).frames.tobytes()


def test_processes_share_frames_within_the_bound(tmp_path):
    FrameCache(tmp_path / "one", 1 << 30).frames("a", "r", lambda: stored(1))
    (one,) = (file.stat().st_size for file in (tmp_path / "one").glob("*.frames"))
    cache = FrameCache(tmp_path / "cache", 5 * one)
    found = list(ordered_map(partial(kept_frames, cache), range(40), 2))
    assert found == [stored(seed % 8).frames.tobytes() for seed in range(40)]
    assert 4 <= len(list((tmp_path / "cache").glob("*.frames"))) <= 6  # one more, by two processes at once


def test_a_vanished_folder_is_made_again(tmp_path):
    cache = FrameCache(tmp_path / "cache", 1 << 30)
    cache.frames("a", "r", lambda: stored(1))
    shutil.rmtree(tmp_path / "cache")
    assert_same(cache.frames("a", "r", lambda: stored(1)), stored(1))
    assert_same(cache.frames("a", "r", never), stored(1))


def test_deployed_clips_are_those_of_the_runtime(clips, tmp_path):
    spec = SPEC.model_copy(update={"sampler": "uniform", "region": "motion", "channels": "motion"})
    for clip in folder_clips(clips)[0][:3]:
        expected = load_clip(open_source(clips / clip.name), spec)
        for cache in (None, FrameCache(tmp_path / "cache", 1 << 30)):
            np.testing.assert_array_equal(DeployedLoader(spec, cache)(clip, [0])[0], expected)
