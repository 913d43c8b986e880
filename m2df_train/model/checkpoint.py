"""Checkpoints: one safetensors file with all weights and, in its header, all that is needed to use them.

Self-contained on purpose: exporting a checkpoint needs neither the recipe, nor a weight hub, nor the
files it was trained from. Nothing in it can execute code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from m2df_runtime.bundle.manifest import SourceInfo
from m2df_runtime.bundle.prompt_texts import LabelRules
from m2df_runtime.errors import InputError, shortened
from m2df_runtime.files import atomic_write, sha256_file
from m2df_runtime.pixels.spec import PIXELS_VERSION, ClipSpec
from m2df_train.model.backbone import Backbone, rebuild_backbone
from m2df_train.model.heads import Head, HeadName, build_head
from m2df_train.model.run_folder import BEST

HEADER_KEY = "m2df"


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    model: str
    model_config_json: dict[str, Any]
    head: HeadName
    head_options: dict[str, Any]
    clip: ClipSpec
    pixels_version: int | None = None
    prompt: str
    labels: dict[str, str]
    source: SourceInfo


@dataclass(frozen=True)
class Checkpoint:
    """A trained model: weights, and everything that decides what they mean.

    `labels` maps class names to descriptive texts of the classes it was trained with. `pixels_version` is that of the
    clips it was trained on, None where that is not known.
    """

    backbone: Backbone
    head: Head
    clip: ClipSpec
    prompt: str
    labels: dict[str, str]
    source: SourceInfo
    sha256: str | None = None
    pixels_version: int | None = PIXELS_VERSION

    @property
    def head_name(self) -> str:
        """Registry name of the head."""
        return self.head.name

    @property
    def rules(self) -> LabelRules:
        """How class names become its prompts."""
        return LabelRules(self.prompt, self.labels)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a kill or a full disk leaves the old file intact."""
    header = _Header(
        format=1,
        model=checkpoint.backbone.name,
        model_config_json=checkpoint.backbone.config,
        head=checkpoint.head.name,
        head_options=checkpoint.head.options.model_dump(mode="json"),
        clip=checkpoint.clip,
        pixels_version=checkpoint.pixels_version,
        prompt=checkpoint.prompt,
        labels=checkpoint.labels,
        source=checkpoint.source,
    )
    tensors = {f"backbone.{k}": v for k, v in checkpoint.backbone.state_dict().items()}
    tensors.update({f"head.{k}": v for k, v in checkpoint.head.state_dict().items()})
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    atomic_write(path, save(tensors, metadata={HEADER_KEY: header.model_dump_json()}))


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint, or the best one of a run directory.

    Raises:
        InputError: Missing, not a checkpoint of m2df, another format, or weights that do not fit.
    """
    path = Path(path)
    file = path / BEST if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such checkpoint", "m2df-train writes runs/<time>-<recipe>/best.safetensors")
    try:
        with safe_open(file, framework="pt") as opened:
            header = _parse_header(file, (opened.metadata() or {}).get(HEADER_KEY))
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a checkpoint: {error}") from None
    try:
        backbone = rebuild_backbone(header.model, header.model_config_json)
        head = build_head(header.head, backbone.dim, header.clip.frames, header.head_options)
    except InputError as error:
        raise InputError(f"{file}: {error.message}", error.hint) from None
    except ValueError as error:
        raise InputError(f"{file}: its head cannot be built: {shortened(' '.join(str(error).split()))}") from None
    _load(file, "backbone", backbone, state)
    _load(file, "head", head, state)
    return Checkpoint(
        backbone.eval(),
        head.eval(),
        header.clip,
        header.prompt,
        header.labels,
        header.source,
        sha256_file(file),
        header.pixels_version,
    )


def _parse_header(file: Path, raw: str | None) -> _Header:
    if raw is None:
        raise InputError(f"{file}: a safetensors file, but not a checkpoint of m2df")
    try:
        data = json.loads(raw)
        if data.get("format") != 1:
            raise InputError(f"{file}: checkpoint format {data.get('format')!r}, this m2df reads format 1")
        return _Header.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise InputError(f"{file}: checkpoint header: {problems}") from None
    except (json.JSONDecodeError, AttributeError) as error:
        raise InputError(f"{file}: damaged checkpoint header: {str(error).splitlines()[0]}") from None


def _load(file: Path, part: str, module: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    own = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        raise InputError(f"{file}: {part} weights do not fit: {shortened(' '.join(str(error).split()))}") from None
