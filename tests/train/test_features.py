"""Feature pools: clips of any source as tensors for episodes."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_bundle import write_clip

from m2df_runtime.clips.opening import open_source
from m2df_runtime.pixels.load import load_clip
from m2df_train.cache.encoding import (
    backbone_digest,
    deployed_identity,
    encode_prompts,
    feature_cache,
    frame_cache,
    pool_of,
)
from m2df_train.cache.features import FeatureCache
from m2df_train.data.clips import folder_clips
from m2df_train.data.splits import ClipSet, load_splits
from m2df_train.model.backbone import Backbone, load_backbone
from m2df_train.recipe.recipe import Recipe, load_recipe


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return load_backbone("m2df-tiny")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for colour in ("red", "green", "blue"):
        for number in range(2):
            write_clip(folder / colour / f"{number}.mp4", colour, seed=number, frames=20)
    return folder


@pytest.fixture
def clips(written: Path, tmp_path: Path) -> ClipSet:
    found = folder_clips(Path(shutil.copytree(written, tmp_path / "clips")))[0]
    return ClipSet(tuple(found), {name: f"a {name} square" for name in dict.fromkeys(clip.label for clip in found)})


def recipe_of(*settings: str) -> Recipe:
    small = ("clip.frames=4", "clip.channels=rgb", "clip.region=full", "clip.sampler.train=segment", "data.hflip=0.5")
    return load_recipe("demo", [*small, *settings])


def test_deployed_features_are_those_of_the_runtime_s_pixels(backbone, clips, tmp_path):
    recipe, done = recipe_of(), []
    pool = pool_of(backbone, clips, recipe, FeatureCache(tmp_path / "c", 1 << 30), False, done.append)
    assert pool.labels == clips.labels and pool.features.shape == (6, 1, 4, backbone.dim)
    path = tmp_path / "clips" / clips.clips[3].name
    pixels = torch.from_numpy(load_clip(open_source(path), recipe.clip.deployed))
    with torch.inference_mode():
        expected = backbone.encode_frames(pixels, recipe.clip.deployed)
    torch.testing.assert_close(pool.features[3, 0], expected, atol=1e-5, rtol=1e-5)
    prompts = ["a photo of a blue square", "a photo of a green square", "a photo of a red square"]
    torch.testing.assert_close(pool.texts, encode_prompts(backbone, prompts))
    assert sum(done) == 6


def test_training_features_are_random_variants_of_a_seed(backbone, clips, tmp_path):
    recipe = recipe_of("tuning.views=2", "clip.short_side=72", "seed=1")
    cache = FeatureCache(tmp_path / "c", 1 << 30)
    first = pool_of(backbone, clips, recipe, cache, True).features
    assert first.shape == (6, 2, 4, backbone.dim)
    assert (first[:, 0] - first[:, 1]).abs().amax(dim=(1, 2)).min() > 1e-4
    for other in (cache, FeatureCache(None, 0)):
        torch.testing.assert_close(pool_of(backbone, clips, recipe, other, True).features, first)
    assert not torch.allclose(
        pool_of(backbone, clips, recipe.model_copy(update={"seed": 2}), cache, True).features, first
    )
    one = pool_of(backbone, clips, recipe_of("clip.short_side=72", "seed=1"), cache, True).features
    torch.testing.assert_close(one, first[:, :1])


def test_a_class_without_readable_clips_has_no_text(backbone, clips, tmp_path, caplog):
    for file in (tmp_path / "clips" / "green").iterdir():
        file.write_bytes(b"nothing")
    with caplog.at_level(logging.WARNING, "m2df_train"):
        pool = pool_of(backbone, clips, recipe_of(), FeatureCache(None, 0), False)
    assert pool.labels == ("blue", "blue", "red", "red")
    texts = encode_prompts(backbone, ["a photo of a blue square", "a photo of a red square"])
    torch.testing.assert_close(pool.texts, texts)
    assert len(caplog.records) == 3 and "2 of 6 clips are left out" in caplog.text


def test_options_for_queries_alone_are_told_to_do_nothing(backbone, clips, caplog):
    with caplog.at_level(logging.WARNING, "m2df_train"):
        pool_of(backbone, clips, recipe_of("data.hflip_query=0.9"), FeatureCache(None, 0), True)
    assert "data.hflip_query do nothing" in caplog.text


def test_every_weight_and_buffer_counts(backbone):
    before, spec = backbone_digest(backbone), recipe_of().clip.deployed
    identity = deployed_identity(backbone, spec)
    assert backbone_digest(load_like(backbone)) == before
    changed = load_like(backbone)
    with torch.no_grad():
        next(reversed(list(changed.parameters()))).view(-1)[0] += 1e-3
    assert backbone_digest(changed) != before and deployed_identity(changed, spec) != identity
    assert deployed_identity(backbone, spec.model_copy(update={"size": 63})) != identity


def load_like(backbone: Backbone) -> Backbone:
    copy = load_backbone("m2df-tiny")
    copy.load_state_dict(backbone.state_dict())
    return copy


def test_the_same_weights_under_another_activation_are_another_model(backbone):
    before = backbone_digest(backbone)
    block = backbone.clip.transformer.resblocks[0].mlp
    known = block.gelu
    block.gelu = torch.nn.Tanh()
    assert backbone_digest(backbone) != before
    block.gelu = known
    assert backbone_digest(backbone) == before


def test_generated_clips_become_features_too(backbone, tmp_path):
    recipe = recipe_of("data.composed=1", "evaluation.clips=6", "train.queries=1", "data.clips=6")
    splits = load_splits(recipe)
    few = ClipSet(splits.train.clips[-3:], {splits.train.classes[-1]: splits.train.texts[splits.train.classes[-1]]})
    pool = pool_of(backbone, few, recipe, FeatureCache(tmp_path, 1 << 30), True)
    assert pool.features.shape == (3, 1, 4, backbone.dim) and np.isfinite(pool.features.numpy()).all()


def test_caches_of_a_recipe():
    assert frame_cache(recipe_of("data.cache_gb=0")) is None
    assert not feature_cache(recipe_of("data.cache_gb=0")).lasting
    assert frame_cache(recipe_of()) is not None and feature_cache(recipe_of()).lasting
