"""SqueezeNet 1.1 of any width, made of torchvision's Fire modules under its names.

Iandola et al. 2016, arXiv:1602.07360.
"""

import torch
from torch import Tensor, nn
from torchvision.models.squeezenet import Fire

from harness.models.stems import check_size, is_small
from harness.models.widths import scaled

_FIRST = 64
# Squeezed channels; a Fire module puts out eight times as many. 'M' halves the side.
_FIRES = (16, 16, "M", 32, 32, "M", 48, 48, 64, 64)
_EXPANSION = 4  # of each of the two halves
_SMALLEST = {True: 8, False: 17}  # pixels of which all poolings leave one


class SqueezeNet(nn.Module):
    """(N, C, S, S) pictures -> (N, K) logits; the last convolution writes the classes."""

    def __init__(self, features: nn.Sequential, channels: int, *, num_classes: int,
                 dropout: float) -> None:
        super().__init__()
        self.features = features
        last = nn.Conv2d(channels, num_classes, 1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), last, nn.ReLU(inplace=True),
                                        nn.AdaptiveAvgPool2d(1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(last.weight, std=0.01)

    def forward(self, pictures: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(pictures)), 1)


def squeezenet(*, num_classes: int, in_channels: int, width: float, input_size: int,
               stem: str = "auto", dropout: float = 0.5) -> SqueezeNet:
    """stem: 'small' begins with stride 1 and a border, 'imagenet' with stride 2 and none; 'auto'
    is small below 64 pixels.

    Raises: ModelError if the picture is too small, the width rounds a layer to nothing, or the
    stem is unknown.
    """
    small = is_small(stem, input_size)
    check_size(f"SqueezeNet with the {'small' if small else 'imagenet'} stem", input_size,
               _SMALLEST[small])
    first = scaled([_FIRST], width)[0]
    stride, padding = (1, 1) if small else (2, 0)
    layers: list[nn.Module] = [nn.Conv2d(in_channels, first, 3, stride, padding),
                               nn.ReLU(inplace=True), _pool()]
    channels = first
    for fire in _FIRES:
        if fire == "M":
            layers.append(_pool())
            continue
        assert isinstance(fire, int)
        squeezed, half = scaled([fire, fire * _EXPANSION], width)
        layers.append(Fire(channels, squeezed, half, half))
        channels = 2 * half
    return SqueezeNet(nn.Sequential(*layers), channels, num_classes=num_classes, dropout=dropout)


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)
