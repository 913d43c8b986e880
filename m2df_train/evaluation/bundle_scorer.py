"""A bundle as an `EpisodeScorer`: the exported graphs, as they run in deployment, and no PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends.model import Model, QueryScores
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.cpus import available_cpus
from m2df_runtime.engine_names import ON_CPU, BackendName, RunPrecision

Float = NDArray[np.float32]


class BundleScorer:
    """Runs a bundle.

    On a CPU the towers share the cores within a call, while episodes run beside each other on one core
    each: their graphs are too small to share (a 5-way match of the demo bundle takes 1.7 ms).

    Args:
        bundle: The opened bundle.
        backend: As in `Model`.
        precision: As in `Model`.

    Raises:
        EnvironmentMissing: The named backend is not on this machine.
        InputError: The bundle lacks the precision, or a graph cannot be loaded.
    """

    parts = 1

    def __init__(self, bundle: Bundle, backend: BackendName = "auto", precision: RunPrecision | None = None) -> None:
        self.bundle = bundle
        self._towers = Model(bundle, backend=backend, precision=precision)
        self.backend = self._towers.backend
        self.precision, self.files = self._towers.precision, self._towers.files
        self.merges_after = bundle.manifest.merges_after
        self.frames_alone = not bundle.manifest.head.options.get("appearance", {}).get("dim")
        on_cpu = self.backend in ON_CPU
        self._workers = available_cpus() if on_cpu else 1
        self._head = self._towers
        if on_cpu:
            name: BackendName = "openvino" if self.backend == "openvino" else "cpu"
            self._head = Model(bundle, backend=name, precision=self.precision, threads=1)
        self._head.prepare("support", "query")  # once, before several threads would do it at the same time

    def encode_clips(self, clips: NDArray[np.uint8]) -> Float:
        """See `Scorer.encode_clips`."""
        return self._towers.encode_clips(clips)

    def encode_texts(self, texts: Sequence[str]) -> Float:
        """See `Scorer.encode_texts`."""
        return self._towers.encode_texts(texts)

    def prototypes(self, features: Float, prompt: Float) -> Float:
        """See `Scorer.prototypes`."""
        return self._head.prototypes(features, prompt)

    def match(self, features: Float, prompts: Float, prototypes: Float) -> QueryScores:
        """See `Scorer.match`."""
        return self._head.match(features, prompts, prototypes)

    @contextmanager
    def parallel(self) -> Iterator[int]:
        """See `EpisodeHead.parallel`."""
        yield self._workers

    def batch_prototypes(self, features: Float, prompts: Float) -> Float:
        """See `EpisodeHead.batch_prototypes`; the graph takes one class at a time."""
        return np.stack([self.prototypes(f, p[None]) for f, p in zip(features, prompts, strict=True)])

    def clip_parts(self, features: Float) -> Float:
        """See `EpisodeHead.clip_parts`; the graph takes features alone."""
        return features

    def batch_match(self, parts: Float, prompts: Float, prototypes: Float) -> Float:
        """See `EpisodeHead.batch_match`; the graph takes one episode at a time."""
        episodes = zip(parts, prompts, prototypes, strict=True)
        return np.stack([self.match(*episode).logits for episode in episodes])
