"""Zeros among single weights: exactly how many, which ones, and that training leaves them zero.

Unstructured pruning by magnitude (Han et al. 2015, arXiv:1506.02626). Of n weights a share p makes
k = round(p n) zero: the k smallest |w|, of equals those that come first, so never all of a tie at
once; k may be 0. Weights of convolutions and linear layers alone, never biases.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.engine.floors import is_number, modules_of, nearest, unknown_modules
from harness.engine.inventory import kind_of
from harness.errors import ConfigError, ModelError, TrainingError, unknown

SCOPES = ("layer", "global")


@dataclass(frozen=True)
class Zeros:
    """Of one layer's weights, how many are 0. share: in [0, 1]."""

    layer: str
    weights: int
    zeros: int

    @property
    def share(self) -> float:
        return self.zeros / self.weights if self.weights else 0.0


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Layer -> weight of every convolution and linear layer, in the model's order.

    A weight that several layers share stands with the first of them.
    """
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if kind_of(module) in ("convolution", "linear") and isinstance(weight, nn.Parameter):
            found.setdefault(id(weight), (name, weight))
    return dict(found.values())


def shares_of(model: nn.Module, amount: float = 0.0,
              layers: Mapping[str, float] | None = None) -> dict[str, float]:
    """Layer -> share of its weights that becomes zero; layers of which nothing does are left out.

    amount: of every layer that `layers`, {module: share}, does not name. A parent's share covers
    its children, the longest name wins.
    Raises ConfigError for shares outside [0, 1] and modules that hold no such weights.
    """
    layers = layers or {}
    weights = weights_of(model)
    given = {"amount": amount, **{f"layers.{name}": share for name, share in layers.items()}}
    wrong = [f"sparsify.{key}: {share!r} must be from 0 to 1." for key, share in given.items()
             if not (is_number(share) and 0 <= share <= 1)]
    known = modules_of(f"{name}.weight" for name in weights)
    wrong += [f"sparsify.{text}" for text in unknown_modules("layers", known, layers)]
    if wrong:
        raise ConfigError("\n".join(wrong))
    asked = {name: nearest({"": amount, **layers}, name) or 0.0 for name in weights}
    return {name: share for name, share in asked.items() if share}


def zeroed(model: nn.Module, shares: Mapping[str, float], scope: str = "layer",
           ) -> dict[str, Tensor]:
    """Layer -> bool, of its weight's shape and where it lies: what is to be zero.

    scope: 'layer' takes each layer's own share; 'global' compares all these layers, and the share,
    which must be one for all, is of their weights together.
    Raises ConfigError for shares that differ in a global scope; ModelError for weights that are
    not finite.
    """
    if scope not in SCOPES:
        raise ConfigError(f"sparsify.scope: {unknown('scope', scope, SCOPES)}")
    weights = {name: weight for name, weight in weights_of(model).items() if name in shares}
    wild = [name for name, weight in weights.items() if not bool(weight.isfinite().all())]
    if wild:
        raise ModelError(f"weights of {', '.join(wild)} are not finite: they have no order.")
    if scope == "layer":
        return {name: smallest(weight, round(shares[name] * weight.numel()))
                for name, weight in weights.items()}
    different = sorted(set(shares.values()))
    if len(different) > 1:
        raise ConfigError(f"sparsify.scope: global takes one share for all, not {different}.")
    if not weights:
        return {}
    flat = torch.cat([weight.detach().flatten() for weight in weights.values()])
    chosen = smallest(flat, round(different[0] * len(flat)))
    parts = chosen.split([weight.numel() for weight in weights.values()])
    return {name: part.reshape(weight.shape)
            for (name, weight), part in zip(weights.items(), parts, strict=True)}


def smallest(weight: Tensor, count: int) -> Tensor:
    """bool like the weight: the `count` smallest |w|; of equals, those of the lower index."""
    size = weight.detach().abs().flatten().cpu()
    if not count:
        return torch.zeros_like(weight, dtype=torch.bool)
    limit = size.kthvalue(count).values  # without sorting; on the CPU it is the same every time
    chosen = size < limit
    ties = (size == limit).nonzero().flatten()
    chosen[ties[:count - int(chosen.sum())]] = True
    return chosen.reshape(weight.shape).to(weight.device)


def make_zero(model: nn.Module, zero: Mapping[str, Tensor]) -> None:
    """Set these weights to 0, in place."""
    weights = weights_of(model)
    with torch.no_grad():
        for name, places in zero.items():
            weights[name].masked_fill_(places, 0.0)


@contextmanager
def held_at_zero(model: nn.Module, zero: Mapping[str, Tensor]) -> Iterator[None]:
    """Zero now, and whatever trains the model inside the block leaves these weights zero.

    Their gradients are zeroed before an optimiser sees them, and a new optimiser's decay, momentum
    and moments of a weight that is 0 and has no gradient are 0. The model keeps its parameters and
    their names (torch.nn.utils.prune, which renames them, trains to the same weights).
    Raises TrainingError at the end of the block if a weight is not 0 all the same.
    """
    make_zero(model, zero)
    weights = weights_of(model)
    handles = [weights[name].register_hook(lambda gradient, places=places:
                                           gradient.masked_fill(places, 0.0))
               for name, places in zero.items() if weights[name].requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    moved = [name for name, places in zero.items() if bool(weights[name].detach()[places].any())]
    if moved:
        raise TrainingError(f"weights that were to stay zero have moved in {', '.join(moved)}: "
                            "the optimiser changes weights that have no gradient.")


def zeros_of(model: nn.Module) -> tuple[Zeros, ...]:
    """Every layer's zeros, in the model's order; `inventory.sparsity` has their share of all."""
    return tuple(Zeros(name, weight.numel(), weight.numel() - int(torch.count_nonzero(weight)))
                 for name, weight in weights_of(model).items())
