from __future__ import annotations

import pytest
import torch

from m2df_runtime.errors import InputError
from m2df_train.importing.official_heads import read_head_keys


def test_official_weights_that_cannot_be_used_are_named():
    weight = torch.zeros(2)
    with pytest.raises(InputError, match=r"trx\.weight"):
        read_head_keys({"scale": weight, "trx.weight": weight})
    with pytest.raises(InputError, match="differ"):
        read_head_keys({"tcn.network.0.conv1.bias": weight, "tcn.network.0.net.0.bias": weight + 1})
    names = read_head_keys(
        {"tcn.network.2.conv2.parametrizations.weight.original0": weight, "context_conv11.bias": weight}
    ).weights
    assert list(names) == ["global_view.context.blocks.2.conv2.parametrizations.weight.original0"]
