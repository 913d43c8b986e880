"""A rival that nobody trained for actions: EfficientNet-Lite0 with its ImageNet weights on the same motion crops."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.model.backbone import import_open_clip
from m2df_train.model.imagenet_weights import lite0_weights

Float = NDArray[np.float32]
# The motion box in colour, and grey with the change to the frame before.
COLOUR_CLIP, CHANGE_CLIP = (
    ClipSpec(frames=8, size=128, interpolation="bilinear", region="motion", channels=channels)
    for channels in ("rgb", "motion")
)


def frozen_features(colour: NDArray[np.uint8], changes: NDArray[np.uint8]) -> Float:
    """Pooled features of every frame in colour, and beside them those of its change to the frame before.

    Args:
        colour: Clips [N, T, 128, 128, 3] as `COLOUR_CLIP` makes them.
        changes: The same as `CHANGE_CLIP` makes them; of its channels the second is used.

    Returns:
        float32 [N, T, 2 * 1280].
    """
    import_open_clip()  # timm needs what it does about torchvision
    from timm.models import EfficientNet, create_model

    network: EfficientNet = create_model("tf_efficientnet_lite0", pretrained=False)  # type: ignore[assignment]
    network.load_state_dict(lite0_weights(network.state_dict()))
    network.reset_classifier(0)
    network.eval()
    grey = np.repeat(changes[..., 1:2], 3, axis=-1)

    def encode(clip: NDArray[np.uint8]) -> Float:
        pixels = (torch.from_numpy(clip).permute(0, 3, 1, 2).float() - 127.0) / 128.0
        return np.asarray(network(pixels).numpy(), dtype=np.float32)

    with torch.inference_mode():
        pairs = [np.concatenate([encode(a), encode(b)], axis=1) for a, b in zip(colour, grey, strict=True)]
    return np.stack(pairs)
