"""Several updates from one batch of generated clips: each looks at other frames, framed and exposed otherwise.

Drawing a clip costs more than several updates with it, and a deployed model meets motion boxes that sit
a little differently on every person: what `vary` changes is what the region of interest leaves open.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m2df_train.data.generated import Batch

PHASES = 2  # disjoint sets of frames in a batch
_ZOOM, _TURN, _SHIFT = 0.12, 3.0, 0.08  # log scale, degrees, share of the picture: standard deviations
_LIGHT, _CONTRAST, _MOTION = 12.0, 0.2, 0.3  # grey levels, and log gains of picture and differences


def look_at(batch: Batch, look: int) -> Batch:
    """Look number `look` at a batch: every other frame, mirrored in two looks of four; texts name no side."""
    clips = batch.clips[:, look % PHASES :: PHASES]  # (N, T, S, S, 3)
    mirrored = look % 4 in (1, 2)
    return replace(batch, clips=np.ascontiguousarray(clips[..., ::-1, :] if mirrored else clips))


def vary(clips: Tensor, generator: torch.Generator) -> Tensor:
    """Every clip with a crop, light and strength of motion of its own, the same for all its frames.

    Args:
        clips: uint8 [N, T, S, S, 3] of the `motion` channels: grey, and two differences around 128.
        generator: All randomness.

    Returns:
        uint8 [N, T, S, S, 3].
    """
    count, frames, size = clips.shape[:3]

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator).clamp_(-2.5, 2.5)

    zoom, angle = torch.exp(_ZOOM * normal()), math.radians(_TURN) * normal()
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom * angle.cos()
    theta[:, 1, 0] = zoom * angle.sin()
    theta[:, 0, 1] = -theta[:, 1, 0]
    theta[:, :, 2] = 2 * _SHIFT * normal(2)
    grid = F.affine_grid(theta, [count, 1, size, size], align_corners=False)
    planes = clips.permute(0, 1, 4, 2, 3).flatten(1, 2).float()  # (N, T * 3, S, S)
    moved = F.grid_sample(planes, grid, padding_mode="border", align_corners=False).unflatten(1, (frames, 3))
    contrast, motion = torch.exp(_CONTRAST * normal()), torch.exp(_MOTION * normal())
    gain = torch.stack([contrast, motion, motion], dim=1)[:, None, :, None, None]
    light = F.pad(_LIGHT * normal(1), (0, 2))[:, None, :, None, None]
    exposed = (moved - 128.0) * gain + 128.0 + light
    return exposed.round_().clamp_(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous()
