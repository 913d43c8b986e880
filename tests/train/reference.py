"""Loads reference arrays, the golden ones or all, and compares with the tolerances of tests/golden/README.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from m2df_train.importing.official_heads import read_head_keys

GOLDEN = Path(__file__).parents[1] / "golden"
GRADIENT = 1e-3  # of the largest reference value of the array, float32


def generate(seed: int, shape: tuple[int, ...], scale: float) -> Tensor:
    """The number generator of method.md, appendix A."""
    k = np.arange(int(np.prod(shape)), dtype=np.int64)
    r = (1103515245 * k + 12345 + 362436069 * seed) % 2**31
    return torch.from_numpy((scale * (2.0 * r / 2**31 - 1.0)).astype(np.float32).reshape(shape))


class Recorded(dict[str, np.ndarray]):
    """Arrays by name, and which of them were looked at."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.seen.add(name)
        return super().__getitem__(name)


class Reference:
    """One reference file: inputs, settings and expected arrays in the precision under test."""

    def __init__(self, folder: Path, name: str, dtype: torch.dtype = torch.float64) -> None:
        self.folder = folder
        self.dtype = dtype
        self.kind = "f64" if dtype == torch.float64 else "f32"
        files = json.loads((self.folder / "manifest.json").read_text())["files"]
        entry = next(f for f in files if f["file"] == name)
        self.config = entry["config"]
        self.rounding = entry["max_abs_f32_minus_f64"]
        with np.load(self.folder / name) as arrays:
            self.arrays = Recorded({key: arrays[key] for key in arrays.files})

    def input(self, name: str) -> Tensor:
        """A float array, in the precision under test."""
        return torch.from_numpy(self.arrays[name]).to(self.dtype)

    def index(self, name: str) -> Tensor:
        """An integer array (labels are stored as floats)."""
        return torch.from_numpy(self.arrays[name].astype(np.int64))

    def has(self, run: str, name: str) -> bool:
        """Whether the file stores this result of the run."""
        return f"{run}.{self.kind}.{name}" in self.arrays

    def unread(self) -> set[str]:
        """Stored arrays of the precision under test that nothing was compared with."""
        other = {"f64": ".f32.", "f32": ".f64."}[self.kind]
        return {name for name in set(self.arrays) - self.arrays.seen if other not in name}

    def expected(self, name: str) -> Tensor:
        """A stored result, `run.name`, in the precision under test."""
        run, _, result = name.partition(".")
        return self.input(f"{run}.{self.kind}.{result}")

    def head_weights(self) -> dict[str, Tensor]:
        """The official weights of this file under m2df's names."""
        state = load_file(self.folder / self.config["weights"])
        return {key: value.to(self.dtype) for key, value in read_head_keys(state).weights.items()}

    def check(self, run: str, name: str, actual: Tensor, atol: float | None = None) -> None:
        """Compare one result; ``atol`` overrides the float32 tolerance."""
        expected = self.arrays[f"{run}.{self.kind}.{name}"].astype(np.float64)
        if not np.isfinite(expected).all():  # the official OTAM overflows at lambda 0.1
            expected = np.where(np.isfinite(expected), expected, self.arrays[f"{run}.f64.{name}"].astype(np.float64))
        found = actual.detach().double().numpy()
        assert found.shape == expected.shape, f"{run}.{name}: shape {found.shape}, not {expected.shape}"
        difference = np.abs(found - expected)
        if self.kind == "f64":
            allowed = 1e-9 + 1e-9 * np.abs(expected)
        else:
            seen = 20.0 * self.rounding.get(f"{run}.*.{name}", 0.0)
            allowed = np.maximum((atol or 1e-4) + 1e-4 * np.abs(expected), seen)
        assert (difference <= allowed).all(), f"{run}.{name}: off by {difference.max():.3g}"

    def check_gradient(self, run: str, name: str, actual: Tensor) -> None:
        """Compare a gradient relative to the largest entry of the reference."""
        expected = self.arrays[f"{run}.{self.kind}.{name}"].astype(np.float64)
        found = actual.detach().double().numpy().reshape(expected.shape)
        allowed = 1e-9 + (1e-9 if self.kind == "f64" else GRADIENT) * np.abs(expected).max()
        difference = np.abs(found - expected).max()
        assert difference <= allowed, f"{run}.{name}: gradient off by {difference:.3g} of {np.abs(expected).max():.3g}"
