"""Runs an exported graph in a process of its own, through the runtime's own backend.

ONNX Runtime can crash on a graph it does not like (float16 LayerNormalization on a CPU is one), and a
crash has to be a result that names the graph, not the end of the export.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend
from m2df_runtime.errors import CheckFailed, shortened

Arrays = dict[str, NDArray[Any]]

TIMED_RUNS = 5
TIMED_SECONDS = 6.0  # a large encoder takes that for one run; it is then timed once


@dataclass(frozen=True)
class IsolatedRun:
    """Outputs of every batch, and the CPU time of the timed batch on one thread (None if none was timed)."""

    outputs: list[Arrays]
    cpu_ms: float | None


def run_isolated(
    model: Path,
    batches: Sequence[Mapping[str, NDArray[Any]]],
    *,
    label: str,
    timed: int | None = None,
    basic: bool = False,
) -> IsolatedRun:
    """Run a graph on every batch in a new process.

    Args:
        model: ONNX file.
        batches: Inputs by name, one mapping per run.
        label: Names the graph in errors, for example `the fp16 visual graph`.
        timed: Index of the batch to time, by CPU time, which other processes do not disturb.
        basic: See `OnnxRuntimeBackend.load`.

    Raises:
        CheckFailed: The graph does not load or run, or the process crashed.
    """
    with tempfile.TemporaryDirectory(prefix="m2df-") as name:
        folder = Path(name)
        _save(folder / "inputs.npz", batches)
        request = {"model": os.fspath(model.resolve()), "timed": timed, "basic": basic}
        (folder / "request.json").write_text(json.dumps(request))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", "m2df_export.check.isolated", name]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
        if done.returncode:
            raise CheckFailed(f"{label} {_reason(done.returncode, done.stderr)}")
        result = json.loads((folder / "result.json").read_text())
        return IsolatedRun(_load(folder / "outputs.npz", len(batches)), result["cpu_ms"])


def _reason(code: int, stderr: str) -> str:
    if code < 0:
        return f"crashes ONNX Runtime ({signal.Signals(-code).name})"
    lines = stderr.strip().splitlines()
    return f"does not run: {shortened(lines[-1]) if lines else f'exit status {code}'}"


def _save(path: Path, batches: Sequence[Mapping[str, NDArray[Any]]]) -> None:
    arrays = {f"{index}/{name}": array for index, batch in enumerate(batches) for name, array in batch.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # its keyword arguments are arrays, not only allow_pickle


def _load(path: Path, count: int) -> list[Arrays]:
    batches: list[Arrays] = [{} for _ in range(count)]
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            index, _, name = key.partition("/")
            batches[int(index)][name] = arrays[key]
    return batches


def _serve(folder: Path) -> None:
    """The process's side: read the request, run, write the answer."""
    request = json.loads((folder / "request.json").read_text())
    inputs = np.load(folder / "inputs.npz", allow_pickle=False)
    count = 1 + max(int(key.partition("/")[0]) for key in inputs.files)
    batches = _load(folder / "inputs.npz", count)
    model, basic = Path(request["model"]), request["basic"]
    graph = OnnxRuntimeBackend("cpu").load(model, model.name, basic=basic)
    _save(folder / "outputs.npz", [graph.run(batch) for batch in batches])
    timed = request["timed"]
    cpu_ms = None if timed is None else _cpu_ms(model, batches[timed], basic)
    (folder / "result.json").write_text(json.dumps({"cpu_ms": cpu_ms}))


def _cpu_ms(model: Path, batch: Arrays, basic: bool) -> float:
    """Median CPU time of one run on one thread; more threads would add the time they spend waiting."""
    graph = OnnxRuntimeBackend("cpu", threads=1).load(model, model.name, basic=basic)
    graph.run(batch)
    times: list[float] = []
    while len(times) < TIMED_RUNS and sum(times) < TIMED_SECONDS:
        start = time.process_time()
        graph.run(batch)
        times.append(time.process_time() - start)
    return float(np.median(times)) * 1e3


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
