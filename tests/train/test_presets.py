"""Presets, their place under a recipe, and options from the command line over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from m2df_runtime.errors import InputError
from m2df_runtime.preprocess import CLIP_MEAN, CLIP_STD, ClipSpec, load_clip
from m2df_runtime.video import ArraySource
from m2df_train import import_cli
from m2df_train.data.benchmarks import BenchmarkName
from m2df_train.data.generated import render_class
from m2df_train.data.synthetic import sample_action, split_actions
from m2df_train.model.heads import build_head, head_options
from m2df_train.overrides import merged, override
from m2df_train.presets import PresetName, find_preset
from m2df_train.recipe import RECIPES, dump_recipe, load_recipe

DATASETS = get_args(BenchmarkName)
SSV2 = ("ssv2-full", "ssv2-small")


def at(options: Any, path: str) -> Any:
    for key in path.split("."):
        options = options[key]
    return options


# Method section 9, row by row: option, paper, official-m2df, official-fsar; None where the table has a dash.
OPTION_TABLE = [
    ("topk_frames", 4, 4, None),
    ("pps.train", "sample", "sample", None),
    ("pps.eval", "argmax", "sample", None),
    ("pps.temperature", 200.0, 200.0, None),
    ("otam.lambda", 0.5, 0.5, 0.5),
    ("otam.bidirectional", True, True, True),
    ("cos_eps", 0.01, 0.01, 0.01),
    ("view_weights", [1.0, 1.0], [1.0, 1.0], None),
    ("distil.text_token", "prompt", "first_frame", None),
    ("distil.detach_teacher", True, False, None),
    ("distil.detach_weights", True, False, None),
    ("loss.reduction", "sum", "sum", "mean"),
    ("loss.lambda_text", 0.0, 0.0, 1.5),
    ("loss.lambda_ce", 1.0, 1.0, 1.0),
    ("loss.lambda_distil", 1.0, 1.0, None),
]


@pytest.mark.parametrize("row", OPTION_TABLE, ids=[row[0] for row in OPTION_TABLE])
def test_head_options_are_those_of_the_methods_table(row):
    path, *values = row
    for name, expected in zip(get_args(PresetName), values, strict=True):
        if expected is not None:
            preset = find_preset(name)
            resolved = head_options(preset.head, preset.options).model_dump(mode="json")
            assert at(resolved, path) == expected, name


def test_the_papers_preset_is_what_heads_do_without_options():
    for head in ("m2df", "clip-fsar", "training-free"):
        preset = find_preset("paper", head=head)
        assert head_options(head, preset.options) == head_options(head)
    assert (
        find_preset("paper").options["distil"] | {"direction": "mutual", "conditions": ["t", "v"]}
        == (find_preset("paper").options["distil"])
    )


def test_pixels_and_frames_are_those_of_the_methods_table():
    paper, m2df, fsar = (ClipSpec(**find_preset(name).clip) for name in get_args(PresetName))
    assert {spec.frames for spec in (paper, m2df, fsar)} == {8}
    assert {(spec.size, spec.short_side, spec.interpolation) for spec in (paper, m2df, fsar)} == {
        (224, 256, "bilinear")
    }
    assert (paper.resize, paper.antialias, paper.sampler) == ("short", True, "segment_center")
    assert (m2df.resize, m2df.antialias, m2df.sampler) == ("short", True, "linspace")
    assert (fsar.resize, fsar.antialias, fsar.sampler) == ("squash", False, "segment_center")
    assert (paper.mean, paper.std) == (fsar.mean, fsar.std) == (CLIP_MEAN, CLIP_STD)
    assert (m2df.mean, m2df.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_rows_that_depend_on_the_dataset():
    for dataset in DATASETS:
        for shot in (1, 5):
            paper, m2df, fsar = (find_preset(n, dataset=dataset, shot=shot) for n in get_args(PresetName))
            kinetics = dataset == "kinetics100"
            assert paper.training.hflip == (0.0 if dataset in SSV2 else 0.5)
            assert (m2df.training.hflip, fsar.training.hflip) == (0.5, 0.0)
            assert fsar.training.hflip_query == (0.5 if kinetics else None)
            assert fsar.clip["sampler"] == ("dense_clip" if kinetics else "segment_center")
            assert fsar.training.sampler_eval == ("dense_clip" if kinetics else "segment")
            assert m2df.options["otam"]["bidirectional"] == (not (kinetics and shot == 1))
            assert fsar.options["otam"]["bidirectional"]
            assert fsar.options["prototype"]["merge"] == ("before" if shot == 5 else "after")
            odd = (dataset, shot) == ("ucf101", 5)
            assert fsar.clip["std"] == ([0.225] * 3 if odd else list(CLIP_STD))
    weights = [find_preset("official-fsar", dataset=d).options["loss"]["lambda_text"] for d in DATASETS]
    assert weights == [1.2, 1.5, 1.5, 3.0, 3.0]
    assert [find_preset(n).training.bn_mode for n in get_args(PresetName)] == ["frozen", "mixed", "train"]
    assert [find_preset(n).training.labels for n in get_args(PresetName)] == ["paper", "official", "official"]
    assert [find_preset(n).training.shots for n in get_args(PresetName)] == ["test", "test", 1]


def test_resize_for_towers_of_other_sizes():
    sides = {name: [find_preset(name, size=s).clip["short_side"] for s in (56, 336)] for name in get_args(PresetName)}
    assert sides == {"paper": [64, 384], "official-m2df": [256, 384], "official-fsar": [256, 384]}


def test_a_preset_of_another_head_is_refused():
    with pytest.raises(InputError, match="official-m2df is for the head m2df, not clip-fsar"):
        find_preset("official-m2df", head="clip-fsar")


def pictures(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, height // 8, width // 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(p).resize((width, height), Image.Resampling.BICUBIC)) for p in coarse])


@pytest.mark.parametrize("shape", [(240, 320), (720, 400), (256, 456)])
def test_official_m2df_pixels_are_pillows_bilinear_resize_and_a_centre_crop(shape):
    frames = pictures(*shape)
    spec = ClipSpec(**find_preset("official-m2df").clip)
    height, width = shape
    size = (256, int(256 * height / width)) if width < height else (int(256 * width / height), 256)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    expected = [
        np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BILINEAR))[top : top + 224, left : left + 224]
        for f in frames
    ]
    np.testing.assert_array_equal(load_clip(ArraySource(frames, 25.0), spec), np.stack(expected))


@pytest.mark.parametrize("shape", [(240, 320), (720, 400), (256, 456)])
def test_official_fsar_pixels_are_a_tensor_resize_to_a_square_up_to_rounding(shape):
    frames = pictures(*shape)
    spec = ClipSpec(**find_preset("official-fsar").clip)
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    squashed = F.interpolate(tensor, (256, 256), mode="bilinear", align_corners=False, antialias=False)
    expected = squashed[:, :, 16:240, 16:240].permute(0, 2, 3, 1).numpy()
    # The repository keeps fractions of a grey level, a bundle takes whole ones.
    assert np.abs(load_clip(ArraySource(frames, 25.0), spec) - expected).max() <= 1.0


def write(path: Path, **changes: Any) -> str:
    data = yaml.safe_load((RECIPES / "demo.yaml").read_text())
    data = {key: value for key, value in merged(data, changes).items() if value is not None}
    path.write_text(yaml.safe_dump(data))
    return str(path)


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_a_recipe_without_preset_means_what_its_file_says(name):
    data = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    recipe = load_recipe(name).model_dump(mode="json")
    assert recipe["head"] == data["head"]
    assert {key: recipe["clip"][key] for key in data["clip"]} == data["clip"]
    assert recipe["clip"]["short_side"] is None
    assert recipe["preset"] is recipe["episodic"]["sampler"] is None


def test_a_presets_values_stand_under_the_recipes_own(tmp_path):
    recipe = load_recipe(write(tmp_path / "r.yaml", preset="official-m2df", head={"options": {"cos_eps": 0.02}}))
    options = head_options(recipe.head.name, recipe.head.options)
    assert options.cos_eps == 0.02
    assert options.pps.eval == "expectation"  # the recipe's
    assert options.distil.text_token == "first_frame"  # the preset's
    assert recipe.clip.sampler == "uniform"
    assert recipe.clip.mean == (0.45, 0.5, 0.5)
    assert recipe.clip.short_side == 256
    assert recipe.episodic.sampler == "linspace"
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_recipe(recipe))
    assert load_recipe(str(resolved)) == recipe


def test_a_preset_fills_in_what_a_recipe_leaves_out(tmp_path):
    variant = {"name": "official-fsar", "dataset": "kinetics100", "shot": 5}
    recipe = load_recipe(write(tmp_path / "r.yaml", preset=variant, head=None, clip=None, prompt=None))
    assert recipe.head.name == "clip-fsar"
    assert recipe.head.options["prototype"]["merge"] == "before"
    assert (recipe.clip.resize, recipe.clip.antialias, recipe.clip.sampler) == ("squash", False, "dense_clip")
    assert recipe.episodic.shots == (1,)
    assert recipe.evaluation.shots == (5,)
    assert build_head(recipe.head.name, 64, 8, recipe.head.options).options.loss.lambda_text == 1.5


@pytest.mark.parametrize(
    ("preset", "tested", "trained"),
    [("paper", [5], (5,)), ({"name": "official-m2df", "shot": 5}, None, (5,)), ("paper", None, (1, 5))],
)
def test_training_shots_follow_the_tests(tmp_path, preset, tested, trained):
    evaluation = {"shots": tested} if tested else {}
    assert load_recipe(write(tmp_path / "r.yaml", preset=preset, evaluation=evaluation)).episodic.shots == trained


def test_the_command_line_stands_over_the_recipe_with_typed_values():
    settings = ["head.options.otam.lambda=0.1", "episodic.way=10", "episodic.shots=[1, 3]", "clip.antialias=false"]
    recipe = load_recipe("demo", [*settings, "preset=official-m2df", "pretrained=null"])
    assert head_options(recipe.head.name, recipe.head.options).otam.lam == 0.1
    assert recipe.episodic.way == 10
    assert recipe.episodic.shots == (1, 3)
    assert recipe.clip.antialias is False
    assert recipe.head.options["topk_frames"] == 4
    assert load_recipe("demo", ["episodic.way=7", "episodic.way=8"]).episodic.way == 8


def test_options_mean_what_they_say_in_yaml():
    settings = ["head={name: clip-fsar}", "head.options.text_visual_fusion.mode=off"]
    recipe = load_recipe("demo", settings)
    assert head_options(recipe.head.name, recipe.head.options).text_visual_fusion.mode == "off"
    assert load_recipe("demo", ["head.options.pps.eval=none"]).head.options["pps"]["eval"] == "none"
    with pytest.raises(InputError, match=r"text_visual_fusion\.mode"):
        load_recipe("demo", [settings[0], "head.options.text_visual_fusion.mode=on"])


def test_all_errors_of_file_preset_and_command_line_are_reported_at_once(tmp_path):
    path = write(tmp_path / "r.yaml", preset="official-fsar", episodic={"wey": 3})
    settings = [
        "head.options.otam.lamda=1",
        "head.options.pps.evil=1",
        "seed",
        "seed.x=1",
        "seed=[1",
        "evaluation.way=x",
    ]
    with pytest.raises(InputError) as error:
        load_recipe(path, settings)
    for expected in (
        "r.yaml: ",
        "episodic.wey: Extra inputs",
        "head.options.otam.lamda: Extra inputs",
        "head.options.pps.evil: Extra inputs",
        "--set seed: write it as KEY.KEY=VALUE",
        "--set seed.x=1: seed is a value",
        "--set seed=[1: the value is not YAML",
        "evaluation.way",
        "preset official-fsar is for the head clip-fsar, not m2df",
    ):
        assert expected in str(error.value)


@pytest.mark.parametrize(
    ("preset", "problem"),
    [("offical", "preset.name"), ({"name": "paper", "shot": 3}, "preset.shot"), ({"datset": 1}, "preset.datset")],
)
def test_what_is_no_preset_is_refused(tmp_path, preset, problem):
    with pytest.raises(InputError, match=problem):
        load_recipe(write(tmp_path / "r.yaml", preset=preset))


def test_random_frames_are_for_training_alone():
    assert load_recipe("demo", ["episodic.sampler=segment"]).episodic.sampler == "segment"
    with pytest.raises(InputError, match=r"clip: sampler segment is random.*episodic\.sampler"):
        load_recipe("demo", ["clip.sampler=segment"])


def test_clips_to_measure_on_have_the_frames_of_deployment():
    spec = ClipSpec(frames=4, size=64, sampler="linspace", interpolation="bilinear")
    action = split_actions("train")[0]
    fixed = load_clip(sample_action(action, np.random.default_rng([3, 4])), spec)
    np.testing.assert_array_equal(render_class(action, spec, 1, (3, 4), random_frames=False)[0], fixed)
    assert not np.array_equal(render_class(action, spec, 1, (3, 4))[0], fixed)


def test_settings_never_change_what_they_are_applied_to():
    data = {"a": {"b": 1}, "c": None}
    assert override(data, ["a.b=2", "c.d=3"]) == ({"a": {"b": 2}, "c": {"d": 3}}, [])
    assert data == {"a": {"b": 1}, "c": None}
    assert merged(data, {"a": {"x": [1]}}) == {"a": {"b": 1, "x": [1]}, "c": None}


def test_the_command_reports_wrong_settings_in_one_line(tmp_path, run_module):
    result = run_module("m2df_train.cli", "--set", "episodic.wey=1", "--set", "clip.siz=1", cwd=tmp_path)
    assert result.returncode == 2
    assert "episodic.wey" in result.stderr
    assert "clip.siz" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_import_command_offers_what_there_is():
    datasets = next(option for option in import_cli.import_command.params if option.name == "dataset")
    assert tuple(datasets.type.choices) == get_args(BenchmarkName)
    assert tuple(name for name in get_args(PresetName) if name != "paper") == import_cli.PRESETS
