"""Choose what to cut: the lowest scores first, over all groups at once, as far as floors allow.

The order is stable (equal scores: earlier group, then lower channel). Floors are checked before
every single removal, on exact counts, and hold inside a step. Whether enough is gone is asked
after every removal, on exact counts too, so what is asked for is met within one channel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

import torch
from torch import Tensor

from harness.engine.graph import Graph, Group, Plan, Slice, layer_of
from harness.errors import ConfigError, unknown

Ratio = float | Mapping[str, float]


@dataclass(frozen=True)
class Floors:
    """What must stay, as shares in [0, 1] of the whole network's numbers.

    layer_min: share of a layer's channels; layer_min_params, layer_min_macs: of its parameters and
    MACs; block_min_params: of the parameters of all prunable layers under one parent module.
    Each is one number, or {module name: share}, where a parent's share covers its children and the
    longest name wins. relative: if not 0, a floor sinks with the network: it is the smaller of
    itself and relative x the share of the network (channels, parameters or MACs) still alive.
    min_channels: what every layer keeps at least. counting: 'own' counts a layer's parameters and
    MACs as if its input were whole, 'current' with the input as it is now.
    """

    layer_min: Ratio = 0.0
    layer_min_params: Ratio = 0.0
    layer_min_macs: Ratio = 0.0
    block_min_params: Ratio = 0.0
    relative: float = 0.0
    min_channels: int = 1
    counting: str = "own"


@dataclass(frozen=True)
class Counts:
    """What is left: filters (convolution outputs), channels (of groups), parameters, MACs."""

    filters: int
    channels: int
    params: int
    macs: int


@dataclass(frozen=True)
class Selection:
    """A plan; whether enough is gone; and the floor that held each group back, in words."""

    plan: Plan
    reached: bool
    counts: Counts
    bound: Mapping[str, str] = field(default_factory=dict)


def select(graph: Graph, scores: Mapping[str, Tensor], enough: Callable[[Counts], bool], *,
           start: Plan | None = None, floors: Floors = Floors(), round_to: int = 1,
           filters_only: bool = False) -> Selection:
    """Remove the lowest scores until `enough(counts)`, or until floors allow nothing more.

    scores: group -> (kept channels,) of the plan `start` (default: the whole network).
    filters_only: leave groups alone that no convolution writes (hidden linear layers).
    round_to: widths are rounded up to its multiples, the best of the removed coming back.
    """
    start = start or graph.whole()
    check_names(graph, floors)
    state = _State(graph, start, round_to)
    guards = _guards(graph, floors, state)
    removed: dict[str, list[int]] = {g.name: [] for g in graph.groups}
    bound: dict[str, str] = {}
    candidates = [g for g in graph.groups if bool(g.filters.any()) or not filters_only]
    waiting = _ascending(candidates, scores)
    progress = True
    while not enough(state.counts()) and progress:
        progress, skipped = False, []
        for group, place in waiting:
            if enough(state.counts()):
                break
            held = bound.get(group.name) if not floors.relative else None
            held = held or _held(guards[group.name], state, group)
            if held:
                bound[group.name] = held
                skipped.append((group, place))
                continue
            state.remove(group)
            removed[group.name].append(place)
            progress = True
        waiting = skipped  # only a relative floor can sink low enough to let them go now
        if not floors.relative:
            break
    kept = {g.name: _survivors(start.kept[g.name], removed[g.name], state.width(g.name))
            for g in graph.groups}
    return Selection(graph.plan(kept), enough(state.counts()), state.counts(), bound)


def _ascending(groups: Sequence[Group], scores: Mapping[str, Tensor]) -> list[tuple[Group, int]]:
    """(group, place among its kept channels), lowest score first."""
    owner = [(g, i) for g in groups for i in range(len(scores[g.name]))]
    if not owner:
        return []
    order = torch.cat([scores[g.name] for g in groups]).argsort(stable=True)
    return [owner[i] for i in order.tolist()]


def _survivors(kept: Tensor, removed: list[int], width: int) -> Tensor:
    """Rounding may call some of the removed back: those removed last scored best."""
    alive = torch.ones(len(kept), dtype=torch.bool)
    alive[removed[: len(kept) - width]] = False
    return kept[alive]


class _State:
    """Exact counts while channels go one by one: only what a channel touches is counted again."""

    def __init__(self, graph: Graph, start: Plan, round_to: int) -> None:
        self._round_to = round_to
        self._whole = {g.name: g.channels for g in graph.groups}
        self._begun = {g.name: len(start.kept[g.name]) for g in graph.groups}
        self._gone = dict.fromkeys(self._begun, 0)
        self._width = dict(self._begun)
        self._slices = {g.name: [(s.tensor, s.dim, _each(s, g)) for s in g.slices]
                        for g in graph.groups}
        self._touched = {g.name: tuple(dict.fromkeys(s.tensor for s in g.slices))
                         for g in graph.groups}
        self._filters_each = {g.name: int(g.filters.sum()) // g.channels for g in graph.groups}
        self._shape = {n: list(shape) for n, shape in graph.shapes.items()}
        for name, kept in start.parameters.items():
            if name in self._shape:
                for dim, alive in kept.items():
                    self._shape[name][dim] = len(alive)
        self._parameters = {n for n in graph.shapes if n not in graph.buffers}
        self._rows: dict[str, int] = {}
        for product in graph.products:
            if product.weight:
                self._rows[product.weight] = self._rows.get(product.weight, 0) + product.rows
        cost = graph.cost(start)
        self._filters, self._params, self._macs = cost.filters, cost.params, cost.macs
        self._channels = sum(self._begun.values())

    def counts(self) -> Counts:
        return Counts(self._filters, self._channels, self._params, self._macs)

    def width(self, group: str) -> int:
        return self._width[group]

    def numel(self, tensor: str) -> int:
        total = 1
        for size in self._shape[tensor]:
            total *= size
        return total

    def size(self, tensor: str, dim: int) -> int:
        return self._shape[tensor][dim]

    def rows(self, tensor: str) -> int:
        return self._rows.get(tensor, 0)

    def next_width(self, group: str) -> int:
        """The group's width if one more of its channels went."""
        left = self._begun[group] - self._gone[group] - 1
        return min(self._begun[group], -(-left // self._round_to) * self._round_to)

    def remove(self, group: Group) -> None:
        width = self.next_width(group.name)
        self._gone[group.name] += 1
        fewer = self._width[group.name] - width
        if fewer:
            self._resize(group, fewer)
            self._width[group.name] = width

    def _resize(self, group: Group, fewer: int) -> None:
        before = self._sizes(group.name)
        for tensor, dim, each in self._slices[group.name]:
            self._shape[tensor][dim] -= each * fewer
        after = self._sizes(group.name)
        self._params += after[0] - before[0]
        self._macs += after[1] - before[1]
        self._filters -= self._filters_each[group.name] * fewer
        self._channels -= fewer

    def _sizes(self, group: str) -> tuple[int, int]:
        params = macs = 0
        for tensor in self._touched[group]:
            numel = self.numel(tensor)
            params += numel if tensor in self._parameters else 0
            macs += numel * self._rows.get(tensor, 0)
        return params, macs


def _each(part: Slice, group: Group) -> int:
    """Positions of a tensor's dimension that one channel of the group takes."""
    return max(1, int((part.channel >= 0).sum()) // group.channels)


# --- floors --------------------------------------------------------------------------------------

Guard = Callable[[_State, Group], str | None]


def _held(guards: list[Guard], state: _State, group: Group) -> str | None:
    if state.next_width(group.name) == state.width(group.name):
        return None  # rounding: nothing goes yet
    for guard in guards:
        reason = guard(state, group)
        if reason:
            return reason
    return None


def _guards(graph: Graph, floors: Floors, state: _State) -> dict[str, list[Guard]]:
    whole = graph.cost()
    totals = Counts(whole.filters, sum(g.channels for g in graph.groups), whole.params, whole.macs)
    blocks = _blocks(graph)
    guards: dict[str, list[Guard]] = {}
    for group in graph.groups:
        own: list[Guard] = [_minimum(floors.min_channels)]
        for writer in group.writers:
            layer = writer.layer
            for name, ratio, measure, total in (
                ("layer_min", floors.layer_min, "channels", totals.channels),
                ("layer_min_params", floors.layer_min_params, "params", totals.params),
                ("layer_min_macs", floors.layer_min_macs, "macs", totals.macs),
            ):
                share = share_for(ratio, layer)
                if share or (floors.relative and ratio):
                    own.append(_share_guard(graph, floors, name, layer, [writer], share, measure, total))
            share = share_for(floors.block_min_params, layer)
            if share:
                block = layer_of(layer)
                own.append(_share_guard(graph, floors, "block_min_params", block or "the network",
                                        blocks[block], share, "params", totals.params))
        guards[group.name] = own
    return guards


def _minimum(min_channels: int) -> Guard:
    def guard(state: _State, group: Group) -> str | None:
        if state.next_width(group.name) < max(1, min_channels):
            return f"min_channels: {max(1, min_channels)} must stay"
        return None

    return guard


def _share_guard(graph: Graph, floors: Floors, name: str, where: str, writers: list[Slice],
                 share: float, measure: str, total: int) -> Guard:
    """Refuse a removal after which `writers` together hold less than their share of `measure`."""
    original = sum(_measure_whole(graph, w, measure) for w in writers)

    def guard(state: _State, group: Group) -> str | None:
        left = sum(_measure_after(graph, w, measure, floors.counting, state, group)
                   for w in writers)
        floor = share
        if floors.relative:
            floor = min(share, floors.relative * getattr(state.counts(), measure) / total)
        # The least whole number of what is counted that is not below the share of it.
        if left < ceil(floor * original - 1e-9):
            return f"{name}: {where} keeps {floor:.4g} of its {measure}"
        return None

    return guard


def _measure_whole(graph: Graph, writer: Slice, measure: str) -> int:
    shape = graph.shapes[writer.tensor]
    if measure == "channels":
        return shape[writer.dim]
    numel = int(torch.Size(shape).numel())
    if measure == "macs":
        return numel * _rows(graph, writer.tensor)
    return numel + (shape[writer.dim] if _bias_of(graph, writer) else 0)


def _measure_after(graph: Graph, writer: Slice, measure: str, counting: str, state: _State,
                   group: Group) -> int:
    """The writer's count once the group has lost its next channel."""
    fewer = (state.width(group.name) - state.next_width(group.name)) * _shared(writer, group)
    width = state.size(writer.tensor, writer.dim) - fewer
    if measure == "channels":
        return width
    now = state.size(writer.tensor, writer.dim)
    if counting == "current":
        per_filter = state.numel(writer.tensor) // now
    else:
        shape = graph.shapes[writer.tensor]
        per_filter = int(torch.Size(shape).numel()) // shape[writer.dim]
    if measure == "macs":
        return per_filter * width * _rows(graph, writer.tensor)
    return (per_filter + (1 if _bias_of(graph, writer) else 0)) * width


def _shared(writer: Slice, group: Group) -> int:
    """Positions of the writer that one channel of the group takes; 0 for another group's writer."""
    for part in group.writers:
        if part.tensor == writer.tensor and part.dim == writer.dim:
            return _each(part, group)
    return 0


def _rows(graph: Graph, weight: str) -> int:
    return sum(p.rows for p in graph.products if p.weight == weight)


def _bias_of(graph: Graph, writer: Slice) -> bool:
    return f"{writer.layer}.bias" in graph.shapes


def _blocks(graph: Graph) -> dict[str, list[Slice]]:
    """Parent module -> the prunable layers right under it."""
    blocks: dict[str, list[Slice]] = {}
    for group in graph.groups:
        for writer in group.writers:
            blocks.setdefault(layer_of(writer.layer), []).append(writer)
    return blocks


def share_for(ratio: Ratio, layer: str) -> float:
    """The share that holds for a layer: its own name's, else the nearest parent's, else 0."""
    if not isinstance(ratio, Mapping):
        return float(ratio)
    name = layer
    while name:
        if name in ratio:
            return float(ratio[name])
        name = layer_of(name)
    return float(ratio.get("", 0.0))


def check_names(graph: Graph, floors: Floors) -> None:
    """Raises ConfigError for a floor on a module that the network does not have."""
    modules = {""}
    for tensor in (name for names in graph.names.values() for name in names):
        while tensor:
            tensor = layer_of(tensor)
            modules.add(tensor)
    mistakes = []
    for field_name in ("layer_min", "layer_min_params", "layer_min_macs", "block_min_params"):
        ratio = getattr(floors, field_name)
        if isinstance(ratio, Mapping):
            mistakes += [f"floors.{field_name}: {unknown('module', name, modules - {''})}"
                         for name in ratio if name not in modules]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
