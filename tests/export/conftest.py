"""Tiny CLIPs with random weights, one per kind of tower, and what is exported from them once per session."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest
import torch
from exports import export_here, read_operators_once, save, take_graphs

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}  # tracing costs by the layer
VISION = {
    "test-vit": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "test-rn": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
    "test-convnext": {"image_size": 64, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
}
FRAMES = 3
OPTIONS = {
    "m2df": {"heads": 2, "ffn_dim": 96, "mean_weight": 0.5},
    "clip-fsar": {"heads": 2, "ffn_dim": 96},
    "training-free": {"logit_scale": 1 / 0.07},  # CLIP's own, which `pretrained` has
}


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


@pytest.fixture(scope="session", autouse=True)
def _operators():
    with pytest.MonkeyPatch.context() as patch:
        read_operators_once(patch)
        yield


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
def first_project(model, once):
    """A project directory with one CLIP-FSAR run, exported in all precisions with a zip, and what the command printed.

    Read it only; what is traced here, nobody traces again.
    """

    def write(folder):
        save(model("clip-fsar"), folder / "runs" / "first")
        with pytest.MonkeyPatch.context() as patch:
            done = export_here(patch, folder, "--fp16", "--int8", "--zip", "--json")
        assert done.returncode == 0, done.stderr
        (folder / "stdout").write_text(done.stdout)
        (folder / "stderr").write_text(done.stderr)

    return once("project", write)


@pytest.fixture(scope="session")
def exported(model, once, first_project):
    """Folder with all four graphs of one tiny ViT with the M2DF head, in every precision; and their specs."""
    from m2df_export.graphs.onnx import export_onnx
    from m2df_export.graphs.specs import graph_specs
    from m2df_export.precision.convert import write_precision

    source = model("m2df")
    specs = graph_specs(source.backbone, source.head, source.clip)

    def write(folder):
        for graph, spec in specs.items():
            if graph in ("visual", "text"):  # the towers are those of every head
                for precision in ("", ".fp16", ".int8"):
                    shutil.copy(first_project / "bundles" / "first" / f"{graph}{precision}.onnx", folder)
                continue
            export_onnx(spec, folder / f"{graph}.onnx", metadata={"graph": graph, "precision": "fp32"})
            for precision in ("fp16", "int8"):
                write_precision(folder, graph, precision)

    return once("exported", write), specs


@pytest.fixture(scope="session")
def tower_file(model, once, first_project):
    """The fp32 file of an image tower by its name, from the exporter's opset of choice, and its spec."""
    from m2df_export.graphs.onnx import export_onnx
    from m2df_export.graphs.specs import graph_specs

    def get(name, opset=18):
        source = model("training-free", name)
        spec = graph_specs(source.backbone, source.head, source.clip)["visual"]
        if (name, opset) == ("test-vit", 18):
            return first_project / "bundles" / "first" / "visual.onnx", spec
        stamp = {"graph": "visual", "precision": "fp32"}
        folder = once(
            f"{name}-{opset}", lambda folder: export_onnx(spec, folder / "visual.onnx", opset=opset, metadata=stamp)
        )
        return folder / "visual.onnx", spec

    return get


@pytest.fixture(scope="session")
def pretrained(configs, first_project, once):
    """The bundle of a CLIP that nobody trained, with random weights: its graphs are held to their numbers."""
    from m2df_export.pipeline import ExportOptions, export_bundle, pretrained_model

    def write(folder):
        torch.manual_seed(0)  # whose towers are those of `backbone`
        source = pretrained_model("test-vit", None, frames=FRAMES)
        with pytest.MonkeyPatch.context() as patch:
            take_graphs(patch, first_project / "bundles" / "first", "support", "query")
            result = export_bundle(source, ExportOptions(folder / "free"))
        assert result.reports["fp32"].episodes is None  # top-1 of random weights is not compared

    return once("pretrained", write) / "free"


@pytest.fixture(name="export_here")
def _export_here(monkeypatch):
    """Run m2df-export inside this process: `export_here(folder, "--fp16")`."""
    return partial(export_here, monkeypatch)
