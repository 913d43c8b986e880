"""A clip as training sees it: random frames, place, mirroring and colour, one draw for the whole clip.

Method section 1.5. `load_deployed_clip` is the other way, that of evaluation and deployment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.sampling import sample_indices
from m2df_runtime.errors import InputError
from m2df_runtime.pixels.load import load_clip, load_uncropped
from m2df_runtime.pixels.resize_and_crop import centred
from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.data.cache_keys import digest
from m2df_train.data.clips import LabelledClip
from m2df_train.data.frame_cache import FrameCache, StoredFrames

if TYPE_CHECKING:
    from m2df_train.recipe.sections import DataRecipe

Role = Literal["support", "query"]
Pixels = NDArray[np.uint8]

# Like `PIXELS_VERSION`, of what training makes of those pixels: goes up by one when a variant of the same clip, options
# and draw, or the choice of frames that are kept, becomes another. Golden hashes in tests/train/test_augment.py tell.
VARIANTS_VERSION = 1

# A cached clip keeps this many frames for each that the model sees, evenly spaced.
_KEPT_PER_FRAME = 4
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Colour:
    """Strengths of random colour; see `recipe_sections.ColourJitter`, which this is without its imports."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    grey: float


@dataclass(frozen=True)
class Augmentation:
    """What of a recipe makes training pixels; workers are sent this, because a recipe's module loads PyTorch.

    Attributes:
        spec: Preprocessing of training clips.
        crop: Cut at a random place instead of the centre.
        hflip: Probability that a clip is mirrored.
        hflip_query: The same for a query.
        query_colour: Colour changes of queries.
    """

    spec: ClipSpec
    crop: bool
    hflip: float
    hflip_query: float
    query_colour: Colour | None

    @classmethod
    def of(cls, spec: ClipSpec, data: DataRecipe) -> Augmentation:
        """The augmentation that a recipe's section `data` asks for, of clips that are preprocessed so.

        Raises:
            InputError: Colour changes of pictures that have no colour.
        """
        if data.query_colour is not None and spec.channels == "motion":
            raise InputError("data.query_colour: the channels of clip.channels motion are no colours", "remove it")
        colour = None if data.query_colour is None else Colour(**data.query_colour.model_dump())
        query = data.hflip if data.hflip_query is None else data.hflip_query
        return cls(spec, data.crop, data.hflip, query, colour)

    @property
    def identity(self) -> str:
        """Stands for these options in caches."""
        return repr(
            (VARIANTS_VERSION, self.spec.model_dump_json(), *(getattr(self, field.name) for field in fields(self)[1:]))
        )


def training_pixels(
    clip: LabelledClip, options: Augmentation, rng: np.random.Generator, *, role: Role, cache: FrameCache | None
) -> Pixels:
    """A random variant of a clip: uint8 [T, S, S, 3].

    Args:
        clip: The clip.
        options: What may change.
        rng: All randomness; the same state gives the same pixels.
        role: What the clip is in its episode: queries may be changed more than support clips.
        cache: Frames are taken from there and kept there. It keeps at most 4 T evenly spaced frames of a clip, and
            the nearest of them stand for those that the sampler draws; without a cache every frame is exact.

    Raises:
        InputError: The clip cannot be read.
    """
    return _variants(clip, options, [rng], role, cache)[0]


def _variants(
    clip: LabelledClip,
    options: Augmentation,
    rngs: Sequence[np.random.Generator],
    role: Role,
    cache: FrameCache | None,
) -> Pixels:
    """A variant for each state of randomness, uint8 [V, T, S, S, 3]; the clip is decoded once."""
    drawn = _sampled(clip, options.spec, rngs, cache)
    return np.stack([_changed(frames, options, rng, role) for frames, rng in zip(drawn, rngs, strict=True)])


def _changed(frames: Pixels, options: Augmentation, rng: np.random.Generator, role: Role) -> Pixels:
    """Frames [T, h, w, 3] cut, mirrored and coloured."""
    frames = _cut(frames, options.spec.size, rng) if options.crop else centred(frames, options.spec.size)
    mirrored = rng.random() < (options.hflip if role == "support" else options.hflip_query)
    # The methods mirror before they cut; a uniform place makes that the same.
    pixels = np.ascontiguousarray(frames[:, :, ::-1] if mirrored else frames)
    if role == "query" and options.query_colour is not None:
        return recoloured(pixels, options.query_colour, rng)
    return pixels


def load_deployed_clip(clip: LabelledClip, spec: ClipSpec, cache: FrameCache | None = None) -> Pixels:
    """A clip as evaluation and deployment see it, uint8 [T, S, S, 3]; the cache keeps exactly these pixels.

    Raises:
        InputError: The clip cannot be read.
    """
    if cache is None:
        return load_clip(clip.open(), spec)

    def make() -> StoredFrames:
        pixels = load_clip(clip.open(), spec)
        return StoredFrames(pixels, np.arange(len(pixels)), np.zeros(0), 0.0)

    return np.array(cache.frames(clip.key, f"deployed {spec.model_dump_json()}", make).frames)


@dataclass(frozen=True)
class DeployedLoader:
    """`load_deployed_clip` as `FeatureCache.encode` calls it; all views of a clip are the same."""

    spec: ClipSpec
    cache: FrameCache | None = None

    def __call__(self, clip: LabelledClip, views: Sequence[int]) -> Pixels:
        """uint8 [V, T, S, S, 3]."""
        return np.repeat(load_deployed_clip(clip, self.spec, self.cache)[None], len(views), axis=0)


@dataclass(frozen=True)
class TrainingLoader:
    """Random variants of clips as `FeatureCache.encode` calls them: view `view` of a clip is always the same.

    It depends on the seed and the clip's name, not on its place, so two machines make the same.
    """

    options: Augmentation
    seed: int
    cache: FrameCache | None = None

    def __call__(self, clip: LabelledClip, views: Sequence[int]) -> Pixels:
        """uint8 [V, T, S, S, 3]."""
        name = int(digest(clip.name)[:16], 16)
        rngs = [np.random.default_rng([self.seed, name, view]) for view in views]
        return _variants(clip, self.options, rngs, "support", self.cache)


def _sampled(
    clip: LabelledClip, spec: ClipSpec, rngs: Sequence[np.random.Generator], cache: FrameCache | None
) -> list[Pixels]:
    """The frames the sampler draws with each `rng`, scaled and whole: uint8 [T, h, w, 3]."""

    def draw(times: NDArray[np.float64], fps: float) -> list[NDArray[np.int64]]:
        return [sample_indices(spec.sampler, len(times), spec.frames, fps=fps, times=times, rng=rng) for rng in rngs]

    if cache is None:
        source = clip.open()
        chosen = draw(source.times, source.fps)
        wanted = np.unique(np.concatenate(chosen))
        frames = load_uncropped(source, spec, wanted)
        return [frames[np.searchsorted(wanted, indices)] for indices in chosen]
    recipe = spec.model_dump_json(exclude={"sampler", "mean", "std"})
    kept = cache.frames(clip.key, f"training {VARIANTS_VERSION} {recipe}", partial(_evenly, clip, spec))
    between = (kept.at[1:] + kept.at[:-1]) / 2
    return [kept.frames[np.searchsorted(between, indices)] for indices in draw(kept.times, kept.fps)]


def _evenly(clip: LabelledClip, spec: ClipSpec) -> StoredFrames:
    """At most 4 T frames of a clip, evenly spaced."""
    source = clip.open()
    count = min(source.n_frames, _KEPT_PER_FRAME * spec.frames)
    at = sample_indices("uniform", source.n_frames, count)
    return StoredFrames(load_uncropped(source, spec, at), at, source.times, source.fps)


def _cut(frames: Pixels, size: int, rng: np.random.Generator) -> Pixels:
    """A square at a random place, the same in all frames."""
    top, left = (int(rng.integers(0, length - size + 1)) for length in frames.shape[1:3])
    return frames[:, top : top + size, left : left + size]


def recoloured(pixels: Pixels, strength: Colour, rng: np.random.Generator) -> Pixels:
    """Random colour, the same in all frames: grey with its probability, then the four others in random order.

    Brightness multiplies; contrast moves away from or towards the mean grey of the clip, saturation from or to
    each pixel's own grey; hue turns the colour circle.

    Args:
        pixels: uint8 [T, S, S, 3] RGB.
        strength: How far.
        rng: Draws the same number of values whatever the strength.
    """
    is_grey = rng.random() < strength.grey
    ranges = (strength.brightness, strength.contrast, strength.saturation)
    factors = [float(rng.uniform(1 - width, 1 + width)) for width in ranges]
    turn = float(rng.uniform(-strength.hue, strength.hue))
    values = pixels.astype(np.float32)
    if is_grey:
        values = np.repeat(_grey(values), 3, axis=-1)
    for step in rng.permutation(4).tolist():
        values = _turned(values, turn) if step == 3 else _blended(values, step, factors[step])
    return np.rint(values).astype(np.uint8)


def _blended(values: NDArray[np.float32], step: int, factor: float) -> NDArray[np.float32]:
    """Brightness (0), contrast (1) or saturation (2): away from black, the mean grey, the pixel's grey."""
    if factor == 1:
        return values
    if step == 0:
        return np.clip(values * np.float32(factor), 0, 255)
    grey = _grey(values)
    base = grey.mean() if step == 1 else grey
    return np.clip(base + np.float32(factor) * (values - base), 0, 255)


def _turned(values: NDArray[np.float32], turn: float) -> NDArray[np.float32]:
    """Hue moved by `turn` times the colour circle."""
    if turn == 0:
        return values
    shape = values.shape
    colours = cv2.cvtColor(np.ascontiguousarray(values).reshape(-1, shape[-2], 3) / np.float32(255), cv2.COLOR_RGB2HSV)
    colours[..., 0] = (colours[..., 0] + np.float32(360 * turn)) % 360
    turned = cv2.cvtColor(colours, cv2.COLOR_HSV2RGB) * np.float32(255)
    return np.clip(turned, 0, 255).reshape(shape).astype(np.float32, copy=False)


def _grey(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """[..., 3] to [..., 1]."""
    return (values @ _GREY)[..., None]
