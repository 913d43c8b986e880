from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from exports import ROOT, export, save, take_graphs
from full_disk import file_size_limit
from signal_at import signal_at, wait_until_stopped

from m2df_export.check import episodes
from m2df_runtime.backends.model import Model
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.errors import InputError
from m2df_runtime.pixels.spec import PIXELS_VERSION

# An export in a process of its own that takes its graphs from the bundle it replaces.
WITHOUT_TRACING = """
import pathlib, pytest
from exports import take_graphs
from m2df_export.commands.export import cli
take_graphs(pytest.MonkeyPatch(), pathlib.Path("bundles", "first"))
cli()
"""
LOUD = np.float32(1e7)  # times the size of embeddings, which is then beyond float16


@pytest.fixture(scope="module")
def project(tmp_path_factory, first_project):
    """A copy of the first project and what the command printed."""
    folder = tmp_path_factory.mktemp("project") / "copy"
    shutil.copytree(first_project, folder)
    return folder, (folder / "stdout").read_text(), (folder / "stderr").read_text()


@pytest.fixture(scope="module")
def opened(project):
    return Bundle.open(project[0] / "bundles" / "first")


def test_result_is_one_json_object(project):
    record = json.loads(project[1])
    assert record["bundle"] == os.path.join("bundles", "first")
    assert record["verified"] is True
    assert len(record["files"]) == 16
    assert set(record["parity"]) == {"fp32", "fp16", "int8", "int8-static"}
    assert all(parity["passed"] for parity in record["parity"].values())


def test_engines_that_are_not_built_are_reported(project):
    assert "TensorRT engines: not built (" in project[2]


def test_manifest_describes_the_model(opened, model):
    manifest = opened.manifest
    assert manifest.name == "first"
    assert (manifest.head.name, manifest.views, manifest.dim, manifest.clip.frames) == ("clip-fsar", 1, 64, 3)
    assert manifest.merges_after  # prototype.merge: after, the default
    assert manifest.precisions == ("fp32", "fp16", "int8", "int8-static")
    assert manifest.source.checkpoint_sha256 is not None
    assert manifest.pixels_version == PIXELS_VERSION  # through the checkpoint's header
    assert manifest.versions["torch"].startswith(torch.__version__.partition("+")[0])
    assert manifest.graphs["query"].files["int8"] == manifest.graphs["query"].files["fp32"]
    assert manifest.graphs["text"].files["int8-static"] == manifest.graphs["text"].files["int8"]
    assert manifest.parity["int8"].cpu_ms > 0
    assert manifest.parity["fp32"].top1_agreement == 1.0


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 5e-3), ("int8", 0.15), ("int8-static", 0.15)]
)
def test_bundle_runs_as_the_model_does(project, opened, model, precision, tolerance):
    source = model("clip-fsar")
    session = Model(opened, backend="cpu", precision=precision)
    clips = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32, 3), dtype=np.uint8)
    features = session.encode_clips(clips)
    texts = session.encode_texts(["a photo of jump", "a photo of run"])
    prototypes = np.stack([session.prototypes(features[:2], text[None]) for text in texts])
    scores = session.match(features, texts, prototypes)
    with torch.no_grad():
        expected = source.backbone.encode_frames(torch.from_numpy(clips), source.clip)
        match = source.head.match(expected, torch.from_numpy(texts), torch.from_numpy(prototypes))
    assert np.abs(features - expected.numpy()).max() <= tolerance * float(expected.abs().max())
    assert np.abs(scores.logits - match.logits.numpy()).max() <= tolerance * float(match.logits.abs().max())


def test_zip_holds_the_same_bundle(project, opened):
    archive = Bundle.open(project[0] / "bundles" / "first.zip")
    assert archive.manifest == opened.manifest
    assert Model(archive, backend="cpu").encode_texts(["a photo of jump"]).shape == (1, 64)


def test_every_listed_file_is_there_and_nothing_else(project, opened):
    listed = {file.path for graph in opened.manifest.graphs.values() for file in graph.files.values()}
    present = {path.name for path in (project[0] / "bundles" / "first").iterdir()}
    assert present == listed | {"manifest.json", "tokenizer.json", "parity.json", "parity.md"}
    for graph in opened.manifest.graphs.values():
        for file in graph.files.values():
            opened.file(file)


def test_precision_beyond_its_gate_exits_1_and_leaves_the_old_bundle(
    project, model, tmp_path, monkeypatch, export_here
):
    bundle = project[0] / "bundles" / "first"
    take_graphs(monkeypatch, louder(bundle, tmp_path / "graphs"))
    before = (bundle / "manifest.json").read_bytes()
    source = model("clip-fsar")
    with torch.no_grad():
        source.backbone.clip.text_projection.mul_(LOUD)
    try:
        save(source, tmp_path / "loud")
    finally:
        with torch.no_grad():
            source.backbone.clip.text_projection.div_(LOUD)
    done = export_here(project[0], "--checkpoint", tmp_path / "loud", "--only-precision", "fp16", "--out", bundle)
    assert done.returncode == 1, done.stderr
    assert "parity failed: fp16 text graph: cosine" in done.stderr
    assert (bundle / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["first", "first.zip"]


@pytest.mark.slow
def test_export_that_has_company_and_is_killed_leaves_the_old_bundle(project, tmp_path, export_here):
    """SIGKILL in the middle of an export into a bundle that exists; meanwhile a second export is told to wait."""
    from m2df_export.bundle import replacing
    from m2df_runtime.files import exclusive

    bundle = project[0] / "bundles" / "first"
    before = contents(bundle)
    arguments = ("--checkpoint", "runs/first", "--out", "bundles/first", "--no-verify")
    command = [sys.executable, "-c", WITHOUT_TRACING, *arguments]
    # It stops when its first graph is to be written, and holds the lock for as long as the second one needs.
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "export")))
    stops = signal_at(tmp_path, "open", r"/\.first\.[^/]*\.m2df-tmp/", signal.SIGSTOP, paths=paths)
    environment = {**os.environ, **stops, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=project[0], env=environment, stderr=subprocess.DEVNULL) as running:
        wait_until_stopped(running)
        assert list(bundle.parent.glob(".first.*.m2df-tmp"))
        try:
            second = export_here(project[0], *arguments)
        finally:
            running.kill()  # a stopped process would be waited for for ever
    assert running.returncode == -signal.SIGKILL
    assert second.returncode == 2
    *_, line = second.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith(
        "another process is writing it (wait for it, or choose another place)"
    )
    assert "Traceback" not in second.stderr
    assert contents(bundle) == before
    Model(Bundle.open(bundle), backend="cpu", threads=1).encode_texts(["a photo of jump"])
    # The next export is not in the way of what the killed one left, and removes it.
    with exclusive(bundle), replacing(bundle) as folder:
        for path in bundle.iterdir():
            shutil.copy(path, folder)
    assert contents(bundle) == before
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["first", "first.zip"]


@pytest.mark.slow
def test_export_to_a_full_disk_names_the_bundle_and_leaves_the_old_one(project, monkeypatch, export_here):
    """Files beyond 100 kB cannot be written, which the graph of the image tower is."""
    bundle = project[0] / "bundles" / "first"
    before = contents(bundle)
    take_graphs(monkeypatch, bundle)
    with file_size_limit(100_000):
        done = export_here(project[0], "--checkpoint", "runs/first", "--out", "bundles/first", "--no-verify")
    assert done.returncode == 2
    *_, line = done.stderr.splitlines()
    assert line == f"error: {bundle}: File too large"
    assert contents(bundle) == before
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["first", "first.zip"]


def test_checkpoint_of_a_head_that_m2df_does_not_have_is_refused_by_name(model, tmp_path):
    from m2df_train.model.checkpoint import load_checkpoint

    save(model("clip-fsar"), tmp_path / "run")
    path = tmp_path / "run" / "best.safetensors"
    path.write_bytes(path.read_bytes().replace(b"clip-fsar", b"protonets", 1))
    with pytest.raises(InputError, match=r"best\.safetensors: checkpoint header: head: .*'clip-fsar'"):
        load_checkpoint(tmp_path / "run")


def louder(bundle, folder):
    """A copy of a bundle's graphs whose embeddings of texts are as much larger."""
    shutil.copytree(bundle, folder)
    graph = onnx.load(folder / "text.onnx")
    (weight,) = (weight for weight in graph.graph.initializer if weight.name.endswith("text_projection"))
    weight.CopyFrom(onnx.numpy_helper.from_array(LOUD * onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(graph, folder / "text.onnx")
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_verify_finds_the_bundle_true_to_its_run(project, export_here, monkeypatch):
    """Every precision against PyTorch, on a few generated clips."""
    monkeypatch.setattr(episodes, "GENERATED_CLASSES", 3)
    monkeypatch.setattr(episodes, "GENERATED_CLIPS", 2)
    arguments = ("bundles/first", "--against", "runs/first", "--backend", "cpu", "--episodes", 20, "--json")
    done = export_here(project[0], "verify", *arguments)
    *results, verdict = map(json.loads, done.stdout.splitlines())
    found = {result["precision"]: {stage["stage"]: stage for stage in result["stages"]} for result in results}
    assert verdict["reference"].startswith("PyTorch")
    assert (verdict["clips"], verdict["source"]) == (6, "generated actions")
    assert set(found) == {"fp32", "fp16", "int8", "int8-static"}
    # Random weights may flip an answer on coarser numbers, which fails the episodes; the numbers are sound.
    assert all(stage["problem"] is None for stages in found.values() for stage in stages.values())
    assert next(result for result in results if result["precision"] == "fp32")["status"] == "passed"
    assert found["fp32"]["features"]["alone"]["max_rel"] < 1e-5
    # int8 leaves the head's graphs in fp32: alone they are exact, in the chain they inherit the towers' error.
    distances = found["int8"]["distances"]
    assert distances["alone"]["max_rel"] < 1e-5 < distances["chain"]["max_rel"]


@pytest.mark.slow
def test_single_unverified_precision_makes_a_small_bundle(project, tmp_path, monkeypatch, export_here):
    take_graphs(monkeypatch, project[0] / "bundles" / "first")
    out = tmp_path / "small"
    run = project[0] / "runs" / "first"
    done = export_here(tmp_path, "--checkpoint", run, "--only-precision", "int8", "--no-verify", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "unverified" in done.stdout
    assert f"bundle: {out}" in done.stdout.splitlines()[-1]
    opened = Bundle.open(out)
    assert opened.manifest.precisions == ("int8",)
    assert opened.manifest.parity == {}
    names = {path.name for path in out.iterdir()}
    assert names == {
        "manifest.json",
        "tokenizer.json",
        "visual.int8.onnx",
        "text.int8.onnx",
        "support.onnx",
        "query.onnx",
    }
    assert Model(opened, backend="cpu").encode_texts(["a photo of jump"]).shape == (1, 64)


def test_pretrained_model_without_training_exports_in_memory(pretrained, backbone):
    manifest = Bundle.open(pretrained).manifest
    assert manifest.head.name == "training-free"
    assert manifest.head.options["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-4)
    assert manifest.clip.interpolation == backbone("test-vit").interpolation == "bicubic"
    assert manifest.parity["fp32"].passed and manifest.parity["fp32"].top1_agreement is None


def test_sampling_prompt_selector_is_made_deterministic(model, caplog):
    from m2df_export.pipeline import _deterministic

    head = model("m2df", options={"pps": {"eval": "sample"}}).head
    assert _deterministic(head).options.pps.eval == "argmax"
    assert head.options.pps.eval == "sample"


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 2, ["m2df-train", "--model"]),
        (["--tensorrt"], 3, ["TensorRT engines cannot be built"]),
        (["--pretrained", "openai"], 2, ["--pretrained needs --model"]),
        (["--model", "ViT-B-32", "--checkpoint", "x"], 2, ["exclude each other"]),
        (["--no-verify", "--data", "x"], 2, ["--data"]),
        (["--checkpoint", "nothing"], 2, ["nothing", "no such checkpoint"]),
        (["--model", "ViT-Q-99"], 2, ["ViT-Q-99"]),
        (["--model", "ViT-B-16-SigLIP"], 2, ["CLIP's BPE with context 77"]),
        (["--model", "m2df-tiny", "--out", "."], 2, ["not a bundle"]),
        (["stray.pt"], 2, ["stray.pt", "options"]),
        (["--opset", "15"], 2, ["--opset", "15", "16"]),
        (["--model", "m2df-tiny", "--head", "protonet"], 2, ["--head", "protonet", "training-free"]),
        (["--batch", "4,2,8"], 2, ["--batch", "sizes must rise"]),
    ],
)
def test_wrong_use_is_one_line_that_says_what_to_do(tmp_path, export_here, args, code, words):
    (tmp_path / "mine.txt").write_text("")
    done = export_here(tmp_path, *args)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_help_loads_neither_torch_nor_onnx(tmp_path):
    heavy = "('torch', 'onnx', 'onnxruntime')"
    code = f"import sys, m2df_export.commands.export; sys.exit(any(m in sys.modules for m in {heavy}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    done = export(tmp_path, "--help")
    assert done.returncode == 0
    assert "Examples:" in done.stdout
