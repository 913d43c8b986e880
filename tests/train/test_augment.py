"""Training pixels: one random draw for a whole clip, checked on clips that tell where their pixels came from."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from m2df_runtime.clips.source import ArraySource
from m2df_runtime.errors import InputError
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.data.augment import (
    VARIANTS_VERSION,
    Augmentation,
    Colour,
    DeployedLoader,
    TrainingLoader,
    recoloured,
    training_pixels,
)
from m2df_train.data.clips import LabelledClip
from m2df_train.data.frame_cache import FrameCache
from m2df_train.recipe.recipe import Recipe, load_recipe

SPEC = ClipSpec(frames=4, size=32, short_side=40, sampler="segment", interpolation="bilinear")
PLAIN = Augmentation(SPEC, crop=False, hflip=0.0, hflip_query=0.0, query_colour=None)
NO_COLOUR = Colour(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Frames:
    """Opens frames that are in memory."""

    frames: NDArray[np.uint8]

    def __call__(self) -> ArraySource:
        return ArraySource(self.frames)


def clip_of(frames: NDArray[np.uint8], key: str = "k") -> LabelledClip:
    return LabelledClip("a", "a/1", Frames(frames), key)


def coordinates(count: int = 12, height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    """Frames of the size that `SPEC` scales to, so that it changes no pixel: column, row and number of the frame."""
    frames = np.empty((count, height, width, 3), dtype=np.uint8)
    frames[..., 0] = np.arange(width)
    frames[..., 1] = np.arange(height)[:, None]
    frames[..., 2] = np.arange(count)[:, None, None]
    return frames


def texture(seed: int = 0, count: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 24, 3), dtype=np.uint8)


def variants(options: Augmentation, count: int, role: str = "support") -> Sequence[NDArray[np.uint8]]:
    clip = clip_of(coordinates())
    return [training_pixels(clip, options, np.random.default_rng(n), role=role, cache=None) for n in range(count)]


def test_places_are_uniform_and_the_same_in_all_frames():
    seen = set()
    for pixels in variants(replace(PLAIN, crop=True), 300):
        left, top = int(pixels[0, 0, 0, 0]), int(pixels[0, 0, 0, 1])
        np.testing.assert_array_equal(pixels[..., 0], np.broadcast_to(np.arange(left, left + 32), (4, 32, 32)))
        np.testing.assert_array_equal(pixels[..., 1], np.broadcast_to(np.arange(top, top + 32)[:, None], (4, 32, 32)))
        seen.add((left, top))
    assert {left for left, _ in seen} == set(range(29)) and {top for _, top in seen} == set(range(9))


def test_without_a_random_place_the_centre_is_cut():
    for pixels in variants(PLAIN, 3):
        assert pixels[0, 0, 0].tolist()[:2] == [14, 4]


def test_mirroring_reverses_columns_of_whole_clips():
    flipped = [int(pixels[0, 0, 0, 0]) for pixels in variants(replace(PLAIN, hflip=0.5), 200)]
    assert set(flipped) == {14, 45} and 70 < flipped.count(45) < 130
    (pixels,) = variants(replace(PLAIN, hflip=1.0), 1)
    np.testing.assert_array_equal(pixels[..., 0], np.broadcast_to(np.arange(45, 13, -1), (4, 32, 32)))
    np.testing.assert_array_equal(pixels[..., 1], variants(PLAIN, 1)[0][..., 1])


def test_queries_have_a_mirroring_of_their_own():
    options = replace(PLAIN, hflip=0.0, hflip_query=1.0)
    assert variants(options, 1)[0][0, 0, 0, 0] == 14
    assert variants(options, 1, role="query")[0][0, 0, 0, 0] == 45


def test_frames_are_drawn_one_from_each_segment():
    drawn = {tuple(pixels[:, 0, 0, 2].tolist()) for pixels in variants(PLAIN, 100)}
    assert len(drawn) > 50
    assert all([number // 3 for number in numbers] == [0, 1, 2, 3] for numbers in drawn)


def test_a_still_clip_stays_still():
    still = np.repeat(texture(1), 9, axis=0)
    colour = Colour(0.9, 0.9, 0.9, 0.5, 0.3)
    options = Augmentation(SPEC, crop=True, hflip=0.5, hflip_query=0.5, query_colour=colour)
    seen = set()
    for seed in range(20):
        pixels = training_pixels(clip_of(still), options, np.random.default_rng(seed), role="query", cache=None)
        np.testing.assert_array_equal(pixels, np.broadcast_to(pixels[0], pixels.shape))
        seen.add(pixels.tobytes())
    assert len(seen) == 20


def test_only_queries_change_colour():
    options = replace(PLAIN, query_colour=Colour(0.9, 0.0, 0.0, 0.0, 1.0))
    np.testing.assert_array_equal(variants(options, 1)[0], variants(PLAIN, 1)[0])
    (query,) = variants(options, 1, role="query")
    assert (query == query[..., :1]).all()


@pytest.mark.parametrize("fixed", ["uniform", "segment_center"])
def test_without_randomness_training_sees_what_deployment_sees(fixed):
    spec = SPEC.model_copy(update={"sampler": fixed})
    frames = np.random.default_rng(0).integers(0, 256, (20, 90, 70, 3), dtype=np.uint8)
    for region, channels in (("full", "rgb"), ("motion", "motion"), ((3, 4, 50, 60), "motion")):
        square = {"short_side": None} if region == "motion" else {}  # else scaled and cut in one step
        same = spec.model_copy(update={"region": region, "channels": channels, **square})
        options = replace(PLAIN, spec=same)
        pixels = training_pixels(clip_of(frames), options, np.random.default_rng(0), role="support", cache=None)
        np.testing.assert_array_equal(pixels, load_clip(ArraySource(frames), same))


# --- colour -----------------------------------------------------------------------------------------------------------


def test_grey_is_the_luminance_of_pillow():
    pixels = texture()
    grey = recoloured(pixels, replace(NO_COLOUR, grey=1.0), np.random.default_rng(0))
    expected = np.asarray(Image.fromarray(pixels[0]).convert("L"), dtype=int)[..., None]
    np.testing.assert_allclose(grey[0], np.repeat(expected, 3, axis=-1), atol=1)


@pytest.mark.parametrize(
    ("option", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_factors_act_as_in_pillow(option, enhance):
    pixels = texture()
    found = []
    for seed in range(12):
        changed = recoloured(pixels, replace(NO_COLOUR, **{option: 0.5}), np.random.default_rng(seed))[0].astype(int)
        picture = enhance(Image.fromarray(pixels[0]))
        candidates = np.linspace(0.5, 1.5, 501)
        errors = [np.abs(np.asarray(picture.enhance(float(c)), dtype=int) - changed).max() for c in candidates]
        assert min(errors) <= 2
        found.append(candidates[int(np.argmin(errors))])
    assert min(found) < 0.8 and max(found) > 1.2


def test_hue_turns_as_in_colorsys():
    pixels = texture()
    turns = []
    for seed in range(12):
        changed = recoloured(pixels, replace(NO_COLOUR, hue=0.25), np.random.default_rng(seed))[0]
        hues, values = [], []
        for before, after in zip(pixels[0].reshape(-1, 3) / 255, changed.reshape(-1, 3) / 255, strict=True):
            (h0, s0, v0), (h1, _, v1) = colorsys.rgb_to_hsv(*before), colorsys.rgb_to_hsv(*after)
            values.append(v1 - v0)
            if s0 * v0 > 0.5:
                hues.append((h1 - h0 + 0.5) % 1 - 0.5)
        np.testing.assert_allclose(values, 0, atol=1.01 / 255)
        np.testing.assert_allclose(hues, np.median(hues), atol=0.01)
        turns.append(float(np.median(hues)))
    assert -0.25 <= min(turns) < -0.1 and 0.1 < max(turns) <= 0.25


def test_nothing_changes_at_strength_zero():
    pixels = texture(2, count=3)
    np.testing.assert_array_equal(recoloured(pixels, NO_COLOUR, np.random.default_rng(0)), pixels)


# --- from a recipe ----------------------------------------------------------------------------------------------------


def recipe_of(*settings: str):
    small = ("clip.frames=4", "clip.size=64", "clip.short_side=72", "clip.region=full", "clip.channels=rgb")
    return load_recipe("demo", [*small, *settings])


def augmentation_of(recipe: Recipe) -> Augmentation:
    return Augmentation.of(recipe.clip.training, recipe.data)


def test_a_recipe_s_options_arrive():
    recipe = recipe_of(
        "data.hflip=0.25", "data.query_colour={hue: 0.1}", "data.crop=false", "clip.sampler.train=segment"
    )
    options = Augmentation.of(recipe.clip.training, recipe.data)
    assert options == Augmentation(recipe.clip.training, False, 0.25, 0.25, Colour(0.5, 0.5, 0.5, 0.1, 0.3))
    assert options.spec.sampler == "segment"
    assert augmentation_of(recipe_of("data.hflip_query=0.0", "data.hflip=1.0")).hflip_query == 0.0
    pixels = training_pixels(clip_of(coordinates()), options, np.random.default_rng(1), role="query", cache=None)
    assert pixels.shape == (4, 64, 64, 3) and pixels.dtype == np.uint8 and pixels.flags["C_CONTIGUOUS"]


def test_motion_channels_have_no_colour():
    with pytest.raises(InputError, match=r"query_colour.*channels motion"):
        augmentation_of(recipe_of("clip.channels=motion", "data.query_colour={}"))


def test_every_option_tells_identities_apart():
    changes = (
        {"crop": True},
        {"hflip": 0.1},
        {"hflip_query": 0.1},
        {"query_colour": NO_COLOUR},
        {"query_colour": replace(NO_COLOUR, hue=0.1)},
        {"spec": SPEC.model_copy(update={"size": 33})},
    )
    assert len({PLAIN.identity, *(replace(PLAIN, **change).identity for change in changes)}) == len(changes) + 1


def test_variants_depend_on_seed_name_and_view_alone(tmp_path):
    options = replace(PLAIN, crop=True, hflip=0.5)
    clip, load = clip_of(coordinates()), TrainingLoader(options, seed=3)
    first = load(clip, [0])[0]
    np.testing.assert_array_equal(load(replace(clip, key="elsewhere"), [0])[0], first)
    np.testing.assert_array_equal(load(clip, [1, 0, 2])[1], first)  # decoded together, drawn apart
    (second,) = load(clip, [1])
    (seeded,) = TrainingLoader(options, seed=4)(clip, [0])
    (named,) = load(replace(clip, name="a/2"), [0])
    for other in (second, seeded, named):
        assert not np.array_equal(other, first)


# --- from cached frames -----------------------------------------------------------------------------------------------


def test_a_short_clip_gives_the_same_pixels_from_the_cache(tmp_path: Path):
    """At most 4 T frames: all of them are kept."""
    options = Augmentation(SPEC, crop=True, hflip=0.5, hflip_query=0.5, query_colour=None)
    cache = FrameCache(tmp_path, 1 << 30)
    for count in (1, 3, 16):
        clip = clip_of(coordinates(count), key=str(count))
        for seed in range(3):
            exact, made, read = (
                training_pixels(clip, options, np.random.default_rng(seed), role="support", cache=where)
                for where in (None, cache, cache)
            )
            np.testing.assert_array_equal(made, exact)
            np.testing.assert_array_equal(read, exact)


@pytest.mark.parametrize("sampler", ["segment", "uniform", "linspace", "dense_clip"])
def test_a_long_clip_gives_the_nearest_of_its_kept_frames(tmp_path: Path, sampler: str):
    options = replace(PLAIN, spec=SPEC.model_copy(update={"sampler": sampler}))
    clip, cache = clip_of(coordinates(200)), FrameCache(tmp_path, 1 << 30)
    kept = (2 * np.arange(16) + 1) * 200 // 32
    for seed in range(5):
        exact, cached = (
            training_pixels(clip, options, np.random.default_rng(seed), role="support", cache=where)[:, 0, 0, 2]
            for where in (None, cache)
        )
        distance = np.abs(kept[None] - exact.astype(int)[:, None])
        assert np.isin(cached, kept).all()
        np.testing.assert_array_equal(np.abs(cached.astype(int) - exact), distance.min(axis=1))


def test_deployed_pixels_are_kept_exactly(tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 256, (50, 48, 64, 3), dtype=np.uint8)
    spec = SPEC.model_copy(update={"sampler": "uniform", "region": "motion"})
    cache = FrameCache(tmp_path, 1 << 30)
    expected = load_clip(ArraySource(frames), spec)
    for load in (DeployedLoader(spec), DeployedLoader(spec, cache), DeployedLoader(spec, cache)):
        np.testing.assert_array_equal(load(clip_of(frames), [0])[0], expected)
    assert len(list(tmp_path.glob("*.frames"))) == 1


def test_other_variants_have_another_version():
    """Where this fails on purpose, raise VARIANTS_VERSION, so that features of the old variants are encoded anew."""
    frames = np.random.default_rng(3).integers(0, 256, (20, 40, 52, 3), dtype=np.uint8)
    clip = LabelledClip("a", "a/0", partial(ArraySource, frames), "key")
    spec = ClipSpec(frames=4, size=32, short_side=36, sampler="segment")
    # Colour is left out: float products round differently on other processors.
    options = Augmentation(spec, crop=True, hflip=0.5, hflip_query=0.5, query_colour=None)
    pixels = TrainingLoader(options, seed=1)(clip, range(4))
    assert (VARIANTS_VERSION, hashlib.sha256(pixels.tobytes()).hexdigest()) == (
        1,
        "444c99e1fee46a97bd1465c49a789fa91410fd7acb2ccdcdf5487ea89b6c6b0a",
    )
