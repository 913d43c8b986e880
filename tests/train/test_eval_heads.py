"""Episodes in batches give what one episode after the other gives, for every head, in PyTorch and from a bundle."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.manifest import SourceInfo
from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.data.episodes import EpisodeSampler
from m2df_train.evaluation import episode_run
from m2df_train.evaluation.bundle_scorer import BundleScorer
from m2df_train.evaluation.episode_run import EncodedClips, EpisodePlan, episode_answers
from m2df_train.evaluation.torch_scorer import CheckpointScorer
from m2df_train.model.backbone import load_backbone
from m2df_train.model.checkpoint import Checkpoint
from m2df_train.model.heads import build_head

T, D, CLASSES, CLIPS = 4, 32, 7, 9
SMALL = {"heads": 2, "ffn_dim": 48}
HEADS = {
    "m2df": ("m2df", {**SMALL, "pps": {"eval": "sample"}, "mean_weight": 1.0, "otam": {"bidirectional": False}}, True),
    "m2df mixing": ("m2df", {**SMALL, "pps": {"eval": "expectation"}}, True),
    "clip-fsar": ("clip-fsar", {**SMALL, "text_visual_fusion": {"mode": "combine"}}, True),
    "clip-fsar before": ("clip-fsar", {**SMALL, "prototype": {"merge": "before"}}, False),
    "training-free": ("training-free", {}, True),
}


def make_clips(frames: int = T, dim: int = D) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Classes that overlap, so that answers are right about as often as wrong."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLASSES, 1, frames, dim))
    values = centres + 2.5 * rng.standard_normal((CLASSES, CLIPS, frames, dim))
    prompts = centres[:, 0].mean(axis=1) + rng.standard_normal((CLASSES, dim))
    labels = [f"class{c}" for c in range(CLASSES) for _ in range(CLIPS)]
    return values.reshape(-1, frames, dim).astype(np.float32), labels, prompts.astype(np.float32)


def plain_loop(scorer, features, labels, prompts, *, episodes, **options):
    """Answers of one episode after the other, each class's prototypes from all its clips: [E, W, Q]."""
    sampler = EpisodeSampler(labels, **options)
    answers = []
    for episode in sampler.episodes(episodes):
        texts = prompts[episode.classes]
        classes = [scorer.prototypes(features[s], texts[w : w + 1]) for w, s in enumerate(episode.support)]
        logits = scorer.match(features[episode.query.ravel()], texts, np.stack(classes)).logits
        answers.append(logits.argmax(axis=1).reshape(episode.query.shape))
    return np.stack(answers)


@pytest.fixture(scope="module")
def checkpoint():
    """A checkpoint in memory by the name of `HEADS`; its towers are not used."""
    backbone = load_backbone("m2df-tiny")
    spec = ClipSpec(frames=T, size=backbone.image_size)

    def make(name: str) -> Checkpoint:
        head, options, _ = HEADS[name]
        torch.manual_seed(0)
        built = build_head(head, D, T, options)
        return Checkpoint(backbone, built, spec, "a photo of {}", {}, SourceInfo(model="m2df-tiny"))

    return make


@pytest.mark.parametrize("name", HEADS)
def test_batches_answer_as_single_episodes_do(name, checkpoint, monkeypatch):
    scorer = CheckpointScorer(checkpoint(name), "cpu")
    assert scorer.merges_after is HEADS[name][2]
    data = make_clips()
    threads = torch.get_num_threads()
    for options in ({"way": 5, "shot": 1, "query": 1}, {"way": 3, "shot": 5, "query": 2, "seed": 4}):
        expected = plain_loop(scorer, *data, episodes=40, **options)
        answers = [
            episode_answers(scorer, EncodedClips(*data), EpisodePlan(episodes=40, **options), workers=w) for w in (1, 3)
        ]
        with monkeypatch.context() as patch:
            patch.setattr(episode_run, "_PARTS_BYTES", 0)  # nothing of the queries is kept
            answers.append(episode_answers(scorer, EncodedClips(*data), EpisodePlan(episodes=40, **options)))
        for found in answers:
            np.testing.assert_array_equal(found.predicted, expected)
        assert 0.3 < answers[0].right.mean() < 0.999
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", HEADS)
def test_heads_merge_as_they_say(name, checkpoint):
    head = checkpoint(name).head.eval()
    features, prompt = torch.randn(5, T, D), torch.randn(1, D)
    with torch.inference_mode():
        together = head.prototypes(features, prompt)
        apart = torch.stack([head.prototypes(clip[None], prompt) for clip in features]).mean(dim=0)
    assert torch.allclose(together, apart, atol=1e-5) is head.merges_after


@pytest.mark.parametrize("merges_after", [True, False])
def test_a_bundle_answers_as_its_graphs_do(merges_after, bundle_copy):
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    assert "merges_after" not in manifest  # a bundle that does not say is run class by class
    (bundle_copy / "manifest.json").write_text(json.dumps({**manifest, "merges_after": merges_after}))
    scorer = BundleScorer(Bundle.open(bundle_copy), "cpu")
    assert scorer.merges_after is merges_after
    data = make_clips(frames=4, dim=12)  # as the bundle has them
    options = {"way": 4, "shot": 5, "query": 2}
    expected = plain_loop(scorer, *data, episodes=200, **options)
    for workers in (1, 3):
        found = episode_answers(scorer, EncodedClips(*data), EpisodePlan(episodes=200, **options), workers=workers)
        np.testing.assert_array_equal(found.predicted, expected)
