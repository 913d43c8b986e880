"""Training episodes for the head: out of features that were encoded before, or through the tower as it is now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.cache.encoding import FeaturePool
from m2df_train.data.episode_clips import EpisodeClips, EpisodePixels
from m2df_train.data.episodes import EpisodeIndices, EpisodeSampler
from m2df_train.model.backbone import Backbone
from m2df_train.model.heads import Episode

_TEXT_RANDOMNESS, _VIEW_RANDOMNESS = 1, 2  # keep the streams of random numbers of an episode apart


class EpisodeSource(Protocol):
    """Gives training episodes by number."""

    def stream(self, numbers: Sequence[int]) -> Iterator[Callable[[], Episode]]:
        """The episodes of these numbers in their order, each as a function that computes what it holds."""
        ...


class FeatureEpisodes:
    """Episodes of features; every clip shows one of its encoded variants, drawn anew for each episode.

    Args:
        pool: Encoded clips.
        samplers: Episode `n` is drawn by number `n` modulo their number.
        shuffled: Share of episodes with other classes' texts.
        device: Where episodes are wanted.
    """

    def __init__(
        self, pool: FeaturePool, samplers: Sequence[EpisodeSampler], shuffled: float, device: torch.device
    ) -> None:
        self._pool, self._samplers, self._shuffled, self._device = pool, samplers, shuffled, device

    def stream(self, numbers: Sequence[int]) -> Iterator[Callable[[], Episode]]:
        """See `EpisodeSource.stream`."""
        return (partial(self._episode, number) for number in numbers)

    def _episode(self, number: int) -> Episode:
        sampler = self._samplers[number % len(self._samplers)]
        drawn = sampler.episode(number)
        rng = np.random.default_rng([sampler.seed, number, _VIEW_RANDOMNESS])
        clips = torch.from_numpy(np.concatenate([drawn.support.ravel(), drawn.query.ravel()]))
        views = torch.from_numpy(rng.integers(0, self._pool.features.shape[1], len(clips)))
        features = self._pool.features[clips, views].to(self._device)  # (S + Q, T, D)
        support, query = features.split([drawn.support.size, drawn.query.size])
        texts = texts_of_episode(self._pool.texts, self._shuffled, sampler.seed, number)
        return make_episode(support, query, drawn, texts.to(self._device))


class PixelEpisodes:
    """Episodes encoded by the tower that is trained; support and query clips pass it separately (method 1.2).

    Args:
        clips: The pixels.
        backbone: The tower.
        spec: How pixels are normalised.
        texts: Prompt embedding of every class [C, D].
        shuffled: Share of episodes with other classes' texts.
        seed: Which texts.
    """

    def __init__(
        self, clips: EpisodeClips, backbone: Backbone, spec: ClipSpec, texts: Tensor, shuffled: float, seed: int
    ) -> None:
        self._clips, self._backbone, self._spec = clips, backbone, spec
        self._texts, self._shuffled, self._seed = texts, shuffled, seed

    def stream(self, numbers: Sequence[int]) -> Iterator[Callable[[], Episode]]:
        """See `EpisodeSource.stream`."""
        for number, pixels in zip(numbers, self._clips.stream(numbers), strict=True):
            yield partial(self._episode, number, pixels)

    def _episode(self, number: int, pixels: EpisodePixels) -> Episode:
        support, query = (
            self._backbone.encode_frames(torch.from_numpy(frames), self._spec).float()
            for frames in (pixels.support, pixels.query)
        )
        texts = texts_of_episode(self._texts, self._shuffled, self._seed, number)
        return make_episode(support, query, pixels.drawn, texts.to(support.device))


def texts_of_episode(texts: Tensor, shuffled: float, seed: int, number: int) -> Tensor:
    """The class texts [C, D] of an episode: a share of them has them in another order, as users' labels may be."""
    rng = np.random.default_rng([seed, number, _TEXT_RANDOMNESS])
    return texts[torch.from_numpy(rng.permutation(len(texts)))] if rng.random() < shuffled else texts


def make_episode(support: Tensor, query: Tensor, drawn: EpisodeIndices, texts: Tensor) -> Episode:
    """The drawn clips as an episode, in order of class.

    Args:
        support: Features [W * K, T, D] in the order of `drawn.support`.
        query: Features [W * Q, T, D] in the order of `drawn.query`.
        drawn: Classes and clips.
        texts: Prompt embedding of every class of the split [C, D].
    """
    way = torch.arange(len(drawn.classes), device=texts.device)
    classes = torch.from_numpy(drawn.classes).to(texts.device)
    return Episode(
        support_features=support,
        support_labels=way.repeat_interleave(drawn.support.shape[1]),
        query_features=query,
        class_prompts=texts[classes],
        query_labels=way.repeat_interleave(drawn.query.shape[1]),
        text_table=texts,
        support_classes=classes.repeat_interleave(drawn.support.shape[1]),
        query_classes=classes.repeat_interleave(drawn.query.shape[1]),
    )
