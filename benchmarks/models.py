"""The model that anyone can measure: an open_clip tower with random weights and an untrained head.

Time depends on a model's sizes and not on its weights, and pretrained weights are not part of the repository.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.manifest import SourceInfo
from m2df_runtime.engine_names import Precision
from m2df_runtime.pixels.spec import ClipSpec

if TYPE_CHECKING:
    from m2df_train.model.checkpoint import Checkpoint
    from m2df_train.model.heads import HeadName

VIT = "ViT-B-16-quickgelu"  # what both papers use
FRAMES = 8
SEED = 0
OPSET = 18  # TensorRT 8 reads up to 16


def random_model(model: str = VIT, head: HeadName = "m2df", frames: int = FRAMES) -> Checkpoint:
    """A model with seeded random weights and default options, in evaluation mode.

    Raises:
        InputError: open_clip knows no such model.
    """
    import torch

    from m2df_train.model.backbone import load_backbone
    from m2df_train.model.checkpoint import Checkpoint
    from m2df_train.model.heads import build_head

    torch.manual_seed(SEED)
    backbone = load_backbone(model)
    built = build_head(head, backbone.dim, frames).eval()
    clip = ClipSpec(frames=frames, size=backbone.image_size, mean=backbone.mean, std=backbone.std)
    return Checkpoint(backbone, built, clip, "a photo of {}", {}, SourceInfo(model=model, seed=SEED))


def random_twin(bundle: Bundle) -> Checkpoint:
    """A bundle's model with seeded random weights: its tower, head options and preprocessing, in evaluation mode.

    Raises:
        InputError: open_clip knows no such model.
    """
    import torch

    from m2df_train.model.backbone import load_backbone
    from m2df_train.model.checkpoint import Checkpoint
    from m2df_train.model.heads import build_head

    torch.manual_seed(SEED)
    manifest = bundle.manifest
    backbone = load_backbone(manifest.source.model)
    head: HeadName = manifest.head.name  # type: ignore[assignment]  # plain text in a manifest
    built = build_head(head, backbone.dim, manifest.clip.frames, manifest.head.options).eval()
    source = SourceInfo(model=manifest.source.model, seed=SEED)
    return Checkpoint(backbone, built, manifest.clip, manifest.text.prompt, {}, source)


def export(checkpoint: Checkpoint, out: Path, precisions: tuple[Precision, ...], opset: int = OPSET) -> Bundle:
    """Export a model without the parity check; the benchmark compares the outputs itself."""
    from m2df_export.pipeline import ExportOptions, export_bundle

    export_bundle(checkpoint, ExportOptions(out, precisions, opset, verify=False))
    return Bundle.open(out)
