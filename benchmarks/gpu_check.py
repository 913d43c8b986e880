"""The GPU check: engines built, compared and timed beside PyTorch and ONNX Runtime, as one JSON.

    benchmarks/gpu_check.sh                  everything, in the right interpreters
    python -m benchmarks.gpu_check need      exit 3, with a reason, where there is no GPU
    python -m benchmarks.gpu_check prepare WORK TENSORRT_VERSION
    python -m benchmarks.gpu_check time WORK
    python -m benchmarks.gpu_check merge WORK TENSORRT_FACTS [OUT]

Subjects: ViT-B/16 with the M2DF head and random weights, and the demo bundle shipped with the package.
Each engine is timed in a process of its own on an otherwise idle GPU: one clip of 8 frames, 5 classes,
uint8 on the host to scores on the host.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_engines import measure
from benchmarks.models import FRAMES, OPSET, SEED, export, random_model
from benchmarks.record import Machine, write
from m2df_runtime.errors import CheckFailed, EnvironmentMissing, InputError, M2dfError

MODEL, WAY = "ViT-B-16", 5
VIT, DEMO = "vit-b-16", "demo"
CLIP_GFLOP = 281.0  # ViT-B/16, 8 frames of 224 x 224
LEAST_COSINE = 0.9995
TARGETS = {"p50_ms": 1.0, "faster_than_eager": 3.0, "faster_than_compile": 2.0, "matmul_share": 0.5}
MATMUL = 8192


def need() -> None:
    """Raise EnvironmentMissing where PyTorch sees no GPU."""
    try:
        import torch
    except ImportError as error:
        raise EnvironmentMissing(f"PyTorch cannot be used: {error}", "pip install 'm2df[export]'") from None
    if not torch.cuda.is_available():
        raise EnvironmentMissing(
            f"no NVIDIA GPU: PyTorch {torch.__version__} sees none", "run this on a machine with one and a CUDA PyTorch"
        )


def prepare(work: Path, version: str) -> None:
    """Export both subjects for this TensorRT, with reference outputs of PyTorch and of ONNX Runtime."""
    from m2df_export.graphs.specs import graph_specs
    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.bundle.shipped import demo_bundle
    from m2df_train.model.heads import deterministic_head

    opset = 16 if version.startswith("8.") else OPSET
    checkpoint = random_model(MODEL)
    bundle = export(checkpoint, work / VIT, ("fp32", "fp16"), opset)
    specs = graph_specs(checkpoint.backbone, deterministic_head(checkpoint.head), checkpoint.clip)
    reference(bundle, torch_runner(specs))
    if opset == OPSET:  # that of the shipped bundle
        with zipfile.ZipFile(demo_bundle()) as archive:
            archive.extractall(work / DEMO)
        reference(Bundle.open(work / DEMO), None)


def torch_runner(specs: Any) -> Callable[[str, dict[str, Any]], dict[str, Any]]:  # noqa: ANN401
    """PyTorch fp32 on the CPU, graph by graph."""
    import torch

    def run(name: str, inputs: dict[str, Any]) -> dict[str, Any]:
        with torch.inference_mode():
            out = specs[name].module(*[torch.from_numpy(value) for value in inputs.values()])
        values = out if isinstance(out, tuple) else (out,)
        return {key: value.numpy() for key, value in zip(specs[name].outputs, values, strict=True)}

    return run


def reference(bundle: Any, run: Callable[[str, dict[str, Any]], dict[str, Any]] | None) -> None:  # noqa: ANN401
    """Write reference.npz: inputs `graph/name` and outputs `graph:name`, and hold ONNX Runtime's CPU to PyTorch."""
    from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend

    manifest = bundle.manifest
    precision, cpu = manifest.precisions[0], OnnxRuntimeBackend("cpu")
    frames, size, dim, views = manifest.clip.frames, manifest.clip.size, manifest.dim, manifest.views
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}

    def step(name: str, **inputs: Any) -> Any:  # noqa: ANN401
        outputs = cpu.open(bundle, name, precision).run(inputs)  # type: ignore[arg-type]  # one of the four names
        if run is not None:
            for key, value in run(name, inputs).items():
                error = float(np.abs(outputs[key] - value).max() / np.abs(value).max())
                if error > 1e-3:
                    raise CheckFailed(f"{name} {key}: ONNX Runtime is {error:.2g} from PyTorch")
                outputs[key] = value
        arrays.update({f"{name}/{key}": value for key, value in inputs.items()})
        arrays.update({f"{name}:{key}": value for key, value in outputs.items()})
        return next(iter(outputs.values()))

    features = step("visual", frames=rng.integers(0, 256, (frames, size, size, 3)).astype(np.uint8))
    tokens = np.zeros((WAY, 77), np.int32)
    tokens[:, 0], tokens[:, 1], tokens[:, 2] = 49406, np.arange(320, 320 + WAY), 49407
    prompts = step("text", tokens=tokens)
    scale = float(np.sqrt(np.mean(features**2)))
    shots = (scale * rng.standard_normal((1, frames, dim))).astype(np.float32)
    step("support", features=shots, prompt=prompts[:1])
    prototypes = (scale * rng.standard_normal((WAY, views, frames, dim))).astype(np.float32)
    step("query", features=features.reshape(1, frames, dim), prompts=prompts, prototypes=prototypes)
    np.savez(bundle.path / "reference.npz", **arrays)


def time_others(work: Path) -> None:
    """Write others.json: PyTorch eager fp16, torch.compile and ONNX Runtime CUDA fp16 on ViT-B/16."""
    import torch

    need()
    found: dict[str, Any] = {"matmul_tflops": matmul_ceiling()}
    with np.load(work / VIT / "reference.npz", allow_pickle=False) as data:
        arrays = dict(data)
    with torch.inference_mode():
        chain = _torch_chain(arrays)
        found["torch-eager-fp16"] = measure(chain())
        for mode in ("default", "reduce-overhead"):
            with _reported(found, f"torch-compile-fp16-{mode}"):
                found[f"torch-compile-fp16-{mode}"] = measure(chain(mode))
    with _reported(found, "onnxruntime-cuda-fp16"):
        found["onnxruntime-cuda-fp16"] = measure(_onnxruntime_chain(work / VIT, arrays))
    (work / "others.json").write_text(json.dumps(found, indent=2))


@contextmanager
def _reported(found: dict[str, Any], name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # one engine's failure is a result, and must not lose the others'
        found[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


def _torch_chain(arrays: dict[str, Any]) -> Callable[..., Callable[[], object]]:
    """Makes the chain in PyTorch: the image tower in half precision, matching in fp32, as in the fp16 graphs."""
    import torch

    from m2df_export.graphs.specs import CENTRE, STEP, graph_specs
    from m2df_train.model.heads import deterministic_head

    checkpoint = random_model(MODEL)
    specs = graph_specs(checkpoint.backbone, deterministic_head(checkpoint.head), checkpoint.clip)
    visual: Any = specs["visual"].module.cuda()
    visual.backbone.half()
    head = specs["query"].module.cuda()
    rest = [torch.from_numpy(arrays[f"query/{name}"]).cuda() for name in ("prompts", "prototypes")]
    pixels = torch.from_numpy(arrays["visual/frames"]).pin_memory()
    if not visual.folded:
        raise InputError("the normalisation of ViT-B/16 is not folded")

    def forward(frames: torch.Tensor) -> torch.Tensor:
        centred = (frames.half().permute(0, 3, 1, 2) - CENTRE) * (1.0 / STEP)
        features = visual.backbone.visual(centred).float()
        logits: torch.Tensor = head(features[None], *rest)[0]
        return logits

    def make(mode: str | None = None) -> Callable[[], object]:
        compiled = forward if mode is None else torch.compile(forward, mode=mode)
        return lambda: compiled(pixels.to("cuda", non_blocking=True)).cpu()

    return make


def _onnxruntime_chain(folder: Path, arrays: dict[str, Any]) -> Callable[[], object]:
    from m2df_runtime.backends.model import Model
    from m2df_runtime.bundle.bundle import Bundle

    session = Model(Bundle.open(folder), backend="cuda", precision="fp16")
    prompts, prototypes = (session.resident(arrays[f"query/{name}"]) for name in ("prompts", "prototypes"))
    clips = arrays["visual/frames"][None]
    return lambda: session.match(session.encode_resident(clips), prompts, prototypes)


def matmul_ceiling() -> float:
    """TFLOP/s of a large fp16 product, the ceiling that throughput is compared with."""
    import torch

    a, b = (torch.randn(MATMUL, MATMUL, device="cuda", dtype=torch.float16) for _ in range(2))

    def run() -> None:
        torch.matmul(a, b)
        torch.cuda.synchronize()

    return round(2 * MATMUL**3 / measure(run, 50, 10)["p50"] / 1e9, 1)


def merge(work: Path, facts: str, out: Path | None) -> None:
    """Write gpu.json.

    Raises:
        CheckFailed: An engine could not be built, or computes something else.
    """
    engines = {path.parent.name: json.loads(path.read_text()) for path in sorted(work.glob("*/tensorrt.json"))}
    others = json.loads((work / "others.json").read_text())
    path = write("gpu", {
        "tensorrt": engines,
        "others": others,
        "ratios": ratios(engines[VIT], others),
        "targets": TARGETS,
        "settings": {"model": MODEL, "head": "m2df", "frames": FRAMES, "way": WAY, "weights": f"random, seed {SEED}"},
        "engine_environment": json.loads(facts),
        "environment": Machine().environment(),
    }, out)  # fmt: skip
    print(f"written: {path}")
    failed = [f"{name}: {record['failed']}" for name, record in engines.items() if "failed" in record]
    for name, record in engines.items():
        bad = [graph for graph, cosine in record.get("cosine", {}).items() if not cosine >= LEAST_COSINE]
        failed += [f"{name}: the {graph} engine is below cosine {LEAST_COSINE}" for graph in bad]
    if failed:
        raise CheckFailed("; ".join(failed))


def ratios(engine: dict[str, Any], others: dict[str, Any]) -> dict[str, float]:
    """How many times faster TensorRT's chain is, and its share of the matmul ceiling at 64 clips."""
    if "failed" in engine:
        return {}
    best = min(times["chain"]["p50"] for times in engine["milliseconds"].values())
    faster = {
        f"{name} / tensorrt": round(times["p50"] / best, 3)
        for name, times in others.items()
        if isinstance(times, dict) and "p50" in times
    }
    rate = engine["throughput"]["clips_per_second"] * CLIP_GFLOP / 1000
    return {**faster, "matmul_share": round(rate / others["matmul_tflops"], 3)}


def main(arguments: list[str]) -> int:
    """One of the steps in the docstring."""
    try:
        step, *rest = arguments or ["need"]
        if step == "need":
            need()
        elif step == "prepare":
            prepare(Path(rest[0]), rest[1])
        elif step == "time":
            time_others(Path(rest[0]))
        elif step == "merge":
            merge(Path(rest[0]), rest[1], Path(rest[2]) if rest[2:] else None)
        else:
            raise InputError(f"unknown step {step!r}", "run benchmarks/gpu_check.sh")
    except M2dfError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
