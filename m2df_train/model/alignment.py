"""Frame cosines, OTAM alignment and mean-of-frames distances between queries and class prototypes.

Everything here runs in at least float32, whatever precision the features come in: distances of
different classes differ in the third digit, which half precision does not carry through 64 cells.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

COS_EPS = 0.01  # added once to the product of the two norms (method section 0)


def widen(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is half precision, unchanged otherwise."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def cosine(x: Tensor, y: Tensor, eps: float = COS_EPS) -> Tensor:
    """All-pairs cosine ``x.y / (|x||y| + eps)`` over the last axis.

    Args:
        x: Vectors [..., M, D], not normalised.
        y: Vectors [..., N, D]; leading axes broadcast with those of ``x``.
        eps: Added to the product of norms; 0.01 in both papers' code. A zero row gives 0.

    Returns:
        Cosines [..., M, N] in at least float32.
    """
    x, y = widen(x), widen(y)
    norms = torch.linalg.vector_norm(x, dim=-1).unsqueeze(-1) * torch.linalg.vector_norm(y, dim=-1).unsqueeze(-2)
    return x @ y.transpose(-1, -2) / (norms + eps)


def softmin(a: Tensor, b: Tensor) -> Tensor:
    """Smooth minimum ``-log(exp(-a) + exp(-b))``; the smaller term is taken out, so no exponential overflows.

    Written with min, max, exp and log only, which every inference engine has in float32.
    A soft minimum of three values is two of these nested.
    """
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    return low - torch.log1p(torch.exp(low - high))


def _otam_rows(costs: Tensor) -> list[list[Tensor]]:
    """Cumulative costs of the real columns, row by row, of the recursion in ``otam_pairs``; costs [R, N, P]."""
    rows: list[list[Tensor]] = []
    for row in costs.unbind(0):
        cells = row.unbind(0)  # N x [P]
        if not rows:
            current = [cells[0]]
            for cell in cells[1:]:
                current.append(current[-1] + cell)
        else:
            above = rows[-1]
            # Column 1 chooses between two zero paddings (a constant -log 2 together) and the cell above.
            start = torch.full_like(cells[0], -math.log(2.0))
            current = [cells[0] + softmin(above[0], start)]
            for m in range(1, len(cells)):
                current.append(cells[m] + softmin(above[m - 1], current[m - 1]))
        rows.append(current)
    return rows


def _otam_end(last: Tensor) -> Tensor:
    """Collapse the right padding column over the last real column [R, P] -> [P].

    Its recursion F_l = softmin(F_{l-1}, C_{l-1}, C_l), F_0 = C_0 counts every row twice but the last,
    which enters once: F = -log(2 sum_{l<R-1} exp(-C_l) + exp(-C_{R-1})).
    """
    if last.shape[0] == 1:
        return last[0]
    low = last.amin(dim=0)
    weights = torch.exp(low - last)
    return low - torch.log(2.0 * weights[:-1].sum(dim=0) + weights[-1])


class _Otam(torch.autograd.Function):
    """OTAM with its gradient in closed form: the expected number of visits of each cell.

    Differentiating through the unrolled cells records about 500 small operations for 8 x 8; here the
    choice probabilities of all cells come from the finished table in a few large ones, and only the
    sweep back through the rows is sequential.
    """

    @staticmethod
    def forward(ctx: Any, costs: Tensor) -> Tensor:  # noqa: ANN401
        table = torch.stack([torch.stack(row) for row in _otam_rows(costs)])  # [R, N, P]
        ctx.save_for_backward(table)
        return _otam_end(table[:, -1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        (table,) = ctx.saved_tensors
        rows, columns, _ = table.shape
        multiplicity = torch.full((rows, 1), math.log(2.0), dtype=table.dtype, device=table.device)
        multiplicity[-1] = 0.0
        visits = torch.empty_like(table)
        visits[:, -1] = torch.softmax(multiplicity - table[:, -1], dim=0) * grad
        from_left = torch.sigmoid(table[:-1, :-1] - table[1:, :-1])  # [R-1, N-1, P]: cell (l+1, m+1) came from (l+1, m)
        from_above = torch.sigmoid(-table[:-1, 0] - math.log(2.0))  # [R-1, P]: cell (l+1, 0) came from (l, 0)
        for row in range(rows - 1, -1, -1):
            current = visits[row]
            below = visits[row + 1] if row + 1 < rows else None
            if below is not None:
                diagonal = below[1:] * (1.0 - from_left[row])  # [N-1, P] arrives at columns 0..N-2
                if columns == 1:
                    current[0] += below[0] * from_above[row]
            for m in range(columns - 2, -1, -1):
                step = current[m + 1] * from_left[row - 1, m] if row else current[m + 1]
                current[m] = step if below is None else step + diagonal[m]
                if m == 0 and below is not None:
                    current[0] += below[0] * from_above[row]
        return visits


def otam_pairs(distances: Tensor, lam: float) -> Tensor:
    """OTAM of P frame-distance matrices with the pairs innermost: [R, N, P] -> [P] (method section 2.7).

    Rows are walked in order, columns carry one zero padding column on each side. A path may start and
    end anywhere along the columns, moves right or diagonally, and downwards only in the first column and
    the right padding. The offset from counting paths is kept, so results may be negative.

    The cells are unrolled: with pairs innermost each is a handful of vector operations, the fastest form
    measured in ONNX Runtime (4,000 problems of 8 x 8: 5.4 ms, against 10.8 with the pairs outermost).

    Args:
        distances: Frame distances; R and N are static.
        lam: Smoothing of the soft minimum, 0.5 in both papers.
    """
    scaled = widen(distances) / lam
    # The closed-form gradient is for training alone: exporters trace the plain operations.
    if torch.is_grad_enabled() and scaled.requires_grad and not torch.compiler.is_compiling():
        return _Otam.apply(scaled) * lam
    return _otam_end(torch.stack([row[-1] for row in _otam_rows(scaled)])) * lam


def otam(distances: Tensor, lam: float = 0.5, *, bidirectional: bool = False) -> Tensor:
    """OTAM over the last two axes: distances [..., R, N] -> [...]; ``bidirectional`` adds the transposed problem."""
    batch = distances.shape[:-2]
    pairs = distances.flatten(0, -3).permute(1, 2, 0) if batch else distances.unsqueeze(-1)  # [R, N, P]
    return _directions(pairs.contiguous(), lam, bidirectional).reshape(batch)


def _directions(pairs: Tensor, lam: float, bidirectional: bool) -> Tensor:
    """OTAM of [R, N, P], in one or both directions; square problems run both in one recursion of 2P pairs."""
    if not bidirectional:
        return otam_pairs(pairs, lam)
    if pairs.shape[0] != pairs.shape[1]:
        return otam_pairs(pairs, lam) + otam_pairs(pairs.transpose(0, 1).contiguous(), lam)
    both = torch.stack([pairs, pairs.transpose(0, 1)], dim=2)  # [T, T, 2, P]
    forward, backward = otam_pairs(both.flatten(2), lam).unflatten(0, (2, -1)).unbind(0)
    return forward + backward


def mean_distance(query: Tensor, prototypes: Tensor, eps: float = COS_EPS) -> Tensor:
    """Distance of time-averaged frames: ``1 - cos_eps(mean_t query, mean_t prototype)``.

    Args:
        query: Frames [..., Q, T, D].
        prototypes: Frames [..., C, T, D].
        eps: As in ``cosine``.

    Returns:
        Distances [..., Q, C].
    """
    return 1.0 - cosine(widen(query).mean(dim=-2), widen(prototypes).mean(dim=-2), eps)


def view_distances(
    query: Tensor,
    prototypes: Tensor,
    *,
    lam: float = 0.5,
    bidirectional: bool = True,
    eps: float = COS_EPS,
    otam_weight: float = 1.0,
    mean_weight: float = 0.0,
) -> Tensor:
    """Distance of every query to every class in every view: the papers' OTAM, and optionally a term without order.

    ``otam_weight * OTAM + mean_weight * T * directions * mean_distance``; the factor brings the second
    term to the scale of OTAM, a sum of T frame distances per direction. At the default weights this is
    equation d of method section 2.7.

    Args:
        query: Fused query frames [Q, V, T, D].
        prototypes: Class prototypes [C, V, T, D].
        lam: OTAM smoothing.
        bidirectional: Add OTAM with the roles of query and prototype swapped.
        eps: As in ``cosine``.
        otam_weight: Weight of OTAM; 0 skips it.
        mean_weight: Weight of the mean-of-frames term, which ignores order and so suits cyclic actions.

    Returns:
        Distances [Q, V, C].
    """
    queries, views, frames = query.shape[:3]
    classes, _, columns = prototypes.shape[:3]
    directions = 2 if bidirectional else 1
    total: Tensor | None = None
    if otam_weight:
        # Every view against every view, then the matching ones: bringing the views of 1,000 prototypes
        # together first moves 32 MB (5 ms of a 16 ms match), the superfluous half of the product is free.
        cos = cosine(query.flatten(0, 2), prototypes.flatten(0, 2), eps)  # [Q*V*T, C*V*T]
        cos = cos.reshape(queries, views, frames, classes, views, columns)
        cos = torch.stack([cos[:, v, :, :, v] for v in range(views)], dim=1)  # [Q, V, T, C, T]
        pairs = 1.0 - cos.permute(2, 4, 0, 1, 3).flatten(2)  # [T, T, Q*V*C]
        total = otam_weight * _directions(pairs, lam, bidirectional).reshape(queries, views, classes)
    if mean_weight:
        mean = mean_distance(query.transpose(0, 1), prototypes.transpose(0, 1), eps).transpose(0, 1)  # [Q, V, C]
        mean = mean * (mean_weight * directions * frames)
        total = mean if total is None else total + mean
    if total is None:
        raise ValueError("otam_weight and mean_weight are both 0: nothing to match with")
    return total
