"""Temporal context extractors of CLIP-M2DF: what each frame sees of its neighbours and of the clip.

The local one is two convolutions over time, the global one a causal temporal convolutional network
whose last step, which has seen the whole clip, is added to every frame.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class LocalContext(nn.Module):
    """LTCE, method section 2.4: two stacked kernel-3 convolutions with nothing between, before or after.

    Args:
        dim: Feature size D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(dim, dim, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, kernel_size=3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames [B, T, D] -> local context [B, T, D]."""
        return self.conv2(self.conv1(frames.transpose(1, 2))).transpose(1, 2)


class CausalBlock(nn.Module):
    """Residual block of two dilated causal convolutions with weight norm (method section 2.5).

    Args:
        dim: Channels.
        dilation: Distance between the three taps, in frames.
        dropout: After each activation.
    """

    def __init__(self, dim: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.reach = 2 * dilation
        self.conv1 = weight_norm(nn.Conv1d(dim, dim, kernel_size=3, dilation=dilation))
        self.conv2 = weight_norm(nn.Conv1d(dim, dim, kernel_size=3, dilation=dilation))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Channels first: [B, D, T] -> [B, D, T]."""
        h = self.dropout(F.relu(self.conv1(F.pad(x, (self.reach, 0)))))
        h = self.dropout(F.relu(self.conv2(F.pad(h, (self.reach, 0)))))
        return F.relu(h + x)


class GlobalContext(nn.Module):
    """GTCE, method section 2.5: frame i becomes ``f_i + TCN(f)_last``; any number of frames.

    Args:
        dim: Feature size D.
        dropout: Of the blocks, 0.1 in the paper's code.
        depth: Blocks, with dilations 1, 2, 4, ...; three see 29 frames back.
    """

    def __init__(self, dim: int, dropout: float = 0.1, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(CausalBlock(dim, 2**level, dropout) for level in range(depth)))

    def forward(self, frames: Tensor) -> Tensor:
        """Frames [B, T, D] -> global context [B, T, D]."""
        last = self.blocks(frames.transpose(1, 2))[:, :, -1]  # [B, D]
        return frames + last.unsqueeze(1)
