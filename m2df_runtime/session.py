"""A bundle's four graphs on one backend, in the runtime's own terms.

Graphs load on first use: with a warm support bank `m2df-run` never touches the text and support
graphs, which keeps start-up short and memory small.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends import Backend, Graph, Tensor, Tensors
from m2df_runtime.backends.engine_files import EngineUnusable
from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend, import_onnxruntime
from m2df_runtime.bundle import Bundle, GraphName, Precision
from m2df_runtime.errors import CheckFailed, EnvironmentMissing, InputError, M2dfError, first_line
from m2df_runtime.tokenizer import Tokenizer

BackendName = Literal["auto", "tensorrt", "cuda", "openvino", "cpu"]
BACKENDS: tuple[BackendName, ...] = ("auto", "tensorrt", "cuda", "openvino", "cpu")
ON_CPU = ("cpu", "openvino")
Float = NDArray[np.float32]

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


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
        backend: `auto` takes TensorRT where engines of this bundle fit the GPU, else CUDA where this ONNX
            Runtime can use it, else ONNX Runtime on the CPU; a backend that is named is used or refused.
        precision: None takes fp16 on a GPU and on a CPU the fastest precision that passed parity.
        threads: Threads per operator on the CPU, 1 to 256; None takes the cores this process may use. Clips are
            decoded on the caller's thread, in turns with inference.

    Raises:
        EnvironmentMissing: The named backend is not on this machine, or has no engine that fits.
        InputError: The bundle lacks the precision, or it is fp8 and neither TensorRT runs it nor `cpu` was named.
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
        self._graphs: dict[GraphName, Graph] = {}
        self._tokenizer: Tokenizer | None = None
        self._backend: Backend
        if backend == "tensorrt" or (backend == "auto" and importlib.util.find_spec("tensorrt")):
            try:
                self._use_tensorrt(precision)
                return
            except EnvironmentMissing as error:
                if backend == "tensorrt":
                    raise
                level = logging.WARNING if isinstance(error, EngineUnusable) else logging.DEBUG
                _log.log(level, "not on TensorRT: %s", error)
                self._graphs.clear()
        self._backend = _other_backend(backend, threads)
        self.precision = precision or default_precision(bundle, self._backend.name)
        if self.precision == "fp8" and backend != "cpu":
            raise InputError(
                "the fp8 graphs are for TensorRT",
                f"build their engines: m2df-export engines --bundle {bundle.path} --precision fp8; "
                "--backend cpu imitates them, slowly",
            )
        bundle.graph_file("visual", self.precision)

    def _use_tensorrt(self, precision: Precision | None) -> None:
        """Take TensorRT if all engines fit and the two that every use needs load: the last chance to take another."""
        from m2df_runtime.backends.tensorrt import TensorRTBackend

        backend = TensorRTBackend()
        self._backend = backend
        self.precision = precision or default_precision(self.bundle, backend.name)
        backend.check(self.bundle, self.precision)
        self.prepare("visual", "query")

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

    def encode_resident(self, clips: NDArray[np.uint8]) -> Tensor:
        """Like `encode_clips`, with the features left where the engine computes; for `match`, before the next clips."""
        batch, frames = clips.shape[:2]
        inputs = {"frames": clips.reshape(batch * frames, *clips.shape[2:])}
        features = self._guarded("visual", lambda graph: graph.run_resident(inputs))["features"]
        return features.reshape(batch, frames, -1)  # (B, T, D)

    def resident(self, array: Float) -> Tensor:
        """Prompts or prototypes for many calls of `match`, uploaded once; on a CPU the array itself."""
        return self._backend.resident(array)

    def encode_texts(self, texts: Sequence[str]) -> Float:
        """Text embeddings [P, D] of prompts, not L2-normalised."""
        return self._run("text", {"tokens": self.tokenizer.encode(texts)})["embeddings"]

    def prototypes(self, features: Float, prompt: Float) -> Float:
        """Prototypes [V, T, D] of one class from the features [K, T, D] of its clips and its prompt [1, D]."""
        return self._run("support", {"features": features, "prompt": prompt})["prototypes"]

    def match(self, features: Tensor, prompts: Tensor, prototypes: Tensor) -> QueryScores:
        """Match queries [Q, T, D] against C classes: prompts [C, D], prototypes [C, V, T, D]."""
        out = self._run("query", {"features": features, "prompts": prompts, "prototypes": prototypes})
        return QueryScores(out["logits"], out["distances"], out["selected"])

    def prepare(self, *graphs: GraphName) -> None:
        """Load graphs ahead of their first use, so that loading is not measured as inference."""
        for name in graphs:
            if name not in self._graphs:
                self._graphs[name] = self._backend.open(self.bundle, name, self.precision)

    def _run(self, name: GraphName, inputs: Tensors) -> dict[str, Float]:
        """Run a graph.

        Raises:
            InputError: The engine fails on it, for example because the manifest describes another graph.
            CheckFailed: It gives numbers that are not finite.
        """
        outputs = self._guarded(name, lambda graph: graph.run(inputs))
        if not all(np.isfinite(output).all() for output in outputs.values()):
            raise CheckFailed(
                f"{self._where(name)} gives numbers that are not finite", "try --precision fp32, or export it again"
            )
        return outputs

    def _guarded(self, name: GraphName, run: Callable[[Graph], dict[str, Result]]) -> dict[str, Result]:
        self.prepare(name)
        try:
            return run(self._graphs[name])
        except (MemoryError, M2dfError):
            raise
        except Exception as error:  # engines' exceptions share no public base class
            problem = f"{self._where(name)} does not run: {first_line(error)}"
            raise InputError(problem, "export the bundle again") from error

    def _where(self, name: GraphName) -> str:
        return f"{self.bundle.path}: the {self.precision} {name} graph"


def _other_backend(name: BackendName, threads: int | None) -> Backend:
    """OpenVINO, or ONNX Runtime on the device of that name; `auto` is CUDA where a session gets it, else the CPU."""
    if name == "openvino":
        from m2df_runtime.backends.openvino import OpenVINOBackend

        return OpenVINOBackend(threads)
    device: Literal["cpu", "cuda"] = "cuda" if name == "cuda" or (name == "auto" and _cuda_usable()) else "cpu"
    return OnnxRuntimeBackend(device, threads)


def _cuda_usable() -> bool:
    ort = import_onnxruntime()
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return False
    try:
        probe_backend("cuda")
    except Exception:  # any failure of the probe means: not usable here
        return False
    return True


def probe_backend(name: Literal["tensorrt", "cuda", "openvino", "cpu"]) -> str:
    """Try a backend and return its description: it runs the smallest possible graph, TensorRT only starts up.

    Raises:
        EnvironmentMissing: The backend cannot be used on this machine.
    """
    if name == "tensorrt":
        from m2df_runtime.backends.tensorrt import TensorRTBackend

        return TensorRTBackend().description
    if name == "openvino":
        from m2df_runtime.backends.openvino import OpenVINOBackend

        backend: OnnxRuntimeBackend | OpenVINOBackend = OpenVINOBackend()
    else:
        backend = OnnxRuntimeBackend(name)
    backend.load(_IDENTITY_GRAPH, "probe").run({"x": np.ones(1, np.float32)})
    return backend.description


# y = Identity(x), float [1], opset 18: the smallest session that makes ONNX Runtime initialise CUDA.
_IDENTITY_GRAPH = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201705a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a001012"
)


def default_precision(bundle: Bundle, backend: str) -> Precision:
    """The fastest precision of a bundle for a backend, of those that passed parity; else the best reference.

    GPUs take fp16, and fp8 only where it is asked for. ONNX Runtime on a CPU takes the fastest, by the times
    measured with it at export. OpenVINO takes calibrated int8, else the best reference: it computes in fp32 whatever
    a float file holds, and multiplies the graphs of dynamic int8, which are made for ONNX Runtime, no faster than
    those of fp32.
    """
    manifest = bundle.manifest
    passed = [p for p in manifest.precisions if p != "fp8" and p in manifest.parity and manifest.parity[p].passed]
    if backend == "openvino":
        return "int8-static" if "int8-static" in passed else next(iter(passed), manifest.precisions[0])
    if backend != "cpu":
        return "fp16" if "fp16" in passed else manifest.precisions[0]
    timed = {p: ms for p in passed if (ms := manifest.parity[p].cpu_ms) is not None}
    if timed:
        return min(timed, key=lambda p: timed[p])
    return manifest.precisions[0]
