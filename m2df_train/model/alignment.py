"""Frame cosines, OTAM alignment and mean-of-frames distances between queries and class prototypes.

Everything here runs in at least float32, whatever precision the features come in: distances of
different classes differ in the third digit, which half precision does not carry through 64 cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

COS_EPS = 0.01  # added once to the product of the two norms (method section 0)
FARTHEST = 80.0  # float32 holds exp(87.3) and its inverse; 16 frames with lambda 0.5 need 51


def widen(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is half precision, unchanged otherwise."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def norms(x: Tensor) -> Tensor:
    """Euclidean norms over the last axis, [..., D] -> [...]; a zero row gives 1e-15 and no gradient.

    Written as a product and a sum: ONNX Runtime sums rows several times faster than its ReduceL2 takes
    their norm (16,000 rows of 512 on one core: 4.7 ms against 11).
    """
    return (x * x).sum(dim=-1).clamp_min(1e-30).sqrt()


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
    return x @ y.transpose(-1, -2) / (norms(x).unsqueeze(-1) * norms(y).unsqueeze(-2) + eps)


def softmin(a: Tensor, b: Tensor) -> Tensor:
    """Smooth minimum ``-log(exp(-a) + exp(-b))``; the smaller term is taken out, so no exponential overflows.

    Written with min, max, exp and log only, which every inference engine has in float32.
    A soft minimum of three values is two of these nested.
    """
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    return low - torch.log1p(torch.exp(low - high))


def _otam_columns(costs: Tensor) -> list[Tensor]:
    """Cumulative costs of the real columns of the recursion in ``otam_pairs``: [N, R, P] -> N times [R, P].

    A cell follows from the cell to its left and the one above that, so a whole column follows from the one
    before it at once; only the first column, the one with a downward step, is walked cell by cell.
    """
    first, *others = costs.unbind(0)
    cells = list(first.unbind(0))  # R x [P]
    # A cell of column 1 chooses between two zero paddings (a constant -log 2 together) and the cell above.
    start = torch.full_like(cells[0], -math.log(2.0))
    for row in range(1, len(cells)):
        cells[row] = cells[row] + softmin(cells[row - 1], start)
    columns = [torch.stack(cells)]
    for column in others:
        left = columns[-1]
        below = column[1:] + softmin(left[:-1], left[1:])
        columns.append(torch.cat([column[:1] + left[:1], below]))
    return columns


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

    The choice probabilities of all cells come from the finished table; a sweep back through its columns
    adds them up, without a record of the operations that made it.
    """

    @staticmethod
    def forward(ctx: Any, costs: Tensor) -> Tensor:  # noqa: ANN401
        table = torch.stack(_otam_columns(costs))  # [N, R, P]
        ctx.save_for_backward(table)
        return _otam_end(table[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        (table,) = ctx.saved_tensors
        columns, rows, _ = table.shape
        multiplicity = torch.full((rows, 1), math.log(2.0), dtype=table.dtype, device=table.device)
        multiplicity[-1] = 0.0
        visits = torch.empty_like(table)
        visits[-1] = torch.softmax(multiplicity - table[-1], dim=0) * grad
        from_left = torch.sigmoid(table[:-1, :-1] - table[:-1, 1:])  # [N-1, R-1, P]: of cell (l+1, m+1), not diagonally
        from_above = torch.sigmoid(-table[0, :-1] - math.log(2.0))  # [R-1, P]: of cell (l+1, 0), not from the padding
        for m in range(columns - 2, -1, -1):
            right = visits[m + 1]
            visits[m, 0] = right[0]
            visits[m, 1:] = right[1:] * from_left[m]
            visits[m, :-1] += right[1:] - visits[m, 1:]
        for row in range(rows - 1, 0, -1):
            visits[0, row - 1] += visits[0, row] * from_above[row - 1]
        return visits


def otam_pairs(distances: Tensor, lam: float) -> Tensor:
    """OTAM of P frame-distance matrices, columns first and pairs innermost: [N, R, P] -> [P] (method section 2.7).

    Columns carry one zero padding column on each side. A path may start and end anywhere along the
    columns, moves right or diagonally, and downwards only in the first column and the right padding. The
    offset from counting paths is kept, so results may be negative.

    With the pairs innermost every step is a vector operation: 4,000 problems of 8 x 8 take 1.5 ms in ONNX
    Runtime on one core.

    Args:
        distances: Frame distances; N and R are static.
        lam: Smoothing of the soft minimum, 0.5 in both papers.
    """
    scaled = widen(distances) / lam
    # The closed-form gradient is for training alone: exporters trace the plain operations.
    if torch.is_grad_enabled() and scaled.requires_grad and not torch.compiler.is_compiling():
        return _Otam.apply(scaled) * lam
    return _otam_end(_otam_columns(scaled)[-1]) * lam


def otam(distances: Tensor, lam: float = 0.5, *, bidirectional: bool = False) -> Tensor:
    """OTAM over the last two axes: distances [..., R, N] -> [...]; ``bidirectional`` adds the transposed problem."""
    batch = distances.shape[:-2]
    pairs = distances.flatten(0, -3).permute(2, 1, 0) if batch else distances.T.unsqueeze(-1)  # [N, R, P]
    return _directions(pairs, lam, bidirectional).reshape(batch)


def _directions(pairs: Tensor, lam: float, bidirectional: bool) -> Tensor:
    """OTAM of [N, R, P], in one or both directions; square problems run both in one recursion of 2P pairs."""
    if not bidirectional:
        return otam_pairs(pairs.contiguous(), lam)
    swapped = pairs.transpose(0, 1)
    if pairs.shape[0] != pairs.shape[1]:
        return otam_pairs(pairs.contiguous(), lam) + otam_pairs(swapped.contiguous(), lam)
    both = torch.stack([pairs, swapped], dim=2)  # [T, T, 2, P]
    forward, backward = otam_pairs(both.flatten(2), lam).unflatten(0, (2, -1)).unbind(0)
    return forward + backward


def _sums_hold(query: Tensor, prototypes: Tensor, lam: float) -> bool:
    """Whether OTAM of cosines may add the weights of all paths: float32 holds them, and no gradient is wanted.

    Cosines have bounds, and so has the sum: no cell then needs a logarithm. Gradients have a form of their own.
    """
    # Weights of a path: exp(-2 / lam) to 1 in its first column, exp(-1 / lam) to exp(1 / lam) in each other one.
    longest = max(query.shape[2], prototypes.shape[2])
    wanted = torch.is_grad_enabled() and (query.requires_grad or prototypes.requires_grad)
    return (longest + 1) * (1.0 / lam + 1.0) <= FARTHEST and not wanted


def _otam_of_cosines(scaled: Tensor, lam: float, bidirectional: bool) -> Tensor:
    """OTAM of the frame distances ``1 - cosine``, in one or both directions, from ``cosine / lam``: [N, R, P] -> [P].

    Where ``_sums_hold``.
    """
    weights = torch.exp(scaled)
    forward = _otam_of_weights(weights.unbind(0), lam)
    return forward + _otam_of_weights(weights.unbind(1), lam) if bidirectional else forward


def _otam_of_weights(columns: Sequence[Tensor], lam: float) -> Tensor:
    """OTAM in one direction from the columns of ``exp(cosine / lam)``, N times [R, P] -> [P].

    With E = exp(-C / lam) for the cumulative cost C of a cell, a soft minimum is a sum, and a cell takes one sum
    and one product. A path has one cell in each column but the first: the 1 of their 1 - cosine is added in the end.
    """
    rows = list((columns[0] * math.exp(-1.0 / lam)).split(1))  # R x [1, P]
    for row in range(1, len(rows)):
        rows[row] = rows[row] * (rows[row - 1] + 2.0)  # from above, or from the two zeros of the padding
    sums = torch.cat(rows)  # [R, P]
    outside = 0.0 * rows[0]
    for column in columns[1:]:
        sums = column * (sums + torch.cat([outside, sums[:-1]]))
    total = 2.0 * sums[:-1].sum(dim=0) + sums[-1]  # right padding: see ``_otam_end``
    return len(columns) - 1 - lam * torch.log(total)


def mean_distance(query: Tensor, prototypes: Tensor, eps: float = COS_EPS) -> Tensor:
    """Distance of time-averaged frames: ``1 - cos_eps(mean_t query, mean_t prototype)``.

    Args:
        query: Frames [Q, ..., T, D].
        prototypes: Frames [C, ..., T, D].
        eps: As in ``cosine``.

    Returns:
        Distances [Q, ..., C].
    """
    means = [widen(frames).mean(dim=-2).movedim(0, -2) for frames in (query, prototypes)]  # [..., Q, D], [..., C, D]
    return 1.0 - cosine(means[0], means[1], eps).movedim(-2, 0)


def _aligned_cosines(query: Tensor, prototypes: Tensor, eps: float, lam: float) -> Tensor:
    """Cosines of the frames of each view, divided by ``lam``: [Q, V, T, D], [C, V, N, D] -> [N, T, V, Q, C].

    Every view against every view, then the matching ones: bringing the views of 1,000 prototypes together
    first moves 32 MB, the superfluous half of the product is free. The prototypes are the left factor,
    which engines read as it lies; as the right one they are repacked (14 ms against 3.5 for 1,000 classes).
    """
    query, prototypes = widen(query), widen(prototypes)
    queries, views, frames = query.shape[:3]
    classes, _, columns = prototypes.shape[:3]
    tokens = query.permute(1, 2, 0, 3).flatten(0, 2)  # [V*T*Q, D]
    products = (prototypes.flatten(0, 2) @ tokens.T).reshape(classes, -1).T  # [V*N*V*T*Q, C]
    rows = [
        ((view * columns + column) * views + view) * frames + frame
        for column in range(columns)
        for frame in range(frames)
        for view in range(views)
    ]
    products = products.reshape(-1, queries * classes).index_select(0, torch.tensor(rows, device=query.device))
    products = products.reshape(columns, frames, views, queries, classes)
    query_norms = norms(query).permute(2, 1, 0).unsqueeze(-1)  # [T, V, Q, 1]
    class_norms = norms(prototypes).permute(2, 1, 0)[:, None, :, None]  # [N, 1, V, 1, C]
    return products / (lam * query_norms * class_norms + lam * eps)


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
    classes = prototypes.shape[0]
    directions = 2 if bidirectional else 1
    total: Tensor | None = None
    if otam_weight:
        if _sums_hold(query, prototypes, lam):
            scaled = _aligned_cosines(query, prototypes, eps, lam).flatten(2)  # [N, T, V*Q*C]
            aligned = _otam_of_cosines(scaled, lam, bidirectional)
        else:
            pairs = 1.0 - _aligned_cosines(query, prototypes, eps, 1.0).flatten(2)  # [N, T, V*Q*C]
            aligned = _directions(pairs, lam, bidirectional)
        total = otam_weight * aligned.reshape(views, queries, classes).transpose(0, 1)
    if mean_weight:
        mean = mean_distance(query, prototypes, eps) * (mean_weight * directions * frames)  # [Q, V, C]
        total = mean if total is None else total + mean
    if total is None:
        raise ValueError("otam_weight and mean_weight are both 0: nothing to match with")
    return total
