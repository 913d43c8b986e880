"""Packages that only some precisions need, and how to get them."""

from __future__ import annotations

import importlib.util

from m2df_runtime.errors import EnvironmentMissing

NNCF = "pip install 'm2df[int8]'"
MODELOPT = "in an environment of its own, for it brings onnxruntime-gpu: pip install 'm2df[fp8]'"


def nncf_missing() -> EnvironmentMissing | None:
    """Why calibrated int8 cannot be written here; None where it can."""
    if importlib.util.find_spec("nncf") is not None:
        return None
    return EnvironmentMissing("calibrated int8 needs NNCF, which is not installed", NNCF)


def modelopt_missing() -> EnvironmentMissing | None:
    """Why FP8 cannot be written here; None where it can."""
    if importlib.util.find_spec("modelopt") is not None:
        return None
    return EnvironmentMissing("FP8 needs NVIDIA's modelopt, which is not installed", MODELOPT)
