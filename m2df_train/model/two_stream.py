"""An image tower with two streams, registered with timm: one for movement, one for appearance.

Both read the three `motion` channels of a clip's frames. The motion stream is the small network of `towers.py`, trained
on generated actions. The appearance stream is an EfficientNet-Lite0 with the weights it got from ImageNet, which has
seen the real world. To save time it sees one frame of a clip: the middle one.
(Two streams: Simonyan and Zisserman, arXiv 1406.2199.)
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import EfficientNet, create_model, register_model
from torch import Tensor, nn

from m2df_train.model.imagenet_weights import lite0_weights
from m2df_train.model.pixel_scale import PixelScale
from m2df_train.model.towers import SIZE, SpatialConvNet

FRAMES = 8  # of a clip, all of which look as the middle one does
MOTION_DIM, APPEARANCE_DIM = 128, 256
# Of the motion channels of generated clips, in [0, 1].
_MEAN, _STD = (0.45, 0.5, 0.5), (0.25, 0.15, 0.2)


class MotionStream(nn.Module):
    """The small network, and a projection of its last map."""

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor(_MEAN), torch.tensor(_STD)
        self.scale = PixelScale(1.0 / std, -mean / std)
        self.trunk = SpatialConvNet()
        self.projection = nn.Linear(self.trunk.num_features, MOTION_DIM, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [N, 128] of motion channels [N, 3, 64, 64] in [0, 1]."""
        features: Tensor = self.projection(self.trunk(self.scale(pixels)))
        return features


class AppearanceStream(nn.Module):
    """EfficientNet-Lite0 on two grey photographs: a frame, and its change since the frame before.

    Without training the 128 numbers of each keep the distances of the 1,280 that the network has: the mean over all of
    them, and the directions in which its own classifier tells most pictures apart.

    Args:
        pretrained: Load the ImageNet weights; otherwise they are random.
    """

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        self.scale = PixelScale(torch.tensor(255.0 / 128.0), torch.tensor(-127.0 / 128.0))  # as Lite0 was trained
        self.trunk: EfficientNet = create_model("tf_efficientnet_lite0", pretrained=False)  # type: ignore[assignment]
        self.projection = nn.Linear(self.trunk.num_features, APPEARANCE_DIM // 2, bias=False)
        if pretrained:
            weights = lite0_weights(self.trunk.state_dict())
            self.trunk.load_state_dict(weights)
            with torch.no_grad():
                self.projection.weight.copy_(_main_directions(weights["classifier.weight"], APPEARANCE_DIM // 2))
        self.trunk.reset_classifier(0)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [N, 256] of motion channels [N, 3, 64, 64] in [0, 1], the same for all frames of a clip."""
        count = pixels.shape[0]
        middle = (torch.arange(0, count, FRAMES, device=pixels.device) + FRAMES // 2).clamp_max(count - 1)
        seen = pixels.index_select(0, middle)[:, :2].flatten(0, 1).unsqueeze(1)  # (2 * clips, 1, 64, 64)
        grey = self.scale(seen).expand(-1, 3, -1, -1)
        features = self.projection(self.trunk(grey)).unflatten(0, (-1, 2)).flatten(1)  # (clips, 256)
        return features.unsqueeze(1).expand(-1, FRAMES, -1).flatten(0, 1)[:count]


class TwoStreamTower(nn.Module):
    """Movement and appearance of a frame side by side: features [N, 128 + 256].

    Args:
        pretrained: Give the appearance stream its ImageNet weights.
    """

    def __init__(self, pretrained: bool = False) -> None:
        super().__init__()
        self.default_cfg = {"input_size": (3, SIZE, SIZE)}  # open_clip looks here for a pooling map
        self.num_features, self.appearance_dim = MOTION_DIM + APPEARANCE_DIM, APPEARANCE_DIM
        self.frames_together = FRAMES
        self.motion = MotionStream()
        self.appearance = AppearanceStream(pretrained)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [N, 384] of motion channels [N, 3, 64, 64] in [0, 1]; clips of eight frames in a row.

        Of frames beyond the last whole clip the middle one stands for all, or the last where there are too few.
        """
        return torch.cat([self.motion(pixels), self.appearance(pixels)], dim=1)


def _main_directions(classifier: Tensor, count: int) -> Tensor:
    """Orthonormal directions [count, F] out of a classifier's weights [classes, F]."""
    varied = torch.linalg.svd(classifier - classifier.mean(dim=0), full_matrices=False).Vh[: count - 1]
    return torch.linalg.qr(torch.cat([torch.ones(1, varied.shape[1]), varied]).T).Q.T


def m2df_two_stream(pretrained: bool = False, **_: Any) -> TwoStreamTower:  # noqa: ANN401 - timm's builder interface
    """The tower; `pretrained` means the weights of its appearance stream."""
    return TwoStreamTower(pretrained)


register_model(m2df_two_stream)
