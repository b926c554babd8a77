"""Choose what to cut: the lowest scores first, over all groups at once, as far as floors allow.

The order is stable (equal scores: earlier group, then lower channel). Floors are checked before
every single removal, on exact counts, and hold inside a step. Whether enough is gone is asked
after every removal, on exact counts too, so what is asked for is met within one channel.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import ceil, prod

import torch
from torch import Tensor

from harness.engine.graph import Graph, Group, Plan, layer_of
from harness.errors import ConfigError, unknown

Ratio = float | Mapping[str, float]
COUNTING = ("own", "current")


@dataclass(frozen=True)
class Floors:
    """What must stay, as shares in [0, 1] of the whole network's numbers.

    layer_min: share of a layer's channels; layer_min_params, layer_min_macs: of its parameters and
    MACs; block_min_params: of the parameters of all layers right under one parent module. Floors
    are on layers whose own channels can be cut.
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
    """What is left of the network: filters (convolution outputs), channels, parameters, MACs."""

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
    check_floors(graph, floors)
    state = _State(graph, start, round_to)
    guards = _guards(graph, floors)
    bound: dict[str, str] = {}
    candidates = [g for g in graph.groups if bool(g.filters.any()) or not filters_only]
    waiting = _ascending(candidates, scores)
    progress = True
    while progress and not enough(state.counts()):
        progress, skipped = False, []
        bound = {}  # a relative floor may have sunk low enough to let the next channel go
        for group, place in waiting:
            if enough(state.counts()):
                break
            if group.name not in bound:
                held = _held(guards[group.name], state, group, place)
                if held:
                    bound[group.name] = held
            if group.name in bound:  # its better channels stay too: scores decide within a group
                skipped.append((group, place))
                continue
            state.remove(group, place)
            progress = True
        waiting = skipped
        progress = progress and bool(floors.relative)
    plan = graph.plan({g.name: state.kept(g.name) for g in graph.groups})
    return Selection(plan, enough(state.counts()), state.counts(), bound)


def _ascending(groups: Sequence[Group], scores: Mapping[str, Tensor]) -> list[tuple[Group, int]]:
    """(group, place among its kept channels), lowest score first."""
    owner = [(g, i) for g in groups for i in range(len(scores[g.name]))]
    if not owner:
        return []
    order = torch.cat([scores[g.name] for g in groups]).argsort(stable=True)
    return [owner[i] for i in order.tolist()]


class _State:
    """Exact counts while channels go one by one: only what a channel touches is counted again."""

    def __init__(self, graph: Graph, start: Plan, round_to: int) -> None:
        self._round_to = round_to
        self._start = start.kept
        self._begun = {g.name: len(start.kept[g.name]) for g in graph.groups}
        self._width = dict(self._begun)
        # Places of channels chosen to go; those that wait for a multiple of round_to, and the gone.
        self._waiting: dict[str, list[int]] = {g.name: [] for g in graph.groups}
        self._gone: dict[str, list[int]] = {g.name: [] for g in graph.groups}
        self._takes = {g.name: _takes(g, start) for g in graph.groups}
        self._filters_of = {g.name: g.filters[start.kept[g.name]].tolist() for g in graph.groups}
        self._shape = {n: list(shape) for n, shape in graph.shapes.items()}
        for name, dims in start.parameters.items():
            if name in self._shape:
                for dim, alive in dims.items():
                    self._shape[name][dim] = len(alive)
        self._is_parameter = {n: graph.is_parameter(n) for n in graph.shapes}
        self._rows = _rows(graph)
        cost = graph.cost(start)
        self._filters, self._params, self._macs = cost.filters, cost.params, cost.macs
        gone = sum(g.channels - len(start.kept[g.name]) for g in graph.groups)
        self._channels = graph.channels - gone

    def counts(self) -> Counts:
        return Counts(self._filters, self._channels, self._params, self._macs)

    def kept(self, group: str) -> Tensor:
        """Original channels that stay."""
        alive = torch.ones(self._begun[group], dtype=torch.bool)
        alive[self._gone[group]] = False
        return self._start[group][alive]

    def leaving(self, group: Group, place: int) -> list[int]:
        """The places that would go, were this one chosen: none, or all up to a full multiple."""
        chosen = [*self._waiting[group.name], place]
        width = self._width[group.name] - len(chosen)
        return chosen if width % self._round_to == 0 else []

    def shape_without(self, tensor: str, group: Group, places: Sequence[int]) -> list[int]:
        """The tensor's shape once these places of the group are gone."""
        shape = list(self._shape[tensor])
        for dim, each in self._takes[group.name].get(tensor, ()):
            shape[dim] -= sum(each[p] for p in places)
        return shape

    def remove(self, group: Group, place: int) -> None:
        places = self.leaving(group, place)
        self._waiting[group.name].append(place)
        if not places:
            return
        for tensor in self._takes[group.name]:
            before = prod(self._shape[tensor])
            self._shape[tensor] = self.shape_without(tensor, group, places)
            fewer = before - prod(self._shape[tensor])
            self._params -= fewer if self._is_parameter[tensor] else 0
            self._macs -= fewer * self._rows.get(tensor, 0)
        self._filters -= sum(self._filters_of[group.name][p] for p in places)
        self._channels -= len(places)
        self._width[group.name] -= len(places)
        self._gone[group.name] += places
        self._waiting[group.name] = []


def _takes(group: Group, start: Plan) -> dict[str, list[tuple[int, list[int]]]]:
    """Tensor -> [(dimension, its positions that each kept channel takes)]."""
    takes: dict[str, list[tuple[int, list[int]]]] = {}
    for part in group.slices:
        counts = torch.bincount(part.channel[part.channel >= 0], minlength=group.channels)
        each = counts[start.kept[group.name]].tolist()
        takes.setdefault(part.tensor, []).append((part.dim, each))
    return takes


def _rows(graph: Graph) -> dict[str, int]:
    """Weight -> how many times an example uses it."""
    rows: dict[str, int] = {}
    for product in graph.products:
        if product.weight:
            rows[product.weight] = rows.get(product.weight, 0) + product.rows
    return rows


# --- floors ---------------------------------------------------------------------------------------

Guard = Callable[[_State, Group, Sequence[int]], str | None]


def _held(guards: Iterable[Guard], state: _State, group: Group, place: int) -> str | None:
    places = state.leaving(group, place)
    if not places:
        return None  # rounding: nothing goes yet
    return next((held for g in guards if (held := g(state, group, places))), None)


@dataclass(frozen=True)
class _Layer:
    """A layer with channels of its own, and what a floor counts of it."""

    name: str
    tensor: str
    dim: int
    shape: tuple[int, ...]
    has_bias: bool
    rows: int

    def measure(self, what: str, shape: Sequence[int]) -> int:
        """Its channels, parameters (bias included) or MACs, if its weight had this shape."""
        if what == "channels":
            return shape[self.dim]
        if what == "macs":
            return prod(shape) * self.rows
        return prod(shape) + (shape[self.dim] if self.has_bias else 0)


def _guards(graph: Graph, floors: Floors) -> dict[str, list[Guard]]:
    """Group -> what is to be asked before one of its channels goes."""
    whole = graph.cost()
    totals = {"channels": graph.channels, "params": whole.params, "macs": whole.macs}
    layers, blocks = _layers(graph), _blocks(graph)
    guards: dict[str, list[Guard]] = {g.name: [_minimum(floors.min_channels)] for g in graph.groups}

    def add(name: str, what: str, where: str, members: Sequence[_Layer]) -> None:
        share = share_for(getattr(floors, name), where)
        if not share:
            return
        place = f"{name}: {where or 'the network'}"
        guard = _share_guard(floors, place, members, share, what, totals[what])
        for group in graph.groups:
            touched = {(s.tensor, s.dim) for s in group.slices}
            # Counted as it is now, a layer also shrinks with the channels that it reads.
            if any((m.tensor, d) in touched for m in members for d in range(len(m.shape))
                   if d == m.dim or (floors.counting == "current" and what != "channels")):
                guards[group.name].append(guard)

    for layer in layers:
        add("layer_min", "channels", layer.name, [layer])
        add("layer_min_params", "params", layer.name, [layer])
        add("layer_min_macs", "macs", layer.name, [layer])
    for block, members in blocks.items():
        add("block_min_params", "params", block, members)
    return guards


def _minimum(min_channels: int) -> Guard:
    least = max(1, min_channels)

    def guard(state: _State, group: Group, places: Sequence[int]) -> str | None:
        for writer in group.writers:
            if state.shape_without(writer.tensor, group, places)[writer.dim] < least:
                return f"min_channels: {writer.layer} keeps {least}"
        return None

    return guard


def _share_guard(floors: Floors, where: str, layers: Sequence[_Layer], share: float, what: str,
                 total: int) -> Guard:
    """Refuse a removal after which `layers` together hold less than their share of `what`."""
    original = sum(layer.measure(what, layer.shape) for layer in layers)

    def guard(state: _State, group: Group, places: Sequence[int]) -> str | None:
        left = 0
        for layer in layers:
            shape = state.shape_without(layer.tensor, group, places)
            if floors.counting == "own":
                width = shape[layer.dim]
                shape = list(layer.shape)
                shape[layer.dim] = width
            left += layer.measure(what, shape)
        floor = share
        if floors.relative:
            floor = min(share, floors.relative * getattr(state.counts(), what) / total)
        # The least whole number of what is counted that is not below the share of it.
        if left < ceil(floor * original - 1e-9):
            return f"{where} keeps {floor:.4g} of its {what}"
        return None

    return guard


def _layers(graph: Graph) -> list[_Layer]:
    """Every layer that writes channels of a group, once."""
    rows = _rows(graph)
    found: dict[tuple[str, int], _Layer] = {}
    for writer in (w for group in graph.groups for w in group.writers):
        bias = f"{writer.layer}.bias"
        found[writer.tensor, writer.dim] = _Layer(
            writer.layer, writer.tensor, writer.dim, graph.shapes[writer.tensor],
            bias in graph.shapes, rows.get(writer.tensor, 0))
    return list(found.values())


def _blocks(graph: Graph) -> dict[str, list[_Layer]]:
    """Parent module -> the layers right under it."""
    blocks: dict[str, list[_Layer]] = {}
    for layer in _layers(graph):
        blocks.setdefault(layer_of(layer.name), []).append(layer)
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


def check_floors(graph: Graph, floors: Floors) -> None:
    """Raises ConfigError for a number out of range, or a module that the network does not have."""
    modules = {""}
    for tensor in (name for names in graph.names.values() for name in names):
        while tensor:
            tensor = layer_of(tensor)
            modules.add(tensor)
    parents = {layer_of(module) for module in modules}
    mistakes = []
    for name in (f.name for f in fields(floors) if f.name not in ("min_channels", "counting")):
        ratio = getattr(floors, name)
        shares = ratio if isinstance(ratio, Mapping) else {"": ratio}
        known = parents if name == "block_min_params" else modules
        mistakes += [f"floors.{name}: {unknown('module', m, known - {''})}"
                     for m in shares if m not in known]
        mistakes += [f"floors.{name}: {share} must be from 0 to 1."
                     for share in shares.values() if not 0 <= share <= 1]
    if floors.min_channels < 1:
        mistakes.append(f"floors.min_channels: {floors.min_channels} must be at least 1.")
    if floors.counting not in COUNTING:
        mistakes.append(f"floors.counting: {unknown('way of counting', floors.counting, COUNTING)}")
    if mistakes:
        raise ConfigError("\n".join(mistakes))
