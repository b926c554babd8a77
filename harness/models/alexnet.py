"""AlexNet as torchvision builds it, of any width, and a gentle form of it for small pictures.

Krizhevsky 2014, arXiv:1404.5997.
"""

import torch
from torch import Tensor, nn

from harness.models.stems import check_size, is_small
from harness.models.widths import scaled

_CHANNELS = (64, 192, 384, 256, 256)
_HIDDEN = 4096
_SIDE = 6  # of the maps that the large head reads
_SMALLEST = {True: 8, False: 63}  # pixels of which all poolings leave one


class AlexNet(nn.Module):
    """(N, C, S, S) pictures -> (N, K) logits; `features`, `avgpool`, flatten, `classifier`."""

    def __init__(self, features: nn.Sequential, avgpool: nn.Module,
                 classifier: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.avgpool = avgpool
        self.classifier = classifier

    def forward(self, pictures: Tensor) -> Tensor:
        maps = self.avgpool(self.features(pictures))
        logits: Tensor = self.classifier(torch.flatten(maps, 1))
        return logits


def alexnet(*, num_classes: int, in_channels: int, width: float, input_size: int,
            stem: str = "auto", dropout: float = 0.5) -> AlexNet:
    """stem: 'imagenet' is torchvision's network; 'small' begins with 5 x 5 and stride 1, halves
    three times and ends in one linear layer; 'auto' is small below 64 pixels.

    Raises: ModelError if the picture is too small, the width rounds a layer to nothing, or the
    stem is unknown.
    """
    small = is_small(stem, input_size)
    check_size(f"AlexNet with the {'small' if small else 'imagenet'} stem", input_size,
               _SMALLEST[small])
    channels = scaled(_CHANNELS, width)
    features = _features(in_channels, channels, small=small)
    if small:
        side = input_size // 8
        head = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels[4] * side**2, num_classes))
        return AlexNet(features, nn.Identity(), head)
    hidden = scaled([_HIDDEN], width)[0]
    head = nn.Sequential(
        nn.Dropout(dropout), nn.Linear(channels[4] * _SIDE**2, hidden), nn.ReLU(inplace=True),
        nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU(inplace=True),
        nn.Linear(hidden, num_classes))
    return AlexNet(features, nn.AdaptiveAvgPool2d(_SIDE), head)


def _features(inputs: int, channels: list[int], *, small: bool) -> nn.Sequential:
    first, second, third, fourth, fifth = channels
    if small:
        stem, pool = nn.Conv2d(inputs, first, 5, padding=2), 2
    else:
        stem, pool = nn.Conv2d(inputs, first, 11, stride=4, padding=2), 3
    return nn.Sequential(
        stem, nn.ReLU(inplace=True), nn.MaxPool2d(pool, stride=2),
        nn.Conv2d(first, second, 5, padding=2), nn.ReLU(inplace=True),
        nn.MaxPool2d(pool, stride=2),
        nn.Conv2d(second, third, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(third, fourth, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(fourth, fifth, 3, padding=1), nn.ReLU(inplace=True),
        nn.MaxPool2d(pool, stride=2))
