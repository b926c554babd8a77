"""Scores from weights alone, and the two controls: random and uniform.

Letters: n weights w produce one channel of one layer, from I inputs with a kernel each. Members of
a group are added up. Every function is called as score(group, evidence, **options) and returns
(kept channels,) numbers, finite and not negative; what it is compared by is in `criteria`.
"""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.engine.evidence import Evidence
from harness.engine.graph import Group, Slice, layer_of
from harness.errors import GraphError

_IN_CACHE = 2**17  # numbers
SCALES = ("none", "fan_in", "resized")
_RESIZE = {3: "linear", 4: "bilinear", 5: "trilinear"}


def l1(group: Group, evidence: Evidence, *, scale: str = "none") -> Tensor:
    """Sum of absolute weights that produce each channel. Li et al. 2017, arXiv:1608.08710.

    Grows with fan-in: compare within a group, or normalise by the mean (the default).
    scale: see `lp`.
    """
    return lp(group, evidence, p=1.0, scale=scale)


def l2(group: Group, evidence: Evidence, *, scale: str = "none") -> Tensor:
    """Root of the sum of squared weights that produce each channel, members added up."""
    return lp(group, evidence, p=2.0, scale=scale)


def lp(group: Group, evidence: Evidence, *, p: float = 2.0, scale: str = "none") -> Tensor:
    """p-norm of the weights that produce each channel: (sum |w|^p)^(1/p).

    scale: 'none'; 'fan_in', the norm over n; 'resized', kernels are first resized to 3 in every
    direction (linearly, so that 1x1 and 3x3 layers compare), then the norm over I.
    """
    return _from_weights(group, evidence, lambda rows: norm(rows, p, scale))


def min_weight(group: Group, evidence: Evidence) -> Tensor:
    """Mean of the squared weights that produce each channel (Molchanov 2017, minimum weight)."""
    return _from_weights(group, evidence, lambda rows: norm(rows, 2.0).square() / rows[0].numel())


def geometric_median(group: Group, evidence: Evidence, *, p: float = 2.0) -> Tensor:
    """Sum of the distances from a filter to all of its layer: the one in the middle can go first.

    He et al. 2019, arXiv:1811.00250. p: of the distance. Layers of one filter score 0.
    """
    return _from_weights(group, evidence, lambda rows: _distances(rows.double().flatten(1), p))


def deviation_from_mean(group: Group, evidence: Evidence, *, p: float = 2.0) -> Tensor:
    """p-norm of the difference between a filter and the mean filter of its layer."""
    return _from_weights(group, evidence,
                         lambda rows: norm(rows.double() - rows.double().mean(0), p))


def bn_scale(group: Group, evidence: Evidence) -> Tensor:
    """Absolute scale of the batch norms that each channel passes. Liu et al. 2017, 1708.06519.

    Raises GraphError for a group on which there is none.
    """
    scales = [s for s in group.slices if _is_scale(s, evidence)]
    if not scales:
        raise GraphError(f"group '{group.name}' passes no batch norm with a scale: "
                         "list it under ignore, or use another criterion.")
    return evidence.add_up_at(group, scales, lambda s: evidence.weights[s.tensor].abs())


def random(group: Group, evidence: Evidence) -> Tensor:
    """Uniform in [0, 1) from the evidence's seeded generator: the control of every study."""
    kept = len(evidence.plan.kept[group.name])
    return torch.rand(kept, generator=evidence.generator, dtype=torch.float64)


def uniform(group: Group, evidence: Evidence) -> Tensor:
    """The least pruned group first, its channels in random order: equal shares of all groups.

    A channel scores the share of the group's original channels that is gone when its turn comes;
    a seeded tie-break of at most 1e-6 decides between equal shares.
    """
    kept = len(evidence.plan.kept[group.name])
    turn = torch.randperm(kept, generator=evidence.generator).double()
    tie = 1e-6 * torch.rand((), generator=evidence.generator, dtype=torch.float64)
    return (group.channels - kept + turn + tie) / group.channels


def norm(rows: Tensor, p: float, scale: str = "none") -> Tensor:
    """(channels,) p-norms of rows (channels, I, kernel); `scale` as in `lp`."""
    if scale == "resized":
        rows = _resized(rows)
    # In the weights' own precision: sum adds pairwise, and a copy in double costs ten times more.
    flat = rows.flatten(1).float() if rows.dtype.itemsize < 4 else rows.flatten(1)
    norms = (_row_sums(flat, torch.abs).double() if p == 1 else
             _row_sums(flat, torch.square).double().sqrt() if p == 2 else
             _any_norm(flat.double(), p))
    if scale == "fan_in":
        return norms / rows[0].numel()
    return norms / rows.shape[1] if scale == "resized" else norms


def rows_of(part: Slice, evidence: Evidence) -> Tensor:
    """The weights that produce each channel: (positions, I, kernel)."""
    rows = evidence.weights[part.tensor].detach().movedim(part.dim, 0)
    return rows if rows.dim() > 1 else rows.unsqueeze(1)


def has_kernel_of_one(rows: Tensor) -> bool:
    """Whether the rows are those of a 1x1 convolution or of a linear layer."""
    return prod(rows.shape[2:]) == 1


def _row_sums(rows: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """(channels,) sums of a function of rows (channels, n).

    A few rows at a time: what stays in the processor's cache takes a quarter of the time, and the
    sums are the same to the bit.
    """
    if not rows.numel():
        return of(rows).sum(1)
    parts = rows.split(max(1, _IN_CACHE // rows.shape[1]))
    return torch.cat([of(part).sum(1) for part in parts])


def _any_norm(rows: Tensor, p: float) -> Tensor:
    """(channels,) p-norms; of shares of the largest: high powers of small weights are 0."""
    largest = rows.abs().amax(1)
    shares = rows.abs() / largest.clamp_min(torch.finfo(rows.dtype).tiny)[:, None]
    return largest * shares.pow(p).sum(1).pow(1 / p)


def _distances(rows: Tensor, p: float) -> Tensor:
    """(channels,) sums of the p-norm distances from each row (channels, n) to all rows."""
    if p != 2:
        return torch.cdist(rows, rows, p=p).sum(1)
    centred = rows - rows.mean(0)  # differences stay, and lose fewer digits
    squares = centred.square().sum(1)
    between = squares[:, None] + squares - 2 * centred @ centred.t()
    return between.fill_diagonal_(0).clamp_min(0).sqrt().sum(1)


def _resized(rows: Tensor) -> Tensor:
    if rows.dim() == 2:  # a linear layer is a 1x1 convolution
        rows = rows[..., None, None]
    size = (3,) * (rows.dim() - 2)
    if has_kernel_of_one(rows):
        return rows.expand(*rows.shape[:2], *size)
    return F.interpolate(rows, size=size, mode=_RESIZE[rows.dim()], align_corners=False)


def _from_weights(group: Group, evidence: Evidence, value: Callable[[Tensor], Tensor]) -> Tensor:
    writers = [w for w in group.writers if w.tensor in evidence.weights]
    if not writers:
        raise GraphError(f"no weights write group '{group.name}': list it under ignore.")
    return evidence.add_up_at(group, writers, lambda w: value(rows_of(w, evidence)))


def _is_scale(part: Slice, evidence: Evidence) -> bool:
    """Whether a slice is the scale of a batch norm: it has running statistics beside it."""
    layer = layer_of(part.tensor)
    return (part.tensor == f"{layer}.weight" and part.tensor in evidence.weights
            and f"{layer}.running_mean" in evidence.graph.buffers)
