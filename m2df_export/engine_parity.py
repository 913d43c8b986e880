"""Engines against ONNX Runtime on the CPU: the same bundle, the same inputs, graph by graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.errors import CheckFailed
from m2df_runtime.session import Session

Float = NDArray[np.float32]

CLASSES = 5
PROMPTS = ("running", "waving a hand", "sitting down", "opening a door", "two people shaking hands")
# As for the graphs themselves (design section 6): both sides compute the same file, one in other kernels.
LEAST_COSINE = {"fp32": 0.99999, "fp16": 0.9995}


@dataclass(frozen=True)
class EngineParity:
    """One graph: smallest cosine of an output row, and largest error relative to the largest value."""

    graph: str
    cosine: float
    max_rel: float


def compare_sessions(actual: Session, reference: Session) -> list[EngineParity]:
    """Run the four graphs of one bundle on two backends.

    Each graph gets the reference's inputs, so an error of one does not count against the next. The query
    graph also runs on features that stayed on the device, as it does in use.
    """
    clip = reference.bundle.manifest.clip
    rng = np.random.default_rng(0)
    size = (CLASSES + 1, clip.frames, clip.size, clip.size, 3)
    shades = rng.integers(0, 256, (*size[:2], 1, 1, 3))
    clips = np.clip(shades + rng.normal(0, 40, size), 0, 255).astype(np.uint8)
    template = reference.bundle.manifest.text.prompt
    texts = [template.replace("{}", text) for text in PROMPTS]
    features, prompts = reference.encode_clips(clips), reference.encode_texts(texts)
    found = [_compared("visual", actual.encode_clips(clips), features)]
    found.append(_compared("text", actual.encode_texts(texts), prompts))
    shots = [features[[index, (index + 1) % CLASSES]] for index in range(CLASSES)]  # CLASSES x [2, T, D]
    prototypes = _prototypes(reference, shots, prompts)
    found.append(_compared("support", _prototypes(actual, shots, prompts), prototypes))
    expected = reference.match(features, prompts, prototypes)
    kept = actual.resident(prompts), actual.resident(prototypes)
    for got in (actual.match(features, *kept), actual.match(actual.encode_resident(clips), *kept)):
        found.append(_compared("query", got.distances, expected.distances))
        found.append(_compared("query", got.logits, expected.logits))
    return [_worst([item for item in found if item.graph == name]) for name in dict.fromkeys(i.graph for i in found)]


def check_engines(actual: Session, reference: Session, drop: Callable[[str], None]) -> list[EngineParity]:
    """Compare, and drop every engine beyond its gate.

    Args:
        actual: The session on TensorRT.
        reference: The same bundle on the CPU.
        drop: Takes the name of a graph whose engine must not be used.

    Raises:
        CheckFailed: Names the graphs.
    """
    found = compare_sessions(actual, reference)
    needed = LEAST_COSINE[actual.precision]
    failed = [item for item in found if not item.cosine >= needed]
    for item in failed:
        drop(item.graph)
    if failed:
        what = "; ".join(f"{item.graph} engine: cosine {item.cosine:.5f}, needed {needed}" for item in failed)
        raise CheckFailed(f"parity failed: {what}", "they are not used; try --precision fp32, or another TensorRT")
    return found


def _prototypes(session: Session, shots: list[Float], prompts: Float) -> Float:
    return np.stack([session.prototypes(clips, prompt[None]) for clips, prompt in zip(shots, prompts, strict=True)])


def _compared(graph: str, actual: Float, reference: Float) -> EngineParity:
    a, b = actual.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = float(((a * b).sum(axis=-1) / np.maximum(norms, 1e-12)).min())
    return EngineParity(graph, cosine, float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-12)))


def _worst(items: list[EngineParity]) -> EngineParity:
    return EngineParity(items[0].graph, min(i.cosine for i in items), max(i.max_rel for i in items))
