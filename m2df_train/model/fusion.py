"""The fusion encoder shared by CLIP-M2DF (MMFE) and CLIP-FSAR: a pre-norm attention block and a feed-forward.

One LayerNorm serves queries, keys and values, the residual adds the un-normalised queries, the
feed-forward has no norm of its own, and there is no positional encoding (method section 2.6).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2df_train.model.alignment import widen


class WideLayerNorm(nn.LayerNorm):
    """LayerNorm whose statistics are float32 in a half-precision model: squares of CLIP features overflow float16."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., D]."""
        y = F.layer_norm(widen(x), self.normalized_shape, widen(self.weight), widen(self.bias), self.eps)
        return y.to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention without mask; head h owns channels h*D/heads onwards.

    Args:
        dim: Channels D.
        heads: Heads; must divide ``dim``.
        dropout: After the output projection.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide {dim} channels")
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def weights(self, queries: Tensor, memory: Tensor) -> Tensor:
        """How much each query attends to each memory token: [B, N, D], [B, M, D] -> [B, H, N, M], rows sum to 1."""
        q = self.q(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, N, dh]
        k = self.k(memory).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, M, dh]
        return torch.softmax(widen((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)), dim=-1)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Queries [B, N, D] attend to memory [B, M, D] -> [B, N, D]."""
        v = self.v(memory).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, M, dh]
        mixed = self.weights(queries, memory).to(v.dtype) @ v  # [B, H, N, dh]
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Two linear layers around an exact GELU.

    Args:
        dim: Channels D.
        hidden: Hidden width.
        dropout: After the activation and after the second layer.
    """

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class FusionLayer(nn.Module):
    """``U = A + MHA(LN(A), LN(B))``, ``X = U + FFN(U)``.

    Args:
        dim: Channels D.
        heads: Attention heads.
        ffn_dim: Hidden width of the feed-forward.
        attention_dropout: After the attention's output projection.
        ffn_dropout: Inside the feed-forward.
    """

    def __init__(self, dim: int, heads: int, ffn_dim: int, attention_dropout: float, ffn_dropout: float) -> None:
        super().__init__()
        self.norm = WideLayerNorm(dim)
        self.attn = Attention(dim, heads, attention_dropout)
        self.ffn = FeedForward(dim, ffn_dim, ffn_dropout)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """A [B, N, D], B [B, M, D] -> [B, N, D]."""
        normed = self.norm(queries)
        u = queries + self.attn(normed, normed if memory is queries else self.norm(memory))
        return u + self.ffn(u)


class FusionEncoder(nn.Module):
    """A stack of fusion layers: the first attends from queries to memory, the others to themselves.

    Args:
        dim: Feature size D.
        heads: Attention heads, 8 in both papers.
        depth: Layers, 1 in every published configuration.
        ffn_dim: Hidden width of the feed-forward, 2048 whatever D is in both papers' code.
        attention_dropout: After the attention's output projection.
        ffn_dropout: Inside the feed-forward.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        depth: int = 1,
        ffn_dim: int = 2048,
        attention_dropout: float = 0.2,
        ffn_dropout: float = 0.05,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            FusionLayer(dim, heads, ffn_dim, attention_dropout, ffn_dropout) for _ in range(depth)
        )

    def forward(self, queries: Tensor, memory: Tensor | None = None, *, skip: int = 0) -> Tensor:
        """Fuse queries [B, N, D] with memory [B, M, D] (themselves when None) -> [B, N, D].

        The first ``skip`` tokens are left out of the result and not computed where nothing else needs them.
        """
        x = queries
        for index, layer in enumerate(self.layers):
            source = memory if index == 0 and memory is not None else x
            x = layer(x[:, skip:] if skip and index == len(self.layers) - 1 else x, source)
        return x
