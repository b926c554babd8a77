"""The networks that are measured: all of torchvision's for classification and segmentation.

Untrained, yet nothing in them is special: whatever a network begins with as one repeated number
(scales of norms and of layers, biases, a class token) is drawn at random, or a mistake in cutting
it could not be seen; and batch norms hold the statistics of the example.
"""

import sys
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn

BATCH = 2  # two different pictures: the certificate measures against the spread between them
CLASSIFIERS: tuple[str, ...] = tuple(torchvision.models.list_models(module=torchvision.models))
SEGMENTERS: tuple[str, ...] = tuple(
    torchvision.models.list_models(module=torchvision.models.segmentation))
ALL = CLASSIFIERS + SEGMENTERS
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def refuse_unknown(names: Sequence[str]) -> None:
    """Raises: SystemExit, before any work, if one of the names is not in ALL."""
    wrong = [name for name in names if name not in ALL]
    if wrong:
        sys.exit(f"no such network: {', '.join(wrong)}. Known: {', '.join(ALL)}")


def side(name: str) -> int:
    """Height and width of the pictures that a network is made for."""
    return 299 if name == "inception_v3" else 224


def bare(name: str, size: int) -> nn.Module:
    """As torchvision builds it, with its auxiliary heads."""
    model: nn.Module = torchvision.models.get_model(name, weights=None, **_options(name, size))
    return model


def prepared(name: str, size: int, *, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """(model in eval mode, (BATCH, 3, size, size) example): seeded, randomised and calibrated."""
    torch.manual_seed(seed)
    model = bare(name, size)
    randomise(model)
    example = torch.randn(BATCH, 3, size, size)
    calibrate(model, example)
    return model.eval(), example


def randomise(model: nn.Module) -> None:
    """Draw anew every parameter that is one repeated number: around 1 if it is not 0, else 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            first = parameter.flatten()[0]
            if bool((parameter == first).all()):
                if float(first):
                    parameter.uniform_(0.5, 1.5)
                else:
                    parameter.normal_(std=0.3)


def calibrate(model: nn.Module, example: Tensor) -> None:
    """Give the batch norms the statistics of the example."""
    norms = [m for m in model.modules() if isinstance(m, _NORMS)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(example)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def _options(name: str, size: int) -> dict[str, object]:
    if name in SEGMENTERS:
        has_auxiliary = not name.startswith("lraspp")
        return {"weights_backbone": None, **({"aux_loss": True} if has_auxiliary else {})}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": True, "init_weights": True}
    if name.startswith("vit_"):
        return {"image_size": size}
    if name.startswith("maxvit"):
        return {"input_size": (size, size)}
    return {}
