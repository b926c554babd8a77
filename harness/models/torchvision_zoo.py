"""Networks as torchvision builds them, untrained, with the first convolution fitted to the data."""

from typing import Any

import torchvision
from torch import nn

from harness.errors import ModelError, UnknownName, unknown
from harness.models.stems import is_small


def mobilenet_v2(*, num_classes: int, in_channels: int, width: float, input_size: int,
                 stem: str = "auto", dropout: float = 0.2) -> nn.Module:
    """Depthwise separable convolutions. Sandler et al. 2018, arXiv:1801.04381.

    width: torchvision's multiplier, to multiples of 8, never below 8; the last layer keeps 1280.
    stem: 'small' begins with stride 1, 'imagenet' with 2; 'auto' is small below 64 pixels.

    Raises: ModelError if the width is not above 0 or the stem is unknown.
    """
    if not width > 0:
        raise ModelError(f"width {width} must be above 0.")
    stride = (1, 1) if is_small(stem, input_size) else (2, 2)
    net: nn.Module = torchvision.models.mobilenet_v2(
        weights=None, num_classes=num_classes, width_mult=width, dropout=dropout)
    _fit_first_convolution(net, in_channels)
    first = net.get_submodule("features.0.0")
    assert isinstance(first, nn.Conv2d)
    first.stride = stride
    return net


def names() -> list[str]:
    """What may stand behind `torchvision/`: its classification networks."""
    return list(torchvision.models.list_models(module=torchvision.models))


def classifier(name: str, *, num_classes: int, in_channels: int, width: float, input_size: int,
               **options: Any) -> nn.Module:
    """A classification network of torchvision, by its name there; options go to its constructor.

    Raises: UnknownName for a name that torchvision does not know; ModelError if another width is
    asked for, or torchvision refuses the picture's size or the options.
    """
    if name not in names():
        raise UnknownName(unknown("torchvision model", name, names()))
    if width != 1:
        raise ModelError(f"torchvision/{name} comes in one width; {width} was asked for. "
                         f"Set model.width to 1.")
    try:
        net: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=num_classes, **_extras(name, input_size) | options)
    except Exception as error:  # the constructors raise whatever comes
        raise ModelError(f"torchvision/{name} cannot be built for input size {input_size}: "
                         f"{error}") from error
    _fit_first_convolution(net, in_channels)
    return net


def _extras(name: str, input_size: int) -> dict[str, Any]:
    """What some families need to take this size, or to return logits alone while training."""
    if name.startswith("vit_"):
        return {"image_size": input_size}
    if name.startswith("maxvit"):
        return {"input_size": (input_size, input_size)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    return {}


def _fit_first_convolution(net: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one like it that reads in_channels, newly initialised."""
    path, old = next((p, m) for p, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if old.in_channels == in_channels:
        return
    new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, old.stride,  # type: ignore[arg-type]
                    old.padding, old.dilation, bias=old.bias is not None)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    net.set_submodule(path, new)
