"""A checkpoint as an `EpisodeScorer`: the model in PyTorch, as it was trained, beside which bundles are measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from m2df_runtime.backends.model import QueryScores
from m2df_runtime.cpus import available_cpus
from m2df_runtime.errors import EnvironmentMissing
from m2df_train.model.backbone import import_open_clip
from m2df_train.model.checkpoint import Checkpoint
from m2df_train.model.heads import Head, deterministic_head

Float = NDArray[np.float32]


class HeadScorer:
    """Runs a head in fp32; one that draws its prompts takes the most probable one, as exported models do.

    Args:
        head: The head.
        device: Where it runs.
    """

    precision = "fp32"

    def __init__(self, head: Head, device: torch.device) -> None:
        self.device = device
        self._head = deterministic_head(head.to(device).eval())
        self.merges_after = self._head.merges_after
        self.parts = self._head.parts

    @torch.inference_mode()
    def prototypes(self, features: Float, prompt: Float) -> Float:
        """See `Scorer.prototypes`."""
        return self._array(self._head.prototypes(self._tensor(features), self._tensor(prompt)))

    @torch.inference_mode()
    def match(self, features: Float, prompts: Float, prototypes: Float) -> QueryScores:
        """See `Scorer.match`."""
        scores = self._head.match(self._tensor(features), self._tensor(prompts), self._tensor(prototypes))
        return QueryScores(
            self._array(scores.logits),
            self._array(scores.distances),
            self._array(scores.selected),
            self._array(scores.tokens),
        )

    @contextmanager
    def parallel(self) -> Iterator[int]:
        """See `EpisodeHead.parallel`; one thread per operator, because a head's operators are small.

        32 episodes of 128 features took 0.7 ms each on two such threads, and 1.1 ms on two threads per
        operator; where other programs use the cores too, operators that share them wait for each other.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield available_cpus() if self.device.type == "cpu" else 1
        finally:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def batch_prototypes(self, features: Float, prompts: Float) -> Float:
        """See `EpisodeHead.batch_prototypes`."""

        def one(clips: Tensor, prompt: Tensor) -> Tensor:
            return self._head.prototypes(clips, prompt.unsqueeze(0))

        return self._array(vmap(one)(self._tensor(features), self._tensor(prompts)))

    @torch.inference_mode()
    def clip_parts(self, features: Float) -> Float:
        """See `EpisodeHead.clip_parts`."""
        return self._array(self._head.clip_parts(self._tensor(features)))

    @torch.inference_mode()
    def batch_match(self, parts: Float, prompts: Float, prototypes: Float) -> Float:
        """See `EpisodeHead.batch_match`.

        The head's own `match_parts` runs over a further axis, which makes its products large: a 5-way 5-shot
        episode takes 8 ms of processor time with 512 features, 17 with 1,024.
        """

        def one(queries: Tensor, texts: Tensor, classes: Tensor) -> Tensor:
            return self._head.match_parts(queries, texts, classes).logits

        return self._array(vmap(one)(self._tensor(parts), self._tensor(prompts), self._tensor(prototypes)))

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    @staticmethod
    def _array(tensor: Tensor) -> Float:
        return tensor.float().cpu().numpy()


class CheckpointScorer(HeadScorer):
    """Runs a checkpoint in fp32.

    Args:
        checkpoint: The loaded checkpoint.
        device: `auto` takes CUDA where PyTorch has it.

    Raises:
        EnvironmentMissing: CUDA is asked for and PyTorch has none.
    """

    def __init__(self, checkpoint: Checkpoint, device: Literal["auto", "cpu", "cuda"] = "auto") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise EnvironmentMissing(f"PyTorch {torch.__version__} has no CUDA here", "use --backend cpu")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__(checkpoint.head, torch.device(device))
        self.checkpoint = checkpoint
        self.backend = f"torch-{device}"
        self._backbone = checkpoint.backbone.to(self.device).eval()
        self.frames_alone = self._backbone.frames_together == 1
        self._tokenize = import_open_clip().get_tokenizer("ViT-B-32")

    @torch.inference_mode()
    def encode_clips(self, clips: NDArray[np.uint8]) -> Float:
        """See `Scorer.encode_clips`."""
        return self._array(self._backbone.encode_frames(self._tensor(clips), self.checkpoint.clip))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Float:
        """See `Scorer.encode_texts`."""
        return self._array(self._backbone.encode_text(self._tokenize(list(texts)).to(self.device)))
