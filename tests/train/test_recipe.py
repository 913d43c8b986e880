"""Recipes: the ones that ship, errors of files and of the command line, and the preset under them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from m2df_runtime.errors import InputError
from m2df_train.commands.train import cli
from m2df_train.model.heads import build_head
from m2df_train.model.options import head_options
from m2df_train.public_benchmarks import BENCHMARKS
from m2df_train.recipe.overrides import merged, override
from m2df_train.recipe.recipe import RECIPES, Recipe, dump_recipe, load_recipe, shipped_recipes

OF_BENCHMARKS = [name for name in shipped_recipes() if "/" in name]
MODELS = {"ViT-B-16-quickgelu": 512, "RN50-quickgelu": 1024}
# Method section 4.1: episodes (of published runs without their last 20) and learning rate.
M2DF = {
    "hmdb51": (20_000, 1e-6),
    "ucf101": (20_000, 1e-6),
    "kinetics100": (75_000, 1e-5),
    "ssv2-full": (75_000, 1e-5),
    "ssv2-small": (45_000, 1e-5),
}
# Method section 4.2, per process of 4: iterations, end of the warm-up, the two falls; rates at start and top.
CLIP_FSAR = {
    "hmdb51": ((5_000, 700, 1400, 2100), (1e-6, 1e-5)),
    "ucf101": ((3_000, 600, 1200, 1800), (1e-7, 2e-6)),
    "kinetics100": ((5_000, 250, 750, 1250), (5e-6, 1e-5)),
    "ssv2-full": ((30_000, 4000, 8000, 12_000), (1e-5, 5e-5)),
    "ssv2-small": ((30_000, 2000, 4000, 6000), (2e-5, 5e-5)),
}


def write(path: Path, **changes: Any) -> str:
    """The demo recipe with changes; None takes an option away."""
    data = yaml.safe_load((RECIPES / "demo.yaml").read_text())
    data = {key: value for key, value in merged(data, changes).items() if value is not None}
    path.write_text(yaml.safe_dump(data))
    return str(path)


def test_there_is_a_recipe_for_every_benchmark_and_method():
    assert sorted(OF_BENCHMARKS) == sorted(f"{d}/{m}" for d in BENCHMARKS for m in ("m2df", "clip-fsar"))
    assert set(shipped_recipes()) - set(OF_BENCHMARKS) == {"custom", "demo", "demo-bundle"}


@pytest.mark.parametrize("name", OF_BENCHMARKS)
def test_the_head_of_a_recipe_says_how_to_use_it(name):
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith(f"# m2df-train --recipe {name} --data ")
    settings = lines[1].removeprefix("# RN50 and 5 shots:").replace("--set", "").split()
    recipe = load_recipe(name, ["data.root=x", *settings])
    assert (recipe.model, recipe.train.shots) == ("RN50-quickgelu", (5,))
    assert lines[2].startswith("# Training values: ") and "unverified" in lines[2]


@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", OF_BENCHMARKS)
def test_recipes_of_benchmarks_are_what_their_name_says_and_train_as_published(name, model, shot):
    dataset, _, method = name.partition("/")
    recipe = load_recipe(name, ["data.root=x", f"model={model}", f"preset.shot={shot}"])
    assert (recipe.name, recipe.model, recipe.pretrained) == (name, model, "openai")
    assert (recipe.data.dataset, recipe.head.name) == (dataset, method)
    assert recipe.evaluation.shots == recipe.train.shots == (shot,)
    with torch.device("meta"):  # shapes are enough
        build_head(recipe.head.name, MODELS[model], recipe.clip.frames, recipe.head.options)
    stage, schedule = recipe.train, recipe.train.schedule
    assert (stage.optimizer, stage.per_update, stage.way, stage.queries) == ("adam", 16, 5, 5)
    if method == "m2df":
        assert (stage.episodes, stage.learning_rate) == M2DF[dataset]
        assert (stage.weight_decay, schedule.kind, schedule.warmup) == (0.0, "constant", 0)
    else:
        iterations, (start, top) = CLIP_FSAR[dataset]
        counted = (stage.episodes, schedule.warmup, *schedule.milestones)
        assert counted == tuple(4 * count for count in iterations)
        assert (stage.learning_rate * schedule.start, stage.learning_rate) == pytest.approx((start, top))
        assert (stage.weight_decay, schedule.kind, schedule.factor) == (1e-3, "steps", 0.1)


def test_a_recipe_of_a_benchmark_becomes_the_repositorys_own_with_its_preset():
    recipe = load_recipe("ucf101/clip-fsar", ["data.root=x", "preset.shot=5", "preset.name=official-fsar"])
    assert (recipe.train.shots, recipe.evaluation.shots) == ((1,), (5,))
    assert recipe.clip.deployed.std == (0.225, 0.225, 0.225)
    assert recipe.head.options["prototype"]["merge"] == "before"
    with pytest.raises(InputError, match="preset official-m2df is for the head m2df, not clip-fsar"):
        load_recipe("ucf101/clip-fsar", ["data.root=x", "preset=official-m2df"])


def test_a_recipe_for_videos_asks_for_them():
    for name in ("hmdb51/m2df", "custom"):
        with pytest.raises(InputError, match=r"data: .*root.*\(--data DIR\)"):
            load_recipe(name)
        assert load_recipe(name, ["data.root=videos"]).data.root == str(Path("videos").absolute())


def test_paths_are_those_of_the_working_directory_and_stay_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/of/mine")
    Path("recipes").mkdir()
    path = write(
        Path("recipes/r.yaml"),
        model="local-dir:models/clip",
        pretrained="towers/clip.pt",
        data={"root": "videos", "labels": "~/labels.csv", "dataset": "hmdb51"},
    )
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_recipe(load_recipe(path, ["data.split_files=../lists"])))
    monkeypatch.chdir("/")
    recipe = load_recipe(str(resolved))
    assert recipe.data.root == str(tmp_path / "videos")
    assert recipe.data.split_files == str(tmp_path / ".." / "lists")
    assert recipe.data.labels == "/home/of/mine/labels.csv"
    assert recipe.model == f"local-dir:{tmp_path}/models/clip"
    assert recipe.pretrained == str(tmp_path / "towers" / "clip.pt")


@pytest.mark.parametrize("model", ["ViT-B-32", "hf-hub:org/clip"])
def test_names_are_no_paths(model):
    recipe = load_recipe("demo", [f"model={model}", "pretrained=laion2b_s34b_b79k", "data.labels=official"])
    assert (recipe.model, recipe.pretrained, recipe.data.labels) == (model, "laion2b_s34b_b79k", "official")


@pytest.mark.parametrize("name", ["custom", "demo", "demo-bundle"])
def test_a_recipe_means_what_its_file_says(name):
    file = RECIPES / f"{name}.yaml"
    assert file.read_text().startswith(f"# m2df-train --recipe {name}")
    data = yaml.safe_load(file.read_text())
    recipe = load_recipe(name, ["data.root=x"]).model_dump(mode="json")
    assert merged(recipe, data) == recipe
    options = recipe["head"]["options"]
    dim = 128 + options.get("appearance", {}).get("dim", 0)
    build_head(recipe["head"]["name"], dim, recipe["clip"]["frames"], options)


def test_the_default_is_the_papers_preset(tmp_path):
    path = write(tmp_path / "r.yaml", head=None, clip=None, tuning=None, train=None)
    recipe = load_recipe(path, ["train.episodes=1", "data.clips=10"])
    assert recipe.preset.name == "paper"
    assert head_options("m2df", recipe.head.options) == head_options("m2df")
    alone = Recipe.model_validate(
        {"name": "r", "model": "m2df-tiny", "data": {"root": "x"}, "train": {"episodes": 1}},
    )
    for section in ("prompt", "clip", "tuning", "train"):
        assert getattr(recipe, section) == getattr(alone, section), section


def test_a_presets_values_stand_under_the_recipes_own(tmp_path):
    recipe = load_recipe(write(tmp_path / "r.yaml", preset="official-m2df", head={"options": {"cos_eps": 0.02}}))
    options = head_options(recipe.head.name, recipe.head.options)
    assert options.cos_eps == 0.02
    assert options.pps.eval == "expectation"  # the recipe's
    assert options.distil.text_token == "first_frame"  # the preset's
    assert recipe.clip.sampler.eval == "uniform"
    assert recipe.clip.deployed.mean == (0.45, 0.5, 0.5)
    assert (recipe.tuning.strategy, recipe.tuning.bn_mode) == ("frozen", "mixed")
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_recipe(recipe))
    assert load_recipe(str(resolved)) == recipe


def test_a_preset_fills_in_what_a_recipe_leaves_out(tmp_path):
    changes = {"preset": {"name": "official-fsar", "shot": 5}, "data": {"root": "x", "dataset": "kinetics100"}}
    nothing = dict.fromkeys(("head", "clip", "prompt", "evaluation"))
    recipe = load_recipe(write(tmp_path / "r.yaml", **changes, **nothing))
    assert recipe.head.name == "clip-fsar"
    assert recipe.head.options["prototype"]["merge"] == "before"
    assert (recipe.clip.resize, recipe.clip.antialias) == ("squash", False)
    assert (recipe.clip.training.sampler, recipe.clip.deployed.sampler) == ("dense_clip", "dense_clip")
    assert recipe.train.shots == (1,)
    assert recipe.evaluation.shots == (5,)
    assert build_head(recipe.head.name, 64, 8, recipe.head.options).options.loss.lambda_text == 1.5


@pytest.mark.parametrize(
    ("preset", "tested", "trained"),
    [("paper", [5], (5,)), ({"name": "official-m2df", "shot": 5}, None, (5,)), ("paper", None, (1, 5))],
)
def test_training_shots_follow_the_tests(tmp_path, preset, tested, trained):
    path = Path(write(tmp_path / "r.yaml", preset=preset, evaluation={"shots": tested}))
    path.write_text(path.read_text().replace("shots: null", "clips: 20"))
    recipe = load_recipe(str(path))
    assert recipe.train.shots == recipe.evaluation.shots == trained


def test_the_command_line_stands_over_the_recipe_with_typed_values():
    settings = ["head.options.otam.lambda=0.1", "train.way=10", "train.shots=[1, 3]", "clip.antialias=false"]
    recipe = load_recipe("demo", [*settings, "preset=official-m2df", "pretrained=null", "clip.pixel_norm=none"])
    assert head_options(recipe.head.name, recipe.head.options).otam.lam == 0.1
    assert recipe.train.way == 10
    assert recipe.train.shots == (1, 3)
    assert recipe.clip.antialias is False
    assert recipe.clip.deployed.std == (1.0, 1.0, 1.0)
    assert recipe.head.options["topk_frames"] == 4
    assert load_recipe("demo", ["train.way=7", "train.way=8"]).train.way == 8


def test_options_mean_what_they_say_in_yaml():
    settings = ["head={name: clip-fsar}", "head.options.text_visual_fusion.mode=off"]
    recipe = load_recipe("demo", settings)
    assert head_options(recipe.head.name, recipe.head.options).text_visual_fusion.mode == "off"
    assert load_recipe("demo", ["head.options.pps.eval=none"]).head.options["pps"]["eval"] == "none"
    with pytest.raises(InputError, match=r"text_visual_fusion\.mode"):
        load_recipe("demo", [settings[0], "head.options.text_visual_fusion.mode=on"])


def test_a_head_has_the_options_it_uses_and_no_other():
    assert load_recipe("demo", ["head.options.dropout.context=0.3"]).head.options["dropout"]["context"] == 0.3
    with pytest.raises(InputError, match=r"head\.options\.dropout\.context: Extra inputs"):
        load_recipe("demo", ["head={name: clip-fsar}", "head.options.dropout.context=0.1"])


def test_all_errors_of_file_preset_and_command_line_are_reported_at_once(tmp_path):
    path = write(
        tmp_path / "r.yaml", preset="official-fsar", model=None, train={"wey": 3}, contrastive={"learnig_rate": 1}
    )
    settings = [
        "head.options.otam.lamda=1",
        "head.options.pps.evil=1",
        "clip.pixel_norm=clipped",
        "clip.sampler.eval=segment",
        "tuning.strategy=frosen",
        "data.hflip=2",
        "seed",
        "seed.x=1",
        "seed=[1",
        "evaluation.way=x",
    ]
    with pytest.raises(InputError) as error:
        load_recipe(path, settings)
    for expected in (
        "r.yaml: ",
        "model: Field required",
        "train.wey: Extra inputs",
        "contrastive.learnig_rate: Extra inputs",
        "head.options.otam.lamda: Extra inputs",
        "head.options.pps.evil: Extra inputs",
        "clip.pixel_norm",
        "clip.sampler.eval: segment is random; segment_center is its fixed form",
        "tuning.strategy",
        "data.hflip",
        "--set seed: write it as KEY.KEY=VALUE",
        "--set seed.x=1: seed is a value",
        "--set seed=[1: the value is not YAML",
        "evaluation.way",
        "preset official-fsar is for the head clip-fsar, not m2df",
    ):
        assert expected in str(error.value), expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"clips": 2}, "train": {"shots": [2], "queries": 1}}, "data: clips 2: 2 shots and 1 queries need 3"),
        ({"train": {"shots": []}}, r"train\.shots: shots \[\]: name at least one"),
        ({"evaluation": {"shots": [0]}}, r"evaluation\.shots: shots \[0\]: name at least one"),
        ({"evaluation": {"clips": 2}}, "evaluation: clips 2: 5 shots and 1 queries need 6"),
        ({"evaluation": {"way": 1}}, r"evaluation\.way"),
        ({"prompt": "a {photo} of {}"}, "prompt: .* exactly one"),
        ({"clip": {"short_side": 32}}, "clip: short_side 32 is smaller than size 64"),
        ({"data": {"split_files": "lists"}}, r"data: dataset and split_files need root"),
        ({"data": {"root": "x", "split_files": "lists"}}, "data: split_files needs dataset"),
    ],
)
def test_what_would_fail_after_hours_is_refused_at_once(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        load_recipe(write(tmp_path / "r.yaml", **changes))


@pytest.mark.parametrize(
    ("preset", "problem"),
    [("offical", "preset.name"), ({"name": "paper", "shot": 3}, "preset.shot"), ({"datset": 1}, "preset.datset")],
)
def test_what_is_no_preset_is_refused(tmp_path, preset, problem):
    with pytest.raises(InputError, match=problem):
        load_recipe(write(tmp_path / "r.yaml", preset=preset))


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2\n", ""])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content):
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=r"r\.yaml"):
        load_recipe(str(path))


def test_an_unknown_recipe_is_answered_with_those_there_are():
    with pytest.raises(InputError, match=r"hmdb51/other: no such recipe .*custom, demo.*hmdb51/m2df"):
        load_recipe("hmdb51/other")


def test_settings_never_change_what_they_are_applied_to():
    data = {"a": {"b": 1}, "c": None}
    assert override(data, ["a.b=2", "c.d=3"]) == ({"a": {"b": 2}, "c": {"d": 3}}, [])
    assert data == {"a": {"b": 1}, "c": None}
    assert merged(data, {"a": {"x": [1]}}) == {"a": {"b": 1, "x": [1]}, "c": None}


def test_the_command_reports_wrong_settings_in_one_line(run_here):
    result = run_here(cli, "--set", "train.wey=1", "--set", "clip.siz=1")
    assert result.returncode == 2
    assert "train.wey" in result.stderr
    assert "clip.siz" in result.stderr
    assert len(result.stderr.splitlines()) == 1
