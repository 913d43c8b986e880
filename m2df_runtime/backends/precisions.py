"""Which precisions of a bundle a backend may be given unasked, and which the fixed rule takes.

None that failed its parity, where that is known, and never fp8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2df_runtime.engine_names import ON_CPU, Precision, RunPrecision

if TYPE_CHECKING:
    from m2df_runtime.bundle.bundle import Bundle


def takeable(bundle: Bundle, backend: str) -> tuple[RunPrecision, ...]:
    """The precisions that a backend may be given unasked, best reference first.

    Those that passed parity, where it is known, without fp8. A GPU takes float graphs alone. int8 counts as any other:
    its gate at export bounds what it may cost, one point of accuracy. What OpenVINO computes in bf16 is held to its
    gate where it is measured.
    """
    found: list[RunPrecision] = [*(_passed(bundle) or bundle.manifest.precisions[:1])]
    if backend not in ON_CPU:
        return tuple(precision for precision in found if precision in ("fp32", "fp16"))
    if backend == "openvino" and found[0] in ("fp32", "fp16"):
        found.append("bf16")
    return tuple(found)


def _passed(bundle: Bundle) -> list[Precision]:
    manifest = bundle.manifest
    return [p for p in manifest.precisions if p != "fp8" and p in manifest.parity and manifest.parity[p].passed]


def default_precision(bundle: Bundle, backend: str) -> Precision:
    """The fixed rule: the fastest precision of a bundle for a backend, of those that passed; else the best reference.

    GPUs take fp16, and fp8 only where it is asked for. ONNX Runtime on a CPU takes the fastest, by the times
    measured with it at export. OpenVINO takes calibrated int8, else the best reference: it computes in fp32 whatever
    a float file holds, and multiplies the graphs of dynamic int8, which are made for ONNX Runtime, no faster than
    those of fp32.
    """
    manifest, passed = bundle.manifest, _passed(bundle)
    if backend == "openvino":
        return "int8-static" if "int8-static" in passed else next(iter(passed), manifest.precisions[0])
    if backend != "cpu":
        return "fp16" if "fp16" in passed else manifest.precisions[0]
    timed = {p: ms for p in passed if (ms := manifest.parity[p].cpu_ms) is not None}
    if timed:
        return min(timed, key=lambda p: timed[p])
    return manifest.precisions[0]
