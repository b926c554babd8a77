"""Check a cut on the spot: it must compute what the network before it does when nobody reads the
removed channels; and a wrong cut must be seen to differ.

Readers are silenced, not writers: zeroing a convolution still leaves its batch-norm bias in the
channel. Where a product of activations reads the channels (queries and keys), there is no weight
to silence: all that writes and accompanies them is zeroed too. Layer and group norms compute their
statistics over the channels that stay, and attention scales by the width that stays, in both.

Differences are measured in float64 against the spread of the outputs (the largest range
over the batch of any one output; over all outputs if all examples are one), because an untrained
network puts out almost nothing and any difference would look small. Where the spread itself drowns
in the rounding of the outputs (it is 1e-9 of them, say), the tolerance is that rounding.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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
            for part in group.slices if group.contracted else group.readers:
                if "product" not in part.roles:
                    gone = _gone(group, part, before, after).to(whole[0].device)
                    tensors[part.tensor].index_fill_(part.dim, gone, 0.0)
        with AttentionWidths() as seen:
            got = _outputs(small(*inputs))
        kept = _kept_of_norms(tensors, before, after)
        with KeptStatistics(kept, seen.widths):
            expected = _outputs(silenced(*inputs))
        difference = _distance(expected, got, spread)
        tolerance = max(TOLERANCE[dtype], _rounding(whole, spread))
        control = 0.0
        for part, a, b in _swaps(graph, before, after):
            _swap(tensors[part.tensor], part.dim, a, b)
            with KeptStatistics(kept, seen.widths):
                control = max(control, _distance(expected, _outputs(silenced(*inputs)), spread))
            _swap(tensors[part.tensor], part.dim, a, b)
            if control >= CONTROL_FACTOR * tolerance:
                break
    return Certificate(difference, control, tolerance, str(dtype).removeprefix("torch."))


def _gone(group: Group, part: Slice, before: Plan, after: Plan) -> Tensor:
    """Positions, in the tensor as cut by `before`, of the channels that `after` removes."""
    channel = _channels_now(part, before)
    removed = (channel >= 0) & ~torch.isin(channel, after.kept[group.name])
    return removed.nonzero().flatten()


class AttentionWidths(TorchFunctionMode):
    """Notes the columns of a head in every call of PyTorch's own attention, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: list[int] = []

    def __torch_function__(self, func: Callable[..., Any], types: object,
                           args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            query = args[0] if args else (kwargs or {})["query"]
            self.widths.append(query.shape[-1])
        return func(*args, **(kwargs or {}))


class KeptStatistics(TorchFunctionMode):
    """Norms over the kept channels alone, put out at their places among zeros.

    kept: id of a norm's scale -> dimension of the scale -> places that stay. widths: of the heads
    that stay, in the order of the calls of attention: its usual scale is 1 / sqrt(width).
    """

    def __init__(self, kept: Mapping[int, Mapping[int, Tensor]], widths: Sequence[int]) -> None:
        super().__init__()
        self._kept = kept
        self._widths = iter(widths)

    def __torch_function__(self, func: Callable[..., Any], types: object,
                           args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        norm = _NORMS.get(func)
        if norm is not None:
            given = inspect.signature(norm).bind_partial(*args, **(kwargs or {})).arguments
            kept = self._kept.get(id(given.get("weight")))
            if kept:
                return norm(**given, kept=kept)
        if func is nn.functional.scaled_dot_product_attention:
            width = next(self._widths)
            if (kwargs or {}).get("scale") is None:
                kwargs = {**(kwargs or {}), "scale": width ** -0.5}
        return func(*args, **(kwargs or {}))


def _layer_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor,
                bias: Tensor | None = None, eps: float = 1e-5, cudnn_enable: bool = True,
                kept: Mapping[int, Tensor] | None = None) -> Tensor:
    first = input.dim() - len(normalized_shape)
    kept = kept or {}
    rows = _only(input, {first + d: places for d, places in kept.items()})
    scale, shift = _only(weight, kept), None if bias is None else _only(bias, kept)
    normed = nn.functional.layer_norm(rows, scale.shape, scale, shift, eps)
    return _among_zeros(input, normed, {first + d: places for d, places in kept.items()})


def _rms_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor,
              eps: float | None = None, kept: Mapping[int, Tensor] | None = None) -> Tensor:
    first = input.dim() - len(normalized_shape)
    kept = kept or {}
    rows = _only(input, {first + d: places for d, places in kept.items()})
    scale = _only(weight, kept)
    normed = nn.functional.rms_norm(rows, scale.shape, scale, eps)
    return _among_zeros(input, normed, {first + d: places for d, places in kept.items()})


def _group_norm(input: Tensor, num_groups: int, weight: Tensor, bias: Tensor | None = None,
                eps: float = 1e-5, cudnn_enabled: bool = True,
                kept: Mapping[int, Tensor] | None = None) -> Tensor:
    places = (kept or {})[0]
    groups = len(places) if num_groups == input.shape[1] else num_groups
    shift = None if bias is None else bias[places]
    normed = nn.functional.group_norm(input[:, places], groups, weight[places], shift, eps)
    return _among_zeros(input, normed, {1: places})


_NORMS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    nn.functional.layer_norm: _layer_norm, torch.layer_norm: _layer_norm,
    nn.functional.rms_norm: _rms_norm, torch.rms_norm: _rms_norm,
    nn.functional.group_norm: _group_norm, torch.group_norm: _group_norm,
}


def _only(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    for dim, places in kept.items():
        tensor = tensor.index_select(dim, places)
    return tensor


def _among_zeros(whole: Tensor, part: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    for dim, places in kept.items():
        shape = list(part.shape)
        shape[dim] = whole.shape[dim]
        part = part.new_zeros(shape).index_copy_(dim, places, part)
    return part


def _kept_of_norms(tensors: Mapping[str, Tensor], before: Plan, after: Plan,
                   ) -> dict[int, dict[int, Tensor]]:
    """id of a tensor -> dimension -> where, in it as cut by `before`, the kept entries are."""
    found: dict[int, dict[int, Tensor]] = {}
    for name, dims in after.parameters.items():
        for dim, kept in dims.items():
            had = before.parameters.get(name, {}).get(dim)
            places = kept if had is None else torch.isin(had, kept).nonzero().flatten()
            if len(places) < tensors[name].shape[dim]:
                found.setdefault(id(tensors[name]), {})[dim] = places.to(tensors[name].device)
    return found


def _channels_now(part: Slice, plan: Plan) -> Tensor:
    alive = plan.shares.get(part.tensor, {}).get(part.dim)
    return part.channel if alive is None else part.channel[alive]


def _swaps(graph: Graph, before: Plan, after: Plan) -> Iterator[tuple[Slice, int, int]]:
    """A few single mistakes: one reader takes a channel that went for one that stays.

    Where no weight reads the channels, one of their writers does so.
    """
    tries = 0
    for group in reversed(graph.groups):
        for part in group.readers or group.writers:
            gone = _gone(group, part, before, after)
            channel = _channels_now(part, before)
            stay = torch.isin(channel, after.kept[group.name]).nonzero().flatten()
            if not len(gone) or not len(stay):
                continue
            yield part, int(stay[0]), int(gone[-1])
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
