"""The side that engines are held against: PyTorch, another bundle, or the bundle's own best graphs."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from m2df_export.check.clips import ClipFile, data_clips, usable, write_generated
from m2df_export.check.process import failure, run_process
from m2df_export.check.worker import INFO, Request, read_stage
from m2df_runtime.backends.model import BackendName
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.manifest import Precision
from m2df_runtime.errors import CheckFailed, InputError
from m2df_train.evaluation.models import is_bundle

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VerifyOptions:
    """What to verify.

    Attributes:
        bundle: The bundle.
        against: Checkpoint, run directory or other bundle it is held against; None for its own best graphs.
        data: Folder with one sub-folder of clips per class; None for generated clips.
        backends: Engines that must be there; empty for those that are.
        episodes: Number of 5-way 1-shot episodes.
        seed: Seed of the episodes.
    """

    bundle: Path
    against: Path | None = None
    data: Path | None = None
    backends: tuple[BackendName, ...] = ()
    episodes: int = 200
    seed: int = 0


@dataclass(frozen=True)
class Reference:
    """What engines are held against, with its results in `folder`.

    Attributes:
        folder: Results of its process.
        name: For people: engine, precision and path.
        precision: Of its graphs; PyTorch is fp32.
        own: Whether it is the bundle's own graphs, whose common errors no comparison shows.
        info: What its process wrote of itself.
        request: What its process was asked, with the clips it could read.
        source: Where the clips come from.
        random: Whether the weights are random, so that top-1 says nothing.
    """

    folder: Path
    name: str
    precision: Precision
    own: bool
    info: dict[str, Any]
    request: Request
    source: str
    random: bool


def run_reference(options: VerifyOptions, folder: Path) -> Reference:
    """Run the reference over the clips; its results stay in a sub-folder of `folder`.

    Raises:
        InputError: Checkpoint, bundle or clips cannot be used.
        CheckFailed: It does not run.
    """
    clips = data_clips(options.data) if options.data else write_generated(folder / "clips")
    source = options.data.resolve().name if options.data else "generated actions"
    clips, way = usable(clips, source)
    path = options.against or options.bundle
    graphs = options.against is None or is_bundle(path)
    manifest = Bundle.open(path if graphs else options.bundle).manifest
    precision = manifest.precisions[0] if graphs else "fp32"
    random = manifest.source.random_weights
    request = Request(
        kind="bundle" if graphs else "checkpoint",
        path=os.fspath(path.resolve()),
        backend="cpu",
        precision=precision,
        clips=tuple((clip.label, clip.name, os.fspath(clip.path)) for clip in clips),
        reference=None,
        way=way,
        episodes=0 if random else options.episodes,
        seed=options.seed,
    )
    results, request = _run_on_readable(request, clips, folder, source)
    info = json.loads((results / INFO).read_text(encoding="utf-8"))
    name = f"{info['engine']} {precision}, {path}"
    return Reference(results, name, precision, options.against is None, info, request, source, random)


def _run_on_readable(request: Request, clips: list[ClipFile], folder: Path, source: str) -> tuple[Path, Request]:
    """Run the reference; once more on fewer clips where some cannot be read."""
    results = folder / "reference"
    code, message = run_process(request, results)
    kept = _kept(results)
    if kept is not None and len(kept) < len(clips):
        readable = [clip for clip in clips if clip.name in kept]
        missing = [clip.name for clip in clips if clip.name not in kept]
        logger.warning("%s: left out, cannot be read: %s", source, ", ".join(missing))
        readable, way = usable(readable, source)
        rows = tuple((clip.label, clip.name, os.fspath(clip.path)) for clip in readable)
        request, results = replace(request, clips=rows, way=way), folder / "reference-again"
        code, message = run_process(request, results)
    if code:
        raise (InputError if code == 2 else CheckFailed)(f"the reference {failure(code, message)}")
    return results, request


def _kept(results: Path) -> list[str] | None:
    decoded = read_stage(results, "decode")
    return None if decoded is None else decoded["names"].tolist()
