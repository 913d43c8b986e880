"""Which file holds a graph in a precision.

Needs neither PyTorch nor ONNX: who only opens a graph does not wait for them.
"""

from __future__ import annotations

from m2df_runtime.bundle.manifest import GraphName
from m2df_runtime.engine_names import Precision

TOWERS: tuple[GraphName, ...] = ("visual", "text")


def stored_as(graph: GraphName, precision: Precision) -> Precision:
    """The precision a graph really has where a bundle is asked for `precision`; its file is shared.

    Both int8 leave the head in fp32, fp8 leaves it and the text tower in fp16. Prompts are encoded once per class,
    so calibration is not for the text tower.
    """
    if precision == "fp8" and graph != "visual":
        return "fp16"
    if precision in ("int8", "int8-static") and graph not in TOWERS:
        return "fp32"
    return "int8" if precision == "int8-static" and graph == "text" else precision


def file_name(graph: GraphName, precision: Precision) -> str:
    """File of a graph in a bundle."""
    stored = stored_as(graph, precision)
    return f"{graph}.onnx" if stored == "fp32" else f"{graph}.{stored}.onnx"
