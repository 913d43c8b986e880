"""Makes a checkpoint of m2df from one of the two public repositories (method section 5.5).

The weights alone do not reproduce their model: pixels, frame sampling, OTAM's direction and the
spelling of the labels decide too. They come from a preset and are stored with the weights, so that
export and runtime follow them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from m2df_runtime.bundle.manifest import SourceInfo
from m2df_runtime.bundle.prompt_texts import LabelRules
from m2df_runtime.errors import CheckFailed, InputError, shortened
from m2df_runtime.files import sha256_file
from m2df_train.cache.encoding import encode_prompts
from m2df_train.importing.official_files import TOWER, OfficialWeights, read_official
from m2df_train.importing.official_heads import HeadKeys, is_m2df, read_head_keys
from m2df_train.importing.official_towers import OPENAI_TAG, Tower, joined, text_tower, tower_of
from m2df_train.model.backbone import Backbone
from m2df_train.model.checkpoint import Checkpoint
from m2df_train.model.heads import Head, build_head, deterministic_head
from m2df_train.public_benchmarks import BenchmarkName, Spelling, benchmark
from m2df_train.recipe.overrides import merged, override, problems
from m2df_train.recipe.presets import Preset, PresetName, find_preset
from m2df_train.recipe.sections import ClipRecipe, HeadRecipe

_LAYER = re.compile(r"(?:.*\.)?fusion\.layers\.(\d+)\.")


@dataclass(frozen=True)
class ImportRequest:
    """What to import and what it is.

    Attributes:
        file: Checkpoint of either repository.
        dataset: Benchmark it was trained on.
        shot: Test shots of its configuration.
        preset: Which repository; None finds out.
        text_model: open_clip model with the text tower; None for the OpenAI model of the tower's architecture.
        text_pretrained: Weight tag or file of that model; a model that brings its weights needs none.
        settings: `KEY.KEY=VALUE` each, over the preset's values: clip, head.options and prompt.
    """

    file: Path
    dataset: BenchmarkName
    shot: Literal[1, 5] = 1
    preset: PresetName | None = None
    text_model: str | None = None
    text_pretrained: str = OPENAI_TAG
    settings: Sequence[str] = ()


@dataclass(frozen=True)
class ImportReport:
    """What became of the keys of the file.

    Attributes:
        preset: The preset whose values the checkpoint has.
        head: Head of the checkpoint.
        tower: Architecture of the image tower.
        text_model: Where the text tower is from.
        used: Key in the file to name in the checkpoint.
        duplicates: Key to the name of the weight it is an equal second copy of.
        unused: Keys of weights the official code never uses.
        missing: Names of weights the file lacks and nothing needs.
    """

    preset: PresetName
    head: str
    tower: str
    text_model: str
    used: dict[str, str]
    duplicates: dict[str, str]
    unused: list[str]
    missing: list[str]


class _Settings(BaseModel):
    """What a preset and the command line decide of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clip: ClipRecipe
    head: HeadRecipe
    prompt: str


def import_official(request: ImportRequest) -> tuple[Checkpoint, ImportReport]:
    """Read an official checkpoint, complete it with a text tower and the settings it was trained with.

    Raises:
        InputError: The file, the text tower or a setting cannot be used; the message names it.
        CheckFailed: The imported model does not give finite logits.
    """
    weights = read_official(request.file)
    try:
        keys = read_head_keys(weights.head)
        tower = tower_of(weights.tower)
        sizes = _head_sizes(keys, tower)
        preset = _preset(request, weights.head, tower)
    except InputError as error:
        raise InputError(f"{request.file}: {error.message}", error.hint) from None
    settings = _settings(request, preset, sizes, tower)
    labels = benchmark_labels(request.dataset, preset.values["data"]["labels"])
    text = _text(request, tower)
    try:
        head = _head(settings, keys, tower)
        backbone, missing = joined(tower, weights.tower, text)
    except InputError as error:
        raise InputError(f"{request.file}: {error.message}", error.hint) from None
    report = _report(weights, keys, missing, preset, settings, tower, text)
    source = SourceInfo(
        model=backbone.name,
        pretrained=f"{text.name} {request.text_pretrained} (text tower)",
        training=_training(request, preset, settings),
    )
    checkpoint = Checkpoint(backbone.eval(), head.eval(), settings.clip.deployed, settings.prompt, labels, source)
    self_check(checkpoint, request.file)
    return checkpoint, report


def _training(request: ImportRequest, preset: Preset, settings: _Settings) -> dict[str, Any]:
    """What the rest of the checkpoint does not show of how the weights came about."""
    return {
        "preset": preset.name,
        "dataset": request.dataset,
        "shot": request.shot,
        "file_sha256": sha256_file(request.file),
        "sampler": settings.clip.sampler.model_dump(mode="json"),
        "random_test_frames": preset.random_test_frames,
        "data": preset.values["data"],
        "bn_mode": preset.values["tuning"]["bn_mode"],
        "shots": request.shot if preset.shots == "test" else preset.shots,
    }


def _preset(request: ImportRequest, head: Mapping[str, Tensor], tower: Tower) -> Preset:
    found: PresetName = "official-m2df" if is_m2df(head) else "official-fsar"
    if request.preset not in (None, found):
        method = "CLIP-M2DF" if found == "official-m2df" else "CLIP-FSAR"
        raise InputError(f"holds a head of {method}", f"import it with --preset {found}")
    return find_preset(found, dataset=request.dataset, shot=request.shot, size=tower.image_size)


def _head_sizes(keys: HeadKeys, tower: Tower) -> dict[str, int]:
    """Options that the shapes of the head's weights decide.

    Raises:
        InputError: No fusion encoder, or one for other features than the tower's.
    """
    layers = {match[1] for name in keys.weights if (match := _LAYER.match(name))}
    norms = [value for name, value in keys.weights.items() if name.endswith("layers.0.norm.weight")]
    hidden = [value for name, value in keys.weights.items() if name.endswith("layers.0.ffn.fc1.weight")]
    if not norms or not hidden:
        raise InputError("holds no fusion encoder", "weights of the head (context2.*) are missing")
    if norms[0].shape != (tower.dim,):
        raise InputError(f"its head is for {norms[0].numel()} features, its image tower gives {tower.dim}")
    return {"depth": len(layers), "ffn_dim": hidden[0].shape[0]}


def _settings(request: ImportRequest, preset: Preset, sizes: dict[str, int], tower: Tower) -> _Settings:
    """The preset's values, the sizes read from the weights, and the user's settings over both.

    Raises:
        InputError: Names every setting that cannot be used.
    """
    values = {key: preset.values[key] for key in ("clip", "head", "prompt")}
    data, found = override(merged(values, {"head": {"options": sizes}}), request.settings)
    try:
        settings = _Settings.model_validate(data)
        LabelRules(settings.prompt)
    except ValidationError as error:
        found += problems(error)
    except InputError as error:
        found.append(str(error))
    if not found and settings.head.name != preset.head:
        found.append(f"head.name: the file holds a head {preset.head}")
    if not found and settings.clip.size != tower.image_size:
        found.append(f"clip.size: {settings.clip.size}, the image tower takes {tower.image_size}")
    if found:
        raise InputError("; ".join(found), "settings are clip.*, head.options.* and prompt")
    return settings


def benchmark_labels(dataset: BenchmarkName, spelling: Spelling) -> dict[str, str]:
    """Every name of a class folder of a benchmark to the text the class was trained with, over all splits."""
    return {folder: item.text(spelling) for item in benchmark(dataset).all_classes for folder in item.folders}


def _text(request: ImportRequest, tower: Tower) -> Backbone:
    model = request.text_model or tower.model
    if model is None:
        raise InputError(
            f"{request.file}: no CLIP of OpenAI's has this image tower ({tower.description})",
            "name the one whose text tower it was trained with: --text-model NAME --text-pretrained TAG",
        )
    return text_tower(model, None if ":" in model else request.text_pretrained)


def _head(settings: _Settings, keys: HeadKeys, tower: Tower) -> Head:
    try:
        head = build_head(settings.head.name, tower.dim, settings.clip.frames, settings.head.options)
        head.load_state_dict(keys.weights)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"its head does not fit: {shortened(' '.join(str(error).split()))}") from None
    return head


def _report(
    weights: OfficialWeights,
    keys: HeadKeys,
    missing: list[str],
    preset: Preset,
    settings: _Settings,
    tower: Tower,
    text: Backbone,
) -> ImportReport:
    used = {weights.keys[key]: f"head.{name}" for key, name in keys.used.items()}
    used |= {weights.keys[TOWER + key]: f"backbone.clip.visual.{key}" for key in weights.tower}
    return ImportReport(
        preset=preset.name,
        head=settings.head.name,
        tower=tower.description,
        text_model=text.name,
        used=used,
        duplicates={weights.keys[key]: f"head.{name}" for key, name in keys.duplicates.items()},
        unused=[weights.keys[key] for key in keys.unused],
        missing=missing,
    )


@torch.inference_mode()
def self_check(checkpoint: Checkpoint, file: Path) -> None:
    """Random pixels of two queries against two labels, prompts by argmax, must give finite logits [2, 2].

    Raises:
        CheckFailed: They are not finite.
    """
    clip, head = checkpoint.clip, deterministic_head(checkpoint.head)
    generator = torch.Generator().manual_seed(0)
    shape = (2, clip.frames, clip.size, clip.size, 3)
    frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    features = checkpoint.backbone.encode_frames(frames, clip)  # [2, T, D]
    rules = checkpoint.rules
    texts = encode_prompts(checkpoint.backbone, [rules.prompts(folder)[0] for folder in list(checkpoint.labels)[:2]])
    prototypes = torch.stack(
        [head.prototypes(x[None], text[None]) for x, text in zip(features, texts, strict=True)]
    )  # [2, V, T, D]
    logits = head.match(features, texts, prototypes).logits
    if not torch.isfinite(logits).all():
        raise CheckFailed(f"{file}: the imported model gives logits that are no numbers", "its weights are damaged")
