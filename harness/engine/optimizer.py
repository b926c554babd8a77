"""Take an optimiser's memory through a cut; refuse one that trains what the model no longer holds.

Surgery keeps every parameter the object that it was, so the optimiser's groups stay right; its
momenta and moments have the old sizes and are cut by the same indices here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.engine.graph import Plan
from harness.errors import ConfigError, SurgeryError, TrainingError

Optimizers = Optimizer | Sequence[Optimizer]


class Memory:
    """What optimisers remember of a model's parameters; follows a cut, and can be put back.

    Made before the cut. Cut are all tensors of the state that lie along their parameter: of its
    shape (SGD's momentum, Adam's moments), or of size 1 in some dimensions (Adafactor's).
    """

    def __init__(self, optimizers: Optimizers, model: nn.Module) -> None:
        """Raises TrainingError for an optimiser that trains tensors which the model lacks,
        SurgeryError for one that remembers parameters in a form that cannot be cut."""
        stale = [s for optimizer in _each(optimizers) for s in _stale(optimizer, model)]
        if stale:
            raise TrainingError(_stale_text(stale))
        self._names = _names(model)
        self._states: list[tuple[Tensor, dict[str, Any]]] = []
        for optimizer in _each(optimizers):
            for parameter, state in optimizer.state.items():
                odd = [key for key, value in state.items() if not _lies_along(value, parameter)]
                if odd:
                    raise SurgeryError(
                        f"{type(optimizer).__name__} remembers {', '.join(odd)} of "
                        f"{self._names[id(parameter)][0]} in a form that cannot be cut with it. "
                        "Make a new optimiser after the cut.")
                self._states.append((parameter, state))
        self._before = [dict(state) for _, state in self._states]

    def follow(self, before: Plan, after: Plan) -> None:
        """Bring the state from sizes of `before` to those of `after`, with the indices of the cut.

        Raises SurgeryError, the state untouched, if it has other sizes than `before` says.
        """
        new: list[tuple[dict[str, Any], str, Tensor]] = []
        for parameter, state in self._states:
            name = next((n for n in self._names[id(parameter)] if n in after.parameters), None)
            if name is None:
                continue
            for key, value in state.items():
                if isinstance(value, Tensor) and value.numel() > 1:
                    new.append((state, key, _cut(name, value, before, after)))
        for state, key, value in new:
            state[key] = value

    def undo(self) -> None:
        """Everything that was remembered when this was made."""
        for (_, state), before in zip(self._states, self._before, strict=True):
            state.clear()
            state.update(before)


def check_optimizer(optimizers: Optimizers, model: nn.Module) -> None:
    """Raises TrainingError if an optimiser holds tensors that are not, or no longer, in the model,
    or if parameters of the model that ask for gradients are in no optimiser's group."""
    mistakes = []
    stale = [s for optimizer in _each(optimizers) for s in _stale(optimizer, model)]
    if stale:
        mistakes.append(_stale_text(stale))
    trained = {id(p) for optimizer in _each(optimizers) for p in _parameters(optimizer)}
    missing = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in trained]
    if missing:
        mistakes.append(f"no optimiser trains {_few(missing)}. Add them to a group, or set "
                        "requires_grad=False.")
    if mistakes:
        raise TrainingError("\n".join(mistakes))


def _each(optimizers: Optimizers) -> Sequence[Optimizer]:
    given = [optimizers] if isinstance(optimizers, Optimizer) else optimizers
    if not isinstance(given, list | tuple) or not all(isinstance(o, Optimizer) for o in given):
        raise ConfigError(f"optimizer: a {type(optimizers).__name__} is given; it must be a "
                          "torch.optim.Optimizer, or a list of several.")
    return given


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _stale(optimizer: Optimizer, model: nn.Module) -> list[str]:
    """What the optimiser holds that the model does not, in words."""
    own = {id(p) for p in model.parameters()}
    held = {id(p): f"group {number}, parameter {place} of shape {tuple(p.shape)}"
            for number, group in enumerate(optimizer.param_groups)
            for place, p in enumerate(group["params"])}
    held |= {id(p): f"the state of a tensor of shape {tuple(p.shape)}"
             for p in optimizer.state if id(p) not in held}
    return [f"{type(optimizer).__name__}: {where}" for key, where in held.items() if key not in own]


def _stale_text(stale: Sequence[str]) -> str:
    return (f"the optimiser holds tensors that are not, or no longer, in the model: {_few(stale)}. "
            "It would train them in vain. Make a new optimiser from model.parameters().")


def _few(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more


def _names(model: nn.Module) -> dict[int, list[str]]:
    """Parameter object -> all of its names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _lies_along(value: object, parameter: Tensor) -> bool:
    """Whether a remembered value has, in every dimension, the parameter's size or 1."""
    if isinstance(value, Tensor):
        sizes = zip(value.shape, parameter.shape, strict=False)
        return value.numel() <= 1 or (value.dim() == parameter.dim()
                                      and all(v in (1, p) for v, p in sizes))
    return not any(t.numel() > 1 for t in _tensors(value))


def _tensors(value: object) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _cut(name: str, value: Tensor, before: Plan, after: Plan) -> Tensor:
    for dim, kept in after.parameters[name].items():
        had = before.parameters.get(name, {}).get(dim)
        size = value.shape[dim]
        if size == 1:
            continue  # the same for all positions
        if size <= int(kept.max()) if had is None else size != len(had):
            raise SurgeryError(f"{name}: the optimiser remembers {size} entries of dimension "
                               f"{dim}, not those that the model had before the cut.")
        place = kept if had is None else torch.isin(had, kept).nonzero().flatten()
        value = value.index_select(dim, place.to(value.device))
    return value
