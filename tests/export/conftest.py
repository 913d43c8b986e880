"""Tiny CLIPs with random weights, one per kind of tower, and what is exported from them once per session."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}  # tracing costs by the layer
VISION = {
    "test-vit": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "test-rn": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
    "test-convnext": {"image_size": 64, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
}
FRAMES = 4
OPTIONS = {"m2df": {"heads": 2, "ffn_dim": 96}, "clip-fsar": {"heads": 2, "ffn_dim": 96}, "training-free": {}}


@pytest.fixture(scope="session", autouse=True)
def configs(tmp_path_factory):
    """Register the tiny models with open_clip, and leave them one thread: two cost more than they bring."""
    torch.set_num_threads(1)
    from m2df_train.model.backbone import import_open_clip

    folder = tmp_path_factory.mktemp("configs")
    for name, vision in VISION.items():
        config = {"embed_dim": 64, "quick_gelu": name == "test-vit", "vision_cfg": vision, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config))
    import_open_clip().add_model_config(folder)
    return folder


@pytest.fixture(scope="session")
def backbone(configs):
    """A tiny backbone by name, with batch statistics and projections as a trained one has."""
    from m2df_train.model.backbone import load_backbone

    made = {}

    def make(name="test-vit"):
        if name not in made:
            torch.manual_seed(0)
            made[name] = load_backbone(name)
            for module in made[name].modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
                    torch.nn.init.normal_(module.running_mean, 0.0, 0.2)
                    torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        return made[name]

    return make


@pytest.fixture(scope="session")
def model(backbone):
    """A checkpoint in memory: a tiny backbone and a head."""
    from m2df_runtime.bundle.manifest import SourceInfo
    from m2df_runtime.pixels.spec import ClipSpec
    from m2df_train.model.checkpoint import Checkpoint
    from m2df_train.model.heads import build_head

    def make(head="m2df", name="test-vit", options=None, frames=FRAMES, **clip):
        tower = backbone(name)
        torch.manual_seed(1)
        built = build_head(head, tower.dim, frames, {**OPTIONS[head], **(options or {})}).eval()
        spec = ClipSpec(frames=frames, size=tower.image_size, **clip)
        return Checkpoint(tower, built, spec, "a photo of {}", {}, SourceInfo(model=name), None)

    return make


@pytest.fixture(scope="session")
def exported(model, once):
    """Folder with all four graphs of one tiny ViT with the M2DF head, in every precision; and their specs."""
    from m2df_export.graphs.onnx import export_onnx
    from m2df_export.graphs.specs import graph_specs
    from m2df_export.precision.convert import write_precision

    source = model("m2df")
    specs = graph_specs(source.backbone, source.head, source.clip)

    def write(folder):
        for graph, spec in specs.items():
            export_onnx(spec, folder / f"{graph}.onnx", metadata={"graph": graph, "precision": "fp32"})
            for precision in ("fp16", "int8"):
                write_precision(folder, graph, precision)

    return once("exported", write), specs


@pytest.fixture
def export_here(capsys, monkeypatch):
    """Run m2df-export inside this process, which has PyTorch, with the exit code and streams of one of its own."""
    from m2df_export.commands.export import cli
    from m2df_runtime.commands.console import guarded

    def run(cwd, *args):
        monkeypatch.chdir(cwd)
        monkeypatch.delenv("M2DF_DEBUG", raising=False)
        capsys.readouterr()
        code = guarded(lambda: cli.main([str(arg) for arg in args], "m2df-export", standalone_mode=False))
        return subprocess.CompletedProcess(args, code, *capsys.readouterr())

    return run
