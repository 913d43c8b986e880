"""Each graph by itself on inputs that were drawn: other sizes than clips give, 1 among them, and other pictures.

A model with random weights is held to these alone, for its top-1 is noise.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.bundle.prompt_texts import LabelRules
from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.evaluation.scorer import Scorer

Arrays = Mapping[str, NDArray[Any]]

_ACTIONS = ("running", "waving a hand", "sitting down", "opening a door", "two people shaking hands")
_TIMED_RUNS = 5
_TIMED_SECONDS = 6.0  # a large encoder takes that for one run; it is then timed once


def smooth_pictures(rng: np.random.Generator, count: int, size: int) -> NDArray[np.uint8]:
    """Pictures of 4 × 4 random colours with noise, uint8 [N, S, S, 3]: flatter spectra than noise alone."""
    coarse = rng.integers(0, 256, (count, 4, 4, 3)).astype(np.float32)
    smooth = coarse.repeat(-(-size // 4), axis=1).repeat(-(-size // 4), axis=2)[:, :size, :size]
    return np.clip(smooth + rng.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)


def drawn_inputs(model: Scorer, rules: LabelRules, spec: ClipSpec) -> dict[str, NDArray[Any]]:
    """Inputs of all graphs, those of the head as large as the model's towers give.

    Returns:
        `pictures` uint8 [1, T, S, S, 3], `texts` [5], their `prompts` [5, D], `shots` [3, T, D], a `single` clip of
        each class [5, T, D], the `prototypes` [5, V, T, D] of these, and `queries` [6, T, D].
    """
    rng = np.random.default_rng(0)
    pictures = smooth_pictures(rng, spec.frames, spec.size)[None]
    texts = [rules.prompts(name)[0] for name in _ACTIONS]
    features, prompts = model.encode_clips(pictures), model.encode_texts(texts)
    magnitude = float(np.sqrt(np.mean(features**2)))

    def clips(count: int) -> NDArray[np.float32]:
        return magnitude * rng.standard_normal((count, spec.frames, features.shape[-1]), dtype=np.float32)

    shots, single = clips(3), clips(len(texts))
    prototypes = np.stack(
        [model.prototypes(clip[None], text[None]) for clip, text in zip(single, prompts, strict=True)]
    )
    return {
        "pictures": pictures,
        "texts": np.array(texts),
        "prompts": prompts,
        "shots": shots,
        "single": single,
        "prototypes": prototypes,
        "queries": clips(6),
    }


def graph_outputs(model: Scorer, given: Arrays) -> dict[str, NDArray[Any]]:
    """What the four graphs make of drawn inputs: `graph/...` to array, the same keys for every model."""
    pictures, texts, prompts = given["pictures"], given["texts"].tolist(), given["prompts"]
    found: dict[str, NDArray[Any]] = {
        "visual/clip": model.encode_clips(pictures),
        "visual/frame": model.encode_clips(pictures[:, :1]),
        "text/all": model.encode_texts(texts),
        "text/one": model.encode_texts(texts[:1]),
        "support/shots": model.prototypes(given["shots"], prompts[:1]),
    }
    for place, clip in enumerate(given["single"]):
        found[f"support/{place}"] = model.prototypes(clip[None], prompts[place][None])
    for queries, classes in ((slice(0, 3), 5), (slice(3, 5), 1), (slice(5, 6), 5)):
        scores = model.match(given["queries"][queries], prompts[:classes], given["prototypes"][:classes])
        found |= {f"query/{queries.start}/{name}": value for name, value in vars(scores).items() if value is not None}
    return found


def cpu_ms(model: Scorer, given: Arrays) -> float:
    """CPU time of one query clip through the visual and the query graph with five classes, in milliseconds.

    CPU time is not disturbed by other processes; the model runs on one thread, for more would add the time they wait.
    """
    query = given["queries"][5:6]

    def clip() -> None:
        model.encode_clips(given["pictures"])

    def match() -> None:
        model.match(query, given["prompts"], given["prototypes"])

    total = 0.0
    for work in (clip, match):
        work()
        times: list[float] = []
        while len(times) < _TIMED_RUNS and sum(times) < _TIMED_SECONDS:
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        total += float(np.median(times)) * 1e3
    return total
