"""What a live network holds: parameters by layer and block, filters that are zero, sparsity.

Read from the modules as they are now, cut or not; nothing is typed in, nothing is changed. A
tensor that several layers share counts once, with the first of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d,
                 nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Holding:
    """Parameters of a layer, or of a block and all below it; '' is the whole network.

    kind: convolution | linear | norm | other | block. norm_params: those of `params` that belong
    to norms. filters: convolution output channels. zeroed: filters whose weights and bias are 0.
    """

    name: str
    kind: str
    params: int
    norm_params: int
    filters: int
    zeroed: int


def layers(model: nn.Module) -> tuple[Holding, ...]:
    """Every module that owns parameters, in the model's order."""
    return tuple(_holding(model, name, size) for name, size in _sizes(model).items())


def blocks(model: nn.Module) -> tuple[Holding, ...]:
    """The whole, then every node of the module tree with layers below it, in the model's order."""
    found = layers(model)
    nodes = []
    for node, module in model.named_modules():
        inside = [x for x in found if x.name == node or is_in(x.name, node)]
        if not node or (inside and any(True for _ in module.children())):
            sums = (sum(getattr(x, field) for x in inside)
                    for field in ("params", "norm_params", "filters", "zeroed"))
            nodes.append(Holding(node, "block", *sums))
    return tuple(nodes)


def is_in(name: str, block: str) -> bool:
    """Whether a layer lies below a block: 'up1.conv' below 'up1', 'up10.conv' not."""
    return block == "" or name.startswith(f"{block}.")


def kind_of(module: nn.Module) -> str:
    """convolution | linear | norm | other."""
    if isinstance(module, _CONVOLUTIONS):
        return "convolution"
    if isinstance(module, nn.Linear):
        return "linear"
    return "norm" if isinstance(module, _NORMS) else "other"


def is_zeroed(convolution: nn.Module) -> Tensor:
    """(filters,) bool: whether a filter's weights are all 0, and its bias too if it has one."""
    assert isinstance(convolution, _CONVOLUTIONS)
    weight = convolution.weight.detach()
    if isinstance(convolution, _TRANSPOSED):  # (in, out / groups, ...) -> (out, ...)
        parts = weight.reshape(convolution.groups, -1, *weight.shape[1:])
        weight = parts.transpose(1, 2).flatten(0, 1)
    zero = (weight.flatten(1) == 0).all(dim=1)
    return zero if convolution.bias is None else zero & (convolution.bias.detach() == 0)


def sparsity(model: nn.Module) -> float:
    """Share in [0, 1] of zeros among the weights (not biases) of convolutions and linear layers."""
    weights = {id(w): w for m in model.modules() if kind_of(m) in ("convolution", "linear")
               for w in [m.weight] if isinstance(w, Tensor)}.values()
    whole = sum(w.numel() for w in weights)
    zeros = sum(w.numel() - int(torch.count_nonzero(w)) for w in weights)
    return zeros / whole if whole else 0.0


def compression(before: float, after: float) -> float:
    """Share in [0, 1] that is gone of what there was: of parameters, bytes or MACs."""
    return 1 - after / before if before else 0.0


def _sizes(model: nn.Module) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        layer = name.rpartition(".")[0]
        sizes[layer] = sizes.get(layer, 0) + parameter.numel()
    return sizes


def _holding(model: nn.Module, name: str, size: int) -> Holding:
    module = model.get_submodule(name)
    kind = kind_of(module)
    zero = torch.zeros(0, dtype=torch.bool)
    if kind == "convolution":
        zero = is_zeroed(module)
    num_zeroed = 0 if zero.is_meta else int(zero.sum())  # meta tensors have shapes alone
    return Holding(name, kind, size, size if kind == "norm" else 0, len(zero), num_zeroed)
