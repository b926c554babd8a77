"""Check a cut on the spot: it must compute what the network before it does when nobody reads the
removed channels; and a wrong cut must be seen to differ.

Readers are silenced, not writers: zeroing a convolution still leaves its batch-norm bias in the
channel. Differences are measured in float64 against the spread of the outputs (the largest range
over the batch of any one output; over all outputs if all examples are one), because an untrained
network puts out almost nothing and any difference would look small. Where the spread itself drowns
in the rounding of the outputs (it is 1e-9 of them, say), the tolerance is that rounding.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.engine.graph import Example, Graph, Group, Plan, Slice
from harness.errors import SurgeryError

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
ROUNDING = 64  # units in the last place of the largest output
CONTROL_FACTOR = 100  # the wrong cut must differ by this many tolerances
CONTROL_TRIES = 8


@dataclass(frozen=True)
class Certificate:
    """difference, control: largest output differences, as shares of the spread."""

    difference: float
    control: float
    tolerance: float
    dtype: str

    @property
    def holds(self) -> bool:
        """The cut network computes what the silenced one does."""
        return self.difference <= self.tolerance

    @property
    def controlled(self) -> bool:
        """A wrong cut would have been noticed."""
        return self.control >= CONTROL_FACTOR * self.tolerance

    @property
    def certified(self) -> bool:
        return self.holds and self.controlled


def certify(dense: nn.Module, pruned: nn.Module, graph: Graph, before: Plan, after: Plan,
            example: Example) -> Certificate:
    """Compare `pruned` (cut by `after`) with a silenced `dense` (cut by `before`), in eval mode.

    Neither model is touched. float64, or float32 where the forward insists on it.
    """
    for dtype in (torch.float64, torch.float32):
        try:
            return _certify(dense, pruned, graph, before, after, _cast(example, dtype), dtype)
        except RuntimeError:
            if dtype == torch.float32:
                raise
    raise AssertionError("one of the two returned or raised")


def _certify(dense: nn.Module, pruned: nn.Module, graph: Graph, before: Plan, after: Plan,
             inputs: tuple[object, ...], dtype: torch.dtype) -> Certificate:
    silenced = copy.deepcopy(dense).to(dtype).eval()
    small = copy.deepcopy(pruned).to(dtype).eval()
    tensors = {**dict(silenced.named_parameters(remove_duplicate=False)),
               **dict(silenced.named_buffers(remove_duplicate=False))}
    with torch.no_grad():
        whole = _outputs(silenced(*inputs))
        if not whole:
            raise SurgeryError("nothing to certify: the network puts out no floating-point tensor.")
        spread = max(_spread(o) for o in whole)
        for group in graph.groups:
            for reader in group.readers:
                gone = _gone(group, reader, before, after)
                tensors[reader.tensor].index_fill_(reader.dim, gone.to(whole[0].device), 0.0)
        expected = _outputs(silenced(*inputs))
        difference = _distance(expected, _outputs(small(*inputs)), spread)
        tolerance = max(TOLERANCE[dtype], _rounding(whole, spread))
        control = 0.0
        for reader, a, b in _swaps(graph, before, after):
            _swap(tensors[reader.tensor], reader.dim, a, b)
            control = max(control, _distance(expected, _outputs(silenced(*inputs)), spread))
            _swap(tensors[reader.tensor], reader.dim, a, b)
            if control >= CONTROL_FACTOR * tolerance:
                break
    return Certificate(difference, control, tolerance, str(dtype).removeprefix("torch."))


def _gone(group: Group, part: Slice, before: Plan, after: Plan) -> Tensor:
    """Positions, in the tensor as cut by `before`, of the channels that `after` removes."""
    channel = _channels_now(part, before)
    removed = (channel >= 0) & ~torch.isin(channel, after.kept[group.name])
    return removed.nonzero().flatten()


def _channels_now(part: Slice, plan: Plan) -> Tensor:
    alive = plan.parameters.get(part.tensor, {}).get(part.dim)
    return part.channel if alive is None else part.channel[alive]


def _swaps(graph: Graph, before: Plan, after: Plan) -> Iterator[tuple[Slice, int, int]]:
    """A few single mistakes: one reader takes a channel that went for one that stays."""
    tries = 0
    for group in reversed(graph.groups):
        for reader in group.readers:
            gone = _gone(group, reader, before, after)
            channel = _channels_now(reader, before)
            stay = torch.isin(channel, after.kept[group.name]).nonzero().flatten()
            if not len(gone) or not len(stay):
                continue
            yield reader, int(stay[0]), int(gone[-1])
            tries += 1
            if tries >= CONTROL_TRIES:
                return


def _swap(tensor: Tensor, dim: int, a: int, b: int) -> None:
    first, second = tensor.select(dim, a), tensor.select(dim, b)
    kept = first.clone()
    first.copy_(second)
    second.copy_(kept)


def _outputs(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        return [t for v in value.values() for t in _outputs(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in _outputs(v)]
    return []


def _spread(output: Tensor) -> float:
    over_batch = float((output.amax(0) - output.amin(0)).max()) if output.dim() else 0.0
    return over_batch or float(output.max() - output.min()) or float(output.abs().max())


def _rounding(outputs: list[Tensor], spread: float) -> float:
    """Rounding of the outputs as a share of their spread."""
    largest = max(float(o.abs().max()) * torch.finfo(o.dtype).eps for o in outputs)
    return ROUNDING * largest / spread if spread else 0.0


def _distance(expected: list[Tensor], got: list[Tensor], spread: float) -> float:
    """Largest difference over the spread; infinite if anything is not finite."""
    worst = max(float((e - g).abs().max()) for e, g in zip(expected, got, strict=True))
    finite = all(bool(o.isfinite().all()) for o in [*expected, *got])
    if not finite:
        return float("inf")
    return worst / spread if spread else (0.0 if worst == 0.0 else float("inf"))


def _cast(example: Example, dtype: torch.dtype) -> tuple[object, ...]:
    args = example if isinstance(example, tuple) else (example,)
    return tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a
                 for a in args)
