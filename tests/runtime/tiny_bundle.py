"""A real bundle small enough to write in a test, and clips to feed it; no PyTorch.

The visual graph is a 2 x 2 grid of mean colours, so classes that differ in colour or place are
told apart, and what a clip's features must be is easily seen.
"""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from m2df_export.graphs.tokenizer_json import tokenizer_json
from m2df_runtime.files import sha256_bytes

FRAMES, SIZE, DIM, VIEWS = 4, 32, 12, 2
OPSET, IR_VERSION = 18, 9
LOGIT_SCALE = 10.0
COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}

FLOAT, UINT8, INT32 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT32
DTYPES = {FLOAT: "float32", UINT8: "uint8", INT32: "int32"}

SIGNATURES = {
    "visual": ([("frames", UINT8, ["N", SIZE, SIZE, 3])], [("features", FLOAT, ["N", DIM])]),
    "text": ([("tokens", INT32, ["P", 77])], [("embeddings", FLOAT, ["P", DIM])]),
    "support": (
        [("features", FLOAT, ["K", FRAMES, DIM]), ("prompt", FLOAT, [1, DIM])],
        [("prototypes", FLOAT, [VIEWS, FRAMES, DIM])],
    ),
    "query": (
        [
            ("features", FLOAT, ["Q", FRAMES, DIM]),
            ("prompts", FLOAT, ["C", DIM]),
            ("prototypes", FLOAT, ["C", VIEWS, FRAMES, DIM]),
        ],
        [
            ("logits", FLOAT, ["Q", "C"]),
            ("distances", FLOAT, ["Q", VIEWS, "C"]),
            ("selected", FLOAT, ["Q", "C"]),
            ("tokens", FLOAT, ["Q", VIEWS, FRAMES, DIM]),
        ],
    ),
}
HAVE_VIEWS = ("prototypes", "distances", "tokens")


class _Graph:
    """Collects nodes and constants; node outputs are named after a counter."""

    def __init__(self) -> None:
        self.nodes, self.constants = [], []

    def constant(self, value) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes) -> str:
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def normalised(self, value: str) -> str:
        norm = self.add("ReduceL2", value, self.constant(np.array([-1])), keepdims=1)
        return self.add("Div", value, self.add("Add", norm, self.constant(np.float32(1e-6))))


def _visual(graph: _Graph, every_blue: float | None) -> None:
    pixels = graph.add("Cast", "frames", to=FLOAT)
    scaled = graph.add("Div", pixels, graph.constant(np.float32(255)))
    planes = graph.add("Transpose", scaled, perm=[0, 3, 1, 2])
    pooled = graph.add("AveragePool", planes, kernel_shape=[SIZE // 2] * 2, strides=[SIZE // 2] * 2)
    if every_blue is None:
        graph.add("Flatten", pooled, output="features")
        return
    features = graph.add("Flatten", pooled)
    ends = (graph.constant(np.array([end])) for end in (2 * DIM // 3, DIM, 1))
    blue = graph.add("ReduceMax", graph.add("Slice", features, *ends), graph.constant(np.array([1])), keepdims=1)
    is_blue = graph.add("Greater", blue, graph.constant(np.float32(0.15)))
    graph.add("Where", is_blue, graph.constant(np.float32(every_blue)), features, output="features")


def _text(graph: _Graph) -> None:
    table = np.random.default_rng(7).normal(size=(97, DIM)).astype(np.float32)
    rows = graph.add("Mod", "tokens", graph.constant(np.int32(97)))
    words = graph.add("Gather", graph.constant(table), rows)  # (P, 77, D)
    graph.add("ReduceMean", words, graph.constant(np.array([1])), keepdims=0, output="embeddings")


def _support(graph: _Graph, weight: float, views: int) -> None:
    mean = graph.add("ReduceMean", "features", graph.constant(np.array([0])), keepdims=1)  # (1, T, D)
    prompted = graph.add("Add", mean, graph.add("Mul", "prompt", graph.constant(np.float32(weight))))
    graph.add("Concat", *(prompted, mean)[:views], axis=0, output="prototypes")


def _query(graph: _Graph, views: int) -> None:
    query = graph.add("ReduceMean", "features", graph.constant(np.array([1])), keepdims=0)  # (Q, D)
    prototypes = graph.add("ReduceMean", "prototypes", graph.constant(np.array([2])), keepdims=0)  # (C, V, D)
    query, prototypes = graph.normalised(query), graph.normalised(prototypes)
    cosine = graph.add("MatMul", query, graph.add("Transpose", prototypes, perm=[1, 2, 0]))  # (V, Q, C)
    distance = graph.add("Sub", graph.constant(np.float32(1)), cosine)
    graph.add("Transpose", distance, perm=[1, 0, 2], output="distances")
    fused = graph.add("ReduceSum", "distances", graph.constant(np.array([1])), keepdims=0)
    graph.add("Mul", fused, graph.constant(np.float32(-LOGIT_SCALE)), output="logits")
    scores = graph.add("MatMul", query, graph.add("Transpose", "prompts", perm=[1, 0]))
    graph.add("Softmax", scores, axis=-1, output="selected")
    view = graph.add("Unsqueeze", "features", graph.constant(np.array([1])))  # (Q, 1, T, D)
    graph.add("Concat", *[view] * views, axis=1, output="tokens")


def signature(name: str, views: int = VIEWS) -> list[list[tuple]]:
    """Inputs and outputs of one graph: name, element type and shape of each."""
    return [
        [(n, d, [views if size == VIEWS and n in HAVE_VIEWS else size for size in s]) for n, d, s in side]
        for side in SIGNATURES[name]
    ]


def graph_bytes(name: str, support_weight: float = 0.01, *, views: int = VIEWS, blue: float | None = None) -> bytes:
    """One graph of the bundle, serialised; options are those of `write_bundle`."""
    graph = _Graph()
    if name == "support":
        _support(graph, support_weight, views)
    elif name == "visual":
        _visual(graph, blue)
    elif name == "query":
        _query(graph, views)
    else:
        _text(graph)
    sides = signature(name, views)
    inputs, outputs = ([helper.make_tensor_value_info(*value) for value in side] for side in sides)
    body = helper.make_graph(graph.nodes, name, inputs, outputs, graph.constants)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def write_bundle(
    folder: Path,
    *,
    name: str = "tiny",
    support_weight: float = 0.01,
    region: str = "full",
    short_side: int | None = None,
    views: int = VIEWS,
    blue: float | None = None,
) -> Path:
    """Write the bundle directory and return it.

    `support_weight` and `views` (1 or 2) make other heads of the same encoder, a weight of 0 one that the prompt
    changes nothing for, as the training-free head is; `blue` is what every feature of a blue picture is, such as NaN.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graphs = {}
    for graph in SIGNATURES:
        sides = signature(graph, views)
        inputs, outputs = ([{"name": n, "dtype": DTYPES[d], "shape": s} for n, d, s in side] for side in sides)
        file = _file(folder, f"{graph}.onnx", graph_bytes(graph, support_weight, views=views, blue=blue))
        graphs[graph] = {"inputs": inputs, "outputs": outputs, "opset": OPSET, "files": {"fp32": file}}
    manifest = {
        "schema_version": 2,
        "name": name,
        "head": {"name": "tiny", "options": {}},
        "views": views,
        "dim": DIM,
        "clip": {"frames": FRAMES, "size": SIZE, "region": region, "short_side": short_side},
        "text": {"prompt": "a photo of {}"},
        "graphs": graphs,
        "tokenizer": _file(folder, "tokenizer.json", tokenizer_json([])),
        "source": {"model": "tiny"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _file(folder: Path, name: str, data: bytes) -> dict[str, object]:
    (folder / name).write_bytes(data)
    return {"path": name, "sha256": sha256_bytes(data), "bytes": len(data)}


def write_clip(
    path: Path, colour: str = "red", seed: int = 0, frames: int = 12, size: tuple[int, int] = (64, 48)
) -> Path:
    """A video of a square of one colour that crosses a dark picture; every seed gives other pixels."""
    rng = np.random.default_rng([seed, *colour.encode()])
    width, height = size
    side = height // 3
    top = int(rng.integers(0, height - side))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(frames):
            picture = rng.integers(0, 20, (height, width, 3)).astype(np.uint8)
            left = (width - side) * t // max(frames - 1, 1)
            picture[top : top + side, left : left + side] = COLOURS[colour]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_support(folder: Path, colours: tuple[str, ...] = ("red", "green", "blue"), shots: int = 1) -> Path:
    """A support folder with one class per colour."""
    for colour in colours:
        for shot in range(shots):
            write_clip(folder / colour / f"{shot}.mp4", colour, seed=shot)
    return folder
