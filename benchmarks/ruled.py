"""The model of a benchmark: on ONNX Runtime and the CPU, in the precision that the fixed rule takes.

So no figure depends on which engine was found fastest on the machine at hand.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.record import bundle_hash
from m2df_runtime.backends.model import Model
from m2df_runtime.backends.precisions import default_precision
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.shipped import newest_bundle
from m2df_runtime.engine_names import EngineName

ENGINE: EngineName = "cpu"


def ruled(path: Path | None, threads: int | None = None) -> Model:
    """A bundle by the fixed rule; where none is named the newest in `bundles/`, else the one shipped with m2df."""
    bundle = Bundle.open(path or newest_bundle())
    return Model(bundle, backend=ENGINE, precision=default_precision(bundle, ENGINE), threads=threads)


def as_options(path: Path) -> list[str]:
    """The same as options of a command."""
    precision = default_precision(Bundle.open(path), ENGINE)
    return ["--bundle", str(path), "--backend", ENGINE, "--precision", precision]


def described(model: Model) -> dict[str, object]:
    """What a record says of the model."""
    bundle = model.bundle
    return {
        "name": bundle.manifest.name,
        "sha256": bundle_hash(bundle),
        "backend": model.backend,
        "precision": model.precision,
    }
