from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import Reference

from m2df_train.model.alignment import cosine, mean_distance, otam, softmin, view_distances

PRECISIONS = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_cosine_matches_the_reference(reference_dir, dtype):
    ref = Reference(reference_dir, "cos_sim.npz", dtype)
    cases = {key.split(".")[0] for key in ref.arrays}
    for case in cases:
        ref.check(case, "cos", cosine(ref.input(f"{case}.x"), ref.input(f"{case}.y")))
    assert not ref.unread()


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_otam_and_its_gradient_match_the_reference(reference_dir, dtype):
    ref = Reference(reference_dir, "otam.npz", dtype)
    for name in [key for key in ref.arrays if key.endswith(".dists")]:
        for lam in ref.config["lambdas"]:
            case = f"{name.removesuffix('.dists')}.l{lam}"
            ref.check(case, "single", otam(ref.input(name), lam))
            distances = ref.input(name).requires_grad_()
            result = otam(distances, lam, bidirectional=True)
            ref.check(case, "bidirectional", result)
            (result * ref.input(f"{case}.cotangent")).sum().backward()
            if ref.has(case, "grad_bidirectional"):
                ref.check_gradient(case, "grad_bidirectional", distances.grad)
    assert not ref.unread()


def test_cosine_by_hand():
    x = torch.tensor([[1.0, 2, 2], [0, 0, 0]])
    y = torch.tensor([[2.0, 0, 0], [1, 2, 2]])
    torch.testing.assert_close(cosine(x, y), torch.tensor([[0.332779, 0.998890], [0, 0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("lam", "forward", "backward"), [(0.5, -0.940614, -0.808909), (0.1, 0.238929, 0.291762)])
def test_otam_of_the_published_matrix(lam, forward, backward):
    i, j = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    distances = (i - j).abs() / 4 + 0.05 * ((3 * i + 5 * j) % 7)
    assert otam(distances, lam).item() == pytest.approx(forward, abs=1e-5)
    assert otam(distances.T, lam).item() == pytest.approx(backward, abs=1e-5)
    assert otam(distances, lam, bidirectional=True).item() == pytest.approx(forward + backward, abs=2e-5)


@pytest.mark.parametrize(
    ("value", "lam", "expected"),
    [(0, 0.5, -0.5 * math.log(4608)), (0, 0.1, -0.1 * math.log(4608)), (1, 0.5, 4.203567), (1, 0.1, 7.250832),
     (2, 0.5, 12.247549), (2, 0.1, 15.250836)],
)  # fmt: skip
def test_otam_of_constant_matrices_counts_paths(value, lam, expected):
    assert otam(torch.full((8, 8), float(value)), lam).item() == pytest.approx(expected, abs=1e-5)


def textbook_otam(distances: list[list[float]], lam: float) -> float:
    """The recursion of method section 2.7 word for word, padding columns and all."""
    rows, columns = len(distances), len(distances[0])
    padded = [[0.0, *row, 0.0] for row in distances]
    table = [[0.0] * (columns + 2) for _ in range(rows)]

    def softest(*values: float) -> float:
        return -lam * math.log(sum(math.exp(-v / lam) for v in values))

    for row, column in itertools.product(range(rows), range(1, columns + 2)):
        here = padded[row][column]
        left = table[row][column - 1]
        if row == 0:
            table[row][column] = here + left
        elif column in (1, columns + 1):
            table[row][column] = here + softest(table[row - 1][column - 1], table[row - 1][column], left)
        else:
            table[row][column] = here + softest(table[row - 1][column - 1], left)
    return table[-1][-1]


matrices = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda s: st.lists(st.lists(st.floats(0, 2), min_size=s[1], max_size=s[1]), min_size=s[0], max_size=s[0])
)


@settings(max_examples=25)
@given(matrices, st.sampled_from([0.1, 0.5, 2.0]))
def test_otam_equals_the_padded_recursion_at_any_size(distances, lam):
    found = otam(torch.tensor(distances, dtype=torch.float64), lam).item()
    assert found == pytest.approx(textbook_otam(distances, lam), abs=1e-9)


@pytest.mark.parametrize("shape", [(4, 4), (1, 3), (3, 1), (2, 5), (1, 1)])
def test_closed_form_gradient_equals_finite_differences(shape):
    torch.manual_seed(0)
    distances = torch.rand(3, *shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d: otam(d, 0.3, bidirectional=True), (distances,))


@pytest.mark.parametrize(
    "options", [{}, {"lam": 0.1, "bidirectional": False}, {"otam_weight": 0.5, "mean_weight": 0.5}]
)
def test_gradient_of_view_distances_equals_finite_differences(options):
    torch.manual_seed(4)
    query = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    prototypes = torch.randn(3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, p: view_distances(q, p, **options), (query, prototypes))


def test_a_zero_frame_is_like_nothing_and_leaves_the_gradient_finite():
    x, y = torch.zeros(1, 3, requires_grad=True), torch.ones(2, 3)
    found = cosine(x, y)
    found.sum().backward()
    assert torch.equal(found, torch.zeros(1, 2))
    assert torch.isfinite(x.grad).all()


def test_softmin_is_finite_for_far_values():
    a, b = torch.tensor([1e4, 0.0, -1e4]), torch.tensor([0.0, 0.0, 1e4])
    torch.testing.assert_close(softmin(a, b), torch.tensor([0.0, -math.log(2), -1e4]))


def test_view_distances_are_the_sum_of_their_terms():
    torch.manual_seed(1)
    query, prototypes = torch.randn(3, 2, 4, 16), torch.randn(5, 2, 4, 16)
    aligned = view_distances(query, prototypes)
    for view in range(2):
        frames = 1 - cosine(query[:, None, view], prototypes[None, :, view])  # [Q, C, T, T]
        torch.testing.assert_close(aligned[:, view], otam(frames, 0.5, bidirectional=True), atol=1e-5, rtol=1e-5)
    mean = view_distances(query, prototypes, otam_weight=0.0, mean_weight=1.0)
    torch.testing.assert_close(mean[:, 0], 8 * mean_distance(query[:, 0], prototypes[:, 0]))
    both = view_distances(query, prototypes, otam_weight=2.0, mean_weight=0.5)
    torch.testing.assert_close(both, 2 * aligned + 0.5 * mean)
    single = view_distances(query, prototypes, otam_weight=0.0, mean_weight=1.0, bidirectional=False)
    torch.testing.assert_close(single, mean / 2)


angles = st.lists(st.sampled_from([0.0, 1.0, 2.0, math.pi]), min_size=1, max_size=6)


@settings(max_examples=25)
@given(angles, angles, st.sampled_from([0.05, 0.1, 0.5, 2.0]), st.booleans())
@example([0.0] * 8, [math.pi] * 8, 0.13, True)  # nothing is farther than these two, at nearly the smallest lambda
@example([0.0] * 8, [0.0] * 8, 0.13, True)  # that 8 frames are aligned by sums with
@example([0.0] * 16, [math.pi] * 16, 0.28, True)
@example([0.0] * 16, [0.0] * 16, 0.28, True)
def test_clips_of_unit_vectors_have_the_otam_of_their_angles(query, prototype, lam, bidirectional):
    distances = [[1 - math.cos(one - other) for other in prototype] for one in query]
    expected = textbook_otam(distances, lam)
    if bidirectional:
        expected += textbook_otam([list(column) for column in zip(*distances, strict=True)], lam)
    clips = (torch.tensor([[math.cos(a), math.sin(a)] for a in clip])[None, None] for clip in (query, prototype))
    found = view_distances(*clips, lam=lam, bidirectional=bidirectional, eps=0.0)
    assert found.item() == pytest.approx(expected, abs=2e-5)


def test_mean_distance_ignores_order_and_otam_does_not():
    torch.manual_seed(2)
    query, prototypes = torch.randn(2, 1, 6, 16), torch.randn(3, 1, 6, 16)
    shuffled = query.flip(2)
    torch.testing.assert_close(
        mean_distance(query[:, 0], prototypes[:, 0]), mean_distance(shuffled[:, 0], prototypes[:, 0])
    )
    assert (view_distances(query, prototypes) - view_distances(shuffled, prototypes)).abs().max() > 1e-3


def test_half_precision_features_are_matched_in_float32():
    torch.manual_seed(3)
    query, prototypes = torch.randn(2, 2, 4, 32).half() * 30, torch.randn(3, 2, 4, 32).half() * 30
    found = view_distances(query, prototypes, mean_weight=1.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, view_distances(query.float(), prototypes.float(), mean_weight=1.0))
