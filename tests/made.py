"""How the tests' tiny nets are made: seeded, in eval mode, with norms that do something."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, Tensor | tuple[Tensor, ...]]
Net = Callable[[], Made]

_BATCH_NORMS = nn.modules.batchnorm._NormBase  # with instance norms
_NORMS = (_BATCH_NORMS, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def name(net: Net) -> str:
    return net.__name__


def made(build: Callable[[], nn.Module], *examples: tuple[int, ...] | Tensor) -> Made:
    """Build with a fixed seed, randomise the norms, calibrate their statistics.

    examples: the shapes of random inputs, or inputs.
    """
    torch.manual_seed(0)
    model = build()
    inputs = tuple(e if isinstance(e, Tensor) else torch.randn(e) for e in examples)
    norms = [m for m in model.modules() if isinstance(m, _NORMS)]
    for norm in norms:
        if norm.weight is not None:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
        if getattr(norm, "bias", None) is not None:
            nn.init.normal_(norm.bias, std=0.3)
    calibrated = [m for m in norms if isinstance(m, _BATCH_NORMS)]
    momenta = [norm.momentum for norm in calibrated]
    for norm in calibrated:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(*inputs)
    for norm, momentum in zip(calibrated, momenta, strict=True):
        norm.momentum = momentum
    return model.eval(), inputs[0] if len(inputs) == 1 else inputs


def head(channels: int, classes: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def conv_norm(incoming: int, outgoing: int, size: int = 3, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(incoming, outgoing, size, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outgoing), nn.ReLU(inplace=True))
