"""Graphs that keep tensors in other files are told from those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import ModelProto, TensorProto, helper
from tiny_bundle import graph_bytes

from m2df_runtime.onnx_file import has_external_data


def external_model(location: str = "weights.bin", *, in_a_branch: bool = False) -> ModelProto:
    """y = x + w, where w is kept in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    if in_a_branch:
        nodes = [helper.make_node("Constant", [], ["w"], value=weight), *nodes]
    graph = helper.make_graph(nodes, "external", [x], [y], [] if in_a_branch else [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("in_a_branch", [False, True])
@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/passwd", "*/_ORT_MEM_ADDR_/*"])
def test_data_elsewhere_is_found(location: str, in_a_branch: bool, tmp_path: Path) -> None:
    data = external_model(location, in_a_branch=in_a_branch).SerializeToString()
    assert has_external_data(data)
    (tmp_path / "m.onnx").write_bytes(data)
    assert has_external_data(tmp_path / "m.onnx")


@pytest.mark.parametrize("tag", [b"\x0a", b"\x8a\x00", b"\x8a\x80\x00"])
@pytest.mark.parametrize("length", [b"\x08", b"\x88\x00", b"\x88\x80\x80\x00"])
def test_no_spelling_of_the_reference_hides_it(tag: bytes, length: bytes) -> None:
    data = external_model().SerializeToString()
    entry = b"\x0a\x08location\x12\x0bweights.bin"
    assert data.count(entry) == 1
    reference = b"\x12\x0bweights.bin" + tag + length + b"location"  # the value first, numbers padded
    tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=1).SerializeToString()
    tensor += b"\x6a" + bytes([len(reference)]) + reference
    parsed = TensorProto.FromString(tensor)
    assert (parsed.external_data[0].key, parsed.external_data[0].value) == ("location", "weights.bin")
    assert has_external_data(tensor)


def test_self_contained_graphs_may_use_the_word() -> None:
    model = ModelProto.FromString(graph_bytes("visual"))
    model.doc_string = "location"
    model.graph.node[0].name = "/relocation/location"
    assert not has_external_data(model.SerializeToString())
    assert not has_external_data(b"")
