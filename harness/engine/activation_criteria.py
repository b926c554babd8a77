"""Scores from what a pass over data has gathered: activations, gradients, and their products.

Values are those at a gate (see `evidence`): behind the layer and its batch norm, before the
activation function. Where a formula is about what comes out of a ReLU, it takes max(x, 0).

Letters: N examples, C channels, M positions of a map. Members of a group are added up. Every
function is called as score(group, evidence, **options) and returns (kept channels,) numbers.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from harness.engine.evidence import Activations, Evidence, Map, Pooled
from harness.engine.graph import Group, Slice
from harness.engine.weight_criteria import has_kernel_of_one, norm, rows_of
from harness.errors import GraphError

T = TypeVar("T")


def taylor(group: Group, evidence: Evidence) -> Tensor:
    """Mean over examples of |mean over the map of activation x gradient|.

    Molchanov et al. 2017, arXiv:1611.06440, equation 8: the absolute value is each example's.
    """
    return _from_gates(group, evidence, evidence.gathered.activity,
                       lambda a: a.absolute / a.examples)


def taylor_origin(group: Group, evidence: Evidence) -> Tensor:
    """|sum over batches of the mean over examples and map of activation x gradient|.

    The form of seed 000: signs cancel before the absolute value is taken.
    """
    return _from_gates(group, evidence, evidence.gathered.activity, lambda a: a.signed).abs()


def taylor_weight(group: Group, evidence: Evidence) -> Tensor:
    """Mean over batches of |sum over the channel's weights of weight x gradient|.

    What the loss loses to first order without these weights (Molchanov et al. 2019,
    arXiv:1906.10771); a larger batch counts for more.
    """
    def value(writer: Slice) -> Tensor:
        found = evidence.gathered.gradients.get(f"{writer.tensor}/{writer.dim}")
        if found is None:
            raise _nothing(group, "weight gradients", writer.tensor)
        return found.absolute / found.examples

    return evidence.add_up(group, value)


def mean_activation(group: Group, evidence: Evidence, *, rectified: bool = True) -> Tensor:
    """Mean of max(x, 0) over examples and positions; rectified=False: |mean of x|."""
    def mean(a: Activations) -> Tensor:
        return (a.rectified if rectified else a.total.abs()) / a.count

    return _from_gates(group, evidence, evidence.gathered.activations, mean)


def std_activation(group: Group, evidence: Evidence, *, rectified: bool = True) -> Tensor:
    """Standard deviation of max(x, 0) over examples and positions; rectified=False: of x."""
    def deviation(a: Activations) -> Tensor:
        total, squares = ((a.rectified, a.rectified_squares) if rectified
                          else (a.total, a.squares))
        return (squares / a.count - (total / a.count).square()).clamp_min(0).sqrt()

    return _from_gates(group, evidence, evidence.gathered.activations, deviation)


def apoz(group: Group, evidence: Evidence) -> Tensor:
    """Share of values above zero: 1 - the average percentage of zeros behind a ReLU.

    Hu et al. 2016, arXiv:1607.03250.
    """
    return _from_gates(group, evidence, evidence.gathered.activations,
                       lambda a: _where_finite(a.total, a.positive / a.count))


def entropy(group: Group, evidence: Evidence, *, bins: int = 100) -> Tensor:
    """Entropy, in nats, of the channel's map mean of max(x, 0) over the examples, in equal bins.

    Luo and Wu 2017, arXiv:1706.05791: a channel that says the same of every example scores 0. The
    bins span what the channel itself takes; the number of examples bounds the entropy.
    """
    return _from_gates(group, evidence, evidence.gathered.pooled, lambda p: _entropy(p, bins))


def activation_deviation(group: Group, evidence: Evidence, *, p: float = 2.0,
                         root_mean: bool = False) -> Tensor:
    """Norm of D, a channel's mean map minus the mean of all the layer's channels' mean maps.

    (sum over the map of |D|^p)^(1/p) / M, the form of seed 001 (p=1: the mean of |D|). For p above
    1 small maps score higher; root_mean=True does not depend on size: (mean |D|^p)^(1/p).
    """
    return evidence.add_up(group, lambda w: _deviation(group, evidence, w, p, root_mean))


def ipad(group: Group, evidence: Evidence, *, omega: float = 0.5, p: float = 2.0,
         equalizer: float = 10.0, resized: bool = True, weights_alone_1x1: bool = False) -> Tensor:
    """omega x p-norm of weights / size + (1 - omega) x equalizer x activation deviation.

    Seed 001 (Vitek 2023). resized: kernels are resized to 3x3 and size is I; else size is n.
    weights_alone_1x1: 1x1 (and linear) layers take the weights' term alone, without omega.
    """
    def value(writer: Slice) -> Tensor:
        rows = rows_of(writer, evidence)
        weights = norm(rows, p, "resized" if resized else "fan_in").cpu()
        if weights_alone_1x1 and has_kernel_of_one(rows):
            return weights
        deviation = _deviation(group, evidence, writer, p, root_mean=False).cpu()
        return omega * weights + (1 - omega) * equalizer * deviation

    return evidence.add_up(group, value)


def _deviation(group: Group, evidence: Evidence, writer: Slice, p: float, root_mean: bool,
               ) -> Tensor:
    """(positions,) activation deviation of one writer, its gates added up."""
    maps: dict[str, list[Map]] = {}
    for place, found in evidence.gathered.maps.items():
        maps.setdefault(place.rpartition("/")[0], []).append(found)
    return _at_gates(group, evidence, writer, maps, lambda m: _norm_of_deviation(m, p, root_mean))


def _norm_of_deviation(maps: list[Map], p: float, root_mean: bool) -> Tensor:
    mean = torch.cat([m.total / m.examples for m in maps], 1)  # (C, M), the calls side by side
    deviation = mean - mean.mean(0)
    norms: Tensor = torch.linalg.vector_norm(deviation, p, 1)
    positions = deviation.shape[1]
    return norms / float(positions ** (1 / p) if root_mean else positions)


def _entropy(pooled: Pooled, bins: int) -> Tensor:
    values = pooled.values.double()  # (N, C)
    low, high = values.amin(0), values.amax(0)
    width = torch.where(high > low, high - low, 1.0)
    place = ((values - low) / width * bins).long().clamp(0, bins - 1)
    counts = torch.zeros(values.shape[1], bins, dtype=torch.float64, device=values.device)
    counts.scatter_add_(1, place.t(), torch.ones_like(values.t()))
    share = counts / len(values)
    return _where_finite(values.sum(0), -torch.special.xlogy(share, share).sum(1))


def _where_finite(total: Tensor, found: Tensor) -> Tensor:
    """NaN where the sum of what was counted is no number: counting alone would hide it."""
    return torch.where(total.isfinite(), found, torch.nan)


def _from_gates(group: Group, evidence: Evidence, found: Mapping[str, T],
                value: Callable[[T], Tensor]) -> Tensor:
    return evidence.add_up(group, lambda w: _at_gates(group, evidence, w, found, value))


def _at_gates(group: Group, evidence: Evidence, writer: Slice, found: Mapping[str, T],
              value: Callable[[T], Tensor]) -> Tensor:
    """A writer's values, those of all its gates added up."""
    gates = evidence.graph.gates.get(writer.tensor, ())
    if not gates or not set(gates) <= found.keys():
        raise _nothing(group, "activations", writer.tensor)
    return torch.stack([value(found[gate]) for gate in gates]).sum(0)


def _nothing(group: Group, what: str, tensor: str) -> GraphError:
    return GraphError(f"group '{group.name}': no {what} were gathered for {tensor}. "
                      "Give batches and a loss, or use l1 or l2.")
