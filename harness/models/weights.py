"""What of a network's weights is taken over from another."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.errors import ModelError
from harness.settings import TORCHVISION


def take_over(model: nn.Module, source: str, network: str, *, partly: bool) -> tuple[str, ...]:
    """Give a network the weights of a file, or torchvision's of this name; in place.

    partly: take what fits by name and shape; else all must. Returns the tensors that keep the
    values they had. Raises ModelError, the model then being as it was.
    """
    try:
        state = _torchvisions(network) if source == TORCHVISION else _of_file(Path(source))
    except ModelError:
        raise
    except Exception as error:  # pickle, zip and safetensors each raise their own
        # Not torch's words: it advises to trust the file.
        raise ModelError(f"model.weights: {source} is no file of weights: a state dict in "
                         "safetensors, or one that torch.save wrote, with nothing else in it."
                         ) from error
    if wrong := _broken(state):
        raise ModelError(f"model.weights: {source} {wrong}.")
    if partly:
        return adopt(model, state)
    if wrong := _misfits(model, state):
        raise ModelError(f"model.weights: {source} does not fit: {wrong}. model.partly: true takes "
                         "what fits.")
    model.load_state_dict(state)
    return ()


def _broken(state: object) -> str:
    """What keeps it from being weights, in words; '' if it is tensors of finite numbers by name."""
    if not isinstance(state, Mapping) or not all(
            isinstance(name, str) and isinstance(t, Tensor) for name, t in state.items()):
        return "holds something besides tensors with names"
    not_finite = [name for name, t in state.items()
                  if t.is_floating_point() and not bool(t.isfinite().all())]
    return f"has numbers that are not finite: {_few(not_finite)}" if not_finite else ""


def _misfits(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """What is missing, too much, or of another shape, in words; '' if all fits."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    found = {"lacks": own.keys() - given.keys(), "has besides": given.keys() - own.keys(),
             "has in another shape": {n for n in own.keys() & given.keys() if own[n] != given[n]}}
    return "; ".join(f"it {what} {_few(sorted(names))}" for what, names in found.items() if names)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def digest_of(source: str | None, network: str) -> str | None:
    """Which weights these are, whatever the file is called; None for none."""
    if source is None:
        return None
    if source == TORCHVISION:
        return f"{TORCHVISION}/{_enum(network).url}"
    try:
        return sha256(Path(source).read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"model.weights: {source} cannot be read: {error.strerror}.") from error


def _of_file(path: Path) -> Mapping[str, Tensor]:
    state: Mapping[str, Tensor] = (
        load_file(path) if path.suffix == ".safetensors"
        else torch.load(path, map_location="cpu", weights_only=True))
    return state


def _torchvisions(network: str) -> Mapping[str, Tensor]:
    """Fetched, or found in torch's cache."""
    weights = _enum(network)
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True,
                                                             weights_only=True)
    except Exception as error:  # urllib, ssl, sockets, and a hash that is wrong
        file = weights.url.rpartition("/")[2]
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ModelError(f"model.weights: {TORCHVISION} has no weights of {network} here: {error}. "
                         f"Fetch {weights.url} on a machine that can, and put it at "
                         f"{folder / file}.") from error
    return state


def _enum(network: str) -> torchvision.models.WeightsEnum:
    name = network.removeprefix(f"{TORCHVISION}/")
    try:
        found: torchvision.models.WeightsEnum = torchvision.models.get_model_weights(name).DEFAULT
    except (ValueError, AttributeError) as error:
        raise ModelError(f"model.weights: {TORCHVISION} has no weights of {network}. Give a file, "
                         "or a network that it knows.") from error
    return found


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
