"""Training: recipes, checkpoints, the contrastive and episodic stages, and the command end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from m2df_runtime.bundle import SourceInfo
from m2df_runtime.errors import InputError
from m2df_train.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from m2df_train.contrastive import cosine_schedule, supervised_contrastive, train_contrastive
from m2df_train.data.features import FeaturePool
from m2df_train.data.generated import ContrastiveBatches, pool_actions, render_class
from m2df_train.data.synthetic import split_actions
from m2df_train.episodic import accuracy, make_episode, train_head
from m2df_train.model.backbone import Backbone, load_backbone, normalised_pixels
from m2df_train.model.heads import build_head
from m2df_train.recipe import Recipe, dump_recipe, load_recipe


def small_recipe(**contrastive: int) -> Recipe:
    """The demo recipe at a size that trains in seconds; it learns nothing."""
    data = load_recipe("demo").model_dump(mode="json")
    data["name"] = "small"
    data["clip"]["frames"] = 4
    data["contrastive"] |= {"steps": 4, "classes": 3, "clips": 2, "frames": 2, "warmup": 1} | contrastive
    data["episodic"] |= {"episodes": 8, "per_update": 4, "composed": 0, "clips": 3, "queries": 1, "validate_every": 4}
    data["episodic"] |= {"way": 3, "shots": [1, 2]}
    data["evaluation"] = {"way": 3, "shots": [1], "clips": 2, "validation_episodes": 4, "test_episodes": 5}
    return Recipe.model_validate(data)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return load_backbone("m2df-tiny")


def test_shipped_recipes_are_valid_and_start_with_their_command() -> None:
    import m2df_train.recipe as module

    for path in sorted(module.RECIPES.glob("*.yaml")):
        assert path.read_text().startswith(f"# m2df-train --recipe {path.stem}")
        recipe = load_recipe(path.stem)
        build_head(recipe.head.name, 128, recipe.clip.frames, recipe.head.options)


def test_all_problems_of_a_recipe_are_reported_at_once(tmp_path: Path) -> None:
    data = yaml.safe_load(dump_recipe(small_recipe()))
    data["contrastive"]["learnig_rate"] = 1
    data["episodic"]["way"] = 1
    del data["model"]
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError) as error:
        load_recipe(str(path))
    for expected in ("broken.yaml", "contrastive.learnig_rate", "episodic.way", "model"):
        assert expected in str(error.value)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("episodic", {"clips": 2}, "episodic: clips 2: 2 shots and 1 queries need 3"),
        ("episodic", {"shots": []}, "episodic: shots \\[\\]: name at least one"),
        ("evaluation", {"shots": [0]}, "evaluation: shots \\[0\\]: name at least one"),
        ("evaluation", {"shots": [1, 5]}, "evaluation: clips 2: 5 shots"),
        ("evaluation", {"way": 1}, "evaluation.way"),
        (None, {"prompt": "a {photo} of {}"}, "prompt: .* exactly one"),
    ],
)
def test_what_would_fail_after_hours_is_refused_at_once(
    tmp_path: Path, section: str | None, values: dict[str, object], message: str
) -> None:
    data = yaml.safe_load(dump_recipe(small_recipe()))
    (data[section] if section else data).update(values)
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match=message):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("clip.size=32", r"clip\.size is 32, the image tower of m2df-tiny takes 64"),
        ("head.options.heads=7", "head m2df: .*7"),
    ],
)
def test_a_recipe_that_does_not_fit_its_model_leaves_no_run(tmp_path: Path, setting: str, message: str) -> None:
    from m2df_train.progress import StageProgress
    from m2df_train.trainer import train

    with pytest.raises(InputError, match=message):
        train(load_recipe("demo", [setting]), tmp_path / "run", StageProgress())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2\n", ""])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=r"r\.yaml"):
        load_recipe(str(path))


def test_head_options_of_a_recipe_are_checked_before_anything_is_trained(tmp_path: Path) -> None:
    data = yaml.safe_load(dump_recipe(small_recipe()))
    data["head"]["options"]["ppss"] = 1
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match="ppss"):
        load_recipe(str(path))


def test_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = small_recipe()
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(str(path)) == recipe


def test_unknown_models_and_other_tokenizers_are_refused() -> None:
    with pytest.raises(InputError, match="no-such-model"):
        load_backbone("no-such-model")
    with pytest.raises(InputError, match="needs CLIP's BPE"):
        load_backbone("ViT-B-16-SigLIP")


def test_pixels_are_normalised_as_the_clip_specification_says(backbone: Backbone) -> None:
    clip = small_recipe().clip
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
    saved = Checkpoint(backbone, head, recipe.clip, recipe.prompt, {"wave": "a person waving"}, source)
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
    save_checkpoint(path, Checkpoint(backbone, head, recipe.clip, recipe.prompt, {}, SourceInfo(model="m2df-tiny")))
    with safe_open(path, framework="pt") as opened:
        header = json.loads(opened.metadata()["m2df"]) | edit
    save_file({"x": torch.zeros(1)}, path, metadata={"m2df": json.dumps(header)})
    with pytest.raises(InputError, match=reason) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)


def test_batches_depend_on_their_number_alone_and_have_distinct_texts() -> None:
    spec = small_recipe().clip.model_copy(update={"frames": 2, "sampler": "segment"})
    batches = ContrastiveBatches(spec, steps=9, classes=6, clips=2, composed=0.5, seed=3)
    first, again, other = batches[5], batches[5], batches[6]
    np.testing.assert_array_equal(first.clips, again.clips)
    assert first.texts == again.texts
    assert first.clips.shape == (12, 2, 64, 64, 3)
    assert first.classes.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert not np.array_equal(first.clips, other.clips)


def test_no_training_source_holds_a_validation_or_test_action() -> None:
    held_out = {a.text for split in ("val", "test") for a in split_actions(split)}  # type: ignore[arg-type]
    assert not held_out & {a.text for a in pool_actions(50, seed=0)}


def test_rendered_clips_differ_from_each_other() -> None:
    clips = render_class(split_actions("train")[0], small_recipe().clip, 3, (1, 2))
    assert clips.shape == (3, 4, 64, 64, 3)
    assert not np.array_equal(clips[0], clips[1])


def test_supervised_contrastive_loss_in_closed_form() -> None:
    # Orthogonal classes of two equal clips at scale s: each anchor has one positive at s and two negatives at 0.
    scale = 3.0
    similarities = scale * torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    loss = supervised_contrastive(similarities, torch.tensor([0, 0, 1, 1]))
    assert loss.item() == pytest.approx(-math.log(math.exp(scale) / (math.exp(scale) + 2)), rel=1e-6)


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    rates = [cosine_schedule(step, 100, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)


def test_a_stopped_contrastive_stage_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    recipe = small_recipe()

    def trained(state: Path, stop_at: int | None = None) -> Backbone:
        torch.manual_seed(0)
        backbone = load_backbone(recipe.model)

        def report(done: int, losses: dict[str, float]) -> None:
            assert all(math.isfinite(value) for value in losses.values())
            if done == stop_at:
                raise KeyboardInterrupt

        train_contrastive(backbone, recipe, state, report)
        return backbone

    whole = trained(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped.pt", stop_at=2)
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
    return FeaturePool(features.flatten(0, 1), labels, texts)


def test_the_episodic_stage_learns_and_resumes_exactly(tmp_path: Path) -> None:
    recipe = small_recipe()
    stage = recipe.episodic.model_copy(
        update={"episodes": 320, "validate_every": 80, "way": 5, "queries": 2, "learning_rate": 2e-3}
    )
    evaluation = recipe.evaluation.model_copy(update={"validation_episodes": 60, "way": 5})
    pool, validation = separable_pool(30, 8, 0), separable_pool(8, 8, 1)

    def trained(state: Path, stop_at: int | None = None) -> tuple[float, float, dict[str, torch.Tensor]]:
        torch.manual_seed(5)
        head = build_head("m2df", 32, 4, {"ffn_dim": 32})
        before = accuracy(head, validation, evaluation)

        def report(done: int, loss: float, measured: float | None) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        after = train_head(head, pool, validation, stage, evaluation, seed=2, state_file=state, report=report)
        return before, after, head.state_dict()

    before, after, weights = trained(tmp_path / "whole.pt")
    assert after > before + 0.1
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped.pt", stop_at=160)
    _, resumed_after, resumed = trained(tmp_path / "stopped.pt")
    assert resumed_after == after
    for name, value in weights.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=name)


def test_an_episode_carries_its_clips_and_labels() -> None:
    from m2df_train.data.episodes import EpisodeSampler

    pool = separable_pool(6, 5, 3)
    drawn = EpisodeSampler(pool.labels, way=3, shot=2, query=2, seed=1).episode(4)
    episode = make_episode(pool, drawn, pool.texts)
    assert episode.support_features.shape == (6, 4, 32)
    assert episode.support_labels.tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(episode.class_prompts, pool.texts[torch.from_numpy(drawn.classes)])
    for row, clip in enumerate(drawn.query.ravel()):
        torch.testing.assert_close(episode.query_features[row], pool.features[clip])


@pytest.mark.slow
def test_the_command_trains_reports_and_resumes(tmp_path: Path, run_module) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(dump_recipe(small_recipe()))
    out = tmp_path / "run"
    first = run_module("m2df_train.cli", "--recipe", str(recipe), "--out", str(out), "--json")
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert Path(result["checkpoint"]).is_file()
    assert set(result["generated"]) == {"3-way 1-shot"} == set(result["generated_training_free"])
    assert load_recipe(str(out / "recipe.yaml")) == small_recipe()
    assert load_checkpoint(out).source.measured["generated"] == result["generated"]

    refused = run_module("m2df_train.cli", "--recipe", str(recipe), "--out", str(out))
    assert refused.returncode == 2
    assert "--resume" in refused.stderr

    resumed = run_module("m2df_train.cli", "--recipe", str(recipe), "--out", str(out), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "accuracy on unseen generated actions" in resumed.stdout
    assert "chance 33.3 %" in resumed.stdout


@pytest.mark.parametrize("arguments", [[], ["--seed", "3"]])
def test_a_run_is_resumed_with_its_own_recipe_alone(tmp_path: Path, run_module, arguments: list[str]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.yaml").write_text(dump_recipe(small_recipe()))
    recipe = ["--recipe", out / "recipe.yaml"] if arguments else []
    refused = run_module("m2df_train.cli", *recipe, *arguments, "--out", out, "--resume")
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
def test_misuse_exits_2_with_one_line(tmp_path: Path, run_module, arguments: list[str], reason: str) -> None:
    result = run_module("m2df_train.cli", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
