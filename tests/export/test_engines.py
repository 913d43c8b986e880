"""Building engines: options, keys, files, and what happens when something is in the way.

On a stand-in for TensorRT and the GPU (`fake_tensorrt`), which never counts as having run TensorRT.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import VERSIONS, FakeDevice, fake_tensorrt
from tiny_bundle import FRAMES, SIZE, write_bundle

from m2df_export.bundle import check_target, replacing, write_zip
from m2df_export.commands.engines import engine_precision
from m2df_export.tensorrt import build as builder
from m2df_export.tensorrt.build import EngineOptions, build_engines, drop_engine, parse_range
from m2df_export.tensorrt.parity import EngineParity, check_engines, compare_sessions
from m2df_runtime.backends.model import Model
from m2df_runtime.backends.tensorrt import backend
from m2df_runtime.backends.tensorrt.backend import MessageLog, TensorRT
from m2df_runtime.backends.tensorrt.engine_files import (
    EngineIndex,
    EngineUnusable,
    Machine,
    find_engine,
    runs_on,
    version_tuple,
)
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.errors import CheckFailed, EnvironmentMissing, InputError

FP32 = EngineOptions("fp32")


def spinner(description):
    return nullcontext()


@pytest.fixture
def tensorrt(monkeypatch, tmp_path):
    """Install a version of the stand-in; engines in the cache are of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def install(version="11.4.0.106", capability=(9, 0), **options):
        module, device = fake_tensorrt(version, **options), FakeDevice(capability)
        machine = Machine(device.name, capability, version)
        found = TensorRT(module, device, MessageLog(module), machine)
        for place in (backend, builder):
            monkeypatch.setattr(place, "open_tensorrt", lambda: found)
        return module, device

    return install


def opened(folder, opset=18):
    """The tiny bundle, with another opset in its manifest."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    for graph in data["graphs"].values():
        graph["opset"] = opset
    path.write_text(json.dumps(data))
    return Bundle.open(folder)


def modified(built):
    return {item.path.name: item.path.stat().st_mtime_ns for item in built}


@pytest.mark.parametrize("version", VERSIONS)
def test_engines_of_every_version_are_built_loaded_and_compute_what_the_cpu_does(tensorrt, bundle_copy, version):
    module, _ = tensorrt(version)
    bundle = opened(bundle_copy, opset=16)
    built = build_engines(bundle, FP32, spinner)
    assert [item.graph for item in built] == ["visual", "text", "support", "query"]
    session = Model(bundle, backend="tensorrt")
    assert session.backend == "tensorrt" and version in session.description
    parity = check_engines(session, Model(bundle, backend="cpu"), pytest.fail)
    assert [item.graph for item in parity] == ["visual", "text", "support", "query"]
    assert min(item.cosine for item in parity) > 0.999999
    network, config = module.built[0]
    strongly = version.startswith(("10", "11"))
    kind = "STRONGLY_TYPED" if strongly else "EXPLICIT_BATCH"
    assert network._flags == 1 << int(getattr(module.NetworkDefinitionCreationFlag, kind))
    assert config._flags == set()  # fp32, and TF32 taken away
    assert len(config._profiles) == (2 if version.startswith("8.5") else 1)


@pytest.mark.parametrize("version", ["8.5.3.1", "8.6.1", "10.0.1", "11.4.0.106"])
def test_half_precision_is_the_graphs_own_from_10_on_and_a_flag_with_pins_before(tensorrt, version):
    from m2df_export.tensorrt.network import Build, build_plan

    module, _ = tensorrt(version)
    from tiny_bundle import graph_bytes

    build = Build(graph_bytes("visual"), "x", {"frames": ("N", SIZE, SIZE, 3)}, {"N": (1, 4, 8)}, half=True)
    build_plan(backend.open_tensorrt(), build)
    network, config = module.built[0]
    constant, softmax, product = network._layers
    if version.startswith("8"):
        assert config._flags == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
        assert softmax.precision == module.DataType.FLOAT and softmax._types == {0: module.DataType.FLOAT}
    else:
        assert config._flags == set()
        assert softmax._types == {}
    assert constant._types == product._types == {}
    assert config._profiles[0]._shapes == {"frames": tuple((n, SIZE, SIZE, 3) for n in (1, 4, 8))}


def since(*version):
    return lambda running: version_tuple(running) >= version


def before(*version):
    return lambda running: version_tuple(running) < version


# What not every version has, and the versions our code calls it with; the stand-in refuses what a version lacks.
GUARDED = {
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": before(10),
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": since(10),
    "BuilderFlag.FP16": before(10),
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS": before(10),
    "ILayer.precision": before(10),
    "ILayer.set_output_type": before(10),
    "PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805": before(10),
    "PreviewFeature.PROFILE_SHARING_0806": lambda running: since(8, 6)(running) and before(11)(running),
    "HardwareCompatibilityLevel.AMPERE_PLUS": since(8, 6),
    "IBuilderConfig.hardware_compatibility_level": since(8, 6),
    "BuilderFlag.VERSION_COMPATIBLE": since(8, 6),
    "Runtime.engine_host_code_allowed": since(8, 6),
}
ALWAYS = {
    "OnnxParser.parse", "ParserError.desc", "Builder.build_serialized_network", "IBuilderConfig.set_timing_cache",
    "IBuilderConfig.set_memory_pool_limit", "MemoryPoolType.WORKSPACE", "Runtime.deserialize_cuda_engine",
    "LayerInformationFormat.JSON", "ICudaEngine.create_execution_context", "IExecutionContext.set_input_shape",
    "IExecutionContext.execute_async_v3",
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_called_by_the_names_it_has(tensorrt, bundle_copy, version):
    from tiny_bundle import graph_bytes

    from m2df_export.tensorrt.network import Build, build_plan

    module, _ = tensorrt(version)
    bundle = opened(bundle_copy, opset=16)
    build_engines(bundle, EngineOptions("fp32", workspace_gb=1.0), spinner)
    check_engines(Model(bundle, backend="tensorrt"), Model(bundle, backend="cpu"), pytest.fail)
    newer = since(8, 6)(version)
    inputs, profile = {"frames": ("N", SIZE, SIZE, 3)}, {"N": (1, 4, 8)}
    half = Build(
        graph_bytes("visual"), "x", inputs, profile, half=True, hardware_compatible=newer, version_compatible=newer
    )
    build_plan(backend.open_tensorrt(), half)
    with pytest.raises(InputError, match="cannot read the graph"):
        build_plan(backend.open_tensorrt(), Build(b"unreadable", "x", inputs, profile, half=False))
    assert module.used >= ALWAYS
    assert {name for name in GUARDED if name in module.used} == {name for name in GUARDED if GUARDED[name](version)}


def test_profile_counts_clips_in_frames_and_takes_other_axes_by_letter(tensorrt, bundle_copy):
    tensorrt()
    options = EngineOptions("fp32", ranges=dict([parse_range("2,4,6"), parse_range("C=1,7,9")]))
    bundle = Bundle.open(bundle_copy)
    build_engines(bundle, options, spinner)
    folder = bundle_copy / "engines" / "sm90-trt11.4-fp32"
    engines = json.loads((folder / "index.json").read_text())["engines"]
    assert engines["visual"]["profile"] == {"N": [2 * FRAMES, 4 * FRAMES, 6 * FRAMES]}
    assert engines["query"]["profile"] == {"C": [1, 7, 9], "Q": [2, 4, 6]}
    assert set(engines["support"]["profile"]) == {"K"} and set(engines["text"]["profile"]) == {"P"}


@pytest.mark.parametrize("text", ["1,2", "a,b,c", "2,1,3", "0,1,2", "Z=1,2,3", "N=8,8,8", ""])
def test_wrong_range_is_refused(text):
    with pytest.raises(ValueError, match=r"axis|MIN,OPT,MAX|rise"):
        parse_range(text)


def test_what_is_up_to_date_is_kept_and_what_is_not_is_built_again(tensorrt, bundle_copy):
    tensorrt()
    bundle = Bundle.open(bundle_copy)
    first = modified(build_engines(bundle, FP32, spinner))
    again = build_engines(bundle, FP32, spinner)
    assert all(item.reused for item in again) and modified(again) == first
    (bundle_copy / "engines" / "sm90-trt11.4-fp32" / "text.engine").write_bytes(b"damaged")
    wider = EngineOptions("fp32", ranges={"K": (1, 2, 64)})
    rebuilt = {item.graph: item.reused for item in build_engines(bundle, wider, spinner)}
    assert rebuilt == {"visual": True, "text": False, "support": False, "query": True}
    assert not any(item.reused for item in build_engines(bundle, EngineOptions("fp32", force=True), spinner))
    tensorrt("11.0.0.114")
    assert not any(item.reused for item in build_engines(bundle, FP32, spinner))


def test_engine_of_another_gpu_version_or_export_is_named_and_not_loaded(tensorrt, bundle_copy):
    tensorrt()
    bundle = Bundle.open(bundle_copy)
    build_engines(bundle, FP32, spinner)
    here = Machine("GPU", (9, 0), "11.4.0.106")
    assert find_engine(bundle, "visual", "fp32", here).path.is_file()
    with pytest.raises(EngineUnusable, match=r"sm80 .*: built for sm90, this GPU is sm80"):
        find_engine(bundle, "visual", "fp32", Machine("GPU", (8, 0), "11.4.0.106"))
    with pytest.raises(EngineUnusable, match=r"built with TensorRT 11\.4\.0\.106, this is 11\.4\.1\.2"):
        find_engine(bundle, "visual", "fp32", Machine("GPU", (9, 0), "11.4.1.2"))
    write_bundle(bundle_copy, support_weight=0.5)
    with pytest.raises(EngineUnusable, match="built from another export of the graph"):
        find_engine(Bundle.open(bundle_copy), "support", "fp32", here)
    assert find_engine(Bundle.open(bundle_copy), "visual", "fp32", here).path.is_file()


def test_compatible_engines_fit_more_machines(tensorrt, bundle_copy):
    tensorrt("10.3.0", capability=(8, 6))
    bundle = Bundle.open(bundle_copy)
    options = EngineOptions("fp32", hardware_compatible=True, version_compatible=True)
    build_engines(bundle, options, spinner)
    assert [path.name for path in (bundle_copy / "engines").iterdir()] == ["sm80plus-trt10.3plus-fp32"]
    assert find_engine(bundle, "query", "fp32", Machine("GPU", (9, 0), "11.4.0.106")).host_code
    for unfit in (Machine("GPU", (7, 5), "10.3.0"), Machine("GPU", (9, 0), "10.0.1")):
        with pytest.raises(EngineUnusable):
            find_engine(bundle, "query", "fp32", unfit)


@pytest.mark.parametrize(
    ("built", "running", "fits"),
    [("10.3.0", "10.16.1.11", True), ("10.16.1", "10.3.0", False), ("8.6.1", "10.0.1", True), ("8.6.1", "11.0", False)],
)
def test_version_compatible_engines_run_on_later_versions(built, running, fits):
    # https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/getting-started/support-matrix.html, "Engine Portability"
    assert runs_on(built, running) is fits


def test_option_a_version_does_not_have_is_refused(tensorrt, bundle_copy):
    tensorrt("8.5.3.1")
    with pytest.raises(EnvironmentMissing, match=r"TensorRT 8\.5\.3\.1 has no --hardware-compatible"):
        build_engines(opened(bundle_copy, 16), EngineOptions("fp32", hardware_compatible=True), spinner)


def test_graphs_newer_than_the_parser_are_refused_before_anything_is_built(tensorrt, bundle_copy):
    module, _ = tensorrt("8.5.3.1")
    with pytest.raises(
        InputError, match=r"opset 18, TensorRT 8\.5\.3\.1 reads up to 16 \(export again with --opset 16"
    ):
        build_engines(Bundle.open(bundle_copy), FP32, spinner)
    with pytest.raises(InputError, match="int8"):
        build_engines(Bundle.open(bundle_copy), EngineOptions("int8"), spinner)
    assert module.built == [] and not (bundle_copy / "engines").exists()


def test_failed_build_keeps_the_engines_before_it_and_its_log(tensorrt, bundle_copy):
    tensorrt(refuses="ReduceMean")  # text comes after visual, and is the first graph with one
    bundle = Bundle.open(bundle_copy)
    with pytest.raises(CheckFailed, match=r"text\.onnx: .*could not find any implementation"):
        build_engines(bundle, FP32, spinner)
    folder = bundle_copy / "engines" / "sm90-trt11.4-fp32"
    assert set(EngineIndex.read(folder).engines) == {"visual"}
    names = {path.name for path in folder.iterdir()}
    assert names == {"index.json", "visual.engine", "visual.layers.json", "visual.log", "text.log", "timing.cache"}
    assert "ERROR    could not find any implementation" in (folder / "text.log").read_text()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no lock is left


def test_interrupted_build_leaves_nothing_half(tensorrt, bundle_copy, monkeypatch):
    tensorrt()

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(builder, "build_plan", stop)
    with pytest.raises(KeyboardInterrupt):
        build_engines(Bundle.open(bundle_copy), FP32, spinner)
    assert not list((bundle_copy / "engines").rglob("*.engine"))
    with pytest.raises(EngineUnusable, match="no fp32 visual engine for sm90"):
        Model(Bundle.open(bundle_copy), backend="tensorrt")


def test_no_driver_is_one_line_that_says_so(tensorrt, bundle_copy):
    tensorrt("8.5.3.1", driver=False)
    with pytest.raises(EnvironmentMissing, match=r"NVIDIA driver: CUDA initialization failure with error: 35"):
        build_engines(opened(bundle_copy, 16), FP32, spinner)


def test_bundle_that_cannot_be_written_gets_its_engines_in_the_cache(tensorrt, bundle_copy, tmp_path):
    tensorrt()
    archive = write_zip(bundle_copy, tmp_path / "moved.zip")
    bundle = Bundle.open(archive)
    built = build_engines(bundle, FP32, spinner)
    assert "m2df/engines" in built[0].path.as_posix()
    assert Model(bundle, backend="tensorrt").backend == "tensorrt"
    assert Model(Bundle.open(bundle_copy), backend="tensorrt").backend == "tensorrt"  # the same graphs elsewhere


def test_new_export_keeps_engines_that_still_fit_and_a_zip_leaves_them_out(tensorrt, bundle_copy, tmp_path):
    tensorrt()
    build_engines(Bundle.open(bundle_copy), FP32, spinner)
    check_target(bundle_copy)
    with replacing(bundle_copy) as folder:
        shutil.rmtree(folder)
        write_bundle(folder, support_weight=0.5)
    bundle = Bundle.open(bundle_copy)
    rebuilt = {item.graph: item.reused for item in build_engines(bundle, FP32, spinner)}
    assert rebuilt == {"visual": True, "text": True, "support": False, "query": True}
    archive = write_zip(bundle_copy, tmp_path / "out.zip")
    assert not [name for name in zipfile.ZipFile(archive).namelist() if "engines" in name]


def test_second_process_that_writes_the_same_place_is_refused(tensorrt, bundle_copy):
    tensorrt()
    code = "import sys; from pathlib import Path; from m2df_runtime.files import exclusive\n"
    code += "with exclusive(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    folder = bundle_copy / "engines" / "sm90-trt11.4-fp32"
    command = [sys.executable, "-c", code, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], **pipes) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another process is writing it"):
            build_engines(Bundle.open(bundle_copy), FP32, spinner)
        other.stdin.close()
    assert len(build_engines(Bundle.open(bundle_copy), FP32, spinner)) == 4


def test_engine_that_computes_something_else_is_dropped(tensorrt, bundle_copy, tmp_path):
    """An engine of another head in the place of the right one: same tensors, other numbers."""
    tensorrt()
    bundle = Bundle.open(bundle_copy)
    other = Model(Bundle.open(write_bundle(tmp_path / "other", support_weight=5.0)), backend="cpu")
    dropped = []
    with pytest.raises(CheckFailed, match=r"parity failed: support engine: cosine -?0\.\d+, needed 0\.99999"):
        check_engines(other, Model(bundle, backend="cpu"), dropped.append)
    assert dropped == ["support"]
    build_engines(bundle, FP32, spinner)
    drop_engine(bundle, FP32, "support")
    with pytest.raises(EngineUnusable, match="holds none of this graph"):
        Model(bundle, backend="tensorrt")


def test_comparison_of_a_backend_with_itself_is_exact(tiny_bundle):
    session = Model(Bundle.open(tiny_bundle), backend="cpu", threads=1)
    found = compare_sessions(session, session)
    assert [item.graph for item in found] == ["visual", "text", "support", "query"]
    assert all(item == EngineParity(item.graph, pytest.approx(1.0, abs=1e-12), 0.0) for item in found)
    assert np.isfinite([item.cosine for item in found]).all()


def test_precision_of_engines_follows_the_bundle():
    import click

    assert engine_precision(("fp32", "fp16")) == "fp16"
    assert engine_precision(("fp32", "int8")) == "fp32"
    with pytest.raises(click.UsageError, match="add --fp16"):
        engine_precision(("int8",))
