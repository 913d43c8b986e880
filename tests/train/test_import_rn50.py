"""A checkpoint of CLIP-MDMF with the full-size RN50, whose features are twice those of the ViT."""

from __future__ import annotations

import pytest
import torch
from test_import import m2df_periodic, tower_state

from m2df_train.cache.encoding import encode_prompts
from m2df_train.importing.importer import ImportRequest, import_official
from m2df_train.model.backbone import load_backbone, normalised_pixels
from m2df_train.model.heads import deterministic_head
from m2df_train.public_benchmarks import benchmark

DIM, HIDDEN = 1024, 2048


def official_head() -> dict[str, torch.Tensor]:
    """Every weight of method section 5.2 by its official name, drawn at random; the TCN's are there twice."""
    conv = {"weight": (DIM, DIM, 3), "bias": (DIM,)}
    shapes: dict[str, tuple[int, ...]] = {"scale": (1,)}
    for encoder in ("context2", "context_local"):
        layer = f"{encoder}.layers.0"
        shapes |= {f"{layer}.0.norm.{part}": (DIM,) for part in ("weight", "bias")}
        shapes |= {f"{layer}.0.fn.to_{part}.weight": (DIM, DIM) for part in "qkv"}
        shapes |= {f"{layer}.0.fn.to_out.0.weight": (DIM, DIM), f"{layer}.0.fn.to_out.0.bias": (DIM,)}
        shapes |= {f"{layer}.1.net.0.weight": (HIDDEN, DIM), f"{layer}.1.net.0.bias": (HIDDEN,)}
        shapes |= {f"{layer}.1.net.3.weight": (DIM, HIDDEN), f"{layer}.1.net.3.bias": (DIM,)}
    for number in (1, 2, 11, 22):
        shapes |= {f"context_conv{number}.{part}": shape for part, shape in conv.items()}
    for block in range(3):
        for number in (1, 2):
            name = f"tcn.network.{block}.conv{number}"
            shapes |= {f"{name}.weight_g": (DIM, 1, 1), f"{name}.weight_v": (DIM, DIM, 3), f"{name}.bias": (DIM,)}
    generator = torch.Generator().manual_seed(0)
    weights = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in ("context2", "context_local"):
        weights[f"{name}.layers.0.0.norm.weight"] += 1.0
    # Method 2.11: parameters of the head, the unused pair of convolutions included.
    assert sum(value.numel() for value in weights.values()) == 48_263_169
    copies = {"conv1": "net.0", "conv2": "net.4"}
    for name in [name for name in weights if name.startswith("tcn.")]:
        stem, conv_name, part = name.rsplit(".", 2)
        weights[f"{stem}.{copies[conv_name]}.{part}"] = weights[name]
    return weights


@pytest.mark.slow
def test_an_rn50_goes_from_the_official_file_to_logits(tmp_path):
    torch.manual_seed(0)
    clip = load_backbone("RN50-quickgelu")  # random weights
    torch.save(clip.clip.state_dict(), tmp_path / "clip.pt")
    state = {**tower_state(clip), **official_head()}
    assert len(state) == 406  # method 5.2
    torch.save(m2df_periodic(state), tmp_path / "official.pt")
    request = ImportRequest(tmp_path / "official.pt", "kinetics100", 5, text_pretrained=str(tmp_path / "clip.pt"))
    model, report = import_official(request)
    assert (report.preset, report.tower, report.text_model) == ("official-m2df", "RN50-quickgelu", "RN50-quickgelu")
    assert (len(report.used), len(report.duplicates), len(report.unused)) == (384, 18, 4)
    assert model.head.options.otam.bidirectional

    head = deterministic_head(model.head)
    frames = torch.randint(0, 256, (2, 8, 224, 224, 3), dtype=torch.uint8)
    texts = [f"a photo of {item.official}" for item in benchmark("kinetics100").classes("test")[:2]]
    with torch.inference_mode():
        features = model.backbone.encode_frames(frames, model.clip)
        torch.testing.assert_close(features[0], clip.visual(normalised_pixels(frames[0], model.clip)))
        prompts = encode_prompts(model.backbone, texts)
        torch.testing.assert_close(prompts, encode_prompts(clip, texts))
        prototypes = torch.stack([head.prototypes(features[i : i + 1], prompts[i : i + 1]) for i in range(2)])
        logits = head.match(features, prompts, prototypes).logits
    assert logits.shape == (2, 2)
    assert torch.isfinite(logits).all()
