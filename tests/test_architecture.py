"""The three floors: imports run downwards only, and the runtime is free of what it must not bring in."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "open_clip", "timm", "onnx", "onnxscript")
FORBIDDEN = {
    "m2df_runtime": ("m2df_train", "m2df_export", "benchmarks", "tests", *HEAVY),
    "m2df_train": ("m2df_export", "benchmarks", "tests"),
    "m2df_export": ("benchmarks", "tests"),
}
COMMANDS = {
    "m2df-train": "m2df_train.commands.train",
    "m2df-export": "m2df_export.commands.export",
    "m2df-run": "m2df_runtime.commands.run",
    "m2df-eval": "m2df_train.commands.evaluate",
    "m2df-doctor": "m2df_runtime.commands.doctor",
}
ENTRIES = {
    "m2df-train": "m2df_train.commands.entry:train",
    "m2df-export": "m2df_export.commands.entry:export",
    "m2df-run": "m2df_runtime.commands.entry:run",
    "m2df-eval": "m2df_train.commands.entry:evaluate",
    "m2df-doctor": "m2df_runtime.commands.entry:doctor",
}
# An image of heavy libraries would make `--help` slow: numpy alone takes 0.1 s, torch 5 s.
NOT_FOR_HELP = (
    "torch",
    "open_clip",
    "onnx",
    "onnxruntime",
    "numpy",
    "cv2",
    "av",
    "pydantic",
    "tokenizers",
    "fastapi",
    "uvicorn",
)


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every module a file imports, inside functions and `TYPE_CHECKING` too."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            yield ".".join([*above, *([node.module] if node.module else [])]), node.lineno


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_downwards_only(package):
    files = modules_of(package)
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for name, line in imported(path)
        if name.split(".")[0] in FORBIDDEN[package]
    ]
    assert wrong == []


# Rooms of each floor, from the ground up: a file imports from its own room and from those before it.
ROOMS = {
    "m2df_runtime": (
        "errors", "engine_names", "installed", "median", "regular_files", "files", "user_cache", "cpus",
        "other_programs", "deaf_children", "progress", "bounds", "parity", "clips", "pixels", "bundle", "backends",
        "bank", "match", "fastest", "stream", "show", "sinks", "bulk", "teaching", "serve", "commands",
    ),
    "m2df_train": (
        "public_benchmarks", "interrupt", "model", "synthetic", "recipe", "data", "cache", "evaluation", "training",
        "importing", "report", "commands",
    ),
    "m2df_export": ("graphs", "check", "precision", "bundle", "tensorrt", "triton", "pipeline", "commands"),
}  # fmt: skip


@pytest.mark.parametrize("package", ROOMS)
def test_arrows_between_rooms_run_down(package):
    """Imports inside functions and for types alone are arrows too. A package's own names stand above all rooms."""
    rooms = (*ROOMS[package], "__init__")
    here = {path.relative_to(ROOT / package).with_suffix("").parts[0] for path in modules_of(package)}
    assert here == set(rooms)
    upwards = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules_of(package)
        for name, line in imported(path)
        if name.startswith(f"{package}.")
        if rooms.index(name.split(".")[1]) > rooms.index(path.relative_to(ROOT / package).with_suffix("").parts[0])
    ]
    assert upwards == []


def modules_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running `code`."""
    report = "; import sys; print('\\n'.join(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + report], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_whole_runtime_brings_in_no_torch():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in modules_of("m2df_runtime")
        if path.name != "__main__.py"
    ]
    loaded = modules_after(f"import {', '.join(names)}")
    assert "m2df_runtime" in loaded
    assert loaded.isdisjoint({*HEAVY, "m2df_train", "m2df_export"})


def test_importing_the_package_loads_no_engine():
    assert modules_after("import m2df_runtime").isdisjoint({*HEAVY, *NOT_FOR_HELP})


@pytest.mark.parametrize("module", COMMANDS.values(), ids=COMMANDS)
def test_a_commands_help_works_and_is_light(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage:")
    assert "Examples:" in done.stdout
    assert done.stderr == ""
    loaded = modules_after(f"import {module}")
    assert sorted(loaded.intersection(NOT_FOR_HELP)) == []


def test_every_command_is_installed_under_its_name():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    scripts = dict(re.findall(r'^(m2df-\w+) = "(.+)"$', text, re.MULTILINE))
    assert scripts == ENTRIES
