"""Preprocessing: equal to the transforms models were trained with, for every kind of spec."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from m2df_runtime.clips.source import ArrayPicture, ArraySource, CroppedSource, Picture, grey_of
from m2df_runtime.errors import ClipError
from m2df_runtime.pixels.load import load_clip, load_uncropped, motion_channels, previous_indices
from m2df_runtime.pixels.resize_and_crop import centred
from m2df_runtime.pixels.spec import ClipSpec

SIZES = [(120, 160), (144, 176), (97, 61), (240, 320), (64, 64), (31, 200), (720, 1280)]


def texture(count: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def walk(count: int = 60, height: int = 144, width: int = 176, radius: int = 10) -> NDArray[np.uint8]:
    """A dark red ellipse walks over a textured wall."""
    wall = cv2.GaussianBlur(texture(1, height, width)[0], (9, 9), 0)
    frames = np.repeat(wall[None], count, axis=0)
    for index, frame in enumerate(frames):
        x = width // 8 + index * width * 3 // (4 * count)
        cv2.ellipse(frame, (x, height * 5 // 9), (radius, 3 * radius), 0, 0, 360, (90, 10, 10), -1)
    return frames


class Counted(ArraySource):
    """Remembers which frames were asked for."""

    def __init__(self, frames: NDArray[np.uint8]) -> None:
        super().__init__(frames)
        self.asked: list[list[int]] = []

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        self.asked.append(indices.tolist())
        yield from super().pictures(indices)


def pillow_reference(frame: NDArray[np.uint8], spec: ClipSpec) -> NDArray[np.uint8]:
    """Resize, then centre crop, as torchvision rounds."""
    kernel = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[spec.interpolation]
    height, width = frame.shape[:2]
    short = spec.short_side or spec.size
    size = (short, short)
    if spec.resize == "short":
        size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    scaled = Image.fromarray(frame).resize(size, kernel)
    left, top = int(round((size[0] - spec.size) / 2.0)), int(round((size[1] - spec.size) / 2.0))  # noqa: RUF046
    return np.asarray(scaled.crop((left, top, left + spec.size, top + spec.size)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", ["short", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("short_side", [None, 73])
def test_full_frame_equals_pillow(size: tuple[int, int], resize: str, interpolation: str, short_side: int) -> None:
    spec = ClipSpec(frames=2, size=64, resize=resize, interpolation=interpolation, short_side=short_side)
    frames = texture(2, *size)
    clip = load_clip(ArraySource(frames), spec)
    assert clip.shape == (2, 64, 64, 3) and clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, np.stack([pillow_reference(frame, spec) for frame in frames]))


@pytest.mark.parametrize("size", [(120, 160), (97, 61), (360, 640)])
def test_default_equals_open_clip_s_transform(size: tuple[int, int]) -> None:
    backbone = pytest.importorskip("m2df_train.model.backbone", exc_type=ImportError)
    open_clip = backbone.import_open_clip()
    spec = ClipSpec(frames=1)
    frame = texture(1, *size)
    transform = open_clip.image_transform(spec.size, is_train=False, mean=spec.mean, std=spec.std)
    expected = transform(Image.fromarray(frame[0])).permute(1, 2, 0).numpy()
    pixels = load_clip(ArraySource(frame), spec)[0] / np.float32(255)
    np.testing.assert_allclose((pixels - np.float32(spec.mean)) / np.float32(spec.std), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(120, 160), (40, 30), (300, 200)])
def test_without_antialias_samples_like_a_tensor(size: tuple[int, int]) -> None:
    """Bilinear at half-pixel centres, written out here."""
    spec = ClipSpec(frames=1, size=56, short_side=64, resize="squash", interpolation="bilinear", antialias=False)
    frame = texture(1, *size)
    weights = []
    for length in size:
        at = np.clip((np.arange(64) + 0.5) * length / 64 - 0.5, 0, length - 1)
        low = np.floor(at).astype(int)
        matrix = np.zeros((64, length))
        matrix[np.arange(64), low] += 1 - (at - low)
        matrix[np.arange(64), np.minimum(low + 1, length - 1)] += at - low
        weights.append(matrix)
    expected = np.einsum("yh,hwc,xw->yxc", weights[0], frame[0], weights[1], optimize=True)[4:60, 4:60]
    np.testing.assert_allclose(load_clip(ArraySource(frame), spec)[0], expected, atol=1.01)


def test_sampled_frames_come_in_order_and_repeat() -> None:
    frames = texture(3, 64, 64)
    spec = ClipSpec(frames=8, size=64, sampler="segment_center")
    np.testing.assert_array_equal(load_clip(ArraySource(frames), spec), frames[[0, 0, 0, 1, 1, 1, 2, 2]])
    random = ClipSpec(frames=8, size=64, sampler="segment")
    long = ArraySource(texture(80, 64, 64))
    first, again = (load_clip(long, random, rng=np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_only_needed_frames_are_read_in_one_call() -> None:
    source = Counted(walk(400))
    load_clip(source, ClipSpec(size=32))
    load_clip(source, ClipSpec(size=32, region="motion", channels="motion"))
    assert len(source.asked) == 2
    assert source.asked[0] == [25, 75, 125, 175, 225, 275, 325, 375]
    assert len(source.asked[1]) <= 8 + 8 + 17
    assert source.asked[1] == sorted(set(source.asked[1]))


@pytest.mark.parametrize("channels", ["rgb", "motion"])
@pytest.mark.parametrize("region", ["full", "motion"])
def test_a_rectangle_is_cut_out_before_the_region_and_clamped(channels: str, region: str) -> None:
    frames = walk(30)
    spec = ClipSpec(frames=4, size=32, region=region, channels=channels)
    np.testing.assert_array_equal(
        load_clip(CroppedSource(ArraySource(frames), (40, 20, 900, 100)), spec),
        load_clip(ArraySource(frames[:, 20:120, 40:]), spec),
    )
    with pytest.raises(ClipError, match="region 176,0,10,10 lies outside the 176x144 frame"):
        load_clip(CroppedSource(ArraySource(frames), (176, 0, 10, 10)), spec)


def test_motion_region_enlarges_the_walker_and_keeps_it_central() -> None:
    clip = load_clip(ArraySource(walk()), ClipSpec(size=64, region="motion", interpolation="bilinear"))
    figure = (clip[..., 0] > clip[..., 1].astype(int) + 40) & (clip[..., 1] < 50)
    for mask in figure:
        rows, columns = np.nonzero(mask)
        assert np.ptp(rows) > 40  # 61 of 144 rows in the scene, 27 of 64 without the box
        assert abs(columns.mean() - 31.5) < 6


def test_motion_region_finds_the_same_place_in_a_large_video() -> None:
    small = walk(30, 90, 160, radius=6)
    large = np.stack([cv2.resize(frame, (1280, 720), interpolation=cv2.INTER_CUBIC) for frame in small])
    spec = ClipSpec(size=48, region="motion", interpolation="bilinear")
    few, many = (load_clip(ArraySource(frames), spec).astype(float) for frames in (small, large))
    assert np.abs(few - many).mean() < 12


def test_motion_region_of_a_still_clip_is_the_centred_square() -> None:
    still = np.repeat(texture(1, 90, 160), 20, axis=0)
    moving = load_clip(ArraySource(still), ClipSpec(frames=2, size=45, region="motion"))
    plain = load_clip(CroppedSource(ArraySource(still), (35, 0, 90, 90)), ClipSpec(frames=2, size=45))
    inner = np.s_[:, 2:-2, 2:-2]  # the filter looks past the box's edge where the fixed region cannot
    np.testing.assert_allclose(moving[inner].astype(int), plain[inner].astype(int), atol=1)


@pytest.mark.parametrize("radius", range(10, 20))
def test_a_box_that_overhangs_is_read_at_every_size(radius: int) -> None:
    """A box of width w where 224 * w / w rounds to less than 224 must not be read beyond the padded picture."""
    frames = np.full((60, 96, 128, 3), 180, dtype=np.uint8)
    for index, frame in enumerate(frames):
        cv2.ellipse(frame, (2 * index, 48), (radius, 2 * radius + 6), 0, 0, 360, (20, 20, 20), -1)
    spec = ClipSpec(frames=2, size=224, region="motion", interpolation="bilinear")
    assert load_clip(ArraySource(frames), spec).shape == (2, 224, 224, 3)


@pytest.mark.parametrize("size", [(2, 30_000), (30_000, 2)])
def test_of_a_very_long_picture_the_middle_is_scaled(size: tuple[int, int]) -> None:
    frames = texture(1, *size)
    clip = load_clip(ArraySource(frames), ClipSpec(frames=1, size=224))
    middle = frames[:, 14_984:15_016] if size[0] > 2 else frames[:, :, 14_984:15_016]
    np.testing.assert_array_equal(clip, load_clip(ArraySource(middle), ClipSpec(frames=1, size=224)))


def test_previous_frame_is_the_latest_that_is_old_enough() -> None:
    at_25 = np.arange(10) / 25
    assert previous_indices(at_25, np.asarray([0, 1, 2, 3, 9])).tolist() == [0, 0, 0, 1, 7]
    at_30 = np.round(np.arange(10) / 30, 3)
    assert previous_indices(at_30, np.asarray([3, 9])).tolist() == [0, 6]
    uneven = np.asarray([0.0, 0.5, 0.55, 0.6])
    assert previous_indices(uneven, np.asarray([1, 2, 3])).tolist() == [0, 0, 1]


def test_motion_channels_follow_their_formula_for_every_pair() -> None:
    pairs = np.asarray(list(itertools.product(range(256), repeat=2)), dtype=np.uint8)
    now, before = (pairs[:, side].reshape(1, 256, 256) for side in (0, 1))
    channels = motion_channels(now, before, before[0])
    np.testing.assert_array_equal(channels[..., 0], now)
    expected = 128 + np.trunc((now.astype(int) - before) / 2)
    np.testing.assert_array_equal(channels[..., 1], expected)
    np.testing.assert_array_equal(channels[..., 2], expected)


def test_motion_channels_of_a_clip() -> None:
    frames = walk(50, 96, 96)
    source = ArraySource(frames)
    clip = load_clip(source, ClipSpec(frames=5, size=96, channels="motion"))
    grey = [grey_of(frame) for frame in frames]
    chosen = [5, 15, 25, 35, 45]
    for picture, index in zip(clip, chosen, strict=True):
        np.testing.assert_array_equal(picture[..., 0], grey[index])
        np.testing.assert_array_equal(picture[..., 1], 128 + np.trunc((grey[index].astype(int) - grey[index - 2]) / 2))
    still = load_clip(ArraySource(np.repeat(frames[:1], 20, axis=0)), ClipSpec(size=96, channels="motion"))
    assert (still[..., 1:] == 128).all()


def test_grey_weights_and_scene_size() -> None:
    frames = texture(2, 60, 80)
    exact = (frames.astype(int) * [299, 587, 114]).sum(axis=3) / 1000
    np.testing.assert_allclose([ArrayPicture(frame).grey() for frame in frames], exact, atol=0.51)
    assert ArrayPicture(texture(1, 180, 640)[0]).grey(320).shape == (90, 320)
    assert ArrayPicture(texture(1, 320, 7)[0]).grey(320).shape == (320, 7)
    np.testing.assert_array_equal(ArrayPicture(np.full((720, 1280, 3), 77, np.uint8)).grey(320), 77)


def test_overhang_repeats_grey_and_shows_no_difference() -> None:
    """The walker enters from the left, so that the first boxes overhang there."""
    frames = np.full((60, 96, 128, 3), 180, dtype=np.uint8)
    for index, frame in enumerate(frames):
        cv2.ellipse(frame, (2 * index, 50), (9, 26), 0, 0, 360, (20, 20, 20), -1)
    clip = load_clip(ArraySource(frames), ClipSpec(size=64, region="motion", channels="motion"))
    # The dark figure touches the frame's edge: its grey goes on outside, its difference does not.
    np.testing.assert_array_equal(clip[0, 32, :12], np.tile([20, 128, 128], (12, 1)))
    assert clip[0, 32, 20, 2] == 48  # 128 + (20 - 180) / 2


@pytest.mark.parametrize("channels", ["rgb", "motion"])
@pytest.mark.parametrize("region", ["full", "motion"])
@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("antialias", [True, False])
def test_every_combination_works_on_tiny_and_short_clips(
    channels: str, region: str, count: int, antialias: bool
) -> None:
    spec = ClipSpec(size=16, channels=channels, region=region, antialias=antialias, interpolation="bilinear")
    for size in ((1, 3), (4, 6), (47, 63), (200, 330)):
        clip = load_clip(ArraySource(texture(count, *size)), spec)
        assert clip.shape == (8, 16, 16, 3) and clip.dtype == np.uint8


@pytest.mark.parametrize("resize", ["short", "squash"])
@pytest.mark.parametrize("channels", ["rgb", "motion"])
@pytest.mark.parametrize("region", ["full", "motion"])
@pytest.mark.parametrize("antialias", [True, False])
def test_uncropped_frames_hold_the_deployed_ones_in_their_centre(
    resize: str, channels: str, region: str, antialias: bool
) -> None:
    spec = ClipSpec(
        frames=4, size=48, short_side=57, resize=resize, channels=channels, region=region, antialias=antialias,
        interpolation="bilinear",
    )  # fmt: skip
    source = ArraySource(walk(40))
    chosen = np.asarray([5, 15, 25, 35])
    whole = load_uncropped(source, spec, chosen)
    across = {"full": 69, "motion": 57}[region]  # 57 * 176 / 144, a square
    assert whole.shape == (4, 57, 57 if resize == "squash" else across, 3)
    deployed = load_clip(source, spec)
    scaled_and_cut_at_once = region == "motion" and antialias
    np.testing.assert_allclose(centred(whole, 48).astype(int), deployed, atol=1 if scaled_and_cut_at_once else 0)
    np.testing.assert_array_equal(load_uncropped(source, spec, chosen[[2, 0]]), whole[[2, 0]])


def test_centre_of_odd_rests_is_rounded_to_even() -> None:
    frames = np.arange(9 * 8).reshape(1, 9, 8, 1)
    for size, (top, left) in {4: (2, 2), 5: (2, 2), 6: (2, 1), 8: (0, 0)}.items():  # rests of 5, 4, 3, 1 rows
        np.testing.assert_array_equal(centred(frames, size), frames[:, top : top + size, left : left + size])


@pytest.mark.parametrize("spec", [ClipSpec(), ClipSpec(region="motion", short_side=256, mean=(0.0, 0.0, 0.0))])
def test_spec_survives_json(spec: ClipSpec) -> None:
    assert ClipSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"antialias": False, "interpolation": "bicubic"}, "bilinear interpolation only"),
        ({"short_side": 200}, "short_side 200 is smaller than size 224"),
        ({"region": (0, 0, 5, 5)}, "region"),
        ({"frames": 0}, "frames"),
        ({"std": (0.0, 1.0, 1.0)}, "std must be above 0"),
        ({"rgb": True}, "Extra inputs"),
    ],
)
def test_spec_refusals(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        ClipSpec(**options)
