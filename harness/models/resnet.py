"""Residual networks of any width, made of torchvision's basic blocks under its names.

He et al. 2016, arXiv:1512.03385.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1

from harness.models.stems import is_small
from harness.models.widths import scaled

_STAGES = (64, 128, 256, 512)


class ResNet(nn.Module):
    """(N, C, S, S) pictures -> (N, K) logits.

    channels: of the four stages; the stem has those of the first. blocks: in each stage.
    small: a 3 x 3 convolution without pooling at the start (section 4.2 of the paper) in place of
    a 7 x 7 one and pooling, which keep a quarter of the side.
    """

    def __init__(self, channels: Sequence[int], blocks: Sequence[int], *, num_classes: int,
                 in_channels: int, small: bool) -> None:
        super().__init__()
        first = channels[0]
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, first, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(first, channels[0], blocks[0], stride=1)
        self.layer2 = _stage(channels[0], channels[1], blocks[1], stride=2)
        self.layer3 = _stage(channels[1], channels[2], blocks[2], stride=2)
        self.layer4 = _stage(channels[2], channels[3], blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pictures: Tensor) -> Tensor:
        maps = self.maxpool(self.relu(self.bn1(self.conv1(pictures))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(maps), 1))
        return logits


def resnet18(*, num_classes: int, in_channels: int, width: float, input_size: int,
             stem: str = "auto") -> ResNet:
    """stem: 'small', 'imagenet', or 'auto': small below 64 pixels.

    Raises: ModelError if the width rounds a layer to nothing or the stem is unknown.
    """
    return ResNet(scaled(_STAGES, width), (2, 2, 2, 2), num_classes=num_classes,
                  in_channels=in_channels, small=is_small(stem, input_size))


def _stage(inputs: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or inputs != channels:
        shortcut = nn.Sequential(conv1x1(inputs, channels, stride), nn.BatchNorm2d(channels))
    first = BasicBlock(inputs, channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))
