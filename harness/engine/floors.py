"""What must stay: floors on layers, blocks, modules and coupled groups, as guards of a selection.

A floor is a share of the *original*, whole network's numbers, read from the traced model; a guard
is one floor on one thing, and knows how much is left there while channels go.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor

from harness.engine.graph import Graph, Group, Plan, Slice, layer_of
from harness.engine.tally import Alive, shapes_of, uses
from harness.errors import ConfigError, unknown

Ratio = float | Mapping[str, float] | Sequence[float]
COUNTING = ("own", "current")


@dataclass(frozen=True)
class Floors:
    """What must stay, as shares in [0, 1] of the whole network's numbers.

    layer_min: share of a layer's channels; layer_min_params, layer_min_macs: of its parameters and
    MACs; block_min_params: of the parameters of all layers right under one parent module;
    node_min, node_min_params, node_min_macs: of all layers anywhere under a module, together.
    Floors are on layers whose own channels can be cut.
    Each is one number for all; or {module name: share}; or, of layers, a list with one share for
    each, in the model's order. By name, a parent's share covers its children and the longest name
    wins; of node_min the share is the named module's own. '' is the whole network.
    relative: if not 0, a floor sinks with the network: it is the smaller of itself and relative x
    the share of the network (channels, parameters or MACs) still alive.
    min_channels: what every layer keeps at least; min_channels_alone: and one that is coupled to
    no other layer. group_min: share of its channels that a group of coupled layers keeps;
    group_rule: 'share' takes group_min as it is; others work it out from the percentage that is
    asked for, see `group_share`.
    counting: 'own' counts a layer's parameters and MACs as if its input were whole, 'current' with
    the input as it is now.
    """

    layer_min: Ratio = 0.0
    layer_min_params: Ratio = 0.0
    layer_min_macs: Ratio = 0.0
    block_min_params: Ratio = 0.0
    node_min: Ratio = 0.0
    node_min_params: Ratio = 0.0
    node_min_macs: Ratio = 0.0
    relative: float = 0.0
    min_channels: int = 1
    min_channels_alone: int = 1
    group_min: float = 0.0
    group_rule: str = "share"
    counting: str = "own"

    def settled(self, percentage: float) -> "Floors":
        """The same with `group_min` worked out for a percentage that is asked for."""
        if self.group_rule == "share":
            return self
        if self.group_rule not in GROUP_RULES:
            raise ConfigError("floors.group_rule: "
                              + unknown("rule", self.group_rule, ["share", *GROUP_RULES]))
        share = GROUP_RULES[self.group_rule](percentage / 100)
        return replace(self, group_min=share, group_rule="share")

    def by_name(self, graph: Graph) -> "Floors":
        """The same with lists written as tables, so that they hold for a graph that freezes more.

        A list stays where one module has several layers of different shares.
        """
        layers = [layer.name for layer in layers_of(graph)]
        tables: dict[str, Any] = {}
        for name in _OF_LAYERS:
            shares = getattr(self, name)
            if isinstance(shares, Sequence):
                each = set(zip(layers, shares, strict=True))
                if len(each) == len(set(layers)):
                    tables[name] = dict(each)
        return replace(self, **tables)


# Rule -> share of a coupled group that stays when a share of the network is asked to go. Ours never
# rises with what is asked. The origin (ADaPT) and its successor do: at 45 % asked the origin keeps
# 0.45 of a group, at 5 % only 0.05; they are here to repeat its results.
GROUP_RULES: dict[str, Callable[[float], float]] = {
    "monotone": lambda asked: 1 - asked,
    "origin": lambda asked: 1 - asked if asked >= 0.5 else asked,
    "successor": lambda asked: 1 - asked if asked <= 0.5 else asked,
}
# Floor -> what it counts.
_OF_LAYERS = {"layer_min": "channels", "layer_min_params": "params", "layer_min_macs": "macs"}
_OF_BLOCKS = {"block_min_params": "params"}
_OF_NODES = {"node_min": "channels", "node_min_params": "params", "node_min_macs": "macs"}


def group_share(rule: str, percentage: float) -> float:
    """Share of a coupled group's channels that stays when `percentage` of a network shall go."""
    return Floors(group_rule=rule).settled(percentage).group_min


def floors_of(floors: Floors | Mapping[str, object] | None) -> Floors:
    """Floors given by name. Raises ConfigError with the nearest names."""
    given = vars(floors) if isinstance(floors, Floors) else floors or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"floors: {given!r} must be a table: {{'layer_min': 0.1}}.")
    known = {f.name: f.default for f in fields(Floors)}
    wrong = [unknown("floor", name, known) for name in given if name not in known]
    wrong += [f"{name}: {value!r} must be {_WHAT[type(known[name])]}"
              for name, value in given.items()
              if name in known and not _is_of_kind(name, value, known[name])]
    if wrong:
        raise ConfigError("floors: " + "; ".join(wrong))
    return floors if isinstance(floors, Floors) else Floors(**given)


def is_number(value: object) -> bool:
    """Whether it is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


_WHAT = {float: "a number, or of each layer, module or block a table {name: share}",
         int: "a whole number", str: "a name"}


def _is_of_kind(name: str, value: object, usual: object) -> bool:
    """Whether a floor's value is of the type that it must have; its range is another question."""
    if isinstance(usual, float) and name not in ("relative", "group_min"):
        if isinstance(value, Mapping):
            return all(is_number(share) for share in value.values())
        if isinstance(value, list | tuple):
            return all(is_number(share) for share in value)
    if isinstance(usual, float):
        return is_number(value)
    return isinstance(value, type(usual)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Layer:
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


class Guard(ABC):
    """One floor on some layers together: how much is left there, and how little may be.

    groups: whose channels it counts; least: the least whole number that may be left, and the floor
    in words, while a share of the network is alive.
    """

    def __init__(self, label: str, what: str, original: int, groups: Iterable[str],
                 bound: float | int, relative: float = 0.0) -> None:
        """bound: a share of the original (float), or a number (int)."""
        self.label, self.what, self.original = label, what, original
        self.groups = frozenset(groups)
        self._bound, self._relative = bound, relative

    def least(self, alive: Alive | None = None) -> tuple[int, str]:
        if isinstance(self._bound, int):
            return self._bound, f"{self.label} keeps {self._bound}"
        share = self._bound
        if self._relative and alive is not None:
            share = min(share, self._relative * alive.share(self.what))
        # 1e-9: 10 x 0.3 is 3, not 3.0000000000000004.
        return (ceil(share * self.original - 1e-9),
                f"{self.label} keeps {share:.4g} of its {self.what}")

    @abstractmethod
    def left_without(self, group: str, channels: Sequence[int]) -> int:
        """What would be left if these channels of a group went."""

    @abstractmethod
    def take(self, group: str, channels: Sequence[int]) -> None:
        """They went."""


class OwnGuard(Guard):
    """Of something that every channel has a fixed part in: cost, group -> (C,) parts."""

    def __init__(self, label: str, what: str, original: int, cost: Mapping[str, Tensor],
                 bound: float | int, start: Plan, relative: float = 0.0) -> None:
        super().__init__(label, what, original, cost, bound, relative)
        self.cost = cost
        gone = sum(int(each.sum() - each[start.kept[g]].sum()) for g, each in cost.items())
        self.left = original - gone

    @cached_property
    def _each(self) -> dict[str, list[int]]:
        return {group: each.tolist() for group, each in self.cost.items()}

    def left_without(self, group: str, channels: Sequence[int]) -> int:
        each = self._each[group]
        return self.left - sum(each[c] for c in channels)

    def take(self, group: str, channels: Sequence[int]) -> None:
        self.left = self.left_without(group, channels)


class CurrentGuard(Guard):
    """Of layers counted as they are now: they also shrink with the channels that they read."""

    def __init__(self, label: str, what: str, members: Sequence[Layer], bound: float,
                 takes: "Takes", shapes: Mapping[str, Sequence[int]], relative: float) -> None:
        self._members = members
        self._takes = takes
        self._shape = {m.tensor: list(shapes[m.tensor]) for m in members}
        groups = {g for m in members for g in takes.get(m.tensor, {})}
        original = sum(m.measure(what, m.shape) for m in members)
        super().__init__(label, what, original, groups, bound, relative)

    def left_without(self, group: str, channels: Sequence[int]) -> int:
        return sum(m.measure(self.what, self._shrunk(m.tensor, group, channels))
                   for m in self._members)

    def take(self, group: str, channels: Sequence[int]) -> None:
        self._shape = {name: self._shrunk(name, group, channels) for name in self._shape}

    def _shrunk(self, tensor: str, group: str, channels: Sequence[int]) -> list[int]:
        shape = list(self._shape[tensor])
        for dim, each in self._takes.get(tensor, {}).get(group, ()):
            shape[dim] -= sum(each[c] for c in channels)
        return shape


Takes = dict[str, dict[str, list[tuple[int, list[int]]]]]  # tensor -> group -> [(dim, positions)]


def guards(graph: Graph, floors: Floors, start: Plan) -> list[Guard]:
    """All that is to be asked before a channel goes, from the network that `start` keeps."""
    layers, positions = layers_of(graph), _positions(graph)
    found = [*_least_widths(graph, floors, start, layers, positions), *_companions(graph, start),
             *_group_guards(graph, floors, start)]
    is_current = floors.counting == "current"
    takes = _takes_of(graph, layers) if is_current else {}
    shapes = shapes_of(graph, start) if is_current else {}
    for label, what, share, members in _shared_out(floors, layers):
        if is_current and what != "channels":
            found.append(CurrentGuard(label, what, members, share, takes, shapes, floors.relative))
        else:
            original = sum(m.measure(what, m.shape) for m in members)
            cost = _cost(members, what, positions)
            found.append(OwnGuard(label, what, original, cost, share, start, floors.relative))
    return found


def layers_of(graph: Graph) -> list[Layer]:
    """Every layer that writes channels of a group, once, in the model's order."""
    rows = uses(graph)
    found: dict[tuple[str, int], Layer] = {}
    for writer in (w for group in graph.groups for w in group.writers):
        bias = f"{writer.layer}.bias"
        found[writer.tensor, writer.dim] = Layer(
            writer.layer, writer.tensor, writer.dim, graph.shapes[writer.tensor],
            bias in graph.shapes, rows.get(writer.tensor, 0))
    place = {tensor: i for i, tensor in enumerate(graph.shapes)}
    return sorted(found.values(), key=lambda layer: place[layer.tensor])


def share_for(ratio: Ratio, layer: str) -> float:
    """The share that holds for a layer: its own name's, else the nearest parent's, else 0."""
    if isinstance(ratio, int | float):
        return float(ratio)
    assert isinstance(ratio, Mapping)
    return nearest(ratio, layer) or 0.0


def nearest(shares: Mapping[str, float], layer: str) -> float | None:
    """What is named for a layer, or else for the nearest module around it; None if nothing."""
    name = layer
    while name and name not in shares:
        name = layer_of(name)
    return float(shares[name]) if name in shares else None


def check_names(what: str, modules: Set[str], names: Iterable[str]) -> None:
    """Raises ConfigError for names that are not among a network's modules, see `modules_of`."""
    wrong = unknown_modules(what, modules, names)
    if wrong:
        raise ConfigError("\n".join(wrong))


def modules_of(tensors: Iterable[str]) -> set[str]:
    """Every module that holds one of these tensors, or holds one that does; '' is the network."""
    found = {""}
    for tensor in tensors:
        while tensor:
            tensor = layer_of(tensor)
            found.add(tensor)
    return found


def modules_in(graph: Graph) -> set[str]:
    """The modules of a traced network, see `modules_of`."""
    return modules_of(name for names in graph.names.values() for name in names)


def unknown_modules(what: str, modules: Set[str], names: Iterable[str]) -> list[str]:
    """A sentence for each name that is not among the modules, beginning with what it stands in."""
    return [f"{what}: {unknown('module', name, modules - {''})}"
            for name in names if name not in modules]


def unknown_in_floors(modules: Set[str], floors: Floors) -> list[str]:
    """The same for the modules that floors name; of a block, the parent of layers is named."""
    parents = {layer_of(module) for module in modules}
    found = []
    for name in (*_OF_LAYERS, *_OF_BLOCKS, *_OF_NODES):
        if isinstance(named := getattr(floors, name), Mapping):
            known = parents if name in _OF_BLOCKS else modules
            found += unknown_modules(f"floors.{name}", known, named)
    return found


def check_floors(graph: Graph, floors: Floors) -> None:
    """Raises ConfigError for a number out of range, or a module that the network does not have."""
    mistakes = unknown_in_floors(modules_in(graph), floors)
    for name in (*_OF_LAYERS, *_OF_BLOCKS, *_OF_NODES, "relative", "group_min"):
        ratio = getattr(floors, name)
        shares = {"": ratio} if isinstance(ratio, int | float) else ratio
        if not isinstance(shares, Mapping):
            mistakes += _mistakes_of_list(name, shares, len(layers_of(graph)))
            shares = dict(enumerate(shares))
        mistakes += [f"floors.{name}: {share} must be from 0 to 1."
                     for share in shares.values() if not 0 <= share <= 1]
    mistakes += [f"floors.{name}: {getattr(floors, name)} must be at least 1."
                 for name in ("min_channels", "min_channels_alone") if getattr(floors, name) < 1]
    if floors.counting not in COUNTING:
        mistakes.append(f"floors.counting: {unknown('way of counting', floors.counting, COUNTING)}")
    if floors.group_rule not in (rules := ["share", *GROUP_RULES]):
        mistakes.append(f"floors.group_rule: {unknown('rule', floors.group_rule, rules)}")
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def _mistakes_of_list(name: str, shares: Sequence[float], num_layers: int) -> list[str]:
    if name not in _OF_LAYERS:
        return [f"floors.{name}: a list is of layers; here, give one share or {{module: share}}."]
    if len(shares) != num_layers:
        return [f"floors.{name}: {len(shares)} shares for {num_layers} layers that can be cut."]
    return []


# --- which floor is on what -----------------------------------------------------------------------

Part = tuple[str, str, float, Sequence[Layer]]  # (label, what is counted, share, layers together)


def _shared_out(floors: Floors, layers: Sequence[Layer]) -> list[Part]:
    """Every share that is not 0, with the layers that it is of."""
    found: list[Part] = []

    def add(name: str, what: str, where: str, share: float, members: Sequence[Layer]) -> None:
        if share and members:
            found.append((f"{name}: {where or 'the network'}", what, share, members))

    for i, layer in enumerate(layers):
        for name, what in _OF_LAYERS.items():
            ratio = getattr(floors, name)
            listed = isinstance(ratio, Sequence)
            add(name, what, layer.name, ratio[i] if listed else share_for(ratio, layer.name),
                [layer])
    for block in dict.fromkeys(layer_of(layer.name) for layer in layers):
        members = [layer for layer in layers if layer_of(layer.name) == block]
        for name, what in _OF_BLOCKS.items():
            add(name, what, block, share_for(getattr(floors, name), block), members)
    for node in _nodes(layers):
        members = [x for x in layers if not node or f"{x.name}.".startswith(f"{node}.")]
        for name, what in _OF_NODES.items():
            ratio = getattr(floors, name)
            share = ratio.get(node, 0.0) if isinstance(ratio, Mapping) else ratio
            add(name, what, node, share, members)
    return found


def _nodes(layers: Sequence[Layer]) -> list[str]:
    """The layers and every module around them."""
    found = {""}
    for layer in layers:
        name = layer.name
        while name:
            found.add(name)
            name = layer_of(name)
    return sorted(found)


Positions = dict[tuple[str, int], dict[str, Tensor]]


def _positions(graph: Graph) -> Positions:
    """(weight, dimension that is written) -> group -> (C,) positions of each channel there."""
    found: Positions = {}
    for group in graph.groups:
        for writer in group.writers:
            each = torch.bincount(writer.number, minlength=group.channels)
            found.setdefault((writer.tensor, writer.dim), {})[group.name] = each
    return found


def _cost(members: Sequence[Layer], what: str, positions: Positions) -> dict[str, Tensor]:
    """Group -> (C,) what each channel counts for in these layers, were their input whole."""
    cost: dict[str, Tensor] = {}
    for layer in members:
        one = [n if d != layer.dim else 1 for d, n in enumerate(layer.shape)]
        for group, each in positions[layer.tensor, layer.dim].items():
            added = each * layer.measure(what, one)
            cost[group] = cost[group] + added if group in cost else added
    return cost


def _takes_of(graph: Graph, layers: Sequence[Layer]) -> Takes:
    """For the layers' weights: what every channel takes of every dimension, read or written."""
    found: Takes = {layer.tensor: {} for layer in layers}
    for group in graph.groups:
        for part in group.slices:
            if part.tensor in found:
                each = torch.bincount(part.number, minlength=group.channels)
                found[part.tensor].setdefault(group.name, []).append((part.dim, each.tolist()))
    return found


def _least_widths(graph: Graph, floors: Floors, start: Plan, layers: Sequence[Layer],
                  positions: Positions) -> list[Guard]:
    """No layer is emptied; a layer that is coupled to no other may have to keep more."""
    coupled = {layer for group in graph.groups if is_coupled(group) for layer in group.layers}
    found: list[Guard] = []
    for layer in layers:
        name, least = "min_channels", max(1, floors.min_channels)
        if layer.name not in coupled and floors.min_channels_alone > least:
            name, least = "min_channels_alone", floors.min_channels_alone
        cost = positions[layer.tensor, layer.dim]
        found.append(OwnGuard(f"{name}: {layer.name}", "channels", layer.shape[layer.dim], cost,
                              least, start))
    return found


def _companions(graph: Graph, start: Plan) -> list[Guard]:
    """Tensors that accompany only some of a group's channels, such as a padding, keep one too.

    Most accompany all that some layer writes: they cannot be emptied before that layer is.
    """
    kept = vars(graph)  # as functools.cached_property would: a graph never changes
    if "_companions" not in kept:
        kept["_companions"] = _find_companions(graph)
    return [OwnGuard(f"min_channels: {tensor}", "channels", size, {group: each}, 1, start)
            for tensor, size, group, each in kept["_companions"]]


def _find_companions(graph: Graph) -> list[tuple[str, int, str, Tensor]]:
    """(tensor, its positions, group, (C,) positions of each channel)."""
    found = []
    for group in graph.groups:
        written = [_held(w, group.channels) for w in group.writers]
        for part in group.slices:
            held = _held(part, group.channels)
            is_covered = len(part.at) < part.size or any(
                bool((held | ~one).all()) for one in written)
            if not is_covered:
                each = torch.bincount(part.number, minlength=group.channels)
                found.append((part.tensor, part.size, group.name, each))
    return found


def _held(part: Slice, channels: int) -> Tensor:
    """(C,) bool: whether a channel of the group has a position in this slice."""
    held = torch.zeros(channels, dtype=torch.bool)
    held[part.number] = True
    return held


def _group_guards(graph: Graph, floors: Floors, start: Plan) -> list[Guard]:
    """The floor of groups of coupled layers, on the channels that they have in common."""
    if not floors.group_min:
        return []
    return [OwnGuard(f"group_min: {g.name}", "channels", g.channels,
                     {g.name: torch.ones(g.channels, dtype=torch.long)}, floors.group_min, start,
                     floors.relative)
            for g in graph.groups if is_coupled(g)]


def is_coupled(group: Group) -> bool:
    """Whether several layers write the group."""
    return len(group.layers) > 1
