"""The ways to run a model that `latency` compares: m2df on every backend, and what one would use without it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import random_model
from m2df_runtime.backends.model import probe_backend
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.manifest import GraphName
from m2df_runtime.engine_names import BackendName, EngineName, Precision, RunPrecision
from m2df_runtime.errors import EnvironmentMissing

Float = NDArray[np.float32]
Pixels = NDArray[np.uint8]
# How long PyTorch's threads spin while they wait for each other. With the default of its OpenMP, a small image tower
# took 1433 ms on two threads of a busy machine, with this 137 ms, on one thread 47 ms.
SPIN = "10000"
GRAPHS: tuple[GraphName, ...] = ("visual", "support", "query")


class Engine(ABC):
    """A loaded model. Features are whatever it hands from its image tower to its head without a copy.

    Attributes:
        description: Library, version and device.
        precision: What it computes in.
        gpu: Whether pixels have to be copied to a GPU first, in a way that can be timed alone.
    """

    description: str
    precision: str
    gpu = False

    @abstractmethod
    def encode(self, clips: Pixels) -> Any:  # noqa: ANN401 - of the engine's own type
        """Features [B, T, D] of clips [B, T, S, S, 3]."""

    @abstractmethod
    def features(self, clips: Pixels) -> Float:
        """The same on the host."""

    @abstractmethod
    def prototypes(self, features: Float, prompt: Float) -> Float:
        """Prototypes [V, T, D] of one class from features [K, T, D] and its prompt [1, D]."""

    @abstractmethod
    def keep(self, prompts: Float, prototypes: Float) -> Any:  # noqa: ANN401
        """Prompts [C, D] and prototypes [C, V, T, D] of the classes, where the engine wants them for `match`."""

    @abstractmethod
    def match(self, features: Any, kept: Any) -> Float:  # noqa: ANN401
        """Logits [Q, C]."""

    def copy(self, clips: Pixels) -> None:
        """Copy clips to the GPU, as `encode` does too; only asked of those with a `gpu`."""
        raise NotImplementedError  # where the clips are on the CPU there is nothing to measure


class Ours(Engine):
    """A bundle in m2df."""

    def __init__(self, bundle: Path, backend: BackendName, precision: RunPrecision, threads: int | None) -> None:
        from m2df_runtime.backends.model import Model

        self._session = Model(Bundle.open(bundle), backend=backend, precision=precision, threads=threads)
        self._session.prepare(*GRAPHS)
        self.description, self.precision = self._session.description, precision
        self.gpu = backend in ("cuda", "tensorrt")

    def encode(self, clips: Pixels) -> Any:  # noqa: ANN401
        return self._session.encode_resident(clips)

    def features(self, clips: Pixels) -> Float:
        return self._session.encode_clips(clips)

    def prototypes(self, features: Float, prompt: Float) -> Float:
        return self._session.prototypes(features, prompt)

    def keep(self, prompts: Float, prototypes: Float) -> Any:  # noqa: ANN401
        return self._session.resident(prompts), self._session.resident(prototypes)

    def match(self, features: Any, kept: Any) -> Float:  # noqa: ANN401
        return self._session.match(features, *kept).logits

    def copy(self, clips: Pixels) -> None:
        self._session.resident(clips)  # type: ignore[arg-type]  # any array can be copied


class GraphPeer(Engine):
    """A bundle's ONNX files in an engine as it is without options."""

    def __init__(self, bundle: Path, library: str, precision: Precision) -> None:
        opened = Bundle.open(bundle)
        models = {name: opened.file(opened.graph_file(name, precision)) for name in GRAPHS}
        self.precision = str(precision)
        self._graphs = self._onnxruntime(models) if library == "onnxruntime" else self._openvino(models)

    def _onnxruntime(self, models: dict[GraphName, bytes | Path]) -> dict[GraphName, Any]:
        from m2df_runtime.backends.onnxruntime import import_onnxruntime

        ort = import_onnxruntime()
        self.description = f"ONNX Runtime {ort.__version__}, defaults"
        sessions = {name: ort.InferenceSession(model) for name, model in models.items()}
        return {name: lambda feed, s=session: s.run(None, feed)[0] for name, session in sessions.items()}

    def _openvino(self, models: dict[GraphName, bytes | Path]) -> dict[GraphName, Any]:
        from m2df_runtime.backends.openvino import import_openvino

        module = import_openvino()
        core = module.Core()
        compiled = {name: core.compile_model(core.read_model(model), "CPU") for name, model in models.items()}
        chosen = str(compiled["visual"].get_property("INFERENCE_PRECISION_HINT").to_string())
        self.precision = {"f32": "fp32", "f16": "fp16"}.get(chosen, chosen)
        self.description = f"OpenVINO {module.__version__.partition('-')[0]}, defaults ({self.precision})"
        return {name: lambda feed, c=each: c(feed)[0] for name, each in compiled.items()}

    def encode(self, clips: Pixels) -> Any:  # noqa: ANN401
        return self.features(clips)

    def features(self, clips: Pixels) -> Float:
        batch, frames = clips.shape[:2]
        flat: Float = self._graphs["visual"]({"frames": clips.reshape(batch * frames, *clips.shape[2:])})
        return flat.reshape(batch, frames, -1)  # (B, T, D)

    def prototypes(self, features: Float, prompt: Float) -> Float:
        found: Float = self._graphs["support"]({"features": features, "prompt": prompt})
        return found

    def keep(self, prompts: Float, prototypes: Float) -> Any:  # noqa: ANN401
        return {"prompts": prompts, "prototypes": prototypes}

    def match(self, features: Any, kept: Any) -> Float:  # noqa: ANN401
        logits: Float = self._graphs["query"]({"features": features, **kept})
        return logits


class TorchPeer(Engine):
    """The model in PyTorch: the image tower in a precision, matching in fp32."""

    def __init__(self, source: str | Path, precision: str, compiled: bool, threads: int | None, device: str) -> None:
        spin = os.environ.setdefault("GOMP_SPINCOUNT", SPIN)  # read when PyTorch is loaded
        import torch

        from m2df_train.model.checkpoint import load_checkpoint
        from m2df_train.model.heads import deterministic_head

        if threads is not None:
            torch.set_num_threads(threads)
        model = load_checkpoint(source) if isinstance(source, Path) else random_model(source)
        dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        self._torch, self._device, self._dtype = torch, torch.device(device), dtypes[precision]
        self._clip = model.clip
        head = deterministic_head(model.head.to(self._device))
        tower = model.backbone.to(self._device, self._dtype)
        wrap: Any = torch.compile if compiled else lambda function: function
        self._visual, self._prototypes, self._match = wrap(tower.visual), wrap(head.prototypes), wrap(head.match)
        self.description, self.precision = f"PyTorch {torch.__version__}, GOMP_SPINCOUNT {spin}", precision

    def encode(self, clips: Pixels) -> Any:  # noqa: ANN401
        from m2df_train.model.backbone import normalised_pixels

        with self._torch.inference_mode():
            pixels = normalised_pixels(self._tensor(clips), self._clip).to(self._dtype)
            features = self._visual(pixels).float().unflatten(0, clips.shape[:2])  # (B, T, D)
            if self._device.type == "cuda":
                self._torch.cuda.synchronize()
            return features

    def features(self, clips: Pixels) -> Float:
        return self._array(self.encode(clips))

    def prototypes(self, features: Any, prompt: Any) -> Float:  # noqa: ANN401
        with self._torch.inference_mode():
            return self._array(self._prototypes(self._tensor(features), self._tensor(prompt)))

    def keep(self, prompts: Float, prototypes: Float) -> Any:  # noqa: ANN401
        return self._tensor(prompts), self._tensor(prototypes)

    def match(self, features: Any, kept: Any) -> Float:  # noqa: ANN401
        with self._torch.inference_mode():
            return self._array(self._match(self._tensor(features), *kept).logits)

    def _tensor(self, array: Any) -> Any:  # noqa: ANN401
        tensor = self._torch.from_numpy(np.ascontiguousarray(array)) if isinstance(array, np.ndarray) else array
        return tensor.to(self._device)

    @staticmethod
    def _array(tensor: Any) -> Float:  # noqa: ANN401
        array: Float = tensor.float().cpu().numpy()
        return array


@dataclass(frozen=True)
class EngineSpec:
    """Which engine to load; small enough to be sent to another process.

    Attributes:
        name: What results call it.
        ours: Whether it is m2df, and not something to compare it with.
        bundle: The bundle; None for PyTorch.
        source: PyTorch's checkpoint, or the name of an open_clip model with random weights.
    """

    name: str
    precision: str
    threads: int | None
    ours: bool = False
    bundle: Path | None = None
    backend: str = ""
    source: str | Path = ""
    compiled: bool = False

    def load(self) -> Engine:
        """Load it.

        Raises:
            M2dfError: The engine is not on this machine, or refuses the model.
        """
        if self.bundle is None:
            return TorchPeer(self.source, self.precision, self.compiled, self.threads, self.backend)
        if self.ours:
            return Ours(self.bundle, self.backend, self.precision, self.threads)  # type: ignore[arg-type]  # plain text
        return GraphPeer(self.bundle, self.backend, self.precision)  # type: ignore[arg-type]


EAGER = "PyTorch eager fp32"
BACKENDS: tuple[EngineName, ...] = ("tensorrt", "cuda", "openvino", "cpu")
COMPUTED: dict[EngineName, tuple[RunPrecision, ...]] = {"openvino": ("bf16",)}  # beside those that have graphs
LIBRARIES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def ours(bundle: Bundle, threads: int | None) -> tuple[list[EngineSpec], dict[str, str]]:
    """The bundle in every precision on every backend of this machine, and why the other backends are missing.

    One that computes no bf16 here says so when it is loaded.
    """
    found, missing = [], {}
    for backend in BACKENDS:
        try:
            probe_backend(backend)
        except EnvironmentMissing as error:
            missing[f"m2df {backend}"] = str(error)
            continue
        for precision in (*bundle.manifest.precisions, *COMPUTED.get(backend, ())):
            name = f"m2df {backend} {precision}"
            found.append(EngineSpec(name, precision, threads, True, bundle.path, backend))
    return found, missing


def peers(bundle: Bundle, source: str | Path | None, threads: int | None) -> list[EngineSpec]:
    """Everything else: the ONNX files in engines with default options, and PyTorch where its weights are at hand."""
    precision = bundle.manifest.precisions[0]
    found = [
        EngineSpec(f"{label} defaults", precision, threads, bundle=bundle.path, backend=library)
        for library, label in LIBRARIES.items()
    ]
    if source is None:
        return found
    import torch

    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        end = "" if device == "cpu" else " CUDA"
        for kind, compiled in (("fp32", False), ("fp16", False), ("bf16", False), ("fp32", True)):
            name = f"PyTorch {'compile' if compiled else 'eager'} {kind}{end}"
            found.append(EngineSpec(name, kind, threads, backend=device, source=source, compiled=compiled))
    return found
