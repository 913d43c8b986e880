"""Finds ONNX files that keep tensors outside themselves, which a bundle's hashes would not cover.

ONNX Runtime 1.31 reads such tensors from any file beside a graph; the reference may also name an absolute
path or a memory address. The runtime has no protobuf reader, and needs none to see the key they all carry.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import TYPE_CHECKING

from m2df_runtime.errors import InputError

if TYPE_CHECKING:
    from m2df_runtime.bundle import Bundle, GraphName, Precision

_WORD = b"location"
# `external_data` is a list of (key, value) messages. Key: field 1, then its length 8; both numbers may be padded.
_KEY = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)\Z")
_LONGEST = 20  # two numbers of at most 10 bytes


def graph_model(bundle: Bundle, graph: GraphName, precision: Precision) -> tuple[bytes | Path, str]:
    """A bundle's graph, checked, as an engine loads it, and the name that messages give it.

    Raises:
        InputError: The file is not the one that was exported, or keeps data outside itself.
    """
    info = bundle.graph_file(graph, precision)
    model, label = bundle.file(info), f"{bundle.path}: {info.path}"
    if has_external_data(model):
        raise InputError(f"{label} keeps data outside the file, where no hash covers it")
    return model, label


def has_external_data(model: bytes | Path) -> bool:
    """Whether an ONNX file, given as bytes or path, refers to data outside itself."""
    if isinstance(model, bytes):
        return _has_location(model)
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _has_location(content)


def _has_location(content: bytes | mmap.mmap) -> bool:
    at = content.find(_WORD)
    while at >= 0:
        if _KEY.search(content[max(0, at - _LONGEST) : at]):
            return True
        at = content.find(_WORD, at + 1)
    return False
