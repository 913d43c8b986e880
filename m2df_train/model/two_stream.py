"""An image tower with two streams, registered with timm: one for movement, one for appearance.

Both read the three `motion` channels of a clip. The motion stream is the small network of `towers.py`, trained on
generated actions; the appearance stream is an EfficientNet-Lite0 with the weights it got from ImageNet, which has seen
the real world. (Two streams: Simonyan and Zisserman, arXiv 1406.2199.)
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import EfficientNet, create_model, register_model
from torch import Tensor, nn

from m2df_train.model.imagenet_weights import lite0_weights
from m2df_train.model.towers import SIZE as MOTION_SIZE
from m2df_train.model.towers import SpatialConvNet

SIZE = 96  # of the pictures, and what the appearance stream sees
MOTION_DIM, APPEARANCE_DIM = 128, 256
# Of the motion channels of generated clips, in [0, 1].
_MEAN, _STD = (0.45, 0.5, 0.5), (0.25, 0.15, 0.2)


class AppearanceStream(nn.Module):
    """EfficientNet-Lite0 on a picture whose red, green and blue are the frame before, this frame and the background.

    What stands still is a grey photograph, as ImageNet has them; what moves has coloured edges. Without training the
    256 numbers keep the distances of the 1,280 that the network has: the mean over all of them, and the directions in
    which its own classifier tells most pictures apart.

    Args:
        pretrained: Load the ImageNet weights; otherwise they are random.
    """

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        self.trunk: EfficientNet = create_model("tf_efficientnet_lite0", pretrained=False)  # type: ignore[assignment]
        self.projection = nn.Linear(self.trunk.num_features, APPEARANCE_DIM, bias=False)
        if pretrained:
            weights = lite0_weights(self.trunk.state_dict())
            self.trunk.load_state_dict(weights)
            with torch.no_grad():
                self.projection.weight.copy_(_main_directions(weights["classifier.weight"], APPEARANCE_DIM))
        self.trunk.reset_classifier(0)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [N, 256] of motion channels [N, 3, 96, 96] in [0, 1]."""
        now, changed, different = pixels.unbind(1)  # differences are halved and centred at 128 / 255
        before, background = now - 2.0 * changed + 256.0 / 255.0, now - 2.0 * different + 256.0 / 255.0
        picture = torch.stack([before, now, background], dim=1) * (255.0 / 128.0) - 127.0 / 128.0
        features: Tensor = self.projection(self.trunk(picture))
        return features


class MotionStream(nn.Module):
    """The small network on the motion channels in 64 x 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.shrink = nn.Buffer(shrinking_matrix(SIZE, MOTION_SIZE), persistent=False)
        self.mean = nn.Buffer(torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        self.trunk = SpatialConvNet(MOTION_DIM)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [N, 128] of motion channels [N, 3, 96, 96] in [0, 1]."""
        small = self.shrink @ pixels @ self.shrink.T  # (N, 3, 64, 64)
        features: Tensor = self.trunk((small - self.mean) / self.std)
        return features


class TwoStreamTower(nn.Module):
    """Movement and appearance of a frame side by side: features [N, 128 + 256].

    Args:
        pretrained: Give the appearance stream its ImageNet weights.
    """

    def __init__(self, pretrained: bool = False) -> None:
        super().__init__()
        self.default_cfg = {"input_size": (3, SIZE, SIZE)}  # open_clip looks here for a pooling map
        self.num_features, self.appearance_dim = MOTION_DIM + APPEARANCE_DIM, APPEARANCE_DIM
        self.motion = MotionStream()
        self.appearance = AppearanceStream(pretrained)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [N, 384] of motion channels [N, 3, 96, 96] in [0, 1]."""
        return torch.cat([self.motion(pixels), self.appearance(pixels)], dim=1)


def shrinking_matrix(size: int, smaller: int) -> Tensor:
    """Weights [smaller, size] of an antialiased bilinear resize along one axis, as Pillow's.

    As a matrix it is exact in every inference engine; ONNX's own resize differs from one to the next.
    """
    scale = size / smaller
    centres = (torch.arange(smaller, dtype=torch.float64) + 0.5) * scale
    places = torch.arange(size, dtype=torch.float64) + 0.5
    weights = (1.0 - (places[None] - centres[:, None]).abs() / scale).clamp_min(0.0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def _main_directions(classifier: Tensor, count: int) -> Tensor:
    """Orthonormal directions [count, F] out of a classifier's weights [classes, F]."""
    varied = torch.linalg.svd(classifier - classifier.mean(dim=0), full_matrices=False).Vh[: count - 1]
    return torch.linalg.qr(torch.cat([torch.ones(1, varied.shape[1]), varied]).T).Q.T


def m2df_two_stream(pretrained: bool = False, **_: Any) -> TwoStreamTower:  # noqa: ANN401 - timm's builder interface
    """The tower; `pretrained` means the weights of its appearance stream."""
    return TwoStreamTower(pretrained)


register_model(m2df_two_stream)
