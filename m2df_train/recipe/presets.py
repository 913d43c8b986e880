"""The three sets of option values of the method's option table (method section 9), as data.

`paper` is how the papers describe the methods, the `official-` ones are what the two public
repositories do, which is what their checkpoints need. Recipes and imported checkpoints take a
preset's values as defaults under their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from m2df_runtime.errors import InputError
from m2df_train.model.options import HeadName, head_options
from m2df_train.public_benchmarks import BenchmarkName
from m2df_train.recipe.overrides import merged
from m2df_train.recipe.sections import TEST_SHOTS

PresetName = Literal["paper", "official-m2df", "official-fsar"]

CROP, SHORT_SIDE = 224, 256
PROMPT = "a photo of {}"
# CLIP-FSAR's UCF101 5-shot file sets mean and std where nothing reads them; its base file's values act.
UCF101_5SHOT_NORM: dict[str, Any] = {"mean": [0.45, 0.45, 0.45], "std": [0.225, 0.225, 0.225]}
# CLIP-FSAR's V, the weight of the video-text loss (method section 3.3).
VIDEO_TEXT_WEIGHT = {"hmdb51": 1.2, "ucf101": 1.5, "kinetics100": 1.5, "ssv2-full": 3.0, "ssv2-small": 3.0}
# What the repositories train with on every dataset (method section 4); the rest is in the datasets' recipes.
# Their weight decay is what acts: the one in CLIP-FSAR's experiment files is read by nothing.
TRAINING: dict[str, Any] = {"way": 5, "queries": 5, "optimizer": "adam", "per_update": 16}
OWN_TRAINING: dict[HeadName, dict[str, Any]] = {
    "m2df": TRAINING | {"weight_decay": 0.0, "schedule": {"kind": "constant"}},
    "clip-fsar": TRAINING | {"weight_decay": 1e-3, "schedule": {"kind": "steps", "factor": 0.1}},
    "training-free": {},
}


@dataclass(frozen=True)
class Preset:
    """A preset for one head, dataset and number of test shots.

    Attributes:
        name: Its name.
        head: The head it is for.
        values: In the shape of a recipe: prompt, clip, head, data, tuning, and train without shots.
        shots: Shots of training episodes; `test` for those of the tests.
        random_test_frames: Whether the repository draws the frames of its tests at random; `clip.sampler.eval`
            is then the fixed form.
    """

    name: PresetName
    head: HeadName
    values: dict[str, Any]
    shots: Literal["test", 1] = "test"
    random_test_frames: bool = False


def find_preset(
    name: PresetName,
    *,
    head: HeadName | None = None,
    dataset: BenchmarkName | None = None,
    shot: Literal[1, 5] | None = None,
    size: int = CROP,
) -> Preset:
    """The preset of that name, in the variant of a dataset and a number of test shots.

    Args:
        name: The preset.
        head: Head it is wanted for; None takes the preset's own, CLIP-M2DF for `paper`.
        dataset: Benchmark; None gives the values that hold for most of them.
        shot: Test shots; None counts as 1.
        size: Side of the square the image tower takes.

    Raises:
        InputError: The preset is that of another head.
    """
    share = round(size * SHORT_SIDE / CROP)  # what a tower of another size needs to see as much of the picture
    clip = {"frames": 8, "size": size, "short_side": share, "interpolation": "bilinear"}
    if name == "paper":
        return _paper(head or "m2df", clip, dataset)
    clip["short_side"] = max(share, SHORT_SIDE)  # a constant of both repositories
    own: HeadName = "m2df" if name == "official-m2df" else "clip-fsar"
    if head not in (None, own):
        raise InputError(f"preset {name} is for the head {own}, not {head}", "take preset paper, or the other head")
    if name == "official-m2df":
        return _official_m2df(clip, dataset, shot or 1)
    return _official_fsar(clip, dataset, shot or 1)


def _paper(head: HeadName, clip: dict[str, Any], dataset: BenchmarkName | None) -> Preset:
    options = head_options(head).model_dump(mode="json")
    if head == "clip-fsar" and dataset is not None:
        options["loss"]["lambda_text"] = VIDEO_TEXT_WEIGHT[dataset]
    values = {
        "prompt": PROMPT,
        "clip": clip
        | {"resize": "short", "antialias": True, "pixel_norm": "clip"}
        | {"sampler": {"train": "segment", "eval": "segment_center"}},
        "head": {"name": head, "options": options},
        "data": {
            "hflip": 0.0 if dataset in ("ssv2-full", "ssv2-small") else 0.5,  # their classes tell left from right
            "labels": "paper",
        },
        "tuning": {"strategy": "full", "bn_mode": "frozen"},
        "train": OWN_TRAINING[head],
    }
    return Preset("paper", head, values)


def _official_m2df(clip: dict[str, Any], dataset: BenchmarkName | None, shot: int) -> Preset:
    options = {
        "topk_frames": 4,
        "pps": {"train": "sample", "eval": "sample", "temperature": 200.0},
        "otam": {"lambda": 0.5, "bidirectional": not (dataset == "kinetics100" and shot == 1)},
        "cos_eps": 0.01,
        "view_weights": [1.0, 1.0],
        # Direction and conditions are the main script's defaults: `up2down`, which is the global view
        # teaching (method 2.8), with the text comparison alone.
        "distil": {
            "direction": "global_teaches",
            "conditions": ["t"],
            "text_token": "first_frame",
            "detach_teacher": False,
            "detach_weights": False,
        },
        "loss": {"reduction": "sum", "lambda_text": 0.0, "lambda_ce": 1.0, "lambda_distil": 1.0},
    }
    values = {
        "prompt": PROMPT,
        "clip": clip
        | {"resize": "short", "antialias": True, "pixel_norm": "none"}
        | {"sampler": {"train": "linspace", "eval": "linspace"}},
        "head": {"name": "m2df", "options": options},
        "data": {"hflip": 0.5, "labels": "official"},
        "tuning": {"strategy": "full", "bn_mode": "mixed"},
        "train": OWN_TRAINING["m2df"],
    }
    return Preset("official-m2df", "m2df", values)


def _official_fsar(clip: dict[str, Any], dataset: BenchmarkName | None, shot: int) -> Preset:
    kinetics = dataset == "kinetics100"
    options = {
        "otam": {"lambda": 0.5, "bidirectional": True},
        "cos_eps": 0.01,
        "prototype": {"merge": "before" if shot == 5 else "after"},
        "text_visual_fusion": {"mode": "off", "beta": 0.9},
        "loss": {"reduction": "mean", "lambda_text": VIDEO_TEXT_WEIGHT.get(dataset or "", 1.5), "lambda_ce": 1.0},
    }
    # Everywhere but on Kinetics the repository draws test frames at random too; deployment takes the fixed form.
    samplers = ("dense_clip", "dense_clip") if kinetics else ("segment", "segment_center")
    data: dict[str, Any] = {"hflip": 0.0, "labels": "official"}
    if kinetics:
        data |= {"hflip_query": 0.5, "query_colour": {}}
    values = {
        "prompt": PROMPT,
        "clip": clip
        | {"resize": "squash", "antialias": False}
        | {"pixel_norm": UCF101_5SHOT_NORM if (dataset, shot) == ("ucf101", 5) else "clip"}
        | {"sampler": dict(zip(("train", "eval"), samplers, strict=True))},
        "head": {"name": "clip-fsar", "options": options},
        "data": data,
        "tuning": {"strategy": "full", "bn_mode": "train"},
        "train": OWN_TRAINING["clip-fsar"],
    }
    return Preset("official-fsar", "clip-fsar", values, shots=1, random_test_frames=not kinetics)


def recipe_defaults(preset: Preset, recipe: Mapping[str, Any], shot: Literal[1, 5] | None) -> dict[str, Any]:
    """A preset's values in the shape of a recipe, to stand under the recipe's own.

    Args:
        preset: The preset.
        recipe: The recipe as read, not validated yet; training takes the shots of its evaluation.
        shot: Test shots the recipe names with its preset.
    """
    evaluation = recipe.get("evaluation")
    tested = evaluation.get("shots") if isinstance(evaluation, Mapping) else None
    if tested is None:
        tested = list(TEST_SHOTS) if shot is None else [shot]
    trained = tested if preset.shots == "test" else [preset.shots]
    return merged(preset.values, {"evaluation": {"shots": tested}, "train": {"shots": trained}})
