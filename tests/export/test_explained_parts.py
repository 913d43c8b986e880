"""The terms that an explanation shows are those of the heads and of their exported graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.manifest import HeadInfo, Manifest
from m2df_runtime.bundle.shipped import demo_bundle
from m2df_runtime.show.parts import Matching, Terms
from m2df_train.model.heads import build_head

CLASSES, SHOTS = 3, 2
APPEARANCE = {"appearance": {"dim": 16, "weight": 3.0}}
ONE_WAY = {"otam": {"lambda": 0.2, "bidirectional": False}}
VARIANTS = [
    ("m2df", {}),
    ("m2df", {"mean_weight": 0.5, "view_weights": [1.0, 0.3], **APPEARANCE}),
    ("m2df", {"otam_weight": 0.0, "mean_weight": 1.0, "pps": {"eval": "expectation"}}),
    ("clip-fsar", ONE_WAY),
    ("clip-fsar", {"text_visual_fusion": {"mode": "combine", "beta": 0.7}, "mean_weight": 1.0, **APPEARANCE}),
    ("clip-fsar", {"text_visual_fusion": {"mode": "text"}}),
    ("training-free", {"logit_scale": 20.0}),
    ("training-free", {"beta": 0.6, "otam_weight": 0.4, "mean_weight": 0.8, "cos_eps": 0.5, **ONE_WAY, **APPEARANCE}),
]


def manifest_of(head) -> Manifest:
    """The shipped manifest, with this head in place of its own."""
    shipped = Bundle.open(demo_bundle()).manifest
    info = HeadInfo(name=head.name, options=head.options.model_dump(mode="json"))
    clip = shipped.clip.model_copy(update={"frames": head.frames})
    return shipped.model_copy(update={"head": info, "views": head.views, "dim": head.dim, "clip": clip})


def inputs_of(frames: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [1 + CLASSES * SHOTS, T, D] of clips that move a little, the query first; prompts [CLASSES, D]."""
    rng = np.random.default_rng(11)
    clips = rng.normal(size=(1 + CLASSES * SHOTS, 1, dim)) + 0.7 * rng.normal(size=(1 + CLASSES * SHOTS, frames, dim))
    return clips.astype(np.float32), rng.normal(size=(CLASSES, dim)).astype(np.float32)


def assert_explained(matching: Matching, found: dict[str, np.ndarray], prototypes: np.ndarray) -> list[Terms]:
    """Of the only query: each view's distance is the sum of its terms, differences of logits are those of all terms."""
    logits, every = [], []
    for c in range(CLASSES):
        terms = [view.terms for view in matching.parts(found["tokens"][0], prototypes[c])]
        sums = [own.total for own in terms]
        assert sums == pytest.approx(found["distances"][0, :, c].tolist(), rel=1e-4, abs=1e-5)
        text = matching.text_factor * float(np.log(found["selected"][0, c]))
        logits.append(sum(f * own for f, own in zip(matching.view_factors, sums, strict=True)) + text)
        every += terms
    assert np.diff(logits) == pytest.approx(np.diff(found["logits"][0]), rel=1e-3, abs=1e-3)
    return every


@pytest.mark.parametrize("name, options", VARIANTS)
def test_the_parts_of_every_head_add_up(name: str, options: dict) -> None:
    torch.manual_seed(2)
    head = build_head(name, 64, 5, options).eval()
    features, prompts = map(torch.from_numpy, inputs_of(5, 64))
    with torch.no_grad():
        clips = features[1:].unflatten(0, (CLASSES, SHOTS))
        prototypes = torch.stack([head.prototypes(own, prompts[c : c + 1]) for c, own in enumerate(clips)])
        found = {key: value.numpy() for key, value in vars(head.match(features[:1], prompts, prototypes)).items()}
    terms = assert_explained(Matching.of(manifest_of(head)), found, prototypes.numpy())
    shown = {kind for kind in ("aligned", "means", "looks") if any(getattr(own, kind) for own in terms)}
    o = head.options
    there = {"aligned": o.otam_weight, "means": o.mean_weight, "looks": o.appearance.weight}
    assert shown == {kind for kind, weight in there.items() if weight}


@pytest.mark.parametrize(
    "head, precision",
    # The training-free head holds no weights that could be halved.
    [("m2df", ""), ("m2df", ".fp16"), ("clip-fsar", ""), ("clip-fsar", ".fp16"), ("training-free", "")],
)
def test_the_parts_of_exported_graphs_add_up(exported, first_project, pretrained, model, head, precision) -> None:
    folders = {"m2df": exported[0], "clip-fsar": first_project / "bundles" / "first", "training-free": pretrained}
    engine = OnnxRuntimeBackend("cpu")
    support, query = (engine.load(folders[head] / f"{graph}{precision}.onnx", graph) for graph in ("support", "query"))
    made = model(head).head
    features, prompts = inputs_of(made.frames, made.dim)
    clips = features[1:].reshape(CLASSES, SHOTS, *features.shape[1:])
    prototypes = np.stack(
        [support.run({"features": own, "prompt": prompts[c : c + 1]})["prototypes"] for c, own in enumerate(clips)]
    )
    found = query.run({"features": features[:1], "prompts": prompts, "prototypes": prototypes})
    assert_explained(Matching.of(manifest_of(made)), dict(found), prototypes)
