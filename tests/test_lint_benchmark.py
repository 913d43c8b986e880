"""The benchmark of lint on clips whose actions lie far apart: what it counts is what was planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_bundle import DIM, FRAMES

from benchmarks.lint import KINDS, Clips, measure
from m2df_runtime.backends.model import Model
from m2df_runtime.bundle.bundle import Bundle


def test_planted_mistakes_of_clear_actions_are_found_and_counted(tiny_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    plain = {}
    for number in range(6):
        centre = np.where(np.arange(DIM) // 2 == number, 5, 0.5).astype(np.float32)
        plain[f"action {number}"] = (centre + 0.1 * rng.normal(size=(14, FRAMES, DIM))).astype(np.float32)
    anew = {label: clips[:2] + np.float32(1e-3) for label, clips in plain.items()}
    still = {label: np.repeat(clips[:2, :1], FRAMES, axis=1) for label, clips in plain.items()}
    model = Model(Bundle.open(tiny_bundle), backend="cpu", threads=1)
    found = measure(model, Clips(plain, anew, still), classes=5, shots=3, draws=3, seed=0)
    for kind in ("mislabelled", "twice", "still"):  # the clips of one action are not nearer to one another than to half
        assert found["found"][kind] == 1.0, kind
    wrong = found["wrongly_named_per_clean_bank"]
    assert wrong == dict.fromkeys(KINDS, 0.0) and found["clean_banks_with_a_finding"] == 0
