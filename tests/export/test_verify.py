"""The drift meter: a good bundle passes, a broken one is told by the stage at which it is broken."""

from __future__ import annotations

import importlib.util
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from m2df_export.check.measure import EngineResult, measure
from m2df_export.check.stages import STAGES, compare_numbers
from m2df_export.check.verify import VerifyOptions, run_reference
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.shipped import demo_bundle, demo_support
from m2df_runtime.files import sha256_bytes
from m2df_runtime.parity import GATES, drift, gates_of


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The shipped model, unpacked: a trained M2DF head in fp16."""
    folder = tmp_path_factory.mktemp("good") / "demo"
    with zipfile.ZipFile(demo_bundle()) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three of the shipped actions with two clips each."""
    folder = tmp_path_factory.mktemp("clips")
    for action in ("clap", "golf_swing", "side_bend"):
        shutil.copytree(demo_support() / action, folder / action)
    return folder


@pytest.fixture(scope="module")
def reference(good, clips, tmp_path_factory):
    """What the shipped model computes on shipped clips, stage by stage."""
    options = VerifyOptions(good, against=good, data=clips, episodes=20)
    return run_reference(options, tmp_path_factory.mktemp("reference"))


@pytest.fixture
def measured(reference, tmp_path):
    """Measure a bundle on the CPU against the shipped model."""

    def run(bundle) -> EngineResult:
        return measure(bundle, "cpu", "fp16", reference, tmp_path)

    return run


def test_good_bundle_passes_every_stage(measured, good):
    result = measured(good)
    assert (result.status, result.stage, result.reason) == ("passed", None, None)
    assert [stage.stage for stage in result.stages] == list(STAGES)
    assert all(stage.alone.max_rel == 0 for stage in result.stages if stage.alone)
    assert result.episodes.agreement == 1.0
    assert result.episodes.interval == (0.0, 0.0)
    assert result.episodes.flips == ()


def maker(graph, tensor):
    """The node that computes a tensor."""
    return next(node for node in graph.node if tensor in node.output)


def swap_views(graph):
    """Prototypes [local, global] become [global, local]: the last thing that is stacked are the views."""
    stack = [node for node in graph.node if node.op_type == "Concat"][-1]
    assert len(stack.input) == 2
    stack.input[:] = reversed(stack.input)


def drop_normalisation(graph):
    """The first convolution takes pixels before they are scaled and shifted."""
    convolution = next(node for node in graph.node if node.op_type == "Conv")
    shift = maker(graph, convolution.input[0])
    scale = maker(graph, shift.input[0])
    assert (scale.op_type, shift.op_type) == ("Mul", "Add")
    convolution.input[0] = scale.input[0]


def quantise_otam(graph):
    """What the columns of OTAM's table are cut from passes through 8 bits, in units of its softness."""
    makers = {name: node.op_type for node in graph.node for name in node.output}
    cut = [node.input[0] for node in graph.node if node.op_type == "Slice"]
    costs = next(name for name in cut if makers.get(name) in ("Div", "Exp"))
    at = next(place for place, node in enumerate(graph.node) if costs in node.output)
    for node in graph.node[at + 1 :]:
        node.input[:] = ["coarse" if name == costs else name for name in node.input]
    quantised = ["q", "scale", "zero"]
    graph.node.insert(at + 1, helper.make_node("DynamicQuantizeLinear", [costs], quantised))
    graph.node.insert(at + 2, helper.make_node("DequantizeLinear", quantised, ["coarse"]))


def reverse_prompts(graph):
    """The prompts of the classes are taken in reverse order."""
    for node in graph.node:
        node.input[:] = ["reversed" if name == "prompts" else name for name in node.input]
    names = [f"reverse_{part}" for part in ("first", "last", "axis", "step")]
    values = (-1, -(1 << 31), 0, -1)
    graph.initializer.extend(numpy_helper.from_array(np.array([v]), n) for n, v in zip(names, values, strict=True))
    graph.node.insert(0, helper.make_node("Slice", ["prompts", *names], ["reversed"]))


def take_another_token(graph):
    """A prompt's embedding is that of another token than its last."""
    (last,) = (node for node in graph.node if node.op_type == "ArgMax")
    last.op_type = "ArgMin"


BREAKS = {
    "swapped view": (swap_views, "support", "prototypes", "cosine"),
    "dropped normalisation": (drop_normalisation, "visual", "features", "cosine"),
    "quantised OTAM": (quantise_otam, "query", "distances", "relative error"),
    "wrong prompt of a class": (reverse_prompts, "query", "selection", "cosine"),
    "wrong token of a prompt": (take_another_token, "text", "prompts", "cosine"),
}


@pytest.mark.parametrize(("change", "graph", "stage", "reason"), BREAKS.values(), ids=BREAKS)
def test_broken_graph_fails_at_its_stage(measured, good, tmp_path, change, graph, stage, reason):
    bundle = copied(good, tmp_path)
    model = onnx.load(bundle / f"{graph}.fp16.onnx")
    change(model.graph)
    rewrite(bundle, graph, model.SerializeToString())
    result = measured(bundle)
    assert (result.status, result.stage) == ("failed", stage)
    assert STAGES[stage] == graph
    assert result.reason.startswith(reason)
    # The error is made there: all stages of other graphs are right when they are given the right inputs.
    wrong = {found.stage for found in result.stages if found.problem}
    assert {STAGES[name] for name in wrong} == {graph}
    assert len(result.stages) == len(STAGES)


def test_graph_that_does_not_load_is_a_result(measured, good, tmp_path):
    bundle = copied(good, tmp_path)
    rewrite(bundle, "query", b"not a graph")
    result = measured(bundle)
    assert (result.status, result.stage) == ("failed", "selection")
    assert "query.fp16.onnx" in result.reason and "not an ONNX model" in result.reason
    assert [stage.stage for stage in result.stages] == ["decode", "pixels", "features", "prompts", "prototypes"]


def test_other_preprocessing_and_prompt_are_found_at_their_stages(measured, good, tmp_path):
    bundle = copied(good, tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["clip"].update(sampler="linspace", interpolation="bicubic")
    manifest["text"]["prompt"] = "a video of {}"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    result = measured(bundle)
    problems = {found.stage: found.problem for found in result.stages if found.problem}
    assert (result.status, result.stage) == ("failed", "decode")
    assert list(problems) == ["decode", "pixels", "prompts"]
    assert problems["decode"] == "clip.sampler is linspace, the reference's uniform"
    assert problems["pixels"] == "clip.interpolation is bicubic, the reference's bilinear"
    assert problems["prompts"].startswith("the prompt is 'a video of ")


def test_command_prints_a_verdict_and_its_command(export_here, good, clips, tmp_path):
    arguments = ("verify", good, "--against", demo_bundle(), "--data", clips, "--backend", "cpu")
    done = export_here(tmp_path, *arguments, "--episodes", 20)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("PASSED in ")
    assert last.endswith(f"s: m2df-export {' '.join(map(str, arguments))} --episodes 20")


def test_engine_that_crashes_is_a_result_and_not_the_end(run_module, good, clips, tmp_path):
    """An engine that kills its process, and one that works after it."""
    fake = "import os, signal\n__version__ = '0'\ndef Core():\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
    (tmp_path / "openvino.py").write_text(fake)
    engines = ("--backend", "openvino", "--backend", "cpu")
    arguments = ("verify", good, "--data", clips, *engines, "--episodes", 20, "--json")
    done = run_module("m2df_export.commands.export", *arguments, PYTHONPATH=str(tmp_path), OMP_NUM_THREADS="1")
    assert done.returncode == 1
    crashed, worked, verdict = map(json.loads, done.stdout.splitlines())
    assert (crashed["backend"], crashed["status"], crashed["stage"]) == ("openvino", "failed", "start")
    assert crashed["reason"] == "crashes (SIGSEGV)"
    assert (worked["backend"], worked["precision"], worked["status"]) == ("cpu", "fp16", "passed")
    assert [stage["stage"] for stage in worked["stages"]] == list(STAGES)
    assert verdict["passed"] is False
    assert verdict["command"].startswith("m2df-export verify ")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_engine_that_is_asked_for_and_missing_exits_with_3(run_module, good, clips):
    arguments = ("verify", good, "--data", clips, "--backend", "tensorrt", "--episodes", 1)
    done = run_module("m2df_export.commands.export", *arguments)
    assert done.returncode == 3
    assert "error: TensorRT cannot be used" in done.stderr


def test_differences_between_classes_count_and_not_what_they_share():
    """Three classes at 1000 + (0, 1, 2) against the reverse order: nearly parallel, and the opposite answer."""
    expected = np.array([[1000.0, 1001.0, 1002.0]])
    assert drift(expected[:, ::-1], expected, centred=True).cosine == pytest.approx(-1.0)
    assert drift(expected[:, ::-1], expected).cosine == pytest.approx(1.0, abs=1e-5)
    assert drift(expected + 5, expected, centred=True).cosine == pytest.approx(1.0)


def test_numbers_that_are_not_finite_are_out_of_tolerance():
    expected = np.ones((2, 3))
    found = compare_numbers("features", {"alone": expected * np.nan, "chain": expected}, expected, GATES["fp16"])
    assert found.problem is not None


def test_gates_are_those_of_the_coarser_side():
    assert gates_of("cpu", "fp32", "fp32") == GATES["fp32"]
    assert gates_of("cpu", "fp32", "fp16") == gates_of("cuda", "fp16", "fp32") == GATES["fp16"]
    assert gates_of("openvino", "int8", "fp32") == GATES["int8"]
    assert gates_of("openvino", "int8-static", "int8") == GATES["int8-static"]


def copied(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "bundle"))


def rewrite(bundle: Path, graph: str, data: bytes) -> None:
    """Replace a graph and its hash, as an export that went wrong would have written them."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    file = manifest["graphs"][graph]["files"]["fp16"]
    file.update(sha256=sha256_bytes(data), bytes=len(data))
    (bundle / file["path"]).write_bytes(data)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    Bundle.open(bundle)
