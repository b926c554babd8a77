"""VGG, with batch norm or without, of any width, for small pictures and large ones.

Simonyan and Zisserman 2015, arXiv:1409.1556. The layers and the names of `features` are
torchvision's, so that its weights of the convolutions fit at width 1; with head 'imagenet' all
of them do.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from harness.errors import ModelError, unknown
from harness.models.stems import check_size
from harness.models.widths import scaled

_HALVINGS = 5
_SMALL_PICTURE = 64  # below this side the large head would hold nearly all parameters
_HIDDEN = 4096
_SIDE = 7  # of the maps that torchvision's own head reads, whatever the picture's size


class VGG(nn.Module):
    """(N, C, S, S) pictures -> (N, K) logits; `features`, `avgpool`, flatten, `classifier`."""

    def __init__(self, features: nn.Sequential, avgpool: nn.Module,
                 classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.avgpool = avgpool
        self.classifier = classifier
        for module in self.modules():
            _initialise(module)

    def forward(self, pictures: Tensor) -> Tensor:
        maps: Tensor = self.avgpool(self.features(pictures))
        logits: Tensor = self.classifier(torch.flatten(maps, 1))
        return logits


def _variant(layout: str, batch_norm: bool) -> Callable[..., VGG]:
    """A builder for one of torchvision's layouts: 'A' has 8 convolutions, 'D' has 13."""

    def build(*, num_classes: int, in_channels: int, width: float, input_size: int,
              head: str = "auto") -> VGG:
        """head: 'small' is one linear layer; 'seed' the three of the 224-pixel original, whose
        4096 hidden units are scaled too; 'imagenet' torchvision's three, behind a pooling to
        7 x 7; 'auto' is small below 64 pixels, else seed.

        Raises: ModelError if the picture is too small, the width rounds to nothing, or the head
        is unknown.
        """
        if head not in ("auto", *HEADS):
            raise ModelError(unknown("head", head, ("auto", *HEADS)))
        check_size(f"VGG halves the picture {_HALVINGS} times", input_size, 2**_HALVINGS)
        features = _features(layout, batch_norm, in_channels, width)
        channels = scaled([c for c in cfgs[layout] if isinstance(c, int)], width)[-1]
        if head == "auto":
            head = "small" if input_size < _SMALL_PICTURE else "seed"
        pool: nn.Module = nn.Identity()
        side = input_size // 2**_HALVINGS
        if head == "imagenet":
            pool, side = nn.AdaptiveAvgPool2d(_SIDE), _SIDE
        return VGG(features, pool, HEADS[head](channels * side * side, num_classes, width))

    return build


vgg11 = _variant("A", batch_norm=False)
vgg11_bn = _variant("A", batch_norm=True)
vgg16 = _variant("D", batch_norm=False)
vgg16_bn = _variant("D", batch_norm=True)


def _features(layout: str, batch_norm: bool, in_channels: int, width: float) -> nn.Sequential:
    plan = [c if c == "M" else scaled([c], width)[0] for c in cfgs[layout]]
    features: nn.Sequential = make_layers(plan, batch_norm=batch_norm)
    if in_channels != 3:
        features[0] = nn.Conv2d(in_channels, plan[0], kernel_size=3, padding=1)
    return features


def _small_head(inputs: int, num_classes: int, width: float) -> nn.Module:
    return nn.Linear(inputs, num_classes)


def _seed_head(inputs: int, num_classes: int, width: float) -> nn.Module:
    hidden = scaled([_HIDDEN], width)[0]
    return nn.Sequential(
        nn.Dropout(0.5), nn.Linear(inputs, hidden), nn.ReLU(inplace=True),
        nn.Dropout(0.5), nn.Linear(hidden, hidden), nn.ReLU(inplace=True),
        nn.Linear(hidden, num_classes))


def _imagenet_head(inputs: int, num_classes: int, width: float) -> nn.Module:
    hidden = scaled([_HIDDEN], width)[0]
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Linear(hidden, num_classes))


HEADS: dict[str, Callable[[int, int, float], nn.Module]] = {
    "imagenet": _imagenet_head,
    "seed": _seed_head,
    "small": _small_head,
}


def _initialise(module: nn.Module) -> None:
    """As torchvision does; batch norms start as they are made, at 1 and 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
