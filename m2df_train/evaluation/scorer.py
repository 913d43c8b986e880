"""A model as evaluation sees it, whatever runs it: `bundle_scorer.py` and `torch_scorer.py` hold one each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


class Scores(Protocol):
    """Result of matching: logits [Q, C] and distances [Q, V, C]."""

    @property
    def logits(self) -> Float: ...

    @property
    def distances(self) -> Float: ...


class Scorer(Protocol):
    """A model as its four exported graphs; `m2df_runtime.backends.model.Model` is one too."""

    def encode_clips(self, clips: NDArray[np.uint8]) -> Float:
        """Uint8 [B, T, S, S, 3] to features [B, T, D]."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Float:
        """Prompts to embeddings [P, D]."""
        ...

    def prototypes(self, features: Float, prompt: Float) -> Float:
        """Features [K, T, D] and prompt [1, D] of one class to prototypes [V, T, D]."""
        ...

    def match(self, features: Float, prompts: Float, prototypes: Float) -> Scores:
        """Queries [Q, T, D] against prompts [C, D] and prototypes [C, V, T, D]."""
        ...


class EpisodeHead(Protocol):
    """The part of a model that runs many episodes per call, from features."""

    @property
    def merges_after(self) -> bool:
        """Whether a class's prototypes are the mean over its clips of what each clip gives alone."""
        ...

    @property
    def parts(self) -> int:
        """How many arrays of the features' shape `clip_parts` gives for a clip; 1 where it changes nothing."""
        ...

    def parallel(self) -> AbstractContextManager[int]:
        """A block in which episodes run; gives the number of threads that should call the model in it."""
        ...

    def batch_prototypes(self, features: Float, prompts: Float) -> Float:
        """Features [B, K, T, D] of B support sets of one class each, and the prompts [B, D], to [B, V, T, D]."""
        ...

    def clip_parts(self, features: Float) -> Float:
        """What of query clips [n, T, D] depends on each of them alone, [n, ...], in the form `batch_match` takes."""
        ...

    def batch_match(self, parts: Float, prompts: Float, prototypes: Float) -> Float:
        """Logits [E, Q, C] of E episodes.

        Args:
            parts: Queries as `clip_parts` gives them, [E, Q, ...].
            prompts: [E, C, D].
            prototypes: [E, C, V, T, D].
        """
        ...


class EpisodeScorer(Scorer, EpisodeHead, Protocol):
    """A whole model that also runs many episodes per call."""

    @property
    def frames_alone(self) -> bool:
        """Whether the features of a frame depend on no other frame of its clip."""
        ...
