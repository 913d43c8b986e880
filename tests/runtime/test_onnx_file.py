"""What an ONNX file declares, and that no way of writing it hides data elsewhere from us and not from the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper
from tiny_bundle import DIM, SIZE, graph_bytes

from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend
from m2df_runtime.bundle.onnx_file import read_onnx
from m2df_runtime.errors import InputError


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
    (tmp_path / "m.onnx").write_bytes(data)
    for model in (data, tmp_path / "m.onnx"):
        with pytest.raises(ValueError, match="keeps data outside the file"):
            read_onnx(model)


HIDDEN = r"keeps data outside the file|spelled in more bytes"


def field(tag: bytes, content: bytes) -> bytes:
    return tag + varint(len(content)) + content


def nested_in_a_model(tensor: bytes, tag: bytes = b"\x2a", graph_tag: bytes = b"\x3a") -> bytes:
    """y = x + w, with the bytes of w as they are given."""
    model = external_model()
    model.graph.ClearField("initializer")
    graph = model.graph.SerializeToString() + field(tag, tensor)
    model.ClearField("graph")
    return model.SerializeToString() + field(graph_tag, graph)


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


# Spellings of a tag that ONNX Runtime reads as 0a, 2a, 3a, 6a: padded, and with bits beyond 32, which it drops.
def spellings(tag: int) -> list[bytes]:
    first = bytes([tag | 0x80])
    padded = [first + b"\x80" * zeros for zeros in (0, 1, 3)]
    return [*(each + b"\x00" for each in padded), first + b"\x80\x80\x80\x10", first + b"\x80\x80\x80\x70"]


@pytest.mark.parametrize("where", ["entry", "tensor", "graph", "key"])
@pytest.mark.parametrize("number", range(5))
def test_no_spelling_of_a_tag_hides_data_elsewhere(
    where: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither engine gets to see such a graph; ONNX Runtime alone would read the file in the working folder."""
    monkeypatch.chdir(tmp_path)
    np.arange(4, dtype=np.float32).tofile("weights.bin")
    tags = {"key": 0x0A, "tensor": 0x2A, "graph": 0x3A, "entry": 0x6A}
    tag = {name: bytes([value]) for name, value in tags.items()} | {where: spellings(tags[where])[number]}
    entry = field(tag["key"], b"location") + field(b"\x12", b"weights.bin")
    tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=1).SerializeToString()
    data = nested_in_a_model(tensor + field(tag["entry"], entry), tag["tensor"], tag["graph"])
    with pytest.raises(ValueError, match=HIDDEN):
        read_onnx(data)
    with pytest.raises(InputError, match="cannot load the graph"):  # the second line of defence
        OnnxRuntimeBackend("cpu", 1).load(data, "outside")


@pytest.mark.parametrize("length", [b"\x88\x00", b"\x88\x80\x80\x00"])
def test_no_spelling_of_a_length_hides_it(length: bytes) -> None:
    tag = b"\x0a"
    data = external_model().SerializeToString()
    entry = b"\x0a\x08location\x12\x0bweights.bin"
    assert data.count(entry) == 1
    reference = b"\x12\x0bweights.bin" + tag + length + b"location"  # the value first, numbers padded
    tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=1).SerializeToString()
    tensor += b"\x6a" + bytes([len(reference)]) + reference
    parsed = TensorProto.FromString(tensor)
    assert (parsed.external_data[0].key, parsed.external_data[0].value) == ("location", "weights.bin")
    with pytest.raises(ValueError, match=HIDDEN):
        read_onnx(nested_in_a_model(tensor))


def test_self_contained_graphs_may_use_the_word() -> None:
    model = ModelProto.FromString(graph_bytes("visual"))
    model.doc_string = "location"
    model.graph.node[0].name = "/relocation/location"
    found = read_onnx(model.SerializeToString())
    assert str(found) == f"takes frames uint8 [N, {SIZE}, {SIZE}, 3] and gives features float32 [N, {DIM}]"


def test_what_is_no_model_or_only_costs_time_is_refused() -> None:
    model, deep = graph_bytes("visual"), b""
    for _ in range(60):  # graphs in attributes in nodes in graphs
        deep = field(b"\x0a", field(b"\x2a", field(b"\x32", deep)))
    for data, message in [
        (b"", "0 graphs"), (b"nonsense", "not an ONNX model"), (b"<net/>", "not an ONNX model"),
        (b"\x18\x00\x00\x00ORTM" + bytes(64), "not an ONNX model"), (model[:-3], "cut or damaged"),
        (model + model, "2 graphs"), (model + b"\x0b\x0c", "wire type 3"),
        (field(b"\x3a", b"\x08\x01" * 500_001), "more than 500000 fields"), (field(b"\x3a", deep), "nested too deep"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_onnx(data)
