"""What the four graphs take and give, as it follows from a manifest's numbers: the same for every head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m2df_runtime.bundle.manifest import Manifest, TensorInfo

_Side = Mapping[str, tuple[str, tuple[int, ...]]]  # name to type and shape; an axis of size 0 is free


def signature_problem(manifest: Manifest) -> str | None:
    """How the graphs of a manifest contradict its T, S, D, V and context; None where they agree."""
    for name, sides in _expected(manifest).items():
        graph = manifest.graphs[name]  # type: ignore[index]
        for side, wanted, listed in zip(("inputs", "outputs"), sides, (graph.inputs, graph.outputs), strict=True):
            problem = _difference(listed, wanted)
            if problem is not None:
                return f"the {name} graph's {side}: {problem}"
    return None


def _expected(manifest: Manifest) -> dict[str, tuple[_Side, _Side]]:
    frames, size, dim, views = manifest.clip.frames, manifest.clip.size, manifest.dim, manifest.views

    def float32(*shape: int) -> tuple[str, tuple[int, ...]]:
        return "float32", shape

    return {
        "visual": ({"frames": ("uint8", (0, size, size, 3))}, {"features": float32(0, dim)}),
        "text": ({"tokens": ("int32", (0, manifest.text.context_length))}, {"embeddings": float32(0, dim)}),
        "support": (
            {"features": float32(0, frames, dim), "prompt": float32(1, dim)},
            {"prototypes": float32(views, frames, dim)},
        ),
        "query": (
            {
                "features": float32(0, frames, dim),
                "prompts": float32(0, dim),
                "prototypes": float32(0, views, frames, dim),
            },
            {
                "logits": float32(0, 0),
                "distances": float32(0, views, 0),
                "selected": float32(0, 0),
                "tokens": float32(0, views, frames, dim),
            },
        ),
    }


def _difference(listed: Sequence[TensorInfo], wanted: _Side) -> str | None:
    tensors = {tensor.name: tensor for tensor in listed}
    if tensors.keys() != wanted.keys() or len(listed) != len(wanted):
        return f"{', '.join(tensor.name for tensor in listed) or 'none'} in place of {', '.join(wanted)}"
    for name, (dtype, shape) in wanted.items():
        found = tensors[name]
        fits = len(found.shape) == len(shape) and all(
            axis == size if size else isinstance(axis, str) for axis, size in zip(found.shape, shape, strict=True)
        )
        if found.dtype != dtype or not fits:
            has, needs = ([*map(str, found.shape)], [str(size or "?") for size in shape])
            return (
                f"{name} is {found.dtype} [{', '.join(has)}], "
                f"by the manifest's other numbers it is {dtype} [{', '.join(needs)}]"
            )
    return None
