"""Writes bundles: all files in a folder beside the target, flushed, then swapped in by a rename.

Until the swap the old bundle is untouched, so a killed or failing export leaves it as it was.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m2df_export.onnx_export import signature
from m2df_export.precision import file_name
from m2df_runtime.bundle import (
    GRAPHS,
    MANIFEST_NAME,
    BundleFile,
    GraphInfo,
    GraphName,
    Manifest,
    Precision,
    sha256_file,
)
from m2df_runtime.errors import InputError

ENGINES = "engines"  # TensorRT engines, which belong to a machine
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same content gives the same zip


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of `target` when the block ends without an exception.

    What a killed export left beside it goes first, and a bundle that one had put aside comes back. So the
    caller holds the lock of `target` (`files.exclusive`).

    Raises:
        InputError: `target` is a file, or a folder with content that is not a bundle.
        OSError: A full disk; it names `target` where it names no file.
    """
    check_target(target)
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    _recover(target)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        with _named(target):
            yield work
        for path in work.rglob("*"):
            if path.is_file():
                _flush(path)
        work.chmod(0o755)
        _swap(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


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


@contextlib.contextmanager
def _named(target: Path) -> Iterator[None]:
    """Give an error of the file system that names no file (a write does not) the name of what was written."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(target)
        raise


def _recover(target: Path) -> None:
    """Bring back the bundle that an export killed between its two renames left aside; remove unfinished folders."""
    for old in target.parent.glob(f".{glob.escape(target.name)}.*.old"):
        if not target.exists() and (old / MANIFEST_NAME).is_file():
            old.rename(target)
        else:
            shutil.rmtree(old, ignore_errors=True)
    for stray in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        if stray.is_dir():
            shutil.rmtree(stray, ignore_errors=True)


def _swap(work: Path, target: Path) -> None:
    if not target.exists():
        work.rename(target)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".old"))
    target.rename(old)  # an empty folder may be renamed onto
    try:
        work.rename(target)
    except OSError:
        old.rename(target)
        raise
    if (old / ENGINES).is_dir():
        # They took minutes, and each is bound to its graph's hash: what still fits is used, the rest is not.
        (old / ENGINES).rename(target / ENGINES)
    shutil.rmtree(old, ignore_errors=True)


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
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    work = Path(name)
    try:
        with _named(target), os.fdopen(handle, "wb+") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for path in sorted(p for p in bundle.rglob("*") if p.is_file() and bundle / ENGINES not in p.parents):
                    info = zipfile.ZipInfo(path.relative_to(bundle).as_posix(), _EPOCH)
                    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                    with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as member:
                        shutil.copyfileobj(source, member, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        work.chmod(0o644)
        work.replace(target)
    finally:
        work.unlink(missing_ok=True)
    return target
