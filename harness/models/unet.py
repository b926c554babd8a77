"""U-Net: four double convolutions down, four up, each joined with its like on the way down.

Ronneberger et al. 2015, arXiv:1505.04597; padded, with batch norm and bilinear upsampling, so that
block names and parameters are those of the eye-segmentation network of seed 001.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from harness.models.stems import check_size
from harness.models.widths import scaled

# Bilinear upsampling keeps channels, so the lowest level has 512, not the 1024 of the paper:
# joined with the 512 of the level above, the first way up reads 1024.
_LEVELS = (64, 128, 256, 512, 512)
_SMALLEST = 16  # pixels that four halvings leave one of


class DoubleConv(nn.Module):
    """Two 3 x 3 convolutions, each with batch norm and ReLU; the side stays."""

    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, middle, kernel_size=3, padding=1)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, outputs, kernel_size=3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.relu(self.bn1(self.conv1(maps)))
        out: Tensor = self.relu(self.bn2(self.conv2(maps)))
        return out


class Down(nn.Module):
    """Half the side (rounded down), then a double convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.conv = DoubleConv(inputs, outputs, outputs)

    def forward(self, maps: Tensor) -> Tensor:
        out: Tensor = self.conv(self.pool(maps))
        return out


class Up(nn.Module):
    """Upsample to the size of the skip, whatever it is, join behind it, then a double convolution.

    below, skip: channels of the two; the first convolution gives as many as the skip has.
    """

    def __init__(self, below: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.conv = DoubleConv(skip + below, skip, outputs)

    def forward(self, maps: Tensor, skip: Tensor) -> Tensor:
        wide = interpolate(maps, size=skip.shape[2:], mode="bilinear", align_corners=True)
        out: Tensor = self.conv(torch.cat([skip, wide], dim=1))
        return out


class UNet(nn.Module):
    """(N, C, H, W) pictures -> (N, K, H, W) logits of every pixel, H and W at least 16.

    levels: channels of the five levels, from the top.
    """

    def __init__(self, levels: Sequence[int], *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        top, second, third, fourth, bottom = levels
        self.inc = DoubleConv(in_channels, top, top)
        self.down1 = Down(top, second)
        self.down2 = Down(second, third)
        self.down3 = Down(third, fourth)
        self.down4 = Down(fourth, bottom)
        self.up1 = Up(bottom, fourth, third)
        self.up2 = Up(third, third, second)
        self.up3 = Up(second, second, top)
        self.up4 = Up(top, top, top)
        self.outc = nn.Conv2d(top, num_classes, kernel_size=1)

    def forward(self, pictures: Tensor) -> Tensor:
        first = self.inc(pictures)
        second = self.down1(first)
        third = self.down2(second)
        fourth = self.down3(third)
        maps = self.up1(self.down4(fourth), fourth)
        maps = self.up4(self.up3(self.up2(maps, third), second), first)
        logits: Tensor = self.outc(maps)
        return logits


def unet(*, num_classes: int, in_channels: int, width: float, input_size: int) -> UNet:
    """Raises: ModelError if the picture is too small or the width rounds a layer to nothing."""
    check_size("U-Net halves the picture 4 times", input_size, _SMALLEST)
    return UNet(scaled(_LEVELS, width), num_classes=num_classes, in_channels=in_channels)
