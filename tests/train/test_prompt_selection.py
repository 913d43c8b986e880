from __future__ import annotations

import pytest
import torch

from m2df_train.model.prompt_selection import draw, frame_cosines, select_prompts, topk_frames, topk_score


def test_pps_probabilities_and_draws_by_hand():
    scores = torch.tensor([[0.25, 0.255, 0.24]])
    texts = torch.eye(3)
    selection = select_prompts(scores, texts, "expectation")
    torch.testing.assert_close(selection.prompts, torch.tensor([[0.2595, 0.7054, 0.0351]]), atol=1e-4, rtol=0)
    assert select_prompts(scores, texts, "argmax").prompts.tolist() == [[0, 1, 0]]
    assert select_prompts(scores, texts, "none").prompts.tolist() == [[0, 0, 0]]
    uniforms = torch.tensor([0.0, 0.2594, 0.2596, 0.964, 0.966, 0.999999])
    assert draw(selection.probabilities.expand(6, -1), uniforms).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("detach", "flows"), [(True, False), (False, True)])
def test_gradient_reaches_the_frames_through_an_expected_prompt_only_if_asked(detach, flows):
    frames = torch.randn(2, 4, 16, requires_grad=True)
    texts = torch.randn(3, 16)
    scores = topk_score(frame_cosines(texts, frames))
    prompts = select_prompts(scores, texts, "expectation", temperature=1.0, detach_probs=detach).prompts
    assert prompts.requires_grad == flows


def test_frames_closest_to_the_text_are_kept_in_order_of_time():
    frames = torch.arange(6.0).view(1, 6, 1)
    kept, index = topk_frames(frames, torch.tensor([[0.9, 0.1, 0.8, 0.2, 0.3, 0.7]]), k=4)
    assert index.tolist() == [[0, 2, 4, 5]]
    assert kept.flatten().tolist() == [0, 2, 4, 5]
    assert topk_frames(frames[:, :2], torch.rand(1, 2), k=4)[0].shape == (1, 2, 1)
