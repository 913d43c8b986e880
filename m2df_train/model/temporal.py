"""Temporal context extractors of CLIP-M2DF: what each frame sees of its neighbours and of the clip.

The local one is two convolutions over time, the global one a causal temporal convolutional network
whose last step, which has seen the whole clip, is added to every frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class TimeConv(nn.Conv1d):
    """Convolution over time as one matrix product, at the steps that are wanted; zeros beyond both ends.

    Args:
        dim: Channels.
        offsets: Where the taps lie, in steps from the one computed.
    """

    def __init__(self, dim: int, offsets: Sequence[int]) -> None:
        super().__init__(dim, dim, kernel_size=len(offsets))
        self.offsets = tuple(offsets)

    def reads(self, wanted: Sequence[int]) -> list[int]:
        """The steps at and after the first one that the wanted steps depend on, in order."""
        return sorted({step + offset for step in wanted for offset in self.offsets if step + offset >= 0})

    def forward(self, x: Tensor, known: Sequence[int], wanted: Sequence[int]) -> Tensor:  # type: ignore[override]
        """Values [B, len(known), D] at the known steps -> [B, len(wanted), D]; a step not known is zero."""
        place = {step: position for position, step in enumerate(known)}
        rows = [place.get(step + offset, len(place)) for step in wanted for offset in self.offsets]
        padded = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)  # row len(known) is zero
        columns = padded.index_select(1, torch.tensor(rows, device=x.device))  # [B, len(wanted) * taps, D]
        return F.linear(columns.unflatten(1, (len(wanted), -1)).flatten(2), self.matrix(), self.bias)

    def matrix(self) -> Tensor:
        """The weight as the matrix it is used as, [D, taps * D]."""
        return self.weight if self.weight.ndim == 2 else self.weight.transpose(1, 2).flatten(1)

    def store_matrix(self) -> None:
        """Keep the weight in that form, so that a graph made of this module need not bring it there."""
        self.weight = nn.Parameter(self.matrix().detach().contiguous())


class LocalContext(nn.Module):
    """LTCE, method section 2.4: two stacked kernel-3 convolutions with nothing between, before or after.

    Args:
        dim: Feature size D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = TimeConv(dim, (-1, 0, 1))
        self.conv2 = TimeConv(dim, (-1, 0, 1))

    def forward(self, frames: Tensor) -> Tensor:
        """Frames [B, T, D] -> local context [B, T, D]."""
        steps = range(frames.shape[1])
        return self.conv2(self.conv1(frames, steps, steps), steps, steps)


class CausalBlock(nn.Module):
    """Residual block of two dilated causal convolutions with weight norm (method section 2.5).

    Args:
        dim: Channels.
        dilation: Distance between the three taps, in frames.
        dropout: After each activation.
    """

    def __init__(self, dim: int, dilation: int, dropout: float) -> None:
        super().__init__()
        offsets = (-2 * dilation, -dilation, 0)
        self.conv1 = weight_norm(TimeConv(dim, offsets))
        self.conv2 = weight_norm(TimeConv(dim, offsets))
        self.dropout = nn.Dropout(dropout)

    def reads(self, wanted: Sequence[int]) -> list[int]:
        """The steps of its input that the wanted steps of its result depend on."""
        return self.conv1.reads(self.conv2.reads(wanted))

    def forward(self, x: Tensor, known: Sequence[int], wanted: Sequence[int]) -> Tensor:
        """Values [B, len(known), D] at the known steps -> [B, len(wanted), D]."""
        between = self.conv2.reads(wanted)
        h = self.dropout(F.relu(self.conv1(x, known, between)))
        h = self.dropout(F.relu(self.conv2(h, between, wanted)))
        return F.relu(h + _steps(x, known, wanted))


class GlobalContext(nn.Module):
    """GTCE, method section 2.5: frame i becomes ``f_i + TCN(f)_last``; any number of frames.

    Args:
        dim: Feature size D.
        dropout: Of the blocks, 0.1 in the paper's code.
        depth: Blocks, with dilations 1, 2, 4, ...; three see 29 frames back.
    """

    def __init__(self, dim: int, dropout: float = 0.1, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CausalBlock(dim, 2**level, dropout) for level in range(depth))

    def network(self, frames: Tensor, wanted: Sequence[int]) -> Tensor:
        """TCN of the frames [B, T, D] at the wanted steps [B, len(wanted), D].

        Only what these steps depend on is computed: for the last of 8 frames 21 of 48 convolution results.
        """
        needed = [list(wanted)]
        for block in reversed(self.blocks):
            needed.insert(0, block.reads(needed[0]))  # type: ignore[operator] # stubs call a block a Tensor
        x = _steps(frames, range(frames.shape[1]), needed[0])
        for block, known, steps in zip(self.blocks, needed[:-1], needed[1:], strict=True):
            x = block(x, known, steps)
        return x

    def last(self, frames: Tensor) -> Tensor:
        """Last step of the TCN, which has seen the whole clip: [B, T, D] -> [B, 1, D]."""
        return self.network(frames, [frames.shape[1] - 1])

    def forward(self, frames: Tensor) -> Tensor:
        """Frames [B, T, D] -> global context [B, T, D]."""
        return frames + self.last(frames)


def _steps(x: Tensor, known: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """The wanted ones of the known steps [B, len(known), D]."""
    if list(known) == list(wanted):
        return x
    place = {step: position for position, step in enumerate(known)}
    return x.index_select(1, torch.tensor([place[step] for step in wanted], device=x.device))
