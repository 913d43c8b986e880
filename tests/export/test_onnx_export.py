from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from exports import take_graphs
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m2df_export.graphs import onnx as onnx_export
from m2df_export.graphs.onnx import example_inputs, export_onnx, signature
from m2df_export.graphs.specs import graph_specs
from m2df_export.pipeline import ExportOptions, export_bundle
from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.errors import CheckFailed, InputError

SIGNATURES = {
    "visual": ({"frames": ("uint8", ("N", 32, 32, 3))}, {"features": ("float32", ("N", 64))}),
    "text": ({"tokens": ("int32", ("P", 77))}, {"embeddings": ("float32", ("P", 64))}),
    "support": (
        {"features": ("float32", ("K", 3, 64)), "prompt": ("float32", (1, 64))},
        {"prototypes": ("float32", (2, 3, 64))},
    ),
    "query": (
        {
            "features": ("float32", ("Q", 3, 64)),
            "prompts": ("float32", ("C", 64)),
            "prototypes": ("float32", ("C", 2, 3, 64)),
        },
        {
            "logits": ("float32", ("Q", "C")),
            "distances": ("float32", ("Q", 2, "C")),
            "selected": ("float32", ("Q", "C")),
            "tokens": ("float32", ("Q", 2, 3, 64)),
        },
    ),
}


def _assert_equal_for_any_size(spec, path, examples=12):
    """Outputs of the graph and of its module agree for random sizes of every axis that may vary."""
    graph = OnnxRuntimeBackend("cpu").load(path, path.name)
    axes = sorted({axis for shape in spec.dynamic.values() for axis in shape.values()})

    @settings(max_examples=examples)
    @example(size=dict.fromkeys(axes, 1), seed=0)
    @given(size=st.fixed_dictionaries({axis: st.integers(1, 9) for axis in axes}), seed=st.integers(0, 999))
    def holds(size, seed):
        inputs = example_inputs(spec, size, seed)
        with torch.no_grad():
            found = spec.module(*map(torch.from_numpy, inputs.values()))
        expected = found if isinstance(found, tuple) else (found,)
        outputs = graph.run(inputs)
        assert list(outputs) == list(spec.outputs)
        for name, value in zip(spec.outputs, expected, strict=True):
            np.testing.assert_allclose(
                outputs[name], value.numpy(), rtol=0, atol=1e-4 * max(1.0, float(value.abs().max())), err_msg=name
            )

    holds()


@pytest.mark.parametrize("graph", ["visual", "text", "support", "query"])
def test_exported_graphs_equal_their_modules_for_any_size(exported, graph):
    folder, specs = exported
    _assert_equal_for_any_size(specs[graph], folder / f"{graph}.onnx")


@pytest.mark.parametrize("graph", ["visual", "text", "support", "query"])
def test_signatures_are_those_of_the_bundle(exported, graph):
    inputs, outputs = signature(exported[0] / f"{graph}.onnx")
    found = tuple({info.name: (info.dtype, info.shape) for info in side} for side in (inputs, outputs))
    assert found == SIGNATURES[graph]


@pytest.mark.parametrize("head", ["clip-fsar", "training-free"])
@pytest.mark.parametrize("graph", ["support", "query"])
def test_other_heads_have_the_same_inputs_and_one_view(model, first_project, pretrained, head, graph):
    source = model(head)
    spec = graph_specs(source.backbone, source.head, source.clip)[graph]
    bundle = {"clip-fsar": first_project / "bundles" / "first", "training-free": pretrained}[head]
    path = bundle / f"{graph}.onnx"
    inputs, _ = signature(path)
    assert [info.name for info in inputs] == list(SIGNATURES[graph][0])
    _assert_equal_for_any_size(spec, path)


@pytest.mark.parametrize(("name", "opset"), [("test-rn", 18), ("test-convnext", 20)])
def test_convolutional_towers_export_without_batch_norm_in_the_opset_asked_for(tower_file, name, opset):
    path, spec = tower_file(name, opset)
    found = onnx.load(path)
    assert "BatchNormalization" not in {node.op_type for node in found.graph.node}
    assert [entry.version for entry in found.opset_import if not entry.domain] == [opset]
    _assert_equal_for_any_size(spec, path, examples=3)


def test_weights_of_the_head_stand_as_products_take_them(exported):
    graph = onnx.load(exported[0] / "query.onnx").graph
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1 and np.prod(tensor.dims) >= 64 * 64}
    readers = {node.op_type for node in graph.node if matrices & set(node.input)}
    assert matrices
    assert readers <= {"MatMul", "Gemm"}  # no transposition at every run, and nothing half precision would miss


def test_query_graph_does_not_depend_on_an_engines_own_log_sum_exp(exported):
    assert "ReduceLogSumExp" not in {node.op_type for node in onnx.load(exported[0] / "query.onnx").graph.node}


def test_file_is_stamped_and_tells_nothing_about_the_machine(exported):
    path = exported[0] / "query.onnx"
    model = onnx.load(path)
    assert {item.key: item.value for item in model.metadata_props} == {"graph": "query", "precision": "fp32"}
    assert [entry.version for entry in model.opset_import if not entry.domain] == [18]
    assert b"site-packages" not in path.read_bytes()


def test_opset_the_exporter_cannot_write_is_refused(model, tmp_path):
    source = model("training-free")
    spec = graph_specs(source.backbone, source.head, source.clip)["support"]
    with pytest.raises(CheckFailed, match="support graph cannot be written in opset 17"):
        export_onnx(spec, tmp_path / "support.onnx", opset=17, metadata={})


def test_fixed_axis_fails_the_export(model, tmp_path):
    class FixedBatch(torch.nn.Module):
        def forward(self, features, prompt):
            return features.new_zeros(1, 3, 64) + features[:1, :, :] + features.sum() * 0 + features.shape[0] - 3

    source = model("training-free")
    spec = graph_specs(source.backbone, source.head, source.clip)["support"]
    wrong = onnx_export.GraphSpec(spec.name, FixedBatch(), spec.inputs, spec.dynamic, spec.outputs, (("K", 3, 64),))
    with pytest.raises(CheckFailed, match="support graph returns prototypes"):
        export_onnx(wrong, tmp_path / "support.onnx", metadata={})


def test_weights_above_one_file_are_written_in_half(model, exported, tmp_path, monkeypatch, caplog):
    folder, specs = exported
    take_graphs(monkeypatch, folder, "text")
    sizes = {graph: (folder / f"{graph}.onnx").stat().st_size for graph in specs}
    largest = max(sizes, key=sizes.__getitem__)
    monkeypatch.setattr(onnx_export, "MAX_WEIGHT_BYTES", int(0.75 * sizes[largest]))
    source = model("m2df")
    result = export_bundle(source, ExportOptions(tmp_path / "out", ("fp32", "fp16", "int8"), verify=False))
    assert "left out, fp16 alone is written: fp32, int8 (the text graph has 0.0 GB of weights in fp32" in caplog.text
    bundle = Bundle.open(result.bundle)
    assert bundle.manifest.precisions == ("fp16",)
    assert sorted(path.name for path in result.bundle.glob("*.onnx")) == sorted(f"{g}.fp16.onnx" for g in specs)
    # The same numbers as by way of an fp32 file, and the same stamp.
    way, straight = (onnx.load(place / f"{largest}.fp16.onnx") for place in (folder, result.bundle))
    assert {item.key: item.value for item in straight.metadata_props}["precision"] == "fp16"
    tokens = np.arange(3 * 77, dtype=np.int32).reshape(3, 77)
    by_way, by_itself = (
        OnnxRuntimeBackend("cpu").load(place / f"{largest}.fp16.onnx", "text").run({"tokens": tokens})
        for place in (folder, result.bundle)
    )
    assert (by_way["embeddings"] == by_itself["embeddings"]).all()
    assert len(way.graph.node) == len(straight.graph.node)


@pytest.mark.parametrize(("precisions", "reason"), [(("fp32", "int8"), "fp32.*--fp16"), (("fp16",), "fp16.*smaller")])
def test_weights_too_large_for_what_is_asked_are_refused(
    model, first_project, tmp_path, monkeypatch, precisions, reason
):
    take_graphs(monkeypatch, first_project / "bundles" / "first")
    monkeypatch.setattr(onnx_export, "MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(InputError, match=rf"the visual graph has .* GB of weights in {reason}"):
        export_bundle(model("clip-fsar"), ExportOptions(tmp_path / "out", precisions))
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
