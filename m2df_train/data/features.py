"""Features of a set of labelled clips, each clip rendered and encoded once; episodes then cost no pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from m2df_runtime.preprocess import ClipSpec
from m2df_train.data.generated import render_class, worker_options
from m2df_train.data.synthetic import Action
from m2df_train.model.backbone import Backbone, import_open_clip


@dataclass(frozen=True)
class FeaturePool:
    """Frame features of clips and text embeddings of their classes.

    Attributes:
        features: [N, T, D].
        labels: Class name of every clip, N of them; classes in blocks, in the order of `texts`.
        texts: [C, D], one prompt embedding per class in order of first appearance in `labels`.
    """

    features: Tensor
    labels: tuple[str, ...]
    texts: Tensor


class _RenderedClasses:
    """Map-style dataset: all clips of one action, uint8 [clips, T, S, S, 3]."""

    def __init__(
        self, actions: Callable[[], Sequence[Action]], spec: ClipSpec, clips: int, seed: int, random_frames: bool
    ) -> None:
        self._actions, self._spec, self._clips, self._seed = actions, spec, clips, seed
        self._random_frames = random_frames

    def __len__(self) -> int:
        return len(self._actions())

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        action = self._actions()[index]
        seed = (self._seed, index)
        return render_class(action, self._spec, self._clips, seed, random_frames=self._random_frames)


def encode_actions(
    backbone: Backbone,
    spec: ClipSpec,
    prompt: str,
    actions: Callable[[], Sequence[Action]],
    *,
    clips: int,
    seed: int,
    random_frames: bool = False,
    report: Callable[[int], None] = lambda done: None,
) -> FeaturePool:
    """Render `clips` clips of every action and encode them.

    Args:
        backbone: In evaluation mode.
        spec: Preprocessing.
        prompt: Template the actions' texts are put into.
        actions: Gives the actions, distinct by name; it crosses to the process that renders.
        clips: Clips per action.
        seed: Clip i of action j is a function of (seed, j, i).
        random_frames: Sample frames as in training; else a sampler's fixed form, as in deployment.
        report: Called with the number of finished actions.
    """
    chosen = actions()
    dataset = _RenderedClasses(actions, spec, clips, seed, random_frames)
    rendered: DataLoader[Any] = DataLoader(dataset, **worker_options())  # type: ignore[arg-type]
    features = []
    with torch.inference_mode():
        for done, frames in enumerate(rendered, start=1):
            features.append(backbone.encode_frames(torch.from_numpy(frames), spec))  # (clips, T, D)
            report(done)
    texts = encode_prompts(backbone, [prompt.format(action.text) for action in chosen])
    labels = tuple(action.name for action in chosen for _ in range(clips))
    return FeaturePool(torch.cat(features).clone(), labels, texts)


def encode_prompts(backbone: Backbone, prompts: Sequence[str]) -> Tensor:
    """Text embeddings [P, D]."""
    tokenize = import_open_clip().get_tokenizer("ViT-B-32")
    with torch.inference_mode():
        return backbone.encode_text(tokenize(list(prompts))).clone()
