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
from m2df_runtime.preprocess import CLIP_MEAN, CLIP_STD
from m2df_runtime.sampling import Sampler
from m2df_train.data.benchmarks import BenchmarkName, Spelling
from m2df_train.model.heads import HeadName, head_options

PresetName = Literal["paper", "official-m2df", "official-fsar"]

CROP, SHORT_SIDE = 224, 256
NO_NORM: dict[str, Any] = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
CLIP_NORM: dict[str, Any] = {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)}
# CLIP-FSAR's UCF101 5-shot file sets mean and std where nothing reads them; its base file's values act.
UCF101_5SHOT_NORM: dict[str, Any] = {"mean": [0.45, 0.45, 0.45], "std": [0.225, 0.225, 0.225]}
# CLIP-FSAR's V, the weight of the video-text loss (method section 3.3).
VIDEO_TEXT_WEIGHT = {"hmdb51": 1.2, "ucf101": 1.5, "kinetics100": 1.5, "ssv2-full": 3.0, "ssv2-small": 3.0}


@dataclass(frozen=True)
class TrainingSettings:
    """How a preset trains, as far as the bundle of the trained model does not show it.

    Attributes:
        sampler_train: Frame sampling of training clips.
        sampler_eval: Frame sampling of the repository's own tests; `segment` is random even there, and the
            clip specification then holds its fixed form.
        hflip: Probability of mirroring a clip.
        hflip_query: The same for queries, where it differs from `hflip`.
        bn_mode: Batch norm of a ResNet while it trains: `frozen`, `train`, or `mixed` (frozen until the first
            test of the run, batch statistics afterwards).
        labels: Whose spelling of the class names became text.
        shots: Shots of training episodes; `test` for those of the tests.
    """

    sampler_train: Sampler
    sampler_eval: Sampler
    hflip: float
    hflip_query: float | None
    bn_mode: Literal["frozen", "train", "mixed"]
    labels: Spelling
    shots: Literal["test", 1]


@dataclass(frozen=True)
class Preset:
    """A preset for one head, dataset and number of test shots.

    Attributes:
        name: Its name.
        head: The head it is for.
        options: Values of the head's options.
        clip: Values of `ClipSpec`.
        prompt: Prompt template.
        training: What concerns training alone.
    """

    name: PresetName
    head: HeadName
    options: dict[str, Any]
    clip: dict[str, Any]
    prompt: str
    training: TrainingSettings


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
    return Preset(
        name="paper",
        head=head,
        options=options,
        clip=clip | CLIP_NORM | {"resize": "short", "antialias": True, "sampler": "segment_center"},
        prompt="a photo of {}",
        training=TrainingSettings(
            sampler_train="segment",
            sampler_eval="segment_center",
            hflip=0.0 if dataset in ("ssv2-full", "ssv2-small") else 0.5,  # their classes tell left from right
            hflip_query=None,
            bn_mode="frozen",
            labels="paper",
            shots="test",
        ),
    )


def _official_m2df(clip: dict[str, Any], dataset: BenchmarkName | None, shot: int) -> Preset:
    return Preset(
        name="official-m2df",
        head="m2df",
        options={
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
        },
        clip=clip | NO_NORM | {"resize": "short", "antialias": True, "sampler": "linspace"},
        prompt="a photo of {}",
        training=TrainingSettings(
            sampler_train="linspace",
            sampler_eval="linspace",
            hflip=0.5,
            hflip_query=None,
            bn_mode="mixed",
            labels="official",
            shots="test",
        ),
    )


def _official_fsar(clip: dict[str, Any], dataset: BenchmarkName | None, shot: int) -> Preset:
    kinetics = dataset == "kinetics100"
    norm = UCF101_5SHOT_NORM if (dataset, shot) == ("ucf101", 5) else CLIP_NORM
    # Everywhere but on Kinetics the repository draws test frames at random too; deployment takes the fixed form.
    sampler = {"sampler": "dense_clip" if kinetics else "segment_center"}
    return Preset(
        name="official-fsar",
        head="clip-fsar",
        options={
            "otam": {"lambda": 0.5, "bidirectional": True},
            "cos_eps": 0.01,
            "prototype": {"merge": "before" if shot == 5 else "after"},
            "text_visual_fusion": {"mode": "off", "beta": 0.9},
            "loss": {
                "reduction": "mean",
                "lambda_text": VIDEO_TEXT_WEIGHT.get(dataset or "", 1.5),
                "lambda_ce": 1.0,
            },
        },
        clip=clip | norm | {"resize": "squash", "antialias": False} | sampler,
        prompt="a photo of {}",
        training=TrainingSettings(
            sampler_train="dense_clip" if kinetics else "segment",
            sampler_eval="dense_clip" if kinetics else "segment",
            hflip=0.0,
            hflip_query=0.5 if kinetics else None,
            bn_mode="train",
            labels="official",
            shots=1,
        ),
    )


def recipe_defaults(preset: Preset, recipe: Mapping[str, Any], shot: Literal[1, 5] | None) -> dict[str, Any]:
    """A preset's values in the shape of a recipe, to stand under the recipe's own.

    Args:
        preset: The preset.
        recipe: The recipe as read, not validated yet; training takes the shots of its evaluation.
        shot: Test shots the recipe names with its preset.
    """
    values: dict[str, Any] = {
        "prompt": preset.prompt,
        "clip": preset.clip,
        "head": {"name": preset.head, "options": preset.options},
        "episodic": {"sampler": preset.training.sampler_train},
    }
    if shot is not None:
        values["evaluation"] = {"shots": [shot]}
    if preset.training.shots != "test":
        values["episodic"]["shots"] = [preset.training.shots]
        return values
    evaluation = recipe.get("evaluation")
    tested = evaluation.get("shots") if isinstance(evaluation, Mapping) else None
    if tested is not None or shot is not None:
        values["episodic"]["shots"] = tested if tested is not None else [shot]
    return values
