"""From a clip to the pixels a model sees: the one preprocessing of training and deployment.

OpenCV loads where pictures are worked on and not with the module, here and beneath: TensorRT 8.5 runs on a numpy that
it refuses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.sampling import sample_indices
from m2df_runtime.clips.source import FrameSource, Picture
from m2df_runtime.pixels.background import background_indices
from m2df_runtime.pixels.motion_box import motion_boxes
from m2df_runtime.pixels.resize_and_crop import NO_DIFFERENCE, Box, fit, overhang, padded, reach, scaled
from m2df_runtime.pixels.scene_frame import SceneFrame
from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.pixels.stabilise import Scene, steady_scene

_PREVIOUS_SECONDS = 0.08  # two frames at 25 fps
_TIME_ROUNDING = 0.001  # Matroska rounds time stamps to 1 ms
# Decoded frames kept until the region is known; beyond it the clip is decoded a second time. 8 frames of 4K are 100 MB.
_KEPT_BYTES = 128 << 20

_log = logging.getLogger(__name__)


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
    chosen = chosen_frames(source, spec, rng=rng)
    different, possible = len(np.unique(chosen)), min(spec.frames, source.n_frames)
    if rng is None and spec.sampler == "uniform" and different < possible and not source.is_part:
        _log.warning("%s: its frames are so uneven in time that %d of %d are sampled", source.name, different, possible)
    return _load(source, spec, chosen, fit)


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
    return _load(source, spec, chosen, scaled)


def chosen_frames(source: FrameSource, spec: ClipSpec, *, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
    """The frames of a clip that a model sees, by the spec's sampler: int64 [T], ascending, some perhaps twice."""
    return sample_indices(
        spec.sampler,
        source.n_frames,
        spec.frames,
        fps=source.fps,
        times=source.times,
        duration=source.duration,
        rng=rng,
    )


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
    frames = [picture.made_once(SceneFrame.of) for picture in source.pictures(wanted)]
    at_chosen, at_earlier, at_still = (np.searchsorted(wanted, which) for which in (chosen, earlier, still))
    scene = steady_scene(frames, at_still)
    now, before = ([scene.frames[place].grey for place in at.tolist()] for at in (at_chosen, at_earlier))
    if spec.region == "full":
        pictures = motion_channels(now, before, scene.background)
        return np.stack([resize(p, None, spec) for p in scene.cut(pictures, at_chosen, frames[0].grey.shape)])
    boxes = _scene_boxes(scene, at_still, source.times[still], source.times[chosen])
    seen = (
        _channels_within(one, other, scene.background, box, reach(box, spec))
        for one, other, box in zip(now, before, boxes, strict=True)
    )
    return np.stack([resize(picture, box, spec) for picture, box in seen])


def _load_moving_colour(
    source: FrameSource, spec: ClipSpec, wanted: NDArray[np.int64], resize: _Resize
) -> NDArray[np.uint8]:
    """`_load` for distinct frames in colour, cut where the grey scene moves."""
    still = background_indices(source.n_frames)
    seen = np.unique(np.concatenate([wanted, still]))
    at_wanted, at_still = np.searchsorted(seen, wanted), np.searchsorted(seen, still)
    frames: list[SceneFrame] = []
    kept: list[Picture] = []
    for place, picture in enumerate(source.pictures(seen)):
        frames.append(picture.made_once(SceneFrame.of))
        if len(wanted) * picture.nbytes <= _KEPT_BYTES and place in at_wanted:
            kept.append(picture)
    scene = steady_scene(frames, at_still)
    boxes = _scene_boxes(scene, at_still, source.times[still], source.times[wanted])
    boxes[:, :2] -= scene.corners[at_wanted]
    scene_size = np.asarray([*frames[0].grey.shape[::-1]] * 2)
    cut = []
    pictures = iter(kept) if len(kept) == len(wanted) else source.pictures(wanted)
    for picture, box in zip(pictures, boxes, strict=True):
        frame = picture.rgb()
        extended = padded(frame, box * np.asarray([*frame.shape[1::-1]] * 2) / scene_size)
        cut.append(resize(*extended, spec))
    return np.stack(cut)


def _scene_boxes(
    scene: Scene, at_still: NDArray[np.int64], still: NDArray[np.float64], at: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Boxes [M, 4] in the scene at the times `at`, from its background frames and their times."""
    misplaced = bool(scene.corners.any())
    frames = [scene.frames[place] for place in at_still.tolist()]
    return motion_boxes(frames, scene.background, still, at=at, misplaced=misplaced)


def _channels_within(
    now: NDArray[np.uint8], before: NDArray[np.uint8], background: NDArray[np.uint8], box: NDArray[np.float64], far: int
) -> tuple[NDArray[np.uint8], Box]:
    """Motion channels [h', w', 3] as `motion_channels` and `padded` would have them, and the box inside them.

    Beyond the frame the grey values are repeated, and there is no difference. Only what lies in the box or `far` pixels
    around it is filled in: the rest is not looked at.
    """
    import cv2

    height, width = background.shape
    left, top, right, bottom = overhang(box, width, height)
    x, y, across, down = box.tolist()
    rows = slice(max(0, int(y) - far), min(height, int(y + down) + far + 1))
    columns = slice(max(0, int(x) - far), min(width, int(x + across) + far + 1))
    part = (rows, columns)
    grey = cv2.copyMakeBorder(now[part], top, bottom, left, right, cv2.BORDER_REPLICATE)
    differences = [
        cv2.copyMakeBorder(difference, top, bottom, left, right, cv2.BORDER_CONSTANT, value=NO_DIFFERENCE)
        for difference in (_half_difference(now[part], before[part]), _half_difference(now[part], background[part]))
    ]
    picture = np.empty((top + height + bottom, left + width + right, 3), dtype=np.uint8)
    inside = picture[rows.start : rows.stop + top + bottom, columns.start : columns.stop + left + right]
    cv2.merge([grey, *differences], inside)
    return picture, (x + left, y + top, across, down)


def previous_indices(times: NDArray[np.float64], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each chosen frame the latest one at least 0.08 s before it, or frame 0."""
    moments = times[chosen] - _PREVIOUS_SECONDS + _TIME_ROUNDING
    return np.maximum(np.searchsorted(times, moments, side="right") - 1, 0).astype(np.int64)


def motion_channels(
    grey: Sequence[NDArray[np.uint8]], previous: Sequence[NDArray[np.uint8]], background: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """(grey, change since the previous frame, difference to the background) of M frames [h, w]: uint8 [M, h, w, 3].

    Differences are halved towards zero and centred at 128, so no value is clipped.
    """
    import cv2

    pictures = np.empty((len(grey), *background.shape, 3), dtype=np.uint8)
    for picture, now, before in zip(pictures, grey, previous, strict=True):
        cv2.merge([now, _half_difference(now, before), _half_difference(now, background)], picture)
    return pictures


def _half_difference(now: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """128 + (now - reference) / 2, rounded towards 128, without leaving 8 bits (wide types cost 4x the time)."""
    import cv2

    brighter = cv2.subtract(now, reference).astype(np.uint8, copy=False)  # 0 where darker
    darker = cv2.subtract(reference, now).astype(np.uint8, copy=False)
    brighter >>= 1
    darker >>= 1
    brighter += np.uint8(NO_DIFFERENCE)
    brighter -= darker
    return brighter
