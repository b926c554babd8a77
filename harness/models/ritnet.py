"""RITnet: a small dense network for the pixels of eyes; five blocks down, four up, 42 convolutions.

Chaudhary et al. 2019, arXiv:1910.00694. Written after the tables of seed 001 (parameters of every
layer, and who reads it); every convolution has its own channels, nothing is added.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from harness.models.stems import check_size
from harness.models.widths import scaled

_CHANNELS = 32
_SMALLEST = 16  # pixels that four halvings leave one of


class DenseDown(nn.Module):
    """Half the side (not in the first block), then three convolutions that see all before them.

    What they see is squeezed by a 1 x 1 convolution first; the block ends with a batch norm.
    """

    def __init__(self, inputs: int, channels: int, *, halves: bool, dropout: float) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2) if halves else nn.Identity()
        self.conv1 = nn.Conv2d(inputs, channels, kernel_size=3, padding=1)
        self.conv21 = nn.Conv2d(inputs + channels, channels, kernel_size=1)
        self.conv22 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv31 = nn.Conv2d(inputs + 2 * channels, channels, kernel_size=1)
        self.conv32 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.act = nn.Sequential(nn.Dropout(dropout), nn.LeakyReLU(inplace=True))
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        first = self.pool(maps)
        second = torch.cat([first, self.act(self.conv1(first))], dim=1)
        third = torch.cat([second, self.act(self.conv22(self.conv21(second)))], dim=1)
        out: Tensor = self.bn(self.act(self.conv32(self.conv31(third))))
        return out


class DenseUp(nn.Module):
    """Upsample to the size of the skip, whatever it is, join it behind, then two convolutions."""

    def __init__(self, below: int, skip: int, channels: int, *, dropout: float) -> None:
        super().__init__()
        self.conv11 = nn.Conv2d(below + skip, channels, kernel_size=1)
        self.conv12 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv21 = nn.Conv2d(below + skip + channels, channels, kernel_size=1)
        self.conv22 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.act = nn.Sequential(nn.Dropout(dropout), nn.LeakyReLU(inplace=True))

    def forward(self, maps: Tensor, skip: Tensor) -> Tensor:
        wide = interpolate(maps, size=skip.shape[2:], mode="nearest")
        first = torch.cat([wide, skip], dim=1)
        second = torch.cat([first, self.act(self.conv12(self.conv11(first)))], dim=1)
        out: Tensor = self.act(self.conv22(self.conv21(second)))
        return out


class RITnet(nn.Module):
    """(N, C, H, W) pictures -> (N, K, H, W) logits of every pixel, H and W at least 16."""

    def __init__(self, channels: int, *, num_classes: int, in_channels: int,
                 dropout: float) -> None:
        super().__init__()
        self.down1 = DenseDown(in_channels, channels, halves=False, dropout=dropout)
        self.down2 = DenseDown(channels, channels, halves=True, dropout=dropout)
        self.down3 = DenseDown(channels, channels, halves=True, dropout=dropout)
        self.down4 = DenseDown(channels, channels, halves=True, dropout=dropout)
        self.down5 = DenseDown(channels, channels, halves=True, dropout=dropout)
        self.up1 = DenseUp(channels, channels, channels, dropout=dropout)
        self.up2 = DenseUp(channels, channels, channels, dropout=dropout)
        self.up3 = DenseUp(channels, channels, channels, dropout=dropout)
        self.up4 = DenseUp(channels, channels, channels, dropout=dropout)
        self.outc = nn.Conv2d(channels, num_classes, kernel_size=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _initialise(module)

    def forward(self, pictures: Tensor) -> Tensor:
        first = self.down1(pictures)
        second = self.down2(first)
        third = self.down3(second)
        fourth = self.down4(third)
        maps = self.up1(self.down5(fourth), fourth)
        maps = self.up4(self.up3(self.up2(maps, third), second), first)
        logits: Tensor = self.outc(maps)
        return logits


def _initialise(convolution: nn.Conv2d) -> None:
    """What goes in comes out as large: a 1 x 1 reads what a ReLU halved, a 3 x 3 mostly not."""
    kind: Literal["leaky_relu", "linear"] = "linear"
    if convolution.kernel_size == (1, 1):
        kind = "leaky_relu"
    nn.init.kaiming_normal_(convolution.weight, nonlinearity=kind)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)


def ritnet(*, num_classes: int, in_channels: int, width: float, input_size: int,
           dropout: float = 0.2) -> RITnet:
    """Raises: ModelError if the picture is too small or the width rounds a layer to nothing."""
    check_size("RITnet halves the picture 4 times", input_size, _SMALLEST)
    return RITnet(scaled([_CHANNELS], width)[0], num_classes=num_classes,
                  in_channels=in_channels, dropout=dropout)
