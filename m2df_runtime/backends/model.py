"""A bundle's four graphs on one backend, in the runtime's own terms.

Graphs load on first use: with a warm support bank `m2df-run` never touches the text and support
graphs, which keeps start-up short and memory small.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends import Backend, Graph, Tensor, Tensors
from m2df_runtime.backends.arrays import checked, finite_rows, refuse_infinite
from m2df_runtime.backends.choice import choose
from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend, import_onnxruntime
from m2df_runtime.backends.precisions import default_precision
from m2df_runtime.backends.tensorrt.engine_files import EngineUnusable
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.manifest import GRAPHS, GraphName
from m2df_runtime.bundle.onnx_file import graph_model
from m2df_runtime.bundle.shipped import newest_bundle
from m2df_runtime.bundle.tokenizer import Tokenizer
from m2df_runtime.engine_names import BackendName, EngineName, Precision, RunPrecision
from m2df_runtime.errors import CheckFailed, ClipError, EnvironmentMissing, InputError, M2dfError, first_line

if TYPE_CHECKING:
    from m2df_runtime.backends.split import SplitGraph

Float = NDArray[np.float32]

Result = TypeVar("Result", bound=Tensor)

# From here on `derived` pays for the second session of the query graph: at 8 frames, 2 views and 512 features it takes
# away 37 % of the processor time of a query against 1,000 classes, and 44 % against 10,000.
MANY_CLASSES = 500
_LOADS_ONNX = ("cpu", "openvino")
# Cells of alignment tables in one run: the query graph takes about 36 bytes for each, so 150 MB at most.
_CELLS_AT_ONCE = 4_000_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QueryScores:
    """Output of the query graph.

    Attributes:
        logits: [Q, C]; their softmax is the probability.
        distances: Per view [Q, V, C].
        selected: Probability of each class prompt for the query [Q, C].
        tokens: The queries' frames as they are aligned with the prototypes [Q, V, T, D].
    """

    logits: Float
    distances: Float
    selected: Float
    tokens: Float


class Model:
    """Runs a bundle, from any number of threads at once.

    Args:
        bundle: The opened bundle.
        backend: `auto` takes what `m2df-doctor --measure` found fastest on this machine. Where it was not run: TensorRT
            where engines of this bundle fit the GPU, else CUDA where this ONNX Runtime can use it, else ONNX Runtime
            on the CPU. A backend that is named is used or refused.
        precision: None takes what was measured fastest, else fp16 on a GPU and on a CPU the fastest precision at
            export, of those that passed parity. `bf16` is OpenVINO's, of float graphs.
        threads: Threads per operator on the CPU, 1 to 256; None takes the cores this process may use. Clips are
            decoded on the caller's thread, in turns with inference.

    Attributes:
        precision: What it computes in.
        files: The precision of the graphs in use, which differs where they are computed in bf16.
        about_engine: Which engine was taken and why, in one line; None where it was named, or nothing was measured.

    Raises:
        EnvironmentMissing: The named backend is not on this machine, has no engine that fits, or no bf16.
        InputError: The bundle lacks the precision, or it is fp8 and neither TensorRT runs it nor `cpu` was named.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: BackendName = "auto",
        precision: RunPrecision | None = None,
        threads: int | None = None,
    ) -> None:
        self.bundle = bundle
        self._graphs: dict[GraphName, Graph] = {}
        self._split: SplitGraph | None = None
        self._loading = {name: threading.Lock() for name in (*GRAPHS, "tokenizer")}
        self._tokenizer: Tokenizer | None = None
        self._backend: Backend
        self.precision: RunPrecision
        self.files: Precision
        choice = choose(bundle, backend, precision, threads)
        while True:
            try:
                self._take(choice.backend, choice.precision, threads)
                break
            except EnvironmentMissing as error:
                if not choice.measured:
                    raise
                _log.warning("%s %s, the fastest here, cannot be used: %s", choice.backend, choice.precision, error)
                choice = choice.unusable(backend, precision)
        self.about_engine = f"{self.backend} {self.precision}, {choice.why}" if choice.why else None

    def _take(self, backend: BackendName, precision: RunPrecision | None, threads: int | None) -> None:
        """Take this backend in this precision, and by the fixed rule what is left open."""
        self._graphs.clear()
        if precision == "bf16":
            self._use_bfloat16(backend, threads)
            return
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
        self.precision = self.files = precision or default_precision(self.bundle, self._backend.name)
        if self.precision == "fp8" and backend != "cpu":
            raise InputError(
                "the fp8 graphs are for TensorRT",
                f"build their engines: m2df-export engines --bundle {self.bundle.path} --precision fp8; "
                "--backend cpu imitates them, slowly",
            )
        self.bundle.graph_file("visual", self.files)

    def _use_bfloat16(self, backend: BackendName, threads: int | None) -> None:
        """Compute the bundle's best float graphs in bf16."""
        from m2df_runtime.backends.openvino import OpenVINOBackend

        if backend not in ("auto", "openvino"):
            raise InputError(f"{backend} does not compute in bf16", "take --backend openvino, or another --precision")
        best = self.bundle.manifest.precisions[0]
        if best not in ("fp32", "fp16"):
            raise InputError(f"{self.bundle.path}: no float graphs to compute in bf16", "export it with --fp16")
        self._backend = OpenVINOBackend(threads, bfloat16=True)
        self.precision, self.files = "bf16", best

    def _use_tensorrt(self, precision: Precision | None) -> None:
        """Take TensorRT if all engines fit and the two that every use needs load: the last chance to take another."""
        from m2df_runtime.backends.tensorrt.backend import TensorRTBackend

        backend = TensorRTBackend()
        self._backend = backend
        self.precision = self.files = precision or default_precision(self.bundle, backend.name)
        backend.check(self.bundle, self.files)
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
        with self._loading["tokenizer"]:
            if self._tokenizer is None:
                self._tokenizer = Tokenizer.from_bytes(self.bundle.read(self.bundle.manifest.tokenizer))
        return self._tokenizer

    def encode_clips(self, clips: NDArray[np.uint8], names: Sequence[str] | None = None) -> Float:
        """Frame features of clips.

        Args:
            clips: uint8 [B, T, S, S, 3] as `load_clip` returns them; single frames are clips of T = 1.
            names: Of each clip, for messages.

        Returns:
            float32 [B, T, D], not L2-normalised.

        Raises:
            InputError: The array has another type or shape.
            ClipError: A clip's features are not finite.
        """
        features = self._encoded(clips, names, lambda graph, inputs: graph.run(inputs))
        assert isinstance(features, np.ndarray)
        return features

    def encode_resident(self, clips: NDArray[np.uint8], names: Sequence[str] | None = None) -> Tensor:
        """Like `encode_clips`, with the features left where the engine computes; for `match`, before the next clips.

        What stays on a device is not looked at: `match` then finds numbers that are not finite.
        """
        return self._encoded(clips, names, lambda graph, inputs: graph.run_resident(inputs))

    def _encoded(
        self,
        clips: NDArray[np.uint8],
        names: Sequence[str] | None,
        run: Callable[[Graph, Tensors], Mapping[str, Tensor]],
    ) -> Tensor:
        size = self.bundle.manifest.clip.size
        checked("clips", clips, "uint8", B=None, T=None, height=size, width=size, channels=3)
        batch, frames = clips.shape[:2]
        flat = {"frames": clips.reshape(batch * frames, *clips.shape[2:])}
        outputs = self._guarded("visual", lambda graph: run(graph, flat), features=(batch * frames, self._dim))
        features = outputs["features"].reshape(batch, frames, self._dim)  # (B, T, D)
        finite = finite_rows({"features": features})
        if not finite.all():
            raise self._clip_error("visual", int(np.argmin(finite)), names)
        return features

    def resident(self, array: Float) -> Tensor:
        """Prompts or prototypes for many calls of `match`, uploaded once; on a CPU the array itself."""
        return self._backend.resident(array)

    def encode_texts(self, texts: Sequence[str]) -> Float:
        """Text embeddings [P, D] of prompts, not L2-normalised.

        Raises:
            InputError: A text is too long.
            CheckFailed: An embedding is not finite.
        """
        outputs = self._guarded(
            "text",
            lambda graph: graph.run({"tokens": self.tokenizer.encode(texts)}),
            embeddings=(len(texts), self._dim),
        )
        finite = finite_rows(outputs)
        if not finite.all():
            raise self._not_finite("text", f" for {texts[int(np.argmin(finite))]!r}")
        return outputs["embeddings"]

    def prototypes(self, features: Float, prompt: Float) -> Float:
        """Prototypes [V, T, D] of one class from the features [K, T, D] of its clips and its prompt [1, D].

        Raises:
            InputError: An array has another type or shape, or is not finite.
            CheckFailed: The prototypes are not finite.
        """
        frames, inputs = self.bundle.manifest.clip.frames, {"features": features, "prompt": prompt}
        checked("features", features, "float32", K=None, T=frames, D=self._dim)
        checked("prompt", prompt, "float32", one=1, D=self._dim)
        shape = (self.bundle.manifest.views, frames, self._dim)
        outputs = self._guarded("support", lambda graph: graph.run(inputs), prototypes=shape)
        if not finite_rows(outputs).all():
            refuse_infinite(inputs)
            raise self._not_finite("support")
        return outputs["prototypes"]

    def derived(self, prompts: Tensor, prototypes: Tensor) -> Tensors:
        """What `match` works out of the classes alone, such as lengths of their vectors, for many calls of it.

        Empty for few classes, and where the engine does not load ONNX files: `match` works it out each time then.

        Raises:
            InputError: An array has another type or shape.
        """
        self._check_classes(prompts, prototypes)
        if len(prompts) < MANY_CLASSES or self._backend.name not in _LOADS_ONNX:
            return {}
        inputs = {"prompts": prompts, "prototypes": prototypes}

        def derive(_: Graph) -> Tensors:
            with self._loading["query"]:
                if self._split is None:
                    self._split = self._split_query()
                return self._split.derive(inputs) if self._split else {}

        return self._guarded("query", derive)

    def _split_query(self) -> SplitGraph | None:
        from m2df_runtime.backends.split import SplitGraph
        from m2df_runtime.bundle.onnx_split import split_onnx

        model, label = graph_model(self.bundle, "query", self.files)
        split = split_onnx(model if isinstance(model, bytes) else model.read_bytes(), ("prompts", "prototypes"))
        load: Callable[[bytes, str], Graph] = self._backend.load  # type: ignore[attr-defined]  # of these backends
        return SplitGraph(split, lambda part: load(part, label)) if split else None

    def match(
        self,
        features: Tensor,
        prompts: Tensor,
        prototypes: Tensor,
        names: Sequence[str] | None = None,
        *,
        derived: Tensors | None = None,
    ) -> QueryScores:
        """Match queries [Q, T, D] against C classes: prompts [C, D], prototypes [C, V, T, D].

        Many queries take several runs, whose memory is bounded.

        Args:
            features: As `encode_clips` returns them.
            prompts: As `encode_texts` returns them.
            prototypes: As `prototypes` returns them, stacked.
            names: Of each query, for messages.
            derived: What `derived` gave for these prompts and prototypes.

        Raises:
            InputError: An array has another type or shape, or is not finite.
            ClipError: The scores of a query are not finite; `names` are those of the queries.
        """
        views, frames = self.bundle.manifest.views, self.bundle.manifest.clip.frames
        checked("features", features, "float32", Q=None, T=frames, D=self._dim)
        self._check_classes(prompts, prototypes)
        classes = {"prompts": prompts, "prototypes": prototypes}
        step = max(1, _CELLS_AT_ONCE // (len(prompts) * views * frames * frames))
        parts = []
        for first in range(0, len(features), step):
            some = {"features": features[first : first + step], **classes}
            parts.append(self._matched(some, derived or {}, names, first))
        if len(parts) == 1:
            return parts[0]
        return QueryScores(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(parts[0])))

    def _check_classes(self, prompts: Tensor, prototypes: Tensor) -> None:
        views, frames = self.bundle.manifest.views, self.bundle.manifest.clip.frames
        checked("prompts", prompts, "float32", C=None, D=self._dim)
        checked("prototypes", prototypes, "float32", C=len(prompts), V=views, T=frames, D=self._dim)

    def _matched(self, inputs: Tensors, derived: Tensors, names: Sequence[str] | None, first: int) -> QueryScores:
        """`match` in one run, whose queries are the `first` and those after it."""
        views, frames = self.bundle.manifest.views, self.bundle.manifest.clip.frames
        queries, classes = len(inputs["features"]), len(inputs["prompts"])
        pairs, split = (queries, classes), self._split
        out = self._guarded(
            "query",
            lambda graph: split.run(inputs, derived) if split and derived else graph.run(inputs),
            logits=pairs,
            distances=(queries, views, classes),
            selected=pairs,
            tokens=(queries, views, frames, self._dim),
        )
        finite = finite_rows(out)
        if not finite.all():
            refuse_infinite(inputs)
            raise self._clip_error("query", first + int(np.argmin(finite)), names)
        return QueryScores(out["logits"], out["distances"], out["selected"], out["tokens"])

    def prepare(self, *graphs: GraphName) -> None:
        """Load graphs ahead of their first use, so that loading is not measured as inference."""
        for name in graphs:
            with self._loading[name]:  # threads that need the same graph load it once
                if name not in self._graphs:
                    self._graphs[name] = self._backend.open(self.bundle, name, self.files)

    def prepare_beside(self, graph: GraphName) -> None:
        """Begin to load a graph on a thread of its own; whoever needs it waits for it, and meets its errors.

        Engines load without Python's lock. The query graph of the shipped model takes 0.1 s, as long as all else that
        is done until the first clip is encoded.
        """
        if graph in self._graphs or self._loading[graph].locked():
            return

        def load() -> None:
            with suppress(Exception):  # it is loaded again where it is needed, and fails there
                self.prepare(graph)

        threading.Thread(target=load, name=f"loads {graph}").start()

    @property
    def _dim(self) -> int:
        return self.bundle.manifest.dim

    def _guarded(
        self, name: GraphName, run: Callable[[Graph], Mapping[str, Result]], **shapes: tuple[int, ...]
    ) -> Mapping[str, Result]:
        """Run a graph, whose outputs must have these shapes.

        Raises:
            InputError: The engine fails on it, or an output has another shape.
        """
        if name not in self._graphs:
            self.prepare(name)
        try:
            outputs = run(self._graphs[name])
        except (MemoryError, M2dfError):
            raise
        except Exception as error:  # engines' exceptions share no public base class
            problem = f"{self._where(name)} does not run: {first_line(error)}"
            raise InputError(problem, "export the bundle again") from error
        for output, shape in shapes.items():
            if outputs[output].shape != shape:
                problem = f"{self._where(name)} gives {output} {[*outputs[output].shape]}, not {[*shape]}"
                raise InputError(problem, "export the bundle again")
        return outputs

    def _not_finite(self, name: GraphName, what: str = "") -> CheckFailed:
        best = self.bundle.manifest.precisions[0]
        hint = "export the bundle again" if self.precision == best else f"try --precision {best}"
        return CheckFailed(f"{self._where(name)} gives numbers that are not finite{what}", hint)

    def _clip_error(self, name: GraphName, row: int, names: Sequence[str] | None) -> ClipError:
        error = self._not_finite(name)
        hint = error.hint if self.precision != self.bundle.manifest.precisions[0] else "leave this clip out"
        return ClipError(names[row] if names and names[row] else f"clip {row + 1}", error.message, hint)

    def _where(self, name: GraphName) -> str:
        return f"{self.bundle.path}: the {self.precision} {name} graph"


def load(
    path: Path | str | None = None,
    backend: BackendName = "auto",
    precision: RunPrecision | None = None,
    threads: int | None = None,
    *,
    region: Literal["full", "motion"] | None = None,
) -> Model:
    """Open a bundle; where none is named the newest in `bundles/`, else the one shipped with m2df.

    Args:
        path: The bundle, a folder or its zip.
        backend: As in `Model`.
        precision: As in `Model`.
        threads: As in `Model`.
        region: Part of the picture to look at, all or what moves; None takes the bundle's.

    Raises:
        InputError: Not a bundle, or it lacks the precision.
        EnvironmentMissing: The named backend is not on this machine, or has no engine that fits.

    Examples:
        >>> import m2df_runtime as m2df
        >>> model = m2df.load(backend="cpu", threads=2)
        >>> model.backend, model.bundle.manifest.clip.frames
        ('cpu', 8)
    """
    bundle = Bundle.open(path if path is not None else newest_bundle())
    if region is not None:
        bundle = bundle.with_clip(bundle.manifest.clip.model_copy(update={"region": region}))
    return Model(bundle, backend=backend, precision=precision, threads=threads)


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


def probe_backend(name: EngineName) -> str:
    """Try a backend and return its description: it runs the smallest possible graph, TensorRT only starts up.

    Raises:
        EnvironmentMissing: The backend cannot be used on this machine.
    """
    if name == "tensorrt":
        from m2df_runtime.backends.tensorrt.backend import TensorRTBackend

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
