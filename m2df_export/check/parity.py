"""Measures every precision against PyTorch fp32 and decides whether it may be shipped (design section 6).

Each graph is compared by itself on seeded inputs, then the chain as a whole on episodes. A model with
random weights is held to the numbers of its graphs alone: its top-1 is noise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m2df_export.check import end_to_end as e2e
from m2df_export.check.calibration_frames import smooth_pictures
from m2df_export.check.compare import GATES, ROUNDING, Drift, drift, worst
from m2df_export.check.end_to_end import Batch, EpisodeSet, Outputs, Runner
from m2df_export.check.isolated import run_isolated
from m2df_export.graphs.specs import GraphSpec
from m2df_export.precision.files import file_name
from m2df_export.precision.half import TOWERS
from m2df_runtime.backends.onnxruntime import import_onnxruntime
from m2df_runtime.bundle.manifest import GraphName, Precision, PrecisionParity
from m2df_train.model.checkpoint import Checkpoint

NUMERIC_CLASSES = 5


@dataclass(frozen=True)
class EpisodeParity:
    """Episodes against PyTorch: share of equal top-1 answers, and both accuracies."""

    top1_agreement: float
    accuracy: float
    reference_accuracy: float


@dataclass(frozen=True)
class PrecisionReport:
    """Everything measured for one precision, and the gates it failed (empty: passed)."""

    graphs: dict[GraphName, Drift]
    episodes: EpisodeParity | None
    cpu_ms: float
    failures: tuple[str, ...]

    def summary(self) -> PrecisionParity:
        """The part that stands in the manifest."""
        episodes = self.episodes
        return PrecisionParity(
            passed=not self.failures,
            top1_agreement=None if episodes is None else episodes.top1_agreement,
            accuracy_difference=None if episodes is None else episodes.accuracy - episodes.reference_accuracy,
            cpu_ms=self.cpu_ms,
        )


class Parity:
    """PyTorch's answers, computed once, and the comparison of any precision with them.

    Args:
        checkpoint: The model; its image tower as training runs it is the reference of the visual graph.
        specs: The exported graphs as modules, the reference of the other three.
        tokens: Tokens of `NUMERIC_CLASSES` prompts or more, int32 [P, 77].
        episodes: Clips for the end-to-end comparison; None for random weights.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        specs: Mapping[GraphName, GraphSpec],
        tokens: NDArray[np.int32],
        episodes: EpisodeSet | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._specs = specs
        self.episodes = episodes
        self._numeric = self._numeric_batches(tokens[:NUMERIC_CLASSES])
        self._expected = {graph: self._torch(graph, batches) for graph, batches in self._numeric.items()}
        self._reference = None if episodes is None else _predict(self._torch, episodes)

    def measure(self, folder: Path, precision: Precision) -> PrecisionReport:
        """Compare the files of one precision.

        Raises:
            CheckFailed: A graph does not run or crashes.
        """
        actual: dict[GraphName, Sequence[Outputs]] = {}
        cpu_ms = 0.0

        def run(graph: GraphName, batches: Sequence[Batch]) -> Sequence[Outputs]:
            """One process per graph: the numeric batches first, the episodes' after them."""
            nonlocal cpu_ms
            numeric = self._numeric[graph]
            timed = {"visual": 0, "query": len(numeric) - 1}.get(graph)
            label = f"the {precision} {graph} graph"
            path, basic = folder / file_name(graph, precision), precision == "fp8"
            done = run_isolated(path, [*numeric, *batches], label=label, timed=timed, basic=basic)
            cpu_ms += done.cpu_ms or 0.0
            actual[graph] = done.outputs[: len(numeric)]
            return done.outputs[len(numeric) :]

        episodes = None
        if self.episodes is None or self._reference is None:
            for graph in self._specs:
                run(graph, [])
        else:
            predicted = _predict(run, self.episodes)
            episodes = EpisodeParity(
                top1_agreement=float((predicted == self._reference).mean()),
                accuracy=e2e.accuracy(self.episodes, predicted),
                reference_accuracy=e2e.accuracy(self.episodes, self._reference),
            )
        graphs = {graph: _compare(actual[graph], self._expected[graph]) for graph in self._numeric}
        return PrecisionReport(graphs, episodes, cpu_ms, tuple(_failures(precision, graphs, episodes)))

    def _torch(self, graph: GraphName, batches: Sequence[Batch]) -> list[Outputs]:
        spec = self._specs[graph]
        results: list[Outputs] = []
        with torch.inference_mode(), _threads(None if graph in TOWERS else 1):
            for batch in batches:
                inputs = [torch.from_numpy(np.ascontiguousarray(batch[name])) for name in spec.inputs]
                found: Any = (
                    self._checkpoint.backbone.encode_frames(inputs[0], self._checkpoint.clip)
                    if graph == "visual"
                    else spec.module(*inputs)
                )
                values = found if isinstance(found, tuple) else (found,)
                results.append({name: value.numpy() for name, value in zip(spec.outputs, values, strict=True)})
        return results

    def _numeric_batches(self, tokens: NDArray[np.int32]) -> dict[GraphName, list[Batch]]:
        """Seeded inputs of every graph, sizes of 1 among them; the head's are as large as the towers' outputs."""
        rng = np.random.default_rng(0)
        size = self._specs["visual"].inputs["frames"].shape[1]
        frames = self._specs["support"].inputs["features"].shape[1]
        pictures = smooth_pictures(rng, frames, size)
        visual: list[Batch] = [{"frames": pictures}, {"frames": pictures[:1]}]
        text: list[Batch] = [{"tokens": tokens}, {"tokens": tokens[:1]}]
        features = self._torch("visual", visual[:1])[0]["features"]
        prompts = self._torch("text", text[:1])[0]["embeddings"]
        magnitude = float(np.sqrt(np.mean(features**2)))

        def clips(count: int) -> NDArray[np.float32]:
            return magnitude * rng.standard_normal((count, frames, features.shape[1]), dtype=np.float32)

        support: list[Batch] = [{"features": clips(3), "prompt": prompts[:1]}]
        support += [{"features": clips(1), "prompt": prompt[None]} for prompt in prompts]
        prototypes = np.stack([out["prototypes"] for out in self._torch("support", support)][1:])
        query: list[Batch] = [
            {"features": clips(3), "prompts": prompts, "prototypes": prototypes},
            {"features": clips(2), "prompts": prompts[:1], "prototypes": prototypes[:1]},
            {"features": clips(1), "prompts": prompts, "prototypes": prototypes},
        ]
        return {"visual": visual, "text": text, "support": support, "query": query}


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Limit PyTorch's threads: a head's operators are so small that on a busy machine waiting for the second
    thread costs 10 ms each, and an episode 340 ms instead of 15."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _predict(run: Runner, episodes: EpisodeSet) -> NDArray[np.int64]:
    features = np.stack([out["features"] for out in run("visual", e2e.visual_batches(episodes))])  # [M, T, D]
    prompts = run("text", e2e.text_batches(episodes))[0]["embeddings"]  # [C, D]
    supports = run("support", e2e.support_batches(episodes, features, prompts))
    prototypes = np.stack([out["prototypes"] for out in supports])  # [M, V, T, D]
    return e2e.predictions(run("query", e2e.query_batches(episodes, features, prompts, prototypes)))


def _compare(actual: Sequence[Outputs], expected: Sequence[Outputs]) -> Drift:
    pairs = zip(actual, expected, strict=True)
    return worst(drift(got[name], wanted[name]) for got, wanted in pairs for name in wanted)


def _failures(precision: Precision, graphs: Mapping[GraphName, Drift], episodes: EpisodeParity | None) -> list[str]:
    gates, found = GATES[precision], []
    for graph, parity in graphs.items():
        if problem := parity.problem(gates):
            found.append(f"{precision} {graph} graph: {problem}")
    if episodes is None:
        return found
    if gates.agreement is not None and episodes.top1_agreement < gates.agreement:
        found.append(f"{precision}: top-1 agreement {episodes.top1_agreement:.1%}, needed {gates.agreement:.1%}")
    drop = episodes.reference_accuracy - episodes.accuracy
    if gates.accuracy_drop is not None and drop > gates.accuracy_drop + ROUNDING:
        found.append(f"{precision}: accuracy drops by {drop:.1%}, allowed {gates.accuracy_drop:.1%}")
    return found


def report_json(reports: Mapping[Precision, PrecisionReport], episodes: EpisodeSet | None) -> dict[str, Any]:
    """Contents of parity.json."""
    drawn = None
    if episodes is not None:
        way = len(episodes.episodes[0].classes)
        drawn = {"source": episodes.source, "way": way, "shot": e2e.SHOT, "count": len(episodes.episodes)}
        drawn |= {"seed": e2e.SEED, "classes": len(episodes.classes), "clips": len(episodes.clips)}
    return {
        "reference": f"PyTorch {torch.__version__} fp32",
        "engine": f"ONNX Runtime {import_onnxruntime().__version__} CPUExecutionProvider",
        "episodes": drawn,
        "precisions": {
            precision: {"passed": not report.failures, **asdict(report), "gates": asdict(GATES[precision])}
            for precision, report in reports.items()
        },
    }


def report_markdown(name: str, data: Mapping[str, Any]) -> str:
    """Contents of parity.md: the same numbers to read."""
    drawn = data["episodes"]
    lines = [f"# Parity of {name}", "", f"{data['engine']} against {data['reference']}.", ""]
    lines += ["| graph | precision | max abs error | max rel error | min cosine |", "|---|---|---|---|---|"]
    for precision, report in data["precisions"].items():
        for graph, row in report["graphs"].items():
            numbers = f"{row['max_abs']:.2g} | {row['max_rel']:.2g} | {row['cosine']:.6f}"
            lines.append(f"| {graph} | {precision} | {numbers} |")
    lines += ["", "Relative errors are relative to the largest value of an output; cosines are the worst row's.", ""]
    if drawn is None:
        lines += ["The weights are random: top-1 says nothing about them and was not compared.", ""]
    else:
        text = "{count} {way}-way {shot}-shot episodes of {clips} clips of {classes} classes ({source}), seed {seed}."
        lines += [text.format(**drawn), ""]
    lines += ["| precision | top-1 agreement | accuracy | PyTorch | CPU ms per query | gates |"]
    lines += ["|---|---|---|---|---|---|"]
    for precision, report in data["precisions"].items():
        row = report["episodes"]
        top1 = "– | – | –"
        if row is not None:
            top1 = f"{row['top1_agreement']:.1%} | {row['accuracy']:.1%} | {row['reference_accuracy']:.1%}"
        verdict = "passed" if report["passed"] else "failed: " + "; ".join(report["failures"])
        lines.append(f"| {precision} | {top1} | {report['cpu_ms']:.1f} | {verdict} |")
    lines += ["", "CPU ms: one query clip through the visual and the query graph with five classes, on one thread.", ""]
    return "\n".join(lines)
