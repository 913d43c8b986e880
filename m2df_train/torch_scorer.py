"""A checkpoint as a `Scorer`: the model in PyTorch, as it was trained, beside which bundles are measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from m2df_runtime.errors import EnvironmentMissing
from m2df_runtime.session import QueryScores
from m2df_train.checkpoint import Checkpoint
from m2df_train.model.backbone import import_open_clip
from m2df_train.model.heads import deterministic_head

Float = NDArray[np.float32]


class CheckpointScorer:
    """Runs a checkpoint in fp32; a head that draws its prompts takes the most probable one, as exported models do.

    Args:
        checkpoint: The loaded checkpoint.
        device: `auto` takes CUDA where PyTorch has it.

    Raises:
        EnvironmentMissing: CUDA is asked for and PyTorch has none.
    """

    precision = "fp32"

    def __init__(self, checkpoint: Checkpoint, device: Literal["auto", "cpu", "cuda"] = "auto") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise EnvironmentMissing(f"PyTorch {torch.__version__} has no CUDA here", "use --backend cpu")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        self._backbone = checkpoint.backbone.to(self._device).eval()
        self._clip = checkpoint.clip
        self._head = deterministic_head(checkpoint.head.to(self._device).eval())
        self.backend = f"torch-{device}"
        self._tokenize = import_open_clip().get_tokenizer("ViT-B-32")

    @torch.inference_mode()
    def encode_clips(self, clips: NDArray[np.uint8]) -> Float:
        """See `Scorer.encode_clips`."""
        return self._array(self._backbone.encode_frames(self._tensor(clips), self._clip))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Float:
        """See `Scorer.encode_texts`."""
        return self._array(self._backbone.encode_text(self._tokenize(list(texts)).to(self._device)))

    @torch.inference_mode()
    def prototypes(self, features: Float, prompt: Float) -> Float:
        """See `Scorer.prototypes`."""
        with _one_thread():
            return self._array(self._head.prototypes(self._tensor(features), self._tensor(prompt)))

    @torch.inference_mode()
    def match(self, features: Float, prompts: Float, prototypes: Float) -> QueryScores:
        """See `Scorer.match`."""
        with _one_thread():
            scores = self._head.match(self._tensor(features), self._tensor(prompts), self._tensor(prototypes))
        return QueryScores(self._array(scores.logits), self._array(scores.distances), self._array(scores.selected))

    def _tensor(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    @staticmethod
    def _array(tensor: torch.Tensor) -> Float:
        return tensor.float().cpu().numpy()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run on one thread: a head's operators are too small to share.

    A 5-way match with 128 features took 8 ms on one thread of a busy 2-core machine and 32 ms (of
    processor time; 156 ms by the clock) on two.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
