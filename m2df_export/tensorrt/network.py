"""One ONNX file to one TensorRT plan: network, optimisation profile, builder configuration.

What a version lacks is asked for with `hasattr`, never assumed; where versions differ, the line says how.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m2df_runtime.backends.tensorrt.backend import SHARES_PROFILES, TensorRT
from m2df_runtime.backends.tensorrt.engine_files import Range, version_tuple
from m2df_runtime.errors import CheckFailed, EnvironmentMissing, InputError

STRONGLY_TYPED = (10, 0)
# Constants and shapes have no precision of their own; pinning them makes TensorRT 8 refuse the network.
UNPINNED = ("CONSTANT", "SHAPE")
CUBLAS_LT = ("libcublasLt.so.11", "libcublasLt.so.12")
OLDEST_CUBLAS = 10_000


@dataclass(frozen=True)
class Build:
    """One build.

    Attributes:
        model: The ONNX file.
        label: Names it in error messages.
        inputs: Shape of every input, dynamic axes by name.
        profile: Smallest, best and largest size of every dynamic axis.
        half: The file's tensors are typed float16.
        workspace: Bytes the builder may try algorithms with; None leaves it to TensorRT.
        hardware_compatible: For every GPU from Ampere on.
        version_compatible: For later TensorRT versions too.
        timing_cache: What earlier builds measured, or nothing.
    """

    model: bytes
    label: str
    inputs: Mapping[str, tuple[int | str, ...]]
    profile: Mapping[str, Range]
    half: bool
    workspace: int | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    timing_cache: bytes = b""


@dataclass(frozen=True)
class BuiltPlan:
    """The plan, what the builder measured, and the engine inspector's JSON."""

    plan: bytes
    timing_cache: bytes
    layers: str


def check_options(trt: TensorRT, hardware_compatible: bool, version_compatible: bool) -> None:
    """Refuse options this TensorRT does not have.

    Raises:
        EnvironmentMissing: It lacks one; 8.6 is the first with either.
    """
    missing = []
    if hardware_compatible and not hasattr(trt.module, "HardwareCompatibilityLevel"):
        missing.append("--hardware-compatible")
    if version_compatible and not hasattr(trt.module.BuilderFlag, "VERSION_COMPATIBLE"):
        missing.append("--version-compatible")
    if missing:
        raise EnvironmentMissing(
            f"TensorRT {trt.machine.tensorrt} has no {' and no '.join(missing)}",
            "leave it out, or install 8.6 or later",
        )


def build_plan(trt: TensorRT, build: Build) -> BuiltPlan:
    """Parse and build.

    Raises:
        InputError: The parser refuses the file.
        CheckFailed: The builder finds no implementation.
        EnvironmentMissing: The driver cannot be used.
    """
    builder = trt.create(trt.module.Builder)
    network = builder.create_network(network_flags(trt))
    parser = trt.module.OnnxParser(network, trt.log.logger)
    if not parser.parse(build.model):
        reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        reason = reasons[0] if reasons else trt.log.last_error() or "no reason given"
        raise InputError(f"{build.label}: TensorRT {trt.machine.tensorrt} cannot read the graph: {reason}")
    config = builder.create_builder_config()
    for profile in _profiles(trt, builder, build):
        if config.add_optimization_profile(profile) < 0:
            reason = trt.log.last_error() or f"sizes {dict(build.profile)}"
            raise InputError(f"{build.label}: TensorRT {trt.machine.tensorrt} refuses the profile: {reason}")
    _configure(trt, config, build)
    if not strongly_typed(trt):
        _set_weak_types(trt, config, network, build.half)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = trt.log.last_error() or "no reason given"
        raise CheckFailed(f"{build.label}: TensorRT {trt.machine.tensorrt} cannot build it: {reason}")
    data = bytes(plan)
    measured = bytes(config.get_timing_cache().serialize())
    return BuiltPlan(data, measured, _layers(trt, data, build.version_compatible))


def strongly_typed(trt: TensorRT) -> bool:
    """Whether networks take their types from the graph: TensorRT 10 on request, 11 always."""
    return version_tuple(trt.machine.tensorrt) >= STRONGLY_TYPED


def network_flags(trt: TensorRT) -> int:
    """EXPLICIT_BATCH before 10 (11 has it no longer), STRONGLY_TYPED from 10 on."""
    flags = trt.module.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED if strongly_typed(trt) else flags.EXPLICIT_BATCH)


def _profiles(trt: TensorRT, builder: Any, build: Build) -> list[Any]:  # noqa: ANN401 - TensorRT has no static types
    """One profile, or two where contexts cannot share one: the second is the CUDA graph's.

    Inputs without a dynamic axis have no place in a profile.
    """
    count = 1 if version_tuple(trt.machine.tensorrt) >= SHARES_PROFILES else 2
    profiles = []
    for _ in range(count):
        profile = builder.create_optimization_profile()
        dynamic = {name: shape for name, shape in build.inputs.items() if any(isinstance(axis, str) for axis in shape)}
        for name, shape in dynamic.items():
            low, best, high = profile_shapes(shape, build.profile)
            profile.set_shape(name, low, best, high)
        profiles.append(profile)
    return profiles


def profile_shapes(
    shape: tuple[int | str, ...], profile: Mapping[str, Range]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Smallest, best and largest shape of an input."""
    low, best, high = (
        tuple(axis if isinstance(axis, int) else profile[axis][place] for axis in shape) for place in range(3)
    )
    return low, best, high


def _configure(trt: TensorRT, config: Any, build: Build) -> None:  # noqa: ANN401
    """Everything but precision."""
    module = trt.module
    if build.workspace is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, build.workspace)
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if build.hardware_compatible:
        config.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
    if build.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    config.clear_flag(module.BuilderFlag.TF32)  # 10 bits of mantissa are not what the fp32 parts of a graph promise
    preview = module.PreviewFeature
    if hasattr(preview, "PROFILE_SHARING_0806"):  # 8.6 to 10; 11 does it always
        config.set_preview_feature(preview.PROFILE_SHARING_0806, True)
    if not strongly_typed(trt) and not cublas_works():
        sources = module.TacticSource
        config.set_tactic_sources(1 << int(sources.EDGE_MASK_CONVOLUTIONS) | 1 << int(sources.JIT_CONVOLUTIONS))
        if hasattr(preview, "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805"):
            config.set_preview_feature(preview.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805, True)
    cache = config.create_timing_cache(build.timing_cache)
    if cache is None or not config.set_timing_cache(cache, False):  # damaged, or of another GPU or version
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _set_weak_types(trt: TensorRT, config: Any, network: Any, half: bool) -> None:  # noqa: ANN401
    """Before 10 types are wishes: allow half precision, and pin to fp32 what the graph computes in fp32."""
    if not half:
        return
    module = trt.module
    config.set_flag(module.BuilderFlag.FP16)
    config.set_flag(module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    unpinned = tuple(getattr(module.LayerType, name) for name in UNPINNED)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(place) for place in range(layer.num_outputs)]
        if layer.type in unpinned or not all(output.dtype == module.DataType.FLOAT for output in outputs):
            continue
        layer.precision = module.DataType.FLOAT
        for place in range(layer.num_outputs):
            layer.set_output_type(place, module.DataType.FLOAT)


def cublas_works() -> bool:
    """Whether the cuBLAS that TensorRT 8 takes kernels from is there and real, not a stand-in that only links."""
    for name in CUBLAS_LT:
        try:
            version = int(ctypes.CDLL(name).cublasLtGetVersion())
        except (OSError, AttributeError):
            continue
        return version >= OLDEST_CUBLAS
    return False


def _layers(trt: TensorRT, plan: bytes, host_code: bool) -> str:
    """The engine inspector's JSON of every layer."""
    runtime = trt.create(trt.module.Runtime)
    if host_code:
        runtime.engine_host_code_allowed = True  # it was built a moment ago
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise CheckFailed(f"TensorRT cannot load what it built: {trt.log.last_error() or 'no reason given'}")
    layers: str = engine.create_engine_inspector().get_engine_information(trt.module.LayerInformationFormat.JSON)
    return layers
