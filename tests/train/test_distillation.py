from __future__ import annotations

import pytest
import torch
from reference import Reference

from m2df_train.model.distillation import mutual_distillation
from m2df_train.model.options import DistilOptions

CONDITIONS = [(), ("t",), ("v",), ("t", "v")]  # rows of the stored tables
DIRECTIONS = ["mutual", "global_teaches", "local_teaches"]  # columns: bid, up2down, down2up
OFFICIAL_DIRECTIONS = ["bid", "up2down", "down2up"]
INPUTS = ["cum_dist_up", "cum_dist_down", "up_first_frame_cos", "down_first_frame_cos"]


def official(conditions, direction) -> DistilOptions:
    return DistilOptions(
        conditions=conditions,
        direction=direction,
        text_token="first_frame",
        detach_teacher=False,
        detach_weights=False,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradients_match_the_reference(reference_dir, dtype):
    ref = Reference(reference_dir, "mdmf_distill_unit.npz", dtype)
    for case in {key.split(".")[0] for key in ref.arrays}:
        table = torch.zeros(4, 3, dtype=dtype)
        for row, conditions in enumerate(CONDITIONS):
            for column, direction in enumerate(DIRECTIONS):
                inputs = [ref.input(f"{case}.{name}").requires_grad_() for name in INPUTS]
                loss = mutual_distillation(
                    torch.stack(inputs[:2]), torch.stack(inputs[2:]), official(conditions, direction)
                ).loss
                table[row, column] = loss.detach()
                if not loss.requires_grad:
                    continue
                loss.backward()
                prefix = f"t{int('t' in conditions)}v{int('v' in conditions)}_{OFFICIAL_DIRECTIONS[column]}.grad_"
                for name, value in zip(INPUTS, inputs, strict=True):
                    if ref.has(case, prefix + name):
                        gradient = torch.zeros_like(value) if value.grad is None else value.grad
                        ref.check_gradient(case, prefix + name, gradient)
        ref.check(case, "distill_loss", table)
    assert not ref.unread()


def random_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 12, 5, requires_grad=True), torch.rand(2, 12, 5, requires_grad=True)


@pytest.mark.parametrize("conditions", CONDITIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradient_equals_finite_differences(conditions, direction):
    distances, text = (x.detach().double().requires_grad_() for x in random_inputs())
    flowing = official(conditions, direction)
    assert torch.autograd.gradcheck(lambda d, t: mutual_distillation(d, t, flowing).loss, (distances, text))


@pytest.mark.parametrize("conditions", CONDITIONS)
@pytest.mark.parametrize(("direction", "student"), [("local_teaches", 1), ("global_teaches", 0)])
def test_gradient_of_a_student_alone_equals_finite_differences(conditions, direction, student):
    distances, text = (x.detach().double() for x in random_inputs())
    paper = DistilOptions(conditions=conditions, direction=direction)

    def loss(learning):
        views = [distances[0], distances[1]]
        views[student] = learning
        return mutual_distillation(torch.stack(views), text, paper).loss

    assert torch.autograd.gradcheck(loss, (distances[student].clone().requires_grad_(),))


def test_both_conditions_leave_out_queries_on_which_they_disagree():
    result = mutual_distillation(*random_inputs(), DistilOptions())
    text, visual = result.text[0] >= result.text[1], result.visual[0] >= result.visual[1]
    assert torch.equal(result.local_teaches, text & visual)
    assert torch.equal(result.global_teaches, ~text & ~visual)
    assert not (result.local_teaches | result.global_teaches).all()


def test_a_tie_favours_the_local_view():
    distances, text = torch.rand(1, 4, 3).expand(2, -1, -1), torch.rand(1, 4, 3).expand(2, -1, -1)
    result = mutual_distillation(distances, text, DistilOptions())
    assert result.local_teaches.all()
    assert not result.global_teaches.any()


def test_nobody_to_teach_gives_zero_loss_and_zero_gradient():
    distances = torch.rand(1, 4, 3).repeat(2, 1, 1).requires_grad_()
    loss = mutual_distillation(distances, torch.zeros(2, 4, 3), DistilOptions(direction="global_teaches")).loss
    loss.backward()
    assert loss.item() == 0
    assert distances.grad.abs().max() == 0


def test_mutual_is_the_sum_of_both_directions():
    inputs = random_inputs()
    one, other, both = (
        mutual_distillation(*inputs, DistilOptions(direction=d)).loss
        for d in ("local_teaches", "global_teaches", "mutual")
    )
    torch.testing.assert_close(one + other, both)


def test_detached_teacher_and_weights_get_no_gradient():
    distances, text = random_inputs()
    mutual_distillation(distances, text, DistilOptions(direction="local_teaches", conditions=())).loss.backward()
    assert distances.grad[0].abs().max() == 0
    assert distances.grad[1].abs().max() > 0
    mutual_distillation(distances, text, DistilOptions(conditions=("t",), detach_teacher=False)).loss.backward()
    assert text.grad is None
    mutual_distillation(distances, text, DistilOptions(conditions=("t",), detach_weights=False)).loss.backward()
    assert text.grad.abs().max() > 0
