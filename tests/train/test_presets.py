"""The option table of the method, row by row: every option has its place in a recipe and its value in every preset."""

from __future__ import annotations

import re
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from m2df_runtime.clips.source import ArraySource
from m2df_runtime.errors import InputError
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.pixels.spec import CLIP_MEAN, CLIP_STD, ClipSpec
from m2df_train.commands import import_ as import_cli
from m2df_train.model.options import head_options
from m2df_train.public_benchmarks import BENCHMARKS, BenchmarkName
from m2df_train.recipe.presets import PresetName, find_preset
from m2df_train.recipe.recipe import Recipe, load_recipe
from m2df_train.recipe.sections import ClipRecipe

PRESETS = get_args(PresetName)
KINETICS_COLOUR = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.25, "grey": 0.3}

# Method section 9: its option, the key in a recipe, values of paper, official-m2df and official-fsar for 5 test
# shots of HMDB51 (paper with the head of CLIP-FSAR where CLIP-M2DF has no such option); None for a dash.
TABLE = [
    ("`frames`", "clip.frames", 8, 8, 8),
    ("`sampler.train / eval`", "clip.sampler.train", "segment", "linspace", "segment"),
    ("`sampler.train / eval`", "clip.sampler.eval", "segment_center", "linspace", "segment_center"),
    ("`resize`", "clip.resize", "short", "short", "squash"),
    ("`resize`", "clip.short_side", 256, 256, 256),
    ("`resize`", "clip.interpolation", "bilinear", "bilinear", "bilinear"),
    ("`resize`", "clip.antialias", True, True, False),
    ("`pixel_norm`", "clip.pixel_norm", "clip", "none", "clip"),
    ("`hflip`", "data.hflip", 0.5, 0.5, 0.0),
    ("`hflip`", "data.hflip_query", None, None, None),
    ("`prompt`", "prompt", "a photo of {}", "a photo of {}", "a photo of {}"),
    ("`labels`", "data.labels", "paper", "official", "official"),
    ("`topk_frames`", "head.options.topk_frames", 4, 4, None),
    ("`pps.train / eval`", "head.options.pps.train", "sample", "sample", None),
    ("`pps.train / eval`", "head.options.pps.eval", "argmax", "sample", None),
    ("`pps.temperature`", "head.options.pps.temperature", 200.0, 200.0, None),
    ("`otam.lambda`", "head.options.otam.lambda", 0.5, 0.5, 0.5),
    ("`otam.bidirectional`", "head.options.otam.bidirectional", True, True, True),
    ("`cos_eps`", "head.options.cos_eps", 0.01, 0.01, 0.01),
    ("`view_weights`", "head.options.view_weights", [1.0, 1.0], [1.0, 1.0], None),
    ("`distil.direction`", "head.options.distil.direction", "mutual", "global_teaches", None),
    ("`distil.conditions`", "head.options.distil.conditions", ["t", "v"], ["t"], None),
    ("`distil.text_token`", "head.options.distil.text_token", "prompt", "first_frame", None),
    ("`distil.detach_teacher/weights`", "head.options.distil.detach_teacher", True, False, None),
    ("`distil.detach_teacher/weights`", "head.options.distil.detach_weights", True, False, None),
    ("`loss.reduction`", "head.options.loss.reduction", "sum", "sum", "mean"),
    ("`loss.lambda_text / ce / distil`", "head.options.loss.lambda_text", 0.0, 0.0, 1.2),
    ("`loss.lambda_text / ce / distil`", "head.options.loss.lambda_ce", 1.0, 1.0, 1.0),
    ("`loss.lambda_text / ce / distil`", "head.options.loss.lambda_distil", 1.0, 1.0, None),
    ("`prototype.merge`", "head.options.prototype.merge", "after", None, "before"),
    ("`text_visual_fusion.beta`", "head.options.text_visual_fusion.mode", "off", None, "off"),
    ("`text_visual_fusion.beta`", "head.options.text_visual_fusion.beta", 0.9, None, 0.9),
    ("`bn_mode` (RN50)", "tuning.bn_mode", "frozen", "mixed", "train"),
    ("`train.shots`", "train.shots", [5], [5], [1]),
]
# Options of CLIP-FSAR's head alone; CLIP-M2DF always averages shots after its encoders (method section 2.7).
OF_CLIP_FSAR = ("head.options.prototype", "head.options.text_visual_fusion")


def recipe(name: str, **preset: Any) -> Recipe:
    """A benchmark's recipe under a preset in its variant: head, dataset, shot."""
    head = preset.get("head") or ("clip-fsar" if name == "official-fsar" else "m2df")
    settings = [f"preset.name={name}", f"preset.shot={preset.get('shot', 1)}", "model=RN50-quickgelu"]
    return load_recipe(f"{preset.get('dataset', 'hmdb51')}/{head}", ["data.root=x", *settings])


def at(resolved: Recipe, path: str) -> Any:
    """A value of a recipe, the head's defaults filled in."""
    values = resolved.model_dump(mode="json")
    options = head_options(resolved.head.name, resolved.head.options)
    values["head"]["options"] = options.model_dump(mode="json")
    for key in path.split("."):
        values = values[key]
    return values


@pytest.mark.parametrize("row", TABLE, ids=[row[1] for row in TABLE])
def test_every_option_of_the_methods_table_has_its_value_in_every_preset(row):
    _, path, *values = row
    fsar = path.startswith(OF_CLIP_FSAR)
    for name, expected in zip(PRESETS, values, strict=True):
        if fsar and name == "official-m2df":
            assert expected is None
        elif expected is not None or not path.startswith("head."):
            resolved = recipe(name, shot=5, head="clip-fsar" if fsar else None)
            assert at(resolved, path) == expected, name


def test_no_option_of_the_methods_table_is_left_out(shared_dir):
    section = (shared_dir / "docs" / "method.md").read_text(encoding="utf-8").split("## 9. Option schema")[1]
    rows = re.findall(r"^\| (`.*?) \|", section.split("\n---")[0], re.M)
    assert rows == list(dict.fromkeys(row[0] for row in TABLE))


def variants(name: str, path: str, head: str | None = None) -> dict[tuple[str, int], Any]:
    return {(d, k): at(recipe(name, dataset=d, shot=k, head=head), path) for d in BENCHMARKS for k in (1, 5)}


def test_values_that_depend_on_the_dataset_and_the_shots():
    def only(where: Any, value: Any, elsewhere: Any) -> dict[tuple[str, int], Any]:
        return {(d, k): value if where(d, k) else elsewhere for d in BENCHMARKS for k in (1, 5)}

    def kinetics(dataset: str, shot: int) -> bool:
        return dataset == "kinetics100"

    assert variants("paper", "data.hflip") == only(lambda d, k: d.startswith("ssv2"), 0.0, 0.5)
    assert set(variants("official-m2df", "data.hflip").values()) == {0.5}
    assert set(variants("official-fsar", "data.hflip").values()) == {0.0}
    assert variants("official-fsar", "data.hflip_query") == only(kinetics, 0.5, None)
    assert variants("official-fsar", "data.query_colour") == only(kinetics, KINETICS_COLOUR, None)
    assert variants("official-fsar", "clip.sampler.train") == only(kinetics, "dense_clip", "segment")
    assert variants("official-fsar", "clip.sampler.eval") == only(kinetics, "dense_clip", "segment_center")
    single = {d: find_preset("official-fsar", dataset=d).random_test_frames for d in BENCHMARKS}
    assert single == {d: d != "kinetics100" for d in BENCHMARKS}
    path = "head.options.otam.bidirectional"
    assert variants("official-m2df", path) == only(lambda d, k: kinetics(d, k) and k == 1, False, True)
    assert set(variants("official-fsar", path).values()) == {True}
    assert variants("official-fsar", "head.options.prototype.merge") == only(lambda d, k: k == 5, "before", "after")
    odd = {"mean": [0.45] * 3, "std": [0.225] * 3}
    assert variants("official-fsar", "clip.pixel_norm") == only(lambda d, k: (d, k) == ("ucf101", 5), odd, "clip")
    weights = {"hmdb51": 1.2, "ucf101": 1.5, "kinetics100": 1.5, "ssv2-full": 3.0, "ssv2-small": 3.0}
    for name in ("paper", "official-fsar"):
        found = variants(name, "head.options.loss.lambda_text", "clip-fsar")
        assert found == {(d, k): weights[d] for d, k in found}
    for name, trained in (
        ("paper", {1: [1], 5: [5]}),
        ("official-m2df", {1: [1], 5: [5]}),
        ("official-fsar", {1: [1], 5: [1]}),
    ):
        assert all(shots == trained[k] for (_, k), shots in variants(name, "train.shots").items()), name


@pytest.mark.parametrize("name", PRESETS)
def test_presets_train_as_published(name):
    """Method section 4: what holds on every dataset. The weight decay is the one that acts."""
    for head, decay, schedule in (("m2df", 0.0, "constant"), ("clip-fsar", 1e-3, "steps")):
        if name == "paper" or find_preset(name).head == head:
            values = find_preset(name, head=head).values
            train = values["train"]
            assert (train["way"], train["queries"], train["per_update"], train["optimizer"]) == (5, 5, 16, "adam")
            assert (train["weight_decay"], train["schedule"]["kind"]) == (decay, schedule)
            assert values["tuning"]["strategy"] == "full"


def test_the_papers_preset_is_what_heads_do_without_options():
    for head in ("m2df", "clip-fsar", "training-free"):
        assert head_options(head, find_preset("paper", head=head).values["head"]["options"]) == head_options(head)


def deployed(name: str) -> ClipSpec:
    return ClipRecipe.model_validate(find_preset(name).values["clip"]).deployed


def test_what_pixel_norm_means():
    assert [deployed(name).mean for name in PRESETS] == [CLIP_MEAN, (0.0, 0.0, 0.0), CLIP_MEAN]
    assert [deployed(name).std for name in PRESETS] == [CLIP_STD, (1.0, 1.0, 1.0), CLIP_STD]


def test_training_differs_from_deployment_in_its_frames_alone():
    clip = ClipRecipe(size=64, pixel_norm="none")
    assert (clip.training.sampler, clip.deployed.sampler) == ("segment", "segment_center")
    assert clip.training.model_copy(update={"sampler": "segment_center"}) == clip.deployed


def test_resize_for_towers_of_other_sizes():
    sides = {name: [find_preset(name, size=s).values["clip"]["short_side"] for s in (56, 336)] for name in PRESETS}
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
    spec = deployed("official-m2df")
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
    spec = deployed("official-fsar")
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    squashed = F.interpolate(tensor, (256, 256), mode="bilinear", align_corners=False, antialias=False)
    expected = squashed[:, :, 16:240, 16:240].permute(0, 2, 3, 1).numpy()
    # The repository keeps fractions of a grey level, a bundle takes whole ones.
    assert np.abs(load_clip(ArraySource(frames, 25.0), spec) - expected).max() <= 1.0


def test_the_import_command_offers_what_there_is():
    datasets = next(option for option in import_cli.import_command.params if option.name == "dataset")
    assert tuple(datasets.type.choices) == get_args(BenchmarkName)
    assert tuple(name for name in get_args(PresetName) if name != "paper") == import_cli.PRESETS


@pytest.mark.parametrize("setting", ["preset=official-fsar", "preset.name=official-fsar"])
def test_another_preset_keeps_the_shots_of_the_recipe(setting: str) -> None:
    recipe = load_recipe("ucf101/clip-fsar", [setting, "preset.shot=5", "data.root=x"])
    assert (recipe.preset.name, recipe.preset.shot) == ("official-fsar", 5)
    assert recipe.head.options["prototype"]["merge"] == "before"
    assert recipe.evaluation.shots == (5,)
