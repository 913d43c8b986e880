"""t-SNE of queries and prototypes before and after the head has encoded them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

from m2df_train.model.heads import ClipFsarHead, Head, M2dfHead, deterministic_head
from m2df_train.report.tested import Drawn, Tested

Float = NDArray[np.float32]

CLASSES = 10  # more cannot be told apart by colour
QUERIES = 30  # clips per class
_PERPLEXITY = 30.0


@dataclass(frozen=True)
class Panel:
    """One map.

    Attributes:
        title: What was mapped.
        queries: Places of the queries, float32 [n, 2].
        prototypes: Places of the prototypes, float32 [C, 2].
        nearest: Percentage of queries whose nearest prototype is that of their class, in all dimensions.
        silhouette: Mean silhouette of the queries, -1 to 1, in all dimensions.
    """

    title: str
    queries: Float
    prototypes: Float
    nearest: float
    silhouette: float


@dataclass(frozen=True)
class Projection:
    """Maps of the same clips.

    Attributes:
        panels: Before fusion, then after it for every view.
        classes: Names of the classes shown.
        owner: Class of every query, a position in `classes`, int64 [n].
        shot: Support clips per prototype.
    """

    panels: tuple[Panel, ...]
    classes: tuple[str, ...]
    owner: NDArray[np.int64]
    shot: int


def project(model: Tested, drawn: Drawn) -> Projection:
    """Map clips of up to ten classes, drawn with the seed of the episodes.

    Of every class as many clips as the largest number of shots make the prototype, and up to 30 others
    are queries. A clip's frames are averaged and brought to length one, so that places are compared as
    cosines. A query's prompt is chosen among the texts of all classes shown.
    """
    features, prompts, seed = model.encoded.features.values, model.encoded.prompts, drawn.options.seed
    shot = max(drawn.options.shots)
    sampler, rng = drawn.sampler(shot), np.random.default_rng(seed)
    usable = [c for c, name in enumerate(sampler.classes) if name not in sampler.excluded]
    chosen = np.sort(rng.choice(usable, min(CLASSES, len(usable)), replace=False))
    names = tuple(sampler.classes[c] for c in chosen)
    labels = np.array(drawn.labels)
    clips = [rng.permutation(np.flatnonzero(labels == name))[: shot + QUERIES] for name in names]
    support = features[np.stack([of_class[:shot] for of_class in clips])]  # (C, K, T, D)
    queries = features[np.concatenate([of_class[shot:] for of_class in clips])]  # (n, T, D)
    owner = np.repeat(np.arange(len(names)), [len(of_class) - shot for of_class in clips])
    panels = [_panel("before fusion", queries, support.mean(axis=1), owner, seed)]
    if model.checkpoint is not None:
        prototypes = model.encoded.subject.scorer.batch_prototypes(support, prompts[chosen])  # (C, V, T, D)
        encoded = _encoded_queries(model.checkpoint.head, queries, prompts[chosen])
        for view, (title, tokens) in enumerate(encoded.items()):
            panels.append(_panel(title, tokens, prototypes[:, view], owner, seed))
    return Projection(tuple(panels), names, owner, shot)


@torch.inference_mode()
def _encoded_queries(head: Head, features: Float, prompts: Float) -> dict[str, Float]:
    """What the head matches of queries [n, T, D], by view; nothing for a head that encodes nothing."""
    device = next((p.device for p in head.parameters()), torch.device("cpu"))
    clips, texts = torch.from_numpy(features).to(device), torch.from_numpy(prompts).to(device)
    fixed = deterministic_head(head)
    if isinstance(fixed, M2dfHead):
        selection = fixed.select(clips, texts, fixed.options.pps.eval)
        local, other = fixed.tokens(clips, selection.prompts)[:, :, 1:].transpose(0, 1)  # (n, T, D) each
        return {"after fusion, local view": local.cpu().numpy(), "after fusion, global view": other.cpu().numpy()}
    if isinstance(fixed, ClipFsarHead):
        return {"after fusion": fixed.fusion(clips).cpu().numpy()}
    return {}


def _panel(title: str, queries: Float, prototypes: Float, owner: NDArray[np.int64], seed: int) -> Panel:
    vectors, centres = _directions(queries), _directions(prototypes)
    points = np.concatenate([vectors, centres])
    perplexity = min(_PERPLEXITY, (len(points) - 1) / 3)
    # A few hundred points: threads that share so little wait for each other, minutes long on a busy machine.
    with threadpool_limits(1):
        places = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    of_several = len(owner) > len(centres)  # a silhouette needs two queries of some class
    return Panel(
        title=title,
        queries=places[: len(queries)],
        prototypes=places[len(queries) :],
        nearest=100 * float(((vectors @ centres.T).argmax(axis=1) == owner).mean()),
        silhouette=float(silhouette_score(vectors, owner, metric="cosine")) if of_several else 0.0,
    )


def _directions(frames: Float) -> Float:
    """Average over time, of length one: [n, T, D] -> [n, D]."""
    mean = frames.mean(axis=1)
    unit: Float = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    return unit
