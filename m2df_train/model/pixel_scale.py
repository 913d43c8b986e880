"""The first step of an image tower of m2df's own, where an export finds it."""

from __future__ import annotations

from torch import Tensor, nn


class PixelScale(nn.Module):
    """What a tower of ours does to pixels before anything else: `pixels * scale + shift`, by channel or for all alike.

    An exported graph works the normalisation of a clip into it. In 8 bits of precision (bfloat16) it matters: the
    differences of motion channels lie around 0.5, and would be rounded there before they are spread out.
    """

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale = nn.Buffer(scale.view(1, -1, 1, 1), persistent=False)
        self.shift = nn.Buffer(shift.view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, C, H, W] to the same; of one scale for all channels C is any."""
        return pixels * self.scale + self.shift
