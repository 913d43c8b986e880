"""Contract: every TensorRT name our code uses exists in every version it is used with.

The table was read with `dir()` from NVIDIA's bindings of each version (with stub libraries, on a machine
without a GPU). This says that the names are there, not that TensorRT does what we expect of them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_tensorrt import TABLE, VERSIONS, exists

from m2df_runtime.backends.engine_files import version_tuple

ROOT = Path(__file__).parents[2]
FILES = (
    "m2df_runtime/backends/tensorrt.py",
    "m2df_runtime/backends/tensorrt_graph.py",
    "m2df_runtime/backends/tensorrt_lane.py",
    "m2df_export/tensorrt_network.py",
)
# What our code calls an object, and its class.
OBJECTS = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "profile": "IOptimizationProfile", "context": "IExecutionContext", "engine": "ICudaEngine",
    "_engine": "ICudaEngine", "raw": "IExecutionContext", "loaded": "ICudaEngine",
    "runtime": "Runtime", "_runtime": "Runtime", "layer": "ILayer", "output": "ITensor",
    "preview": "PreviewFeature", "sources": "TacticSource",
    "flags": "NetworkDefinitionCreationFlag", "cache": "ITimingCache",
}  # fmt: skip
# Results of calls that are used at once.
CALLS = {
    "get_error": "ParserError", "create_engine_inspector": "EngineInspector", "get_timing_cache": "ITimingCache",
}  # fmt: skip


def since(*version: int) -> Callable[[str], bool]:
    return lambda running: version_tuple(running) >= version


def before(*version: int) -> Callable[[str], bool]:
    return lambda running: version_tuple(running) < version


# Names that not every version has, and where our code uses them: behind a question for the version or `hasattr`.
GUARDED = {
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": before(10),
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": since(10),
    "BuilderFlag.FP16": before(10),
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS": before(10),
    "ILayer.precision": before(10),
    "ILayer.set_output_type": before(10),
    "PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805": before(10),
    "PreviewFeature.PROFILE_SHARING_0806": lambda running: since(8, 6)(running) and before(11)(running),
    "HardwareCompatibilityLevel": since(8, 6),
    "HardwareCompatibilityLevel.AMPERE_PLUS": since(8, 6),
    "IBuilderConfig.hardware_compatibility_level": since(8, 6),
    "BuilderFlag.VERSION_COMPATIBLE": since(8, 6),
    "Runtime.engine_host_code_allowed": since(8, 6),
}


def used_names() -> set[str]:
    """`Class` and `Class.name` of everything our code reads from TensorRT."""
    found = set()
    for file in FILES:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.Attribute):
                found |= _names(node)
    return found


def _names(node: ast.Attribute) -> set[str]:
    owner = node.value
    if isinstance(owner, ast.Call) and isinstance(owner.func, ast.Attribute) and owner.func.attr in CALLS:
        return {f"{CALLS[owner.func.attr]}.{node.attr}"}
    last = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
    if node.attr == "raw":  # our own class's attribute, which is the context itself
        return set()
    if last in ("module", "trt") and node.attr in TABLE["names"]:
        return {node.attr}
    if last in TABLE["names"]:  # an enum's member, or a class's name
        return {f"{last}.{node.attr}"}
    if last == "layer" and node.attr == "type":
        return {"ILayer.type", "LayerType.CONSTANT", "LayerType.SHAPE"}
    return {f"{OBJECTS[last]}.{node.attr}"} if last in OBJECTS else set()


NAMES = sorted(name for name in used_names() if not name.endswith(".__init__"))


def test_the_search_sees_what_is_certainly_used():
    assert len(NAMES) > 50
    assert set(GUARDED) <= set(NAMES)
    certain = ("OnnxParser.parse", "Runtime.deserialize_cuda_engine", "IExecutionContext.execute_async_v3",
               "IBuilderConfig.set_timing_cache", "ParserError.desc", "LayerInformationFormat.JSON")  # fmt: skip
    assert set(certain) <= set(NAMES)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_exists_in_every_version_it_is_used_with(version):
    missing = [n for n in NAMES if GUARDED.get(n, lambda _: True)(version) and not exists(n, version)]
    assert missing == []


def test_only_names_that_some_version_lacks_are_guarded():
    everywhere = [name for name in GUARDED if all(exists(name, version) for version in VERSIONS)]
    assert everywhere == []


def test_table_agrees_with_the_platform_notes(shared_dir):
    """The table in the notes was made separately; the two must not differ where they meet."""
    lines = (shared_dir / "docs" / "tensorrt-api.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert rows[0][1:] == list(VERSIONS)
    shared = {row[0]: "".join("y" if cell == "yes" else "-" for cell in row[1:]) for row in rows[1:]}
    common = {name: row for name, row in shared.items() if name in TABLE["names"]}
    assert len(common) > 100
    assert {name: TABLE["names"][name] for name in common} == common
