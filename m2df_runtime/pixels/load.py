"""From a clip to the pixels a model sees: the one preprocessing of training and deployment.

`ClipSpec` is data: it is written into a bundle's manifest, and `load_clip` follows it to the byte. OpenCV loads
where pictures are worked on and not with the module, here and beneath: TensorRT 8.5 runs on a numpy that it refuses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from m2df_runtime.clips.sampling import Sampler, sample_indices
from m2df_runtime.clips.source import FrameSource, Picture
from m2df_runtime.pixels.region import background_indices, motion_boxes
from m2df_runtime.pixels.stabilise import Scene, steady_scene

# Names what `load_clip` makes of a clip. It is part of every key under which features or pixels are kept, so it goes
# up by one whenever decoding, sampling, region, channels or resizing give other pixels of any clip; the golden
# hashes of tests/runtime/test_pixels.py fail until it does.
PIXELS_VERSION = 2

# method.md 1.5; OpenAI CLIP, on RGB in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_SCENE_SIDE = 320  # motion is found, and motion channels are computed, at no more than this long side
_PREVIOUS_SECONDS = 0.08  # two frames at 25 fps
_TIME_ROUNDING = 0.001  # Matroska rounds time stamps to 1 ms
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_NO_DIFFERENCE = 128
_LONGEST = 16  # times the other side
# Decoded frames kept until the region is known; beyond it the clip is decoded a second time. 8 frames of 4K are 100 MB.
_KEPT_BYTES = 128 << 20

_log = logging.getLogger(__name__)

# The largest published CLIP sees 512 pixels, the longest clips of few-shot work have 64 frames. Together the bounds
# keep a clip's pixels under 1 GB, whatever a manifest says.
Frames = Annotated[int, Field(gt=0, le=256)]
Length = Annotated[int, Field(gt=0, le=1024)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Numbers = tuple[Finite, Finite, Finite]
Box = tuple[float, float, float, float]  # x, y, width, height in pixels


class ClipSpec(BaseModel):
    """How a clip becomes uint8 frames [T, S, S, 3]; stored in the bundle's manifest.

    Attributes:
        frames: Frames per clip (T).
        size: Side of the square the encoder takes, in pixels (S).
        resize: `short` scales the short side to `short_side` and keeps the aspect ratio; `squash` scales both.
            The centred `size` square is cut out afterwards.
        short_side: Length scaled to, in pixels; None means `size`.
        interpolation: Filter of the resize.
        antialias: Widen the filter when shrinking, as Pillow does. False is the tensor style (half-pixel centres,
            `cv2.INTER_LINEAR`), for checkpoints trained so; bilinear only.
        sampler: Rule that chooses the frames (see `sampling.py`).
        region: `full`, or `motion`: one square box that follows what moves.
        channels: `rgb`, or `motion`: grey, difference to the frame 0.08 s earlier, difference to the clip's median,
            differences halved around 128 and taken in the full scene (long side at most 320), before the crop.
        mean: Subtracted from pixels in [0, 1] inside the visual graph; (0, 0, 0) for none.
        std: Divided by after that; (1, 1, 1) for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: Frames = 8
    size: Length = 224
    resize: Literal["short", "squash"] = "short"
    short_side: Length | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    antialias: bool = True
    sampler: Sampler = "uniform"
    region: Literal["full", "motion"] = "full"
    channels: Literal["rgb", "motion"] = "rgb"
    mean: Numbers = CLIP_MEAN
    std: Numbers = CLIP_STD

    @model_validator(mode="after")
    def _consistent(self) -> ClipSpec:
        if not self.antialias and self.interpolation != "bilinear":
            raise ValueError("antialias can be off with bilinear interpolation only")
        if self.short_side is not None and self.short_side < self.size:
            raise ValueError(f"short_side {self.short_side} is smaller than size {self.size}")
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        return self


def load_clip(source: FrameSource, spec: ClipSpec, *, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
    """Reads a clip as a model sees it: sample, find the region, build the channels, resize and crop.

    Args:
        source: The clip; only the frames needed are read.
        spec: What to do.
        rng: Randomness of the sampler in training; None for deployment.

    Returns:
        uint8 [T, S, S, 3].

    Raises:
        ClipError: The frames cannot be read.
    """
    chosen = sample_indices(spec.sampler, source.n_frames, spec.frames, fps=source.fps, times=source.times, rng=rng)
    different, possible = len(np.unique(chosen)), min(spec.frames, source.n_frames)
    if rng is None and spec.sampler == "uniform" and different < possible:
        _log.warning("%s: its frames are so uneven in time that %d of %d are sampled", source.name, different, possible)
    return _load(source, spec, chosen, _fit)


def load_uncropped(source: FrameSource, spec: ClipSpec, chosen: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Frames as `load_clip` has them before it cuts out the centre, for training to cut elsewhere.

    A frame does not depend on which others are chosen. `centred` cuts as `load_clip` does; in a `motion` region,
    which `load_clip` scales and cuts in one step, values may differ by rounding.

    Args:
        source: The clip; only the frames needed are read.
        spec: What to do; its sampler is not used.
        chosen: Indices of frames, int64 [M].

    Returns:
        uint8 [M, h, w, 3], both sides at least S.

    Raises:
        ClipError: The frames cannot be read.
    """
    return _load(source, spec, chosen, _scaled)


def centred(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The central square of frames [..., h, w, 3]: [..., size, size, 3]; offsets are rounded as torchvision does."""
    top, left = (round((length - size) / 2.0) for length in frames.shape[-3:-1])
    return frames[..., top : top + size, left : left + size, :]


_Resize = Callable[[NDArray[np.uint8], Box | None, ClipSpec], NDArray[np.uint8]]


def _load(source: FrameSource, spec: ClipSpec, chosen: NDArray[np.int64], resize: _Resize) -> NDArray[np.uint8]:
    """Chosen frames with region and channels of a spec, each finished by `resize`."""
    if spec.channels == "motion":
        return _load_motion_channels(source, spec, chosen, resize)
    wanted, places = np.unique(chosen, return_inverse=True)
    if spec.region == "motion":
        return _load_moving_colour(source, spec, wanted, resize)[places]
    return np.stack([resize(picture.rgb(), None, spec) for picture in source.pictures(wanted)])[places]


def _load_motion_channels(
    source: FrameSource, spec: ClipSpec, chosen: NDArray[np.int64], resize: _Resize
) -> NDArray[np.uint8]:
    """`_load` where all channels come from the grey scene."""
    still = background_indices(source.n_frames)
    earlier = previous_indices(source.times, chosen)
    wanted = np.unique(np.concatenate([chosen, earlier, still]))
    grey = np.stack([picture.grey(_SCENE_SIDE) for picture in source.pictures(wanted)])  # [M, h, w]
    at_chosen, at_earlier, at_still = (np.searchsorted(wanted, which) for which in (chosen, earlier, still))
    scene = steady_scene(grey, at_still)
    pictures = motion_channels(scene.frames[at_chosen], scene.frames[at_earlier], scene.background)
    if spec.region == "full":
        return np.stack([resize(p, None, spec) for p in scene.cut(pictures, at_chosen, grey.shape[1:])])
    boxes = _scene_boxes(scene, at_still, source.times[still], source.times[chosen])
    padded = (_padded(picture, box, neutral=True) for picture, box in zip(pictures, boxes, strict=True))
    return np.stack([resize(picture, box, spec) for picture, box in padded])


def _load_moving_colour(
    source: FrameSource, spec: ClipSpec, wanted: NDArray[np.int64], resize: _Resize
) -> NDArray[np.uint8]:
    """`_load` for distinct frames in colour, cut where the grey scene moves."""
    still = background_indices(source.n_frames)
    seen = np.unique(np.concatenate([wanted, still]))
    at_wanted, at_still = np.searchsorted(seen, wanted), np.searchsorted(seen, still)
    grey: list[NDArray[np.uint8]] = []
    kept: list[Picture] = []
    for place, picture in enumerate(source.pictures(seen)):
        grey.append(picture.grey(_SCENE_SIDE))
        if len(wanted) * picture.nbytes <= _KEPT_BYTES and place in at_wanted:
            kept.append(picture)
    scene = steady_scene(np.stack(grey), at_still)
    boxes = _scene_boxes(scene, at_still, source.times[still], source.times[wanted])
    boxes[:, :2] -= scene.corners[at_wanted]
    scene_size = np.asarray([*grey[0].shape[::-1]] * 2)
    cut = []
    pictures = iter(kept) if len(kept) == len(wanted) else source.pictures(wanted)
    for picture, box in zip(pictures, boxes, strict=True):
        frame = picture.rgb()
        padded = _padded(frame, box * np.asarray([*frame.shape[1::-1]] * 2) / scene_size, neutral=False)
        cut.append(resize(*padded, spec))
    return np.stack(cut)


def _scene_boxes(
    scene: Scene, at_still: NDArray[np.int64], still: NDArray[np.float64], at: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Boxes [M, 4] in the scene at the times `at`, from its background frames and their times."""
    misplaced = bool(scene.corners.any())
    return motion_boxes(scene.frames[at_still], scene.background, still, at=at, misplaced=misplaced)


def previous_indices(times: NDArray[np.float64], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each chosen frame the latest one at least 0.08 s before it, or frame 0."""
    moments = times[chosen] - _PREVIOUS_SECONDS + _TIME_ROUNDING
    return np.maximum(np.searchsorted(times, moments, side="right") - 1, 0).astype(np.int64)


def motion_channels(
    grey: NDArray[np.uint8], previous: NDArray[np.uint8], background: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """(grey, change since the previous frame, difference to the background), uint8 [M, h, w] -> [M, h, w, 3].

    Differences are halved towards zero and centred at 128, so no value is clipped.
    """
    import cv2

    pictures = np.empty((*grey.shape, 3), dtype=np.uint8)
    for picture, now, before in zip(pictures, grey, previous, strict=True):
        cv2.merge([now, _half_difference(now, before), _half_difference(now, background)], picture)
    return pictures


def _half_difference(now: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """128 + (now - reference) / 2, rounded towards 128, without leaving 8 bits (wide types cost 4x the time)."""
    larger = np.maximum(now, reference)
    half: NDArray[np.uint8] = ((larger - reference) >> 1) + np.uint8(_NO_DIFFERENCE) - ((larger - now) >> 1)
    return half


def _padded(picture: NDArray[np.uint8], box: NDArray[np.float64], neutral: bool) -> tuple[NDArray[np.uint8], Box]:
    """Extends a picture [h, w, 3] so that a box (x, y, w, h) fits; returns it with the box inside it.

    Edges are repeated; where `neutral`, channels 1 and 2 are differences and get "no difference".
    """
    height, width = picture.shape[:2]
    x, y, across, down = box.tolist()
    left, top = max(0, int(np.ceil(-x))), max(0, int(np.ceil(-y)))
    right, bottom = max(0, int(np.ceil(x + across - width))), max(0, int(np.ceil(y + down - height)))
    if left or top or right or bottom:
        import cv2

        bordered = cv2.copyMakeBorder(picture, top, bottom, left, right, cv2.BORDER_REPLICATE)
        picture = bordered.astype(np.uint8, copy=False)
        if neutral:
            picture[:top, :, 1:] = picture[top + height :, :, 1:] = _NO_DIFFERENCE
            picture[:, :left, 1:] = picture[:, left + width :, 1:] = _NO_DIFFERENCE
    return picture, (x + left, y + top, across, down)


def _fit(picture: NDArray[np.uint8], box: Box | None, spec: ClipSpec) -> NDArray[np.uint8]:
    """Scales a box (the whole picture when None) of [H, W, 3] and cuts out the centre: uint8 [S, S, 3]."""
    if box is None or not spec.antialias:
        # Not straight out of a sub-box: Pillow orders its two passes by their sizes, and a pixel would differ.
        return centred(_scaled(picture, box, spec), spec.size)
    across, down = _scaled_size(box[2], box[3], spec)
    left, top = round((across - spec.size) / 2.0), round((down - spec.size) / 2.0)
    x, y = box[0] + left * box[2] / across, box[1] + top * box[3] / down
    part = (x, y, x + spec.size * box[2] / across, y + spec.size * box[3] / down)
    kernel = _RESAMPLING[spec.interpolation]
    return np.asarray(Image.fromarray(picture).resize((spec.size, spec.size), kernel, box=part))


def _scaled(picture: NDArray[np.uint8], box: Box | None, spec: ClipSpec) -> NDArray[np.uint8]:
    """Scales a box (the whole picture when None) of [H, W, 3]: uint8 [h, w, 3]."""
    picture = picture if box is not None else _without_far_ends(picture)
    height, width = picture.shape[:2] if box is None else (box[3], box[2])
    size = _scaled_size(width, height, spec)
    if not spec.antialias:
        import cv2

        whole = picture if box is None else _whole_pixels(picture, box)
        return cv2.resize(whole, size, interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
    part = None if box is None else (box[0], box[1], box[0] + width, box[1] + height)
    return np.asarray(Image.fromarray(picture).resize(size, _RESAMPLING[spec.interpolation], box=part))


def _without_far_ends(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The middle of a picture that is more than 16 times as long as wide: scaled whole, 60,000 x 2 takes 4 GB."""
    for axis in (0, 1):
        spare = picture.shape[axis] - _LONGEST * picture.shape[1 - axis]
        if spare > 0:
            picture = np.take(picture, np.arange(spare // 2, picture.shape[axis] - (spare + 1) // 2), axis=axis)
    return picture


def _scaled_size(width: float, height: float, spec: ClipSpec) -> tuple[int, int]:
    """Width and height a picture is scaled to; the long side is int(short * long / short) as torchvision has it."""
    short = spec.short_side or spec.size
    if spec.resize == "squash":
        return short, short
    # A square box of fractional length can round to less than a square: 224 * w / w is 223.99... for one w in ten.
    if width < height:
        return short, max(short, int(short * height / width))
    return max(short, int(short * width / height)), short


def _whole_pixels(picture: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """The box rounded to whole pixels; OpenCV's plain resize takes no fractional ones."""
    x, y, width, height = (round(value) for value in box)
    return picture[y : y + max(1, height), x : x + max(1, width)]
