from __future__ import annotations

import pytest
import torch

from m2df_export.graphs.specs import SupportGraph, VisualGraph, graph_specs
from m2df_runtime.pixels.spec import ClipSpec


def _frames(size, count=3):
    return torch.randint(0, 256, (count, size, size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize(("name", "folded"), [("test-vit", True), ("test-convnext", True), ("test-rn", False)])
def test_normalisation_in_the_graph_equals_normalisation_before_it(backbone, name, folded):
    tower = backbone(name)
    clip = ClipSpec(size=tower.image_size, mean=tower.mean, std=tower.std)
    graph = VisualGraph(tower, clip).eval()
    frames = _frames(tower.image_size)
    with torch.no_grad():
        expected = tower.encode_frames(frames, clip)
        torch.testing.assert_close(graph(frames), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert graph.folded is folded


def test_normalisation_is_the_clip_specs_not_the_backbones(backbone):
    tower = backbone("test-vit")
    graph = VisualGraph(tower, ClipSpec(size=32, mean=(0, 0, 0), std=(1, 1, 1))).eval()
    frames = _frames(32)
    with torch.no_grad():
        expected = tower.visual(frames.permute(0, 3, 1, 2).float() / 255.0)
        torch.testing.assert_close(graph(frames), expected, atol=1e-5, rtol=1e-4)


def test_folding_leaves_the_backbone_as_it_was(backbone):
    tower = backbone("test-vit")
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    VisualGraph(tower, ClipSpec(size=32))
    after = tower.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weight_norm_is_gone_from_the_exported_head_and_kept_in_the_model(model):
    source = model("m2df")
    for _ in range(2):  # the second time sees what the first one left
        specs = graph_specs(source.backbone, source.head, source.clip)
    names = [name for name, _ in specs["support"].module.named_parameters()]
    assert not any("parametrizations" in name for name in names)
    assert any("parametrizations" in name for name in source.head.state_dict())
    inputs = [specs["support"].inputs[name] for name in ("features", "prompt")]
    with torch.no_grad():
        torch.testing.assert_close(specs["support"].module(*inputs), SupportGraph(source.head)(*inputs))


def test_example_inputs_have_no_dynamic_axis_of_one(model):
    source = model("m2df")
    for spec in graph_specs(source.backbone, source.head, source.clip).values():
        for name, axes in spec.dynamic.items():
            assert all(spec.inputs[name].shape[axis] > 1 for axis in axes)
