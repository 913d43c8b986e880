"""Writes bundles: all files in a folder beside the target, flushed, which then change places in one step.

Until then the old bundle is untouched, so a killed or failing export leaves it as it was, and whoever opens the
bundle finds the old one or the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m2df_export.graphs.onnx import signature
from m2df_export.precision.files import file_name
from m2df_runtime.bundle.manifest import GRAPHS, MANIFEST_NAME, BundleFile, GraphInfo, GraphName, Manifest
from m2df_runtime.engine_names import Precision
from m2df_runtime.errors import InputError
from m2df_runtime.files import atomic_file, exchange, sha256_file, sync_folder, temporary_folder

_OLD = ".old"
ENGINES = "engines"  # TensorRT engines, which belong to a machine
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same content gives the same zip


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of `target` when the block ends without an exception.

    A bundle that a killed export had put aside comes back first. So the caller holds the lock of `target`
    (`files.exclusive`).

    Raises:
        InputError: `target` is a file, or a folder with content that is not a bundle.
        OSError: A full disk; it names `target`.
    """
    check_target(target)
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    _recover(target)
    with temporary_folder(target) as work:
        yield work
        for path in work.rglob("*"):
            if path.is_file():
                _flush(path)
        work.chmod(0o755)
        _swap(work, target)
        sync_folder(target.parent)


def check_target(target: Path) -> None:
    """Refuse to replace what m2df did not write.

    Raises:
        InputError: A file, a folder with content and no manifest, or a place that cannot be written.
    """
    if target.is_file():
        raise InputError(f"{target}: is a file", "--out names the bundle directory; --zip adds a zip of it")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST_NAME).is_file():
        raise InputError(f"{target}: exists and is not a bundle", "name another directory with --out")
    place = target.resolve().parent
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        raise InputError(f"{target}: {place} cannot be written", "name another directory with --out")


def _swap(work: Path, target: Path) -> None:
    if not target.exists():
        work.rename(target)
        return
    if not exchange(work, target):
        _swap_in_two_steps(work, target)
    if (work / ENGINES).is_dir():
        # They took minutes, and each is bound to its graph's hash: what still fits is used, the rest is not.
        (work / ENGINES).rename(target / ENGINES)


def _swap_in_two_steps(work: Path, target: Path) -> None:
    """For file systems that cannot exchange: between the two renames there is no bundle. `_recover` undoes the first.

    The name under which the old one waits is no temporary's, which others may remove.
    """
    old = target.with_name(f".{target.name}{_OLD}")
    target.rename(old)
    try:
        work.rename(target)
    except OSError:
        old.rename(target)
        raise
    old.rename(work)


def _recover(target: Path) -> None:
    """Bring back the bundle that an export killed between two renames left aside."""
    old = target.with_name(f".{target.name}{_OLD}")
    if not old.is_dir():
        return
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(target)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def bundle_file(folder: Path, name: str) -> BundleFile:
    """Manifest entry of a file of the bundle folder."""
    path = folder / name
    return BundleFile(path=name, sha256=sha256_file(path), bytes=path.stat().st_size)


def describe_graphs(folder: Path, precisions: Sequence[Precision], opset: int) -> dict[GraphName, GraphInfo]:
    """Manifest entries of the four graphs from their files."""
    graphs: dict[GraphName, GraphInfo] = {}
    for graph in GRAPHS:
        files = {p: bundle_file(folder, file_name(graph, p)) for p in precisions}  # type: ignore[arg-type]
        inputs, outputs = signature(folder / files[precisions[0]].path)
        graphs[graph] = GraphInfo(inputs=inputs, outputs=outputs, opset=opset, files=files)  # type: ignore[index]
    return graphs


def drop_unlisted(folder: Path, graphs: Mapping[GraphName, GraphInfo]) -> None:
    """Delete graph files that no precision of the bundle uses."""
    listed = {file.path for info in graphs.values() for file in info.files.values()}
    for path in folder.glob("*.onnx"):
        if path.name not in listed:
            path.unlink()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json."""
    write_json(folder / MANIFEST_NAME, manifest.model_dump(mode="json"))


def write_json(path: Path, data: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Write readable JSON."""
    path.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_zip(bundle: Path, target: Path) -> Path:
    """Write a zip of a bundle folder without its engines, replacing the old one only when it is complete."""
    with atomic_file(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in bundle.rglob("*") if p.is_file() and bundle / ENGINES not in p.parents):
            info = zipfile.ZipInfo(path.relative_to(bundle).as_posix(), _EPOCH)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as member:
                shutil.copyfileobj(source, member, 1 << 20)
    return target
