"""Training: checkpoints, the contrastive and episodic stages, and the command end to end."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from m2df_runtime.bundle.manifest import SourceInfo
from m2df_runtime.errors import EnvironmentMissing, InputError
from m2df_runtime.progress import silent
from m2df_train.cache.encoding import FeaturePool
from m2df_train.commands.train import cli
from m2df_train.data.episodes import EpisodeSampler
from m2df_train.data.generated import ContrastiveBatches, pool_actions
from m2df_train.evaluation.torch_scorer import HeadScorer
from m2df_train.interrupt import Interrupted, Stop
from m2df_train.model.backbone import Backbone, load_backbone, normalised_pixels
from m2df_train.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from m2df_train.model.heads import build_head
from m2df_train.model.run_folder import newest_checkpoint
from m2df_train.recipe.recipe import Recipe, dump_recipe, load_recipe
from m2df_train.recipe.sections import Evaluation, TrainStage, TuningRecipe
from m2df_train.synthetic import split_actions
from m2df_train.training.contrastive import supervised_contrastive, train_contrastive
from m2df_train.training.episode_source import FeatureEpisodes, texts_of_episode
from m2df_train.training.episodic import EpisodicStage, Hooks, Update
from m2df_train.training.processes import Processes
from m2df_train.training.split_accuracy import accuracies
from m2df_train.training.tuning import TrainedModel, TunedBackbone

ROOT = Path(__file__).parents[2]


def small_recipe(**contrastive: int) -> Recipe:
    """The demo recipe at a size that trains in seconds; it learns nothing."""
    data = load_recipe("demo").model_dump(mode="json")
    data["name"] = "small"
    data["clip"] |= {"frames": 4, "region": "full", "channels": "rgb"}
    data["contrastive"] |= {"steps": 4, "classes": 3, "clips": 2, "frames": 2, "warmup": 1} | contrastive
    data["data"] |= {"composed": 0, "clips": 3}
    data["train"] |= {"episodes": 8, "per_update": 4, "way": 3, "shots": [1, 2], "queries": 1, "validate_every": 4}
    data["evaluation"] = {"way": 3, "shots": [1], "clips": 2, "validation_episodes": 4, "test_episodes": 5}
    return Recipe.model_validate(data)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return load_backbone("m2df-tiny")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("clip.size=32", r"clip\.size is 32, the image tower of m2df-tiny takes 64"),
        ("head.options.heads=7", "head m2df: .*7"),
        ("head.options.appearance.dim=8", "appearance.dim is 8, the image tower of m2df-tiny gives 0 numbers"),
    ],
)
def test_a_recipe_that_does_not_fit_its_model_leaves_no_run(tmp_path: Path, setting: str, message: str) -> None:
    from m2df_train.training.trainer import train

    with pytest.raises(InputError, match=message):
        train(load_recipe("demo", [setting]), tmp_path / "run", silent, Processes())
    assert not (tmp_path / "run").exists()


def test_unknown_models_and_other_tokenizers_are_refused() -> None:
    with pytest.raises(InputError, match="no-such-model"):
        load_backbone("no-such-model")
    with pytest.raises(InputError, match="needs CLIP's BPE"):
        load_backbone("ViT-B-16-SigLIP")


def test_pixels_are_normalised_as_the_clip_specification_says(backbone: Backbone) -> None:
    clip = small_recipe().clip.deployed
    frames = torch.randint(0, 256, (2, 3, 64, 64, 3), dtype=torch.uint8)
    expected = (frames.numpy().reshape(6, 64, 64, 3) / 255 - np.array(clip.mean)) / np.array(clip.std)
    np.testing.assert_allclose(normalised_pixels(frames, clip), expected.transpose(0, 3, 1, 2), atol=1e-5)
    with torch.inference_mode():
        assert backbone.encode_frames(frames, clip).shape == (2, 3, 128)


def test_checkpoint_gives_back_the_same_model(backbone: Backbone, tmp_path: Path) -> None:
    recipe = small_recipe()
    torch.manual_seed(1)
    head = build_head("m2df", backbone.dim, recipe.clip.frames, recipe.head.options).eval()
    source = SourceInfo(model="m2df-tiny", recipe="small", seed=0, measured={"a": 1})
    saved = Checkpoint(backbone, head, recipe.clip.deployed, recipe.prompt, {"wave": "a person waving"}, source)
    save_checkpoint(tmp_path / "run" / "best.safetensors", saved)
    assert newest_checkpoint(tmp_path) == tmp_path / "run" / "best.safetensors"
    loaded = load_checkpoint(tmp_path / "run")
    assert (loaded.clip, loaded.prompt, loaded.labels) == (saved.clip, saved.prompt, saved.labels)
    assert loaded.source == source
    assert loaded.head.options == head.options
    frames = torch.randint(0, 256, (1, 4, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        features = backbone.encode_frames(frames, saved.clip)
        torch.testing.assert_close(loaded.backbone.encode_frames(frames, loaded.clip), features, rtol=0, atol=0)
        prompt = torch.ones(1, backbone.dim)
        torch.testing.assert_close(loaded.head.prototypes(features, prompt), head.prototypes(features, prompt))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors here")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "new.safetensors", metadata={"m2df": json.dumps({"format": 99})})
    save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={"m2df": "[]"})
    for name, reason in (
        ("absent", "no such checkpoint"),
        ("text", "not a checkpoint"),
        ("foreign", "not a checkpoint of m2df"),
        ("new", "format 99"),
        ("odd", "damaged"),
    ):
        with pytest.raises(InputError, match=reason) as error:
            load_checkpoint(tmp_path / f"{name}.safetensors")
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"head_options": {"surprise": 1}}, "its head cannot be built: .*surprise"),
        ({"model_config_json": {"embed_dim": 128}}, "m2df-tiny: its recorded configuration builds no CLIP"),
        ({"model_config_json": {"text_cfg": {"hf_model_name": "x/y"}}}, "its text tower reads x/y"),
    ],
)
def test_checkpoint_whose_header_fits_no_model_is_refused(
    backbone: Backbone, tmp_path: Path, edit: dict[str, object], reason: str
) -> None:
    recipe, path = small_recipe(), tmp_path / "best.safetensors"
    head = build_head("training-free", backbone.dim, recipe.clip.frames)
    save_checkpoint(
        path, Checkpoint(backbone, head, recipe.clip.deployed, recipe.prompt, {}, SourceInfo(model="m2df-tiny"))
    )
    with safe_open(path, framework="pt") as opened:
        header = json.loads(opened.metadata()["m2df"]) | edit
    save_file({"x": torch.zeros(1)}, path, metadata={"m2df": json.dumps(header)})
    with pytest.raises(InputError, match=reason) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)


def test_batches_depend_on_their_number_alone_and_have_distinct_texts() -> None:
    spec = small_recipe().clip.deployed.model_copy(update={"frames": 2, "sampler": "segment"})
    batches = ContrastiveBatches(spec, classes=6, clips=2, composed=0.5, seed=3)
    first, again, other = batches(5), batches(5), batches(6)
    np.testing.assert_array_equal(first.clips, again.clips)
    assert first.texts == again.texts
    assert first.clips.shape == (12, 2, 64, 64, 3)
    assert first.classes.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert not np.array_equal(first.clips, other.clips)


def test_no_training_source_holds_a_validation_or_test_action() -> None:
    held_out = {a.text for split in ("val", "test") for a in split_actions(split)}  # type: ignore[arg-type]
    pool = pool_actions(300, seed=0)
    assert not held_out & {a.text for a in pool}
    assert len({a.text for a in pool}) == len({a.name for a in pool}) == len(split_actions("train")) + 300


def test_supervised_contrastive_loss_in_closed_form() -> None:
    # Orthogonal classes of two equal clips at scale s: each anchor has one positive at s and two negatives at 0.
    scale = 3.0
    similarities = scale * torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    loss = supervised_contrastive(similarities, torch.tensor([0, 0, 1, 1]))
    assert loss.item() == pytest.approx(-math.log(math.exp(scale) / (math.exp(scale) + 2)), rel=1e-6)


def test_a_stopped_contrastive_stage_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    recipe = small_recipe(steps=2, classes=2)

    def trained(state: Path, stop_at: int | None = None) -> Backbone:
        torch.manual_seed(0)
        backbone = load_backbone(recipe.model)

        def report(done: int, losses: dict[str, float]) -> None:
            assert all(math.isfinite(value) for value in losses.values())
            if done == stop_at:
                os.kill(os.getpid(), signal.SIGINT)

        train_contrastive(backbone, recipe, state, report)
        return backbone

    whole = trained(tmp_path / "whole.pt")
    with pytest.raises(Interrupted, match="stopped after 1 of 2 steps"):
        trained(tmp_path / "stopped.pt", stop_at=1)
    resumed = trained(tmp_path / "stopped.pt")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def test_damaged_training_state_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "contrastive.pt"
    state.write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"contrastive\.pt: cannot resume"):
        train_contrastive(load_backbone("m2df-tiny"), small_recipe(), state, lambda done, losses: None)


def separable_pool(classes: int, clips: int, seed: int) -> FeaturePool:
    """Clips whose class shows in 8 dimensions and is drowned, until a head learns better, by what 24 others do."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 8, generator=generator)
    nuisance = 3 * torch.randn(classes, clips, 1, 24, generator=generator).expand(-1, -1, 4, -1)
    signal = centres[:, None, None].expand(-1, clips, 4, -1)
    features = torch.cat([signal, nuisance], dim=-1) + 0.2 * torch.randn(classes, clips, 4, 32, generator=generator)
    labels = tuple(f"class {c}" for c in range(classes) for _ in range(clips))
    texts = torch.randn(classes, 32, generator=generator)
    return FeaturePool(features.flatten(0, 1).unsqueeze(1), labels, texts)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_episodic_stage_learns(tmp_path: Path, backbone: Backbone, precision: Literal["fp32", "bf16"]) -> None:
    stage = TrainStage(
        episodes=160, per_update=4, queries=1, optimizer="adamw", learning_rate=3e-3, validate_every=80, clip_norm=10.0
    )
    pool, validation = separable_pool(30, 8, 0), separable_pool(8, 8, 1)
    processes = Processes(precision)
    torch.manual_seed(5)
    model = TrainedModel(
        build_head("m2df", 32, 4, {"ffn_dim": 32}), TunedBackbone(backbone, TuningRecipe(strategy="frozen"))
    )
    samplers = [EpisodeSampler(pool.labels, way=5, shot=1, query=1, seed=2)]
    found: dict[int, float] = {}
    updates: list[Update] = []

    def validate(stop: Stop) -> dict[int, float]:
        evaluation = Evaluation(shots=(1,))
        scorer = HeadScorer(model.head, processes.device)
        results = accuracies(scorer, validation, evaluation, split="validation", episodes=60, seed=1)
        return {result.shot: result.accuracy / 100 for result in results}

    saved: list[str] = []
    hooks = Hooks(validate, saved.append, updates.append, lambda done, values, best: found.update({done: values[1]}))
    source = FeatureEpisodes(pool, samplers, 0.0, processes.device)
    EpisodicStage(model, source, stage, processes, hooks, seed=2, state_file=tmp_path / "state.pt").run()
    assert list(found) == [0, 80, 160]
    assert found[160] > found[0] + 0.1
    assert saved.count("last.safetensors") == 3
    assert updates[-1].losses["total"] < updates[0].losses["total"]
    assert [update.done for update in updates] == list(range(4, 164, 4))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters)


def test_fp16_without_a_gpu_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EnvironmentMissing, match="fp16 needs a GPU"):
        Processes("fp16")


def test_an_episode_shows_its_clips_one_of_their_views_and_its_labels() -> None:
    pool = separable_pool(6, 5, 3)
    two = FeaturePool(torch.cat([pool.features, pool.features + 100], dim=1), pool.labels, pool.texts)
    sampler = EpisodeSampler(pool.labels, way=3, shot=2, query=2, seed=1)
    source = FeatureEpisodes(two, [sampler], 0.0, torch.device("cpu"))
    episode = [prepared() for prepared in source.stream(range(5))][4]
    drawn = sampler.episode(4)
    assert episode.support_features.shape == (6, 4, 32)
    assert episode.support_labels.tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(episode.class_prompts, pool.texts[torch.from_numpy(drawn.classes)])
    clips = [*drawn.support.ravel(), *drawn.query.ravel()]
    shown = [(two.features[clip] - value).abs().amax(dim=(1, 2)).argmin().item() for clip, value in
             zip(clips, [*episode.support_features, *episode.query_features], strict=True)]  # fmt: skip
    for clip, view, value in zip(clips, shown, [*episode.support_features, *episode.query_features], strict=True):
        torch.testing.assert_close(value, two.features[clip, view], rtol=0, atol=0)
    assert set(shown) == {0, 1}


def test_shuffled_texts_are_a_share_of_the_episodes() -> None:
    texts = torch.arange(40.0).unsqueeze(1)
    shuffled = [not torch.equal(texts_of_episode(texts, 0.3, 0, number), texts) for number in range(1000)]
    assert 0.25 < sum(shuffled) / 1000 < 0.35


@pytest.mark.slow
def test_the_command_trains_reports_and_resumes(tmp_path: Path, run_here) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(dump_recipe(small_recipe()))
    out = tmp_path / "run"
    first = run_here(cli, "--recipe", recipe, "--out", out, "--json")
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert Path(result["checkpoint"]).is_file()
    assert set(result["test"]) == {"3-way 1-shot"} == set(result["test_training_free"]) == set(result["validation"])
    assert load_recipe(str(out / "recipe.yaml")) == small_recipe()
    assert load_checkpoint(out).source.measured["test"] == result["test"]
    assert not [name for name in load_checkpoint(out).labels if name.startswith("composed")]

    refused = run_here(cli, "--recipe", recipe, "--out", out)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr

    resumed = run_here(cli, "--recipe", recipe, "--out", out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "accuracy on test classes, which are in no training" in resumed.stdout
    assert "chance 33.3 %" in resumed.stdout


@pytest.mark.parametrize("arguments", [[], ["--seed", "3"]])
def test_a_run_is_resumed_with_its_own_recipe_alone(tmp_path: Path, run_here, arguments: list[str]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.yaml").write_text(dump_recipe(small_recipe()))
    recipe = ["--recipe", out / "recipe.yaml"] if arguments else []
    refused = run_here(cli, *recipe, *arguments, "--out", out, "--resume")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "was begun with another recipe, seed or settings" in refused.stderr
    assert f"--recipe {out / 'recipe.yaml'}" in refused.stderr
    assert (out / "recipe.yaml").read_text() == dump_recipe(small_recipe())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--recipe", "nonsense"], "no such recipe"),
        (["--resume", "--out", "nowhere"], "no run of recipe demo to resume"),
        (["clip.mp4"], "unexpected argument"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_misuse_exits_2_with_one_line(
    tmp_path: Path, run_here, monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_here(cli, *arguments)
    assert result.returncode == 2
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_command_line_is_refused_before_pytorch_loads(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    code = "import sys; from m2df_train.commands.train import cli; cli.main(sys.argv[1:], standalone_mode=False)"
    code = f"try:\n    {code}\nexcept Exception as error:\n    print(error, 'torch' in sys.modules)"
    for arguments, reason in (
        (("--set", "train.wey=1"), "train.wey"),
        (("--out", tmp_path), "holds a run already"),
        (("import", "x.pt", "--dataset", "hmdb51", "--out", tmp_path), "holds a run already"),
    ):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert reason in done.stdout
        assert done.stdout.endswith(" False\n")
