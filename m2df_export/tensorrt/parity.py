"""Engines against ONNX Runtime on the CPU: the same bundle, the same inputs, graph by graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2df_export.tensorrt.build import DEFAULT_RANGES
from m2df_runtime.backends.model import Model
from m2df_runtime.backends.tensorrt.engine_files import Range
from m2df_runtime.errors import CheckFailed
from m2df_runtime.parity import drift

Float = NDArray[np.float32]

# Clips, classes, support clips of a class, and texts, where the engines' profile takes so many.
SIZES = {"Q": 6, "C": 5, "K": 2, "P": 5}
ACTIONS = ("running", "waving a hand", "sitting down", "opening a door", "two people shaking hands")
RUNS = 4  # on TensorRT the third becomes a CUDA graph, which the fourth replays
# The cosines of `GATES` for 16 and 8 bits, and that of fp32 on a GPU: both sides compute the same file, one in other
# kernels.
# In fp8 a last bit of difference becomes one of 3 bits of mantissa; its bound is the gate, not a measurement.
LEAST_COSINE = {"fp32": 0.99999, "fp16": 0.9995, "fp8": 0.995}


@dataclass(frozen=True)
class EngineParity:
    """One graph: smallest cosine of an output row, and largest error relative to the largest value."""

    graph: str
    cosine: float
    max_rel: float


def compare_sessions(
    actual: Model, reference: Model, ranges: Mapping[str, Range] = DEFAULT_RANGES
) -> list[EngineParity]:
    """Run the four graphs of one bundle on two backends, the first one several times.

    Each graph gets the reference's inputs, so an error of one does not count against the next. The query
    graph also runs on features that stayed on the device, as it does in use.

    Args:
        actual: The session that is compared.
        reference: What it is compared with.
        ranges: Smallest, best and largest size of the axes Q, C, K and P that `actual` takes.
    """
    clip, template = reference.bundle.manifest.clip, reference.bundle.manifest.text.prompt
    count = {axis: min(max(size, ranges[axis][0]), ranges[axis][2]) for axis, size in SIZES.items()}
    rng = np.random.default_rng(0)
    size = (max(count["Q"], 2), clip.frames, clip.size, clip.size, 3)
    shades = rng.integers(0, 256, (*size[:2], 1, 1, 3))
    clips = np.clip(shades + rng.normal(0, 40, size), 0, 255).astype(np.uint8)
    texts = [template.replace("{}", _action(number)) for number in range(max(count["C"], count["P"]))]
    features, prompts = reference.encode_clips(clips), reference.encode_texts(texts)
    queries, classes = slice(0, count["Q"]), slice(0, count["C"])
    shots = [np.take(features, range(first, first + count["K"]), axis=0, mode="wrap") for first in range(count["C"])]
    prototypes = _prototypes(reference, shots, prompts[classes])
    expected = reference.match(features[queries], prompts[classes], prototypes)
    kept = actual.resident(prompts[classes]), actual.resident(prototypes)
    found = []
    for _ in range(RUNS):
        found.append(_compared("visual", actual.encode_clips(clips[queries]), features[queries]))
        found.append(_compared("text", actual.encode_texts(texts[: count["P"]]), prompts[: count["P"]]))
        found.append(_compared("support", _prototypes(actual, shots, prompts[classes]), prototypes))
        for given in (features[queries], actual.encode_resident(clips[queries])):
            got = actual.match(given, *kept)
            found.append(_compared("query", got.distances, expected.distances))
            found.append(_compared("query", got.logits, expected.logits))
    return [_worst([item for item in found if item.graph == name]) for name in dict.fromkeys(i.graph for i in found)]


def _action(number: int) -> str:
    name = ACTIONS[number % len(ACTIONS)]
    return name if number < len(ACTIONS) else f"{name} {number}"


def check_engines(
    actual: Model, reference: Model, drop: Callable[[str], None], ranges: Mapping[str, Range] = DEFAULT_RANGES
) -> list[EngineParity]:
    """Compare, and drop every engine beyond its gate.

    Args:
        actual: The session on TensorRT.
        reference: The same bundle on the CPU.
        drop: Takes the name of a graph whose engine must not be used.
        ranges: Sizes the engines were built for.

    Raises:
        CheckFailed: Names the graphs.
    """
    found = compare_sessions(actual, reference, ranges)
    needed = LEAST_COSINE[actual.precision]
    failed = [item for item in found if not item.cosine >= needed]
    for item in failed:
        drop(item.graph)
    if failed:
        what = "; ".join(f"{item.graph} engine: cosine {item.cosine:.5f}, needed {needed}" for item in failed)
        raise CheckFailed(f"parity failed: {what}", "they are not used; try --precision fp32, or another TensorRT")
    return found


def _prototypes(session: Model, shots: list[Float], prompts: Float) -> Float:
    return np.stack([session.prototypes(clips, prompt[None]) for clips, prompt in zip(shots, prompts, strict=True)])


def _compared(graph: str, actual: Float, reference: Float) -> EngineParity:
    found = drift(actual, reference)
    return EngineParity(graph, found.cosine, found.max_rel)


def _worst(items: list[EngineParity]) -> EngineParity:
    return EngineParity(items[0].graph, min(i.cosine for i in items), max(i.max_rel for i in items))
