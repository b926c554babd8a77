"""Check a cut on the spot: it must compute what the network before it does when nobody reads the
removed channels; and a wrong cut must be seen to differ.

Readers are silenced, not writers: zeroing a convolution still leaves its batch-norm bias in the
channel. Where a product of activations reads the channels (queries and keys), there is no weight
to silence: all that writes and accompanies them is zeroed too. Layer and group norms compute their
statistics over the channels that stay, and attention scales by the width that stays, in both
(`kept_widths.py`).

Differences are measured in float64 against the spread of the outputs (the largest range
over the batch of any one output; over all outputs if all examples are one), because an untrained
network puts out almost nothing and any difference would look small. Where the spread itself drowns
in the rounding of the outputs (it is 1e-9 of them, say), the tolerance is that rounding.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from harness.engine.graph import Example, Graph, Group, Plan, Slice
from harness.engine.kept_widths import KeptWidths, Numbers, kept_of_norms
from harness.engine.surgery import copied
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
    with suppress(RuntimeError):
        return _certify(dense, pruned, graph, before, after, example, torch.float64)
    return _certify(dense, pruned, graph, before, after, example, torch.float32)


def _certify(dense: nn.Module, pruned: nn.Module, graph: Graph, before: Plan, after: Plan,
             example: Example, dtype: torch.dtype) -> Certificate:
    inputs = _cast(example, dtype)
    silenced = copied(dense).to(dtype).eval()
    small = copied(pruned).to(dtype).eval()
    tensors = {**dict(silenced.named_parameters(remove_duplicate=False)),
               **dict(silenced.named_buffers(remove_duplicate=False))}
    with torch.no_grad():
        whole = _outputs_of(silenced, inputs)
        if not whole:
            raise SurgeryError("nothing to certify: the network puts out no floating-point tensor. "
                               "Let it put out one, or give certify_cut=False.")
        if not all(bool(o.isfinite().all()) for o in whole):
            raise SurgeryError("nothing to certify: before any cut, the network puts out NaN or "
                               "infinity for this example. Look at its weights and at the example, "
                               "or give certify_cut=False.")
        spread = max(_spread(o) for o in whole)
        silence(tensors, graph, before, after)
        with Numbers() as seen:
            got = _outputs_of(small, inputs)
        kept = kept_of_norms(tensors, before, after)
        calls = seen.calls if _cuts_contracted(graph, before, after) else []
        with KeptWidths(kept, calls):
            expected = _outputs_of(silenced, inputs)
        difference = _distance(expected, got, spread)
        tolerance = max(TOLERANCE[dtype], _rounding(whole, spread))
        control = 0.0
        for part, a, b in _swaps(graph, before, after):
            _swap(tensors[part.tensor], part.dim, a, b)
            with KeptWidths(kept, calls):
                wrong = _outputs_of(silenced, inputs)
            control = max(control, _distance(expected, wrong, spread))
            _swap(tensors[part.tensor], part.dim, a, b)
            if control >= CONTROL_FACTOR * tolerance:
                break
    return Certificate(difference, control, tolerance, str(dtype).removeprefix("torch."))


def silence(tensors: Mapping[str, Tensor], graph: Graph, before: Plan, after: Plan) -> None:
    """Zero, in place, what reads the channels that go; of contracted ones, all that has them."""
    for group in graph.groups:
        for part in group.slices if group.contracted else group.readers:
            if "product" not in part.roles:
                tensor = tensors[part.tensor]
                gone = _gone(group, part, before, after).to(tensor.device)
                tensor.index_fill_(part.dim, gone, 0.0)


def is_random(model: nn.Module, example: Example) -> bool:
    """Whether the eval-mode forward puts out other numbers with other random numbers."""
    still = copied(model).double().eval()
    try:
        one, other = (_outputs_of(still, _cast(example, torch.float64), seed) for seed in (0, 1))
    except RuntimeError:  # the forward insists on its own type
        still = copied(model).eval()
        args = example if isinstance(example, tuple) else (example,)
        one, other = (_outputs_of(still, args, seed) for seed in (0, 1))
    return any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _cuts_contracted(graph: Graph, before: Plan, after: Plan) -> bool:
    """Whether queries and keys shrink: then alone may a number follow a width."""
    return any(group.contracted and len(after.kept[group.name]) < len(before.kept[group.name])
               for group in graph.groups)


def _gone(group: Group, part: Slice, before: Plan, after: Plan) -> Tensor:
    """Positions, in the tensor as cut by `before`, of the channels that `after` removes."""
    channel = _channels_now(part, before)
    removed = (channel >= 0) & ~torch.isin(channel, after.kept[group.name])
    return removed.nonzero().flatten()


def _channels_now(part: Slice, plan: Plan) -> Tensor:
    alive = plan.shares.get(part.tensor, {}).get(part.dim)
    return part.channel if alive is None else part.channel[alive]


def _swaps(graph: Graph, before: Plan, after: Plan) -> Iterator[tuple[Slice, int, int]]:
    """A few single mistakes: one reader takes a channel that went for one that stays.

    Where no weight reads the channels, one of their writers does so.
    """
    tries = 0
    parts = [(g, part) for g in reversed(graph.groups) for part in g.readers or g.writers]
    for turn in range(CONTROL_TRIES):  # other channels, where these say the same of the examples
        for group, part in parts:
            gone = _gone(group, part, before, after)
            channel = _channels_now(part, before)
            stay = torch.isin(channel, after.kept[group.name]).nonzero().flatten()
            if turn >= min(len(gone), len(stay)):
                continue
            yield part, int(stay[turn]), int(gone[-1 - turn])
            tries += 1
            if tries >= CONTROL_TRIES:
                return


def _swap(tensor: Tensor, dim: int, a: int, b: int) -> None:
    first, second = tensor.select(dim, a), tensor.select(dim, b)
    kept = first.clone()
    first.copy_(second)
    second.copy_(kept)


def _outputs_of(model: nn.Module, inputs: tuple[object, ...], seed: int = 0) -> list[Tensor]:
    """What the forward puts out: always with the same random numbers, and from the same buffers.

    A forward that counts, or keeps a mean, would else compute something else every time.
    """
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    values = [(b, b.clone()) for b in model.buffers()]
    devices = {p.device for p in model.parameters() if p.is_cuda}
    try:
        with torch.no_grad(), torch.random.fork_rng(list(devices)):
            torch.manual_seed(seed)
            return _outputs(model(*inputs))
    finally:
        for module, before in buffers:
            module._buffers.update(before)
        for buffer, value in values:
            buffer.copy_(value)


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
    cast: tuple[object, ...] = tree_map_only(
        Tensor, lambda a: a.to(dtype) if a.is_floating_point() else a, args)
    return cast
