"""What is exported: the four graphs as modules, and their signatures.

Every head has the same four signatures, so the runtime never asks which head it runs. N frames, P
texts, K shots, Q queries and C classes are dynamic, everything else is fixed by the bundle.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from m2df_runtime.bundle.manifest import GraphName
from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.model.backbone import CONTEXT_LENGTH, VOCABULARY, Backbone
from m2df_train.model.heads import Head, build_head
from m2df_train.model.pixel_scale import PixelScale
from m2df_train.model.temporal import TimeConv

logger = logging.getLogger(__name__)

# Pixels enter as (x - 128) / 64: exact in float16 for every uint8, and within [-2, 2), so that weights
# which absorb the rest of the normalisation keep their magnitude instead of becoming subnormal.
CENTRE, STEP = 128.0, 64.0


@dataclass(frozen=True)
class GraphSpec:
    """One graph to export.

    Attributes:
        name: Name in the bundle.
        module: Computes the outputs from the inputs, in their order.
        inputs: Example inputs by name. No dynamic axis has size 1, which the exporter would specialise.
        dynamic: Names of the dynamic axes of each input, by axis.
        outputs: Output names.
        axes: Shape of each output, dynamic axes by name.
    """

    name: GraphName
    module: nn.Module
    inputs: Mapping[str, Tensor]
    dynamic: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]
    axes: tuple[tuple[int | str, ...], ...]


class VisualGraph(nn.Module):
    """uint8 frames [N, S, S, 3] -> features [N, D], with the normalisation inside.

    The normalisation is folded into the first convolution where that is exact (no padding, as in every ViT and ConvNeXt
    stem), or into the `PixelScale` that a tower begins with; elsewhere it stands before the tower, since padding must
    stay zero after it.
    """

    def __init__(self, backbone: Backbone, clip: ClipSpec) -> None:
        super().__init__()
        std = torch.tensor(clip.std, dtype=torch.float64) * 255.0
        mean = torch.tensor(clip.mean, dtype=torch.float64) * 255.0
        scale, shift = STEP / std, (CENTRE - mean) / std
        folded = _fold_normalisation(backbone, scale, shift)
        self.folded = folded is not None
        self.backbone = folded or backbone
        self.scale = nn.Buffer(scale.float().view(1, 3, 1, 1), persistent=False)
        self.shift = nn.Buffer(shift.float().view(1, 3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """uint8 [N, S, S, 3] -> float32 [N, D]."""
        # Cast first: TensorRT takes uint8 inputs only straight into a cast, not even into a transpose.
        pixels = (frames.float().permute(0, 3, 1, 2) - CENTRE) * (1.0 / STEP)  # [N, 3, S, S]
        if not self.folded:
            pixels = pixels * self.scale + self.shift
        return self.backbone.visual(pixels)


class TextGraph(nn.Module):
    """int32 tokens [P, 77] -> embeddings [P, D]."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, tokens: Tensor) -> Tensor:
        """int32 [P, 77] -> float32 [P, D]."""
        return self.backbone.encode_text(tokens)


class SupportGraph(nn.Module):
    """Features [K, T, D] of one class and its prompt [1, D] -> prototypes [V, T, D]."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, prompt: Tensor) -> Tensor:
        """See `Head.prototypes`."""
        return self.head.prototypes(features, prompt)


class QueryGraph(nn.Module):
    """Features [Q, T, D], prompts [C, D], prototypes [C, V, T, D] -> logits, distances, selected, tokens."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, prompts: Tensor, prototypes: Tensor) -> tuple[Tensor, ...]:
        """See `Head.match`."""
        match = self.head.match(features, prompts, prototypes)
        return match.logits, match.distances, match.selected, match.tokens


def graph_specs(backbone: Backbone, head: Head, clip: ClipSpec) -> dict[GraphName, GraphSpec]:
    """The four graphs of a model, in evaluation mode.

    Args:
        backbone: Image and text tower.
        head: Few-shot head on D = `backbone.dim`.
        clip: T, S and the normalisation.
    """
    generator = torch.Generator().manual_seed(0)
    two_clips = (2 * clip.frames, clip.size, clip.size, 3)  # a tower may work on clips: of these, too, not just one
    pixels = torch.randint(0, 256, two_clips, generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, VOCABULARY, (2, CONTEXT_LENGTH), generator=generator, dtype=torch.int32)
    visual = GraphSpec(
        name="visual",
        module=VisualGraph(backbone, clip),
        inputs={"frames": pixels},
        dynamic={"frames": {0: "N"}},
        outputs=("features",),
        axes=(("N", backbone.dim),),
    )
    text = GraphSpec(
        name="text",
        module=TextGraph(backbone),
        inputs={"tokens": tokens},
        dynamic={"tokens": {0: "P"}},
        outputs=("embeddings",),
        axes=(("P", backbone.dim),),
    )
    return {**_evaluated(visual, text), **head_specs(head)}


def head_specs(head: Head) -> dict[GraphName, GraphSpec]:
    """The two graphs of a head, in evaluation mode."""
    frames, dim, views = head.frames, head.dim, head.views
    head = _plain_weights(head)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    support = GraphSpec(
        name="support",
        module=SupportGraph(head),
        inputs={"features": random(3, frames, dim), "prompt": random(1, dim)},
        dynamic={"features": {0: "K"}, "prompt": {}},
        outputs=("prototypes",),
        axes=((views, frames, dim),),
    )
    query = GraphSpec(
        name="query",
        module=QueryGraph(head),
        inputs={
            "features": random(2, frames, dim),
            "prompts": random(3, dim),
            "prototypes": random(3, views, frames, dim),
        },
        dynamic={"features": {0: "Q"}, "prompts": {0: "C"}, "prototypes": {0: "C"}},
        outputs=("logits", "distances", "selected", "tokens"),
        axes=(("Q", "C"), ("Q", views, "C"), ("Q", "C"), ("Q", views, frames, dim)),
    )
    return _evaluated(support, query)


def _evaluated(*specs: GraphSpec) -> dict[GraphName, GraphSpec]:
    for spec in specs:
        spec.module.eval().requires_grad_(False)
    return {spec.name: spec for spec in specs}


def _plain_weights(head: Head) -> Head:
    """A copy of the head whose weights are as they are used: weight norm worked out, convolutions as matrices.

    Built anew rather than deep-copied: copies share the class that `remove_parametrizations` changes.
    """
    plain = build_head(head.name, head.dim, head.frames, head.options)  # type: ignore[arg-type]  # a registry name
    plain.load_state_dict(head.state_dict())
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
        if isinstance(module, TimeConv):
            module.store_matrix()
    return plain


def _fold_normalisation(backbone: Backbone, scale: Tensor, shift: Tensor) -> Backbone | None:
    """A backbone that takes centred pixels c where the given one takes `c * scale + shift`; None where inexact.

    All other weights are shared with the given backbone. Towers are of any architecture, so what is tried is kept only
    if the outputs agree.
    """
    shared: dict[int, object] = {id(p): p for p in backbone.parameters()}
    if any(isinstance(module, PixelScale) for module in backbone.modules()):
        folded = copy.deepcopy(backbone, shared)
        for module in folded.modules():
            if isinstance(module, PixelScale):
                _fold_into_scale(module, scale, shift)
        return folded if _same_features(backbone, folded, scale, shift) else None
    names = [
        name
        for name, module in backbone.clip.named_modules()
        if type(module) is nn.Conv2d and module.in_channels == 3 and _is_unpadded(module)
    ]
    if len(names) != 1:
        return None
    folded = copy.deepcopy(backbone, shared)
    convolution = folded.clip.get_submodule(names[0])
    assert isinstance(convolution, nn.Conv2d)
    weight = convolution.weight.detach().double()  # [O, 3, kh, kw]
    bias = (weight * shift.view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
    if convolution.bias is not None:
        bias = bias + convolution.bias.detach().double()
    convolution.weight = nn.Parameter((weight * scale.view(1, 3, 1, 1)).float(), requires_grad=False)
    convolution.bias = nn.Parameter(bias.float(), requires_grad=False)
    return folded if _same_features(backbone, folded, scale, shift) else None


def _fold_into_scale(module: PixelScale, scale: Tensor, shift: Tensor) -> None:
    channels = module.scale.shape[1]
    inner_scale, inner_shift = (value[:channels].view(1, channels, 1, 1) for value in (scale, shift))
    module.shift.copy_(module.scale.double() * inner_shift + module.shift.double())
    module.scale.copy_(module.scale.double() * inner_scale)


def _is_unpadded(convolution: nn.Conv2d) -> bool:
    return convolution.groups == 1 and convolution.padding in ((0, 0), "valid")


@torch.no_grad()
def _same_features(backbone: Backbone, folded: Backbone, scale: Tensor, shift: Tensor) -> bool:
    size = backbone.image_size
    centred = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 4.0 - 2.0
    normalised = (centred * scale.view(1, 3, 1, 1) + shift.view(1, 3, 1, 1)).float()
    expected, actual = backbone.visual(normalised), folded.visual(centred)
    same = torch.allclose(actual, expected, rtol=0.0, atol=1e-4 * float(expected.abs().max()))
    if not same:
        logger.debug("the normalisation stays outside the first convolution")
    return same
