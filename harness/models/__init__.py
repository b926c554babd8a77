"""Networks by name: a row of MODELS, `torchvision/NAME`, or one's own `package.module:function`.

Every one is a function of num_classes, in_channels, width and input_size (and its own options)
that returns an nn.Module with new weights from torch's global generator.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from harness.errors import HarnessError, ModelError, UnknownName, unknown
from harness.models import torchvision_zoo
from harness.models.alexnet import alexnet
from harness.models.cifar_resnet import resnet20, resnet32, resnet44, resnet56, resnet110
from harness.models.resnet import resnet18
from harness.models.ritnet import ritnet
from harness.models.squeezenet import squeezenet
from harness.models.torchvision_zoo import mobilenet_v2
from harness.models.unet import unet
from harness.models.vgg import vgg11, vgg11_bn, vgg16, vgg16_bn
from harness.plugins import arguments_for, is_reference, load_object

__all__ = ["MODELS", "build"]

Builder = Callable[..., nn.Module]

MODELS: Mapping[str, Builder] = {
    "alexnet": alexnet,
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "ritnet": ritnet,
    "squeezenet": squeezenet,
    "unet": unet,
    "vgg11": vgg11,
    "vgg11_bn": vgg11_bn,
    "vgg16": vgg16,
    "vgg16_bn": vgg16_bn,
}
_TORCHVISION = "torchvision/"


def build(name: str, *, num_classes: int, in_channels: int, width: float = 1.0, input_size: int,
          options: Mapping[str, Any] | None = None) -> nn.Module:
    """A new network for pictures of (in_channels, input_size, input_size) and num_classes classes.

    width: factor on the channels of every layer. options: what this network takes besides. A
    person's own function is given those of the four facts that its signature names (the number of
    classes also through a **rest); it must name `width` where the width is not 1.

    Raises: UnknownName, ConfigError (options, references) or ModelError.
    """
    builder = _builder(name)
    facts = {"num_classes": num_classes, "in_channels": in_channels, "width": width,
             "input_size": input_size}
    arguments = arguments_for(builder, facts, options or {}, f"model {name}",
                              rest=("num_classes",))  # or torchvision's own would keep 1000
    if width != 1 and "width" not in arguments:
        raise ModelError(f"model {name} takes no width; {width} was asked for. "
                         f"Set model.width to 1.")
    try:
        net = builder(**arguments)
    except HarnessError:
        raise
    except Exception as error:  # a person's function may raise anything
        raise ModelError(f"model {name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(net, nn.Module):
        raise ModelError(f"model {name} returned a {type(net).__name__}, not a torch.nn.Module.")
    return net


def _builder(name: str) -> Builder:
    if name in MODELS:
        return MODELS[name]
    if name.startswith(_TORCHVISION):
        return partial(torchvision_zoo.classifier, name.removeprefix(_TORCHVISION))
    if is_reference(name):
        return load_object(name, "model")
    raise UnknownName(f"{unknown('model', name, MODELS)} Or torchvision/NAME, or your own: "
                      f"package.module:function.")
