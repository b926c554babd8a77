"""What of a network's weights is taken over from another, and what of them may learn."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from harness.errors import ModelError, UnknownName, unknown


def adopt(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Copy all tensors of a state dict that fit by name and shape; the rest stays as it was.

    So the convolutions of an ImageNet network come under a new head.

    Returns: the model's tensors that were not in `state`, or in another shape.
    Raises: ModelError, nothing touched, if no parameter fits.
    """
    own = model.state_dict()
    fitting = {n: state[n] for n, t in own.items() if n in state and state[n].shape == t.shape}
    if fitting.keys().isdisjoint(dict(model.named_parameters(remove_duplicate=False))):
        raise ModelError(f"no weight fits this {type(model).__name__} by name and shape. It has "
                         f"{', '.join(list(own)[:3])}, ...; given are "
                         f"{', '.join(list(state)[:3]) or 'none'}, ...")
    with torch.no_grad():
        for name, tensor in fitting.items():
            own[name].copy_(tensor)
    return tuple(name for name in own if name not in fitting)


def freeze(model: nn.Module, names: Iterable[str]) -> None:
    """The parameters of these modules learn no more: train() gives them to no optimiser.

    Statistics of batch norms are no parameters: in train mode they go on moving.
    Raises: UnknownName, nothing touched, for a module that the model does not have.
    """
    for module in _modules(model, names):
        module.requires_grad_(False)


def unfreeze(model: nn.Module, names: Iterable[str] = ("",)) -> None:
    """The parameters of these modules, or of the whole network, learn again.

    Do so before channels are weighed: a frozen part gives no gradients to weigh by.
    Raises: UnknownName, nothing touched, for a module that the model does not have.
    """
    for module in _modules(model, names):
        module.requires_grad_(True)


def _modules(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    known = dict(model.named_modules(remove_duplicate=False))
    asked = list(names)
    wrong = [unknown("module", name, known.keys() - {""}) for name in asked if name not in known]
    if wrong:
        raise UnknownName("; ".join(wrong))
    return [known[name] for name in asked]
