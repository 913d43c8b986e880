"""What is trained of the image tower: adapters, batch norm, checkpointed gradients; optimiser and schedule."""

from __future__ import annotations

import copy

import pytest
import torch
from small_runs import tiny_backbone
from torch import nn

from m2df_runtime.errors import InputError
from m2df_train.model.attention import linear_attention, packed_attention
from m2df_train.model.backbone import Backbone, load_backbone
from m2df_train.model.heads import build_head
from m2df_train.recipe.sections import LoraRecipe, Schedule, TrainStage, TuningRecipe
from m2df_train.training.schedule import build_optimizer, rate_factor, set_rate
from m2df_train.training.tuning import TrainedModel, TunedBackbone

ADAPTER = TuningRecipe(strategy="adapter", lora=LoraRecipe(rank=3))


def backbone_of(kind: str) -> Backbone:
    return load_backbone("m2df-tiny") if kind == "demo" else tiny_backbone(kind)


def pictures(backbone: Backbone, count: int = 3) -> torch.Tensor:
    size = backbone.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def trained_a_little(tuned: TunedBackbone) -> None:
    """Moves every trained parameter: adapters begin as nothing, which would hide what they do."""
    assert tuned.tower is not None
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in tuned.tower.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("kind", ["vit", "rn", "demo"])
def test_adapters_begin_as_nothing_are_all_trained_and_merge_into_plain_weights(kind: str) -> None:
    backbone = backbone_of(kind)
    pixels, weights = pictures(backbone), copy.deepcopy(backbone.state_dict())
    with torch.inference_mode():
        plain = backbone.visual(pixels)
    tuned = TunedBackbone(backbone, ADAPTER)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.visual(pixels), plain, rtol=1e-4, atol=1e-5)

    trained_a_little(tuned)
    tuned.train(validated=False)
    backbone.visual(pixels).square().sum().backward()
    assert tuned.tower is not None
    parameters = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    assert parameters and all("lora" in name and name.startswith("clip.visual.") for name in parameters)
    assert all(p.grad is not None for p in parameters.values())  # each is called, and not only read

    with torch.inference_mode():
        unmerged = backbone.eval().visual(pixels)
        merged = tuned.plain()
        assert merged.state_dict().keys() == weights.keys()
        torch.testing.assert_close(merged.visual(pixels), unmerged, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(unmerged, plain, atol=1e-2)
        others = [name for name in weights if not name.startswith("clip.visual.")]
        assert others and all(torch.equal(merged.state_dict()[name], weights[name]) for name in others)
        torch.testing.assert_close(backbone.visual(pixels), unmerged, rtol=0, atol=0)  # merging changed a copy


def test_the_attention_pool_of_a_resnet_is_not_adapted() -> None:
    backbone = tiny_backbone("rn")
    TunedBackbone(backbone, ADAPTER)
    assert not [name for name, p in backbone.named_parameters() if "attnpool" in name and p.requires_grad]


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_of_linear_layers_is_that_of_pytorch(batch_first: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(24, 4, batch_first=batch_first)
    nn.init.normal_(attention.in_proj_bias)
    module = nn.ModuleDict({"attn": attention}).eval()
    x = torch.randn(5, 7, 24)
    length = 7 if batch_first else 5
    mask = torch.full((length, length), -torch.inf).triu(1)
    expected, _ = attention(x, x, x, need_weights=False, attn_mask=mask)
    linear_attention(module)
    torch.testing.assert_close(module["attn"](x, x, x, need_weights=False, attn_mask=mask)[0], expected)
    packed_attention(module)
    assert module["attn"] is attention
    torch.testing.assert_close(attention(x, x, x, need_weights=False, attn_mask=mask)[0], expected)


@pytest.mark.parametrize("strategy", ["full", "adapter"])
def test_checkpointed_gradients_are_the_same(strategy: str) -> None:
    found = []
    for checkpointed in (False, True):
        backbone = tiny_backbone("vit")
        torch.manual_seed(3)
        tuned = TunedBackbone(
            backbone, TuningRecipe.model_validate({"strategy": strategy, "gradient_checkpointing": checkpointed})
        )
        trained_a_little(tuned)
        tuned.train(validated=False)
        backbone.visual(pictures(backbone)).square().sum().backward()
        found.append([p.grad for p in backbone.parameters() if p.requires_grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["rn", "demo"])
def test_a_tower_without_checkpointed_gradients_says_so(kind: str) -> None:
    with pytest.raises(InputError, match=r"gradient_checkpointing: the image tower of .* has none"):
        TunedBackbone(backbone_of(kind), TuningRecipe(strategy="full", gradient_checkpointing=True))


@pytest.mark.parametrize(
    ("mode", "validated", "moves"),
    [("frozen", True, False), ("train", False, True), ("mixed", False, False), ("mixed", True, True)],
)
def test_batch_norm_follows_its_mode(mode: str, validated: bool, moves: bool) -> None:
    backbone = tiny_backbone("rn")
    tuned = TunedBackbone(backbone, TuningRecipe.model_validate({"strategy": "full", "bn_mode": mode}))
    before = [value.clone() for value in tuned.statistics()]
    tuned.train(validated=validated)
    backbone.visual(pictures(backbone))
    changed = [not torch.equal(a, b) for a, b in zip(before, tuned.statistics(), strict=True)]
    assert changed and set(changed) == {moves}


@pytest.mark.parametrize("strategy", ["frozen", "adapter", "full"])
def test_state_is_what_training_changes_and_fits_no_other_strategy(strategy: str) -> None:
    def model(strategy: str, seed: int) -> TrainedModel:
        tuned = TunedBackbone(tiny_backbone("rn"), TuningRecipe.model_validate({"strategy": strategy}))
        torch.manual_seed(seed)
        return TrainedModel(build_head("clip-fsar", 32, 4, {"ffn_dim": 16}), tuned)

    one, other = model(strategy, 1), model(strategy, 2)
    if one.tuned.tower is not None:
        trained_a_little(one.tuned)
        one.tuned.statistics()[0].fill_(0.3)
    state = copy.deepcopy(one.state_dict())
    trained = {id(p) for p in one.parameters}
    whole = {**dict(one.head.named_parameters(prefix="head"))}
    whole |= {} if one.tuned.tower is None else dict(one.tuned.tower.named_parameters(prefix="tower"))
    assert {name for name, p in whole.items() if id(p) in trained} == state.keys() & whole.keys()
    other.load_state_dict(state)
    pixels = pictures(one.tuned.backbone)
    with torch.inference_mode():
        expected = one.tuned.backbone.eval().visual(pixels)
        torch.testing.assert_close(other.tuned.backbone.eval().visual(pixels), expected, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="missing or too many"):
        model("full" if strategy != "full" else "adapter", 1).load_state_dict(state)


def test_norms_are_not_decayed_and_the_tower_has_its_own_rate() -> None:
    backbone = tiny_backbone("rn")
    tuned = TunedBackbone(backbone, TuningRecipe(strategy="full"))
    head = build_head("m2df", 32, 4, {"ffn_dim": 16})
    stage = TrainStage(episodes=1, optimizer="adamw", learning_rate=0.1, backbone_rate=0.25, weight_decay=0.5)
    optimizer = build_optimizer(head, tuned.tower, stage)
    set_rate(optimizer, 0.5)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    modules = [("head", head), ("tower", tuned.tower)]
    assert len(found) == sum(len(list(module.parameters())) for _, module in modules if module is not None)
    for place, module in modules:
        assert module is not None
        for part in module.modules():
            norm = isinstance(part, nn.LayerNorm | nn.BatchNorm2d)  # among them downsample.1, which no name tells
            for parameter in part.parameters(recurse=False):
                assert found[id(parameter)] == (0.05 if place == "head" else 0.0125, 0.0 if norm else 0.5)


def test_schedules_in_closed_form() -> None:
    def at(schedule: Schedule, *done: int) -> list[float]:
        return [rate_factor(schedule, d, 10, 1000) for d in done]

    assert at(Schedule(), 0, 990) == [1.0, 1.0]
    cosine = Schedule(kind="cosine", warmup=100)
    assert at(cosine, 0, 40, 90, 100, 550) == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5])
    assert 0 < at(cosine, 990)[0] < 1e-3
    # CLIP-FSAR on HMDB51 (method 4.2): 1e-6 to 1e-5 in 700 iterations, then a tenth at 1400 and at 2100.
    steps = Schedule(kind="steps", warmup=700, start=0.1, milestones=(1400, 2100))
    assert at(steps, 340, 690, 1390, 1400, 2100) == pytest.approx([0.55, 1.0, 1.0, 0.1, 0.01])
