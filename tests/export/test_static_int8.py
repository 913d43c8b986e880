"""Calibrated int8: the Q/DQ file in both CPU engines, what it is calibrated on, and an export without NNCF."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from exports import take_graphs

from m2df_export.check.single_graphs import smooth_pictures
from m2df_export.pipeline import ExportOptions, export_bundle
from m2df_export.precision.calibration import CLIPS, PICTURES, calibration_frames
from m2df_export.precision.convert import write_precision
from m2df_export.precision.static_int8 import LEADING, Calibration
from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.errors import CheckFailed, EnvironmentMissing, InputError
from m2df_runtime.parity import GATES, Gates
from m2df_runtime.pixels.spec import ClipSpec

needs_nncf = pytest.mark.skipif(find_spec("nncf") is None, reason="needs NNCF: pip install m2df[int8]")


@pytest.fixture(scope="module")
def quantised(model, tower_file, once):
    """The image tower of a tiny model in fp32 and calibrated int8, and its preprocessing, by the name of the tower."""

    def make(name):
        clip = model("training-free", name).clip

        def write(folder):
            shutil.copy(tower_file(name)[0], folder)
            write_precision(folder, "visual", "int8-static", Calibration(calibration_frames(clip)))

        folder = once(f"{name}-int8-static", write)
        return folder / "visual.onnx", folder / "visual.int8-static.onnx", clip

    return make


@needs_nncf
@pytest.mark.parametrize("name", ["test-vit", "test-rn"])
def test_both_engines_compute_the_tower_within_the_gate(quantised, name):
    from m2df_runtime.backends.openvino import OpenVINOBackend

    original, path, clip = quantised(name)
    frames = smooth_pictures(np.random.default_rng(1), 4, clip.size)
    expected = OnnxRuntimeBackend("cpu", 1).load(original, "fp32").run({"frames": frames})["features"]
    for backend in (OnnxRuntimeBackend("cpu", 1), OpenVINOBackend(1)):
        features = backend.load(path, "int8-static").run({"frames": frames})["features"]
        norms = np.linalg.norm(features, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((features * expected).sum(axis=1) / norms).min() >= GATES["int8-static"].cosine
        assert np.abs(features - expected).max() > 1e-4  # and it is not fp32


@needs_nncf
@pytest.mark.parametrize(("name", "op_types"), [("test-vit", {"MatMul", "Gemm"}), ("test-rn", {"Conv"})])
def test_products_are_quantised_but_for_the_first_and_last(quantised, name, op_types):
    path = quantised(name)[1]
    graph = onnx.load(path).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    weights = {weight.name for weight in graph.initializer}
    weighted = [
        node
        for node in graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm")
        and (node.input[1] in weights or all(makers.get(i) == "DequantizeLinear" for i in node.input[:2]))
    ]
    wide = [node for node in weighted if makers.get(node.input[1]) != "DequantizeLinear"]
    assert wide == [weighted[0], weighted[-1]]
    assert op_types & {node.op_type for node in weighted[1:-1]}
    assert {item.key: item.value for item in onnx.load(path).metadata_props}["precision"] == "int8-static"


@needs_nncf
def test_more_of_the_beginning_can_stay_in_fp32(quantised, tmp_path):
    original, path, clip = quantised("test-rn")
    shutil.copy(original, tmp_path / "visual.onnx")
    wider = write_precision(
        tmp_path, "visual", "int8-static", Calibration(calibration_frames(clip), leading=LEADING[-1])
    )
    floats = []
    for file in (path, wider):
        graph = onnx.load(file).graph
        weights = {weight.name for weight in graph.initializer if weight.data_type == onnx.TensorProto.FLOAT}
        floats.append(sum(node.op_type == "Conv" and node.input[1] in weights for node in graph.node))
    assert floats == [1, LEADING[-1]]


@needs_nncf
def test_openvino_runs_int8_kernels_and_no_bfloat16(quantised):
    from m2df_runtime.backends.openvino import OpenVINOBackend

    compiled = OpenVINOBackend(1).load(quantised("test-vit")[1], "int8-static")._compiled
    nodes = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    kinds = [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in nodes]
    products = [precision for kind, precision in kinds if kind == "FullyConnected"]
    assert products.count("i8") == 8  # two blocks with four products each
    assert "bf16" not in {precision for _, precision in kinds}


def test_calibration_is_the_same_every_time():
    spec = ClipSpec(frames=2, size=32)
    frames = calibration_frames(spec)
    assert frames.shape == (CLIPS + PICTURES, 32, 32, 3)
    np.testing.assert_array_equal(frames, calibration_frames(spec))
    assert len(np.unique(frames.reshape(len(frames), -1), axis=0)) == len(frames)


def test_calibration_takes_a_folder_and_leaves_out_what_cannot_be_read(tmp_path):
    from m2df_train.synthetic.demo_clips import encode_mp4

    for label in ("jump", "run"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "broken.mp4").write_bytes(b"not a video")
    spec = ClipSpec(frames=2, size=32)
    with pytest.raises(InputError, match="no clip to calibrate int8 on can be read"):
        calibration_frames(spec, tmp_path)
    pixels = np.full((8, 64, 64, 3), 200, np.uint8)
    encode_mp4(tmp_path / "run" / "good.mp4", pixels, 25)
    frames = calibration_frames(spec, tmp_path)
    assert len(frames) == 1 + PICTURES
    assert np.abs(frames[0].astype(int) - 200).max() <= 3  # the clip's, as coded


@needs_nncf
@pytest.mark.slow
def test_calibrated_int8_beyond_its_gates_is_left_out_where_it_is_optional(
    model, pretrained, tmp_path, monkeypatch, caplog
):
    take_graphs(monkeypatch, pretrained)
    monkeypatch.setitem(GATES, "int8-static", Gates(cosine=1.1))
    source, precisions = model("training-free"), ("fp32", "int8-static")
    export_bundle(source, ExportOptions(tmp_path / "free", precisions, optional=("int8-static",)))
    assert Bundle.open(tmp_path / "free").manifest.precisions == ("fp32",)
    assert "int8-static is left out: int8-static visual graph: cosine" in caplog.text
    assert not list((tmp_path / "free").glob("*int8*"))
    with pytest.raises(CheckFailed, match="int8-static visual graph: cosine"):
        export_bundle(source, ExportOptions(tmp_path / "strict", precisions))
    assert not (tmp_path / "strict").exists()


def test_without_nncf_int8_is_dynamic_alone_and_says_so(monkeypatch, capsys, tmp_path):
    from m2df_export.commands.export import _precisions, cli

    monkeypatch.setitem(sys.modules, "nncf", None)
    assert _precisions(fp16=False, int8=True) == ("fp32", "int8")
    said = "calibrated int8 needs NNCF, which is not installed"
    assert capsys.readouterr().err == f"int8-static: not written ({said}; pip install 'm2df[int8]')\n"
    with pytest.raises(EnvironmentMissing, match=said):
        cli.main(["--model", "test-vit", "--only-precision", "int8-static"], standalone_mode=False)
