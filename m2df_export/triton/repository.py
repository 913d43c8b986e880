"""Adds the models of a bundle, and the next version of a bank, to a repository that may be in use.

A version is a folder that appears by one rename when it is complete, and that nothing touches afterwards. `m2df`,
the pipeline, names the versions it is made of and changes last: whatever a server finds before that belongs to a
pipeline that does not exist yet.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from m2df_export.triton.config import (
    About,
    Pins,
    Target,
    bank_config,
    pipeline_config,
    query_config,
    visual_config,
)
from m2df_export.triton.graphs import Interface, bank_model, interface, query_model, visual_model
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.errors import InputError
from m2df_runtime.files import atomic_write, exclusive, sync_folder, temporary_folder

MODEL, CONFIG, RECORD = "model.onnx", "config.pbtxt", "pipeline.json"
PIPELINE = "m2df"

_VERSION = re.compile(r"[1-9][0-9]*")
_MAX_BATCH = re.compile(r"^\s*max_batch_size\s*:\s*(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Published:
    """One model of the repository after an export.

    Attributes:
        model: Its name.
        version: Its newest version.
        new: Whether this export wrote that version.
        config_kept: Whether its config.pbtxt says something else than this export would have written.
    """

    model: str
    version: int
    new: bool
    config_kept: bool


@dataclass(frozen=True)
class Repository:
    """The result of an export: the models, and the classes in the order of the outputs."""

    path: Path
    models: tuple[Published, ...]
    classes: tuple[str, ...]
    target: Target


def write_repository(out: Path, bundle: Bundle, bank: SupportBank, target: Target) -> Repository:
    """Write what the repository does not hold yet.

    Args:
        out: The repository; made if missing. Other models in it are left alone.
        bundle: The bundle the bank was made with.
        bank: Classes of the new version.
        target: Precision, device and batch size.

    Raises:
        InputError: `out` holds models of these names with other inputs or outputs, or another process writes it.
        OSError: It cannot be written.
    """
    contents = {
        "visual": visual_model(bundle, target.precision),
        "query": query_model(bundle, target.precision),
        "bank": bank_model(bundle, target.precision, bank),
    }
    tensors = {name: interface(content) for name, content in contents.items()}
    with exclusive(out / PIPELINE):  # inside: the repository may be a mount whose parent nobody can write
        for name in contents:
            _check_folder(out / name, tensors[name])
        _check_pipeline(out / PIPELINE)
        done = {name: _publish(out / name, contents[name], _CONFIGS[name](tensors[name], target)) for name in contents}
        pins = Pins(done["visual"].version, done["bank"].version)
        config = partial(pipeline_config, tensors["visual"], tensors["bank"], pins, _common_batch(out, target))
        done[PIPELINE] = _publish_pipeline(out / PIPELINE, bundle, bank, target, pins, config)
    return Repository(out, tuple(done.values()), bank.labels, target)


_CONFIGS: Mapping[str, Callable[[Interface, Target], str]] = {
    "visual": visual_config,
    "query": query_config,
    "bank": bank_config,
}


def check_repository(out: Path) -> None:
    """Refuse a place that cannot be a repository, before minutes of work. Raises InputError."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file", "name the directory of the model repository")
    if (out / "manifest.json").is_file():
        raise InputError(f"{out}: is a bundle", "name another directory for the model repository")


def _check_folder(folder: Path, wanted: Interface) -> None:
    """Refuse a model of the same name that is not ours, or that takes other tensors: clients could not use both."""
    if not folder.exists():
        return
    versions = versions_of(folder)
    try:
        found = interface((folder / str(versions[-1]) / MODEL).read_bytes()) if versions else None
    except (OSError, ValueError):
        raise InputError(
            f"{folder}: a model of this name, not written by m2df-export", "name another repository"
        ) from None
    if found is not None and found != wanted:
        old, new = (", ".join(f"{t.name} {list(t.shape)}" for t in i.inputs + i.outputs) for i in (found, wanted))
        raise InputError(
            f"{folder}: its versions have {old}; this bundle has {new}",
            "versions of one model share their shapes: write a repository of its own for this bundle",
        )


def _check_pipeline(folder: Path) -> None:
    config = folder / CONFIG
    if config.exists() and not any((folder / str(version) / RECORD).is_file() for version in versions_of(folder)):
        raise InputError(f"{folder}: a model of this name, not written by m2df-export", "name another repository")


def versions_of(folder: Path) -> list[int]:
    """Version numbers of a model, in rising order."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and _VERSION.fullmatch(p.name))


def _publish(folder: Path, content: bytes, config: str) -> Published:
    """Write the next version of a model, unless the newest is the same, and its configuration, unless it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONFIG
    if not path.exists():
        atomic_write(path, config.encode())
    kept = path.read_text(encoding="utf-8") != config
    versions = versions_of(folder)
    newest = versions[-1] if versions else 0
    held = folder / str(newest) / MODEL
    if versions and held.stat().st_size == len(content) and held.read_bytes() == content:
        return Published(folder.name, newest, False, kept)
    _add_version(folder, newest + 1, MODEL, content)
    return Published(folder.name, newest + 1, True, kept)


def _publish_pipeline(
    folder: Path,
    bundle: Bundle,
    bank: SupportBank,
    target: Target,
    pins: Pins,
    config_for: Callable[[About], str],
) -> Published:
    """Switch the pipeline to these versions: a version folder, its labels, and last the configuration."""
    record = {
        "bundle": bundle.manifest.name,
        "precision": target.precision,
        **asdict(pins),
        "classes": list(bank.labels),
    }
    content = (json.dumps(record, indent=2) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    versions = versions_of(folder)
    newest = versions[-1] if versions else 0
    held = folder / str(newest) / RECORD
    new = not (held.is_file() and held.read_bytes() == content)
    version = newest + new
    labels = f"labels.{version}.txt"
    config = config_for(About(bundle.manifest.name, bundle.manifest.clip, labels))
    # Labels before the configuration that names them, under a name no earlier configuration has.
    _write_if_other(folder / labels, "".join(f"{' '.join(label.split())}\n" for label in bank.labels))
    if new:
        # An ensemble's version has no file of its own, but object stores and Git keep no empty folders.
        _add_version(folder, version, RECORD, content)
    _write_if_other(folder / CONFIG, config)
    return Published(folder.name, version, new, False)


def _write_if_other(path: Path, text: str) -> None:
    """Write a file unless it says so already: a server that polls would take a newer time for a change."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        atomic_write(path, text.encode())


def _common_batch(out: Path, target: Target) -> int:
    """Most clips the pipeline may take at once: the least of its models, which their owner may have changed."""
    sizes = (_MAX_BATCH.search((out / name / CONFIG).read_text(encoding="utf-8")) for name in ("visual", "bank"))
    return min((int(found[1]) for found in sizes if found), default=target.max_batch)


def _add_version(folder: Path, version: int, name: str, content: bytes) -> None:
    """A version folder with one file, in place by a rename.

    It is prepared inside the model's folder, where Triton passes over names that are no numbers; beside it, it would
    be taken for a model, and outside the repository may be another file system.
    """
    target = folder / str(version)
    with temporary_folder(target) as work:
        with (work / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        work.chmod(0o755)
        work.rename(target)
        sync_folder(folder)  # before a configuration names it
