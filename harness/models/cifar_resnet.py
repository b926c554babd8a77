"""Residual networks for small pictures, of 20 to 110 layers, without parameters in shortcuts.

He et al. 2016, arXiv:1512.03385, section 4.2: three stages of 16, 32 and 64 channels; where they
change, the shortcut takes every second pixel and fills up with channels of zeros (option A). The
names are those under which trained weights are passed around: conv1, bn1, layer1.0.conv1, ...,
linear.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from harness.models.widths import scaled

_STAGES = (16, 32, 64)


class ZeroPaddedShortcut(nn.Module):
    """(N, C, H, W) -> (N, K, H/2, W/2): every second pixel, between (K - C) channels of zeros.

    The zeros are buffers, so that a cut shortens them like any tensor and no size is written in
    the forward. They are not part of the state dict: the weights of others have none.
    """

    before: Tensor
    after: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        front = (outputs - inputs) // 2
        self.register_buffer("before", torch.zeros(1, front, 1, 1), persistent=False)
        self.register_buffer("after", torch.zeros(1, outputs - inputs - front, 1, 1),
                             persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        maps = maps[:, :, ::2, ::2]
        batch, _, height, width = maps.shape
        before = self.before.expand(batch, -1, height, width)
        return torch.cat([before, maps, self.after.expand(batch, -1, height, width)], dim=1)


class SmallBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm, added to what came in."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = ZeroPaddedShortcut(inputs, channels) if stride != 1 else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(relu(self.bn1(self.conv1(maps)))))
        return relu(inner + self.shortcut(maps))


class CifarResNet(nn.Module):
    """(N, C, S, S) pictures -> (N, K) logits; `blocks` in each of the three stages."""

    def __init__(self, blocks: int, *, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        first, second, third = scaled(_STAGES, width)
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.linear = nn.Linear(third, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, pictures: Tensor) -> Tensor:
        maps = relu(self.bn1(self.conv1(pictures)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: Tensor = self.linear(maps.mean(dim=(2, 3)))
        return logits


def _stage(inputs: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [SmallBlock(channels, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(SmallBlock(inputs, channels, stride), *rest)


def _deep(layers: int) -> Callable[..., CifarResNet]:
    """A builder for 6n + 2 layers: n blocks a stage."""

    def build(*, num_classes: int, in_channels: int, width: float) -> CifarResNet:
        """Raises: ModelError if the width rounds a layer to nothing."""
        return CifarResNet((layers - 2) // 6, num_classes=num_classes, in_channels=in_channels,
                           width=width)

    return build


resnet20 = _deep(20)
resnet32 = _deep(32)
resnet44 = _deep(44)
resnet56 = _deep(56)
resnet110 = _deep(110)
