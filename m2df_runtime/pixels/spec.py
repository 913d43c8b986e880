"""How a clip becomes a model's input, as data: written into a bundle's manifest and followed to the byte."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from m2df_runtime.clips.sampling import Sampler

# Names what `load_clip` makes of a clip. It is part of every key under which features or pixels are kept, so it goes
# up by one whenever decoding, sampling, region, channels or resizing give other pixels of any clip; the golden
# hashes of tests/runtime/test_pixels.py fail until it does.
PIXELS_VERSION = 2

# method.md 1.5; OpenAI CLIP, on RGB in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# The largest published CLIP sees 512 pixels, the longest clips of few-shot work have 64 frames. Together the bounds
# keep a clip's pixels under 1 GB, whatever a manifest says.
MAX_FRAMES = 256
Frames = Annotated[int, Field(gt=0, le=MAX_FRAMES)]
Length = Annotated[int, Field(gt=0, le=1024)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Numbers = tuple[Finite, Finite, Finite]


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

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)  # most are a part of a manifest

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
