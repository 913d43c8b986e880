"""Attention as two linear layers, so that adapters can stand beside them.

PyTorch's `nn.MultiheadAttention` reads its weights without calling the layers they belong to. Adapters
then have to be added to the weights and taken off again around every call, which wears the weights away
by rounding; here they are called like any other layer's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LinearAttention(nn.Module):
    """`nn.MultiheadAttention` with the same weights: one linear layer before the heads, one after them.

    Args:
        packed: The attention; its parameters are shared, not copied.
    """

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads, self.batch_first = packed.num_heads, packed.batch_first
        self.packed = [packed]  # in a list: not a part, only where the weights return to
        dim = packed.embed_dim
        with torch.device("meta"):
            self.in_proj = nn.Linear(dim, 3 * dim, bias=packed.in_proj_bias is not None)
            self.out = nn.Linear(dim, dim, bias=packed.out_proj.bias is not None)
        self.in_proj.weight, self.in_proj.bias = packed.in_proj_weight, packed.in_proj_bias
        self.out.weight, self.out.bias = packed.out_proj.weight, packed.out_proj.bias

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Self-attention of [B, N, D] (or [N, B, D] without `batch_first`), beside None for the attention map.

        Raises:
            ValueError: Attention to other tokens than the query's, or a wish for the attention map.
        """
        if need_weights or key is not query or value is not query:
            raise ValueError("only self-attention without its map")
        x = query if self.batch_first else query.transpose(0, 1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.in_proj(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)  # (B, H, N, dh)
        result = self.out(mixed.transpose(1, 2).flatten(2))
        return result if self.batch_first else result.transpose(0, 1), None


def linear_attention(module: nn.Module) -> None:
    """Replace every `nn.MultiheadAttention` in a module that has only what `LinearAttention` has."""
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.MultiheadAttention) and _is_plain(part):
            _replace(module, name, LinearAttention(part))


def packed_attention(module: nn.Module) -> None:
    """Put the original modules back in their places, with the weights the linear layers have now."""
    for name, part in list(module.named_modules()):
        if isinstance(part, LinearAttention):
            packed = part.packed[0]
            packed.in_proj_weight = part.in_proj.weight  # type: ignore[assignment] # stubs call it a Tensor
            packed.in_proj_bias = part.in_proj.bias
            packed.out_proj.weight, packed.out_proj.bias = part.out.weight, part.out.bias
            _replace(module, name, packed)


def _replace(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, part)


def _is_plain(attention: nn.MultiheadAttention) -> bool:
    return (
        attention.in_proj_weight is not None  # None where keys or values have another size
        and attention.bias_k is None
        and not attention.add_zero_attn
        and attention.dropout == 0.0
    )
