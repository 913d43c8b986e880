"""A bundle's four graphs on one backend, in the runtime's own terms.

Graphs load on first use: with a warm support bank `m2df-run` never touches the text and support
graphs, which keeps start-up short and memory small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends import Arrays, Backend, Graph
from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend, import_onnxruntime
from m2df_runtime.bundle import Bundle, GraphName, Precision
from m2df_runtime.errors import CheckFailed, InputError, first_line
from m2df_runtime.onnx_file import has_external_data
from m2df_runtime.tokenizer import Tokenizer

BackendName = Literal["auto", "cpu", "cuda"]
Float = NDArray[np.float32]


@dataclass(frozen=True)
class QueryScores:
    """Output of the query graph: logits [Q, C], distances [Q, V, C], selected [Q, C]."""

    logits: Float
    distances: Float
    selected: Float


class Session:
    """Runs a bundle.

    Args:
        bundle: The opened bundle.
        backend: `auto` takes CUDA where this ONNX Runtime can use it, else the CPU; a backend that is
            named is used or refused.
        precision: None takes fp16 on a GPU and on a CPU the fastest precision that passed parity.
        threads: Threads per operator on the CPU.

    Raises:
        EnvironmentMissing: The named backend is not on this machine.
        InputError: The bundle lacks the precision.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: BackendName = "auto",
        precision: Precision | None = None,
        threads: int | None = None,
    ) -> None:
        self.bundle = bundle
        self._backend = select_backend(backend, threads)
        self.precision = precision or default_precision(bundle, self._backend.name)
        bundle.graph_file("visual", self.precision)
        self._graphs: dict[GraphName, Graph] = {}
        self._tokenizer: Tokenizer | None = None

    @property
    def backend(self) -> str:
        """Name of the backend in use."""
        return self._backend.name

    @property
    def description(self) -> str:
        """Engine, version and provider in use."""
        return self._backend.description

    @property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_bytes(self.bundle.read(self.bundle.manifest.tokenizer))
        return self._tokenizer

    def encode_clips(self, clips: NDArray[np.uint8]) -> Float:
        """Frame features of clips.

        Args:
            clips: uint8 [B, T, S, S, 3] as `load_clip` returns them.

        Returns:
            float32 [B, T, D], not L2-normalised.
        """
        batch, frames = clips.shape[:2]
        features = self._run("visual", {"frames": clips.reshape(batch * frames, *clips.shape[2:])})["features"]
        return features.reshape(batch, frames, -1)  # (B, T, D)

    def encode_texts(self, texts: Sequence[str]) -> Float:
        """Text embeddings [P, D] of prompts, not L2-normalised."""
        return self._run("text", {"tokens": self.tokenizer.encode(texts)})["embeddings"]

    def prototypes(self, features: Float, prompt: Float) -> Float:
        """Prototypes [V, T, D] of one class from the features [K, T, D] of its clips and its prompt [1, D]."""
        return self._run("support", {"features": features, "prompt": prompt})["prototypes"]

    def match(self, features: Float, prompts: Float, prototypes: Float) -> QueryScores:
        """Match queries [Q, T, D] against C classes: prompts [C, D], prototypes [C, V, T, D]."""
        out = self._run("query", {"features": features, "prompts": prompts, "prototypes": prototypes})
        return QueryScores(out["logits"], out["distances"], out["selected"])

    def prepare(self, *graphs: GraphName) -> None:
        """Load graphs ahead of their first use, so that loading is not measured as inference."""
        for name in graphs:
            if name not in self._graphs:
                info = self.bundle.graph_file(name, self.precision)
                model, label = self.bundle.file(info), f"{self.bundle.path}: {info.path}"
                if has_external_data(model):
                    raise InputError(f"{label} keeps data outside the file, where no hash covers it")
                self._graphs[name] = self._backend.load(model, label)

    def _run(self, name: GraphName, inputs: Arrays) -> dict[str, Float]:
        """Run a graph.

        Raises:
            InputError: The engine fails on it, for example because the manifest describes another graph.
            CheckFailed: It gives numbers that are not finite.
        """
        self.prepare(name)
        where = f"{self.bundle.path}: the {self.precision} {name} graph"
        try:
            outputs = self._graphs[name].run(inputs)
        except MemoryError:
            raise
        except Exception as error:  # engines' exceptions share no public base class
            raise InputError(f"{where} does not run: {first_line(error)}", "export the bundle again") from error
        if not all(np.isfinite(output).all() for output in outputs.values()):
            raise CheckFailed(f"{where} gives numbers that are not finite", "try --precision fp32, or export it again")
        return outputs


def select_backend(name: BackendName, threads: int | None = None) -> Backend:
    """The backend of that name; `auto` is CUDA where a session really gets it, else the CPU."""
    if name == "auto":
        return OnnxRuntimeBackend("cuda", threads) if _cuda_usable() else OnnxRuntimeBackend("cpu", threads)
    return OnnxRuntimeBackend(name, threads)


def _cuda_usable() -> bool:
    ort = import_onnxruntime()
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return False
    try:
        probe_backend("cuda")
    except Exception:  # any failure of the probe means: not usable here
        return False
    return True


def probe_backend(name: Literal["cpu", "cuda"]) -> str:
    """Run the smallest possible graph on a backend and return the backend's description.

    Raises:
        EnvironmentMissing: The backend cannot be used on this machine.
    """
    backend = OnnxRuntimeBackend(name)
    backend.load(_IDENTITY_GRAPH, "probe").run({"x": np.ones(1, np.float32)})
    return backend.description


# y = Identity(x), float [1], opset 18: the smallest session that makes ONNX Runtime initialise CUDA.
_IDENTITY_GRAPH = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201705a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a001012"
)


def default_precision(bundle: Bundle, backend: str) -> Precision:
    """fp16 on a GPU, on a CPU the fastest, of those that passed parity; else the best reference."""
    manifest = bundle.manifest
    passed = [p for p in manifest.precisions if p in manifest.parity and manifest.parity[p].passed]
    if backend != "cpu":
        return "fp16" if "fp16" in passed else manifest.precisions[0]
    timed = {p: ms for p in passed if (ms := manifest.parity[p].cpu_ms) is not None}
    if timed:
        return min(timed, key=lambda p: timed[p])
    return manifest.precisions[0]
