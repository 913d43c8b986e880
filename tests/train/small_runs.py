"""Small models, folders of clips and recipes that train in a second; they learn nothing worth knowing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from m2df_train.model.backbone import Backbone, rebuild_backbone
from m2df_train.recipe.recipe import Recipe

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VISION: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16},
    "rn": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None},
}


def tiny_backbone(vision: str, seed: int = 0) -> Backbone:
    """A CLIP of random weights whose batch norms are not as good as absent."""
    torch.manual_seed(seed)
    config = {"embed_dim": 32, "quick_gelu": True, "vision_cfg": VISION[vision], "text_cfg": TEXT}
    backbone = rebuild_backbone(f"tiny-{vision}", config)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.running_mean, 0.0, 0.2)
    return backbone


def write_model(folder: Path, backbone: Backbone) -> str:
    """The model as a folder open_clip reads; its name for a recipe."""
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": backbone.config, "preprocess_cfg": {}}))
    torch.save(backbone.clip.state_dict(), folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"


def write_clips(folder: Path, classes: int = 8, clips: int = 4) -> Path:
    """Class folders of videos: squares of a class's own colour and speed."""
    for number in range(classes):
        for take in range(clips):
            _write_clip(folder / f"class {number}" / f"{take}.avi", number, take)
    return folder


def _write_clip(path: Path, number: int, take: int, frames: int = 9) -> None:
    rng = np.random.default_rng([number, take])
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (48, 40))
    top = int(rng.integers(0, 28))
    for t in range(frames):
        picture = rng.integers(0, 20, (40, 48, 3)).astype(np.uint8)
        left = 36 * (t * (1 + number % 3) % frames) // frames
        picture[top : top + 12, left : left + 12] = (30 * number, 255 - 30 * number, 90 * number % 256)
        writer.write(picture)
    writer.release()


def video_recipe(root: Path, model: str, **sections: dict[str, Any]) -> Recipe:
    """Three updates of four episodes, a validation after the second, on a folder of clips."""
    data: dict[str, dict[str, Any]] = {
        "clip": {"frames": 4, "size": 32, "short_side": 36},
        "data": {"root": str(root), "cache_gb": 0.01},
        "head": {"name": "m2df", "options": {"ffn_dim": 16, "heads": 4}},
        "tuning": {"strategy": "frozen"},
        "train": {"episodes": 12, "per_update": 4, "way": 3, "shots": [1, 2], "queries": 1, "validate_every": 8}
        | {"learning_rate": 1e-3},
        "evaluation": {"way": 2, "shots": [1], "validation_episodes": 8, "test_episodes": 8},
    }
    for name, values in sections.items():
        data[name] = data.get(name, {}) | values
    return Recipe.model_validate({"name": "small", "model": model, **data})
