"""The small convolutional image tower of the demo model, registered with timm.

open_clip configurations name timm towers, so registering is all it takes to use this one in a CLIP.
It keeps the 4 x 4 map of its last stage instead of averaging it away: in a crop that is centred on
the moving figure, where a limb is says as much as that it is there.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

SIZE = 64
STEM = (24, 32)
STAGES = (64, 128, 192)
STRIDE = 16


class SpatialConvNet(nn.Module):
    """Stem of stride 4 and three residual blocks; features are the flattened last map.

    Args:
        num_classes: Size of the classifier; 0 for none, as in a CLIP tower.
    """

    def __init__(self, num_classes: int = 0) -> None:
        super().__init__()
        self.default_cfg = {"input_size": (3, SIZE, SIZE)}  # open_clip looks here for a pooling map
        self.stem = nn.Sequential(
            nn.Conv2d(3, STEM[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(STEM[0]),
            nn.ReLU(inplace=True),
            nn.Conv2d(STEM[0], STEM[1], 3, padding=1, bias=False),
            nn.BatchNorm2d(STEM[1]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        widths = (STEM[1], *STAGES)
        self.stages = nn.Sequential(
            *(
                BasicBlock(before, after, stride=stride, downsample=_shortcut(before, after, stride))
                for before, after, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
            )
        )
        self.num_features = STAGES[-1] * (SIZE // STRIDE) ** 2
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def reset_classifier(self, num_classes: int, **_: object) -> None:
        """Replace the classifier (timm's interface)."""
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [N, num_features] of pixels [N, 3, 64, 64]."""
        return self.head(self.stages(self.stem(pixels)).flatten(1))  # (N, C, 4, 4) -> (N, F)


def _shortcut(before: int, after: int, stride: int) -> nn.Module:
    pool = [nn.AvgPool2d(stride)] if stride > 1 else []
    return nn.Sequential(*pool, nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))


def m2df_convnet(pretrained: bool = False, **kwargs: Any) -> SpatialConvNet:  # noqa: ANN401 - timm's builder interface
    """The demo tower; no pretrained weights of it exist."""
    return SpatialConvNet(num_classes=kwargs.get("num_classes", 0))


register_model(m2df_convnet)
