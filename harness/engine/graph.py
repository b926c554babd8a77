"""What a traced network is: groups of channels that live and die together, and plans to cut them.

A *group* is a set of parameter slices that must be cut in step: the layers that write its channels,
the norms they pass, the layers that read them. Channels are numbered by their place in the whole,
unpruned network, for ever: a `Plan` is a list of such numbers, whatever was cut before.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd

import torch
from torch import Tensor

from harness.engine.cost import Cost, LayerCost, Product, macs_by_layer
from harness.errors import GraphError

Example = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Slice:
    """One dimension of one parameter or buffer, and the channels that some of its positions hold.

    at, number: (K,) positions, ascending, and the group's channel at each; size: of the dimension.
    roles: 'writer' produces the channel, 'reader' consumes it, 'affine' accompanies it. A weight
    that is used twice, once transposed, may do both. 'product' is no tensor of the model: it is a
    product of activations that costs less with every channel; its name begins with '@'.
    """

    tensor: str
    dim: int
    size: int
    at: Tensor
    number: Tensor
    roles: frozenset[str]

    @property
    def channel(self) -> Tensor:
        """(size,) the channel of every position, -1 where it is not this group's."""
        full = torch.full((self.size,), -1)
        full[self.at] = self.number
        return full

    @property
    def layer(self) -> str:
        """Name of the layer: the module of a weight; the tensor's own name if it has another."""
        return self.tensor.removesuffix(".weight")


@dataclass(frozen=True)
class Group:
    """Channels that are cut in step.

    filters: (channels,) convolution outputs behind each. contracted: a product of activations sums
    over them (queries and keys), so that no weight reads them there.
    """

    name: str
    channels: int
    slices: tuple[Slice, ...]
    filters: Tensor
    contracted: bool = False

    @property
    def writers(self) -> tuple[Slice, ...]:
        """The slices of weights that produce the channels, not of their biases."""
        return tuple(s for s in self.slices if "writer" in s.roles)

    @property
    def readers(self) -> tuple[Slice, ...]:
        """The slices of weights that the channels are multiplied by."""
        return tuple(s for s in self.slices if "reader" in s.roles)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that write the group."""
        return tuple(dict.fromkeys(s.layer for s in self.writers))


@dataclass(frozen=True)
class Plan:
    """What stays. `kept`: group -> original channels, ascending; `parameters`: for tensors.

    `parameters` is {tensor name: {dimension: kept original indices}} for every tensor that is
    smaller than in the whole network, under every name that the tensor has; `products` the same
    for products of activations.
    """

    kept: Mapping[str, Tensor]
    parameters: Mapping[str, Mapping[int, Tensor]]
    products: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)

    @property
    def shares(self) -> Mapping[str, Mapping[int, Tensor]]:
        """Of parameters and products."""
        return {**self.parameters, **self.products}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan) or self.kept.keys() != other.kept.keys():
            return False
        return all(torch.equal(k, other.kept[name]) for name, k in self.kept.items())

    def as_json(self) -> dict[str, list[int]]:
        return {name: kept.tolist() for name, kept in self.kept.items()}


@dataclass(frozen=True)
class Graph:
    """A traced network: groups that can be cut, what is frozen and why, and what multiplies.

    channels: of all groups that the trace found fit to be cut, frozen later or not.
    shapes, itemsize: by the first name of every tensor; names: all its names by the first.
    convolutions: weight -> (dimension of its filters, filters for each position there).
    gates: weight -> modules behind which its channels can be weighed. uncounted: operator -> uses.
    layers: group, frozen or not -> the layers that write it.
    """

    groups: tuple[Group, ...]
    frozen: Mapping[str, str]
    channels: int
    products: tuple[Product, ...]
    shapes: Mapping[str, tuple[int, ...]]
    itemsize: Mapping[str, int]
    names: Mapping[str, tuple[str, ...]]
    buffers: frozenset[str]
    convolutions: Mapping[str, tuple[int, int]]
    gates: Mapping[str, tuple[str, ...]]
    uncounted: Mapping[str, int]
    notes: tuple[str, ...] = ()
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Group:
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def is_parameter(self, tensor: str) -> bool:
        """Whether a tensor counts among the parameters: no buffer, nor a mere product."""
        return tensor in self._owner and tensor not in self.buffers

    def freeze(self, reasons: Mapping[str, str]) -> "Graph":
        """The same graph with these groups no longer to be cut."""
        kept = tuple(g for g in self.groups if g.name not in reasons)
        return replace(self, groups=kept, frozen={**self.frozen, **reasons})

    def joined(self, names: Sequence[str]) -> "Graph":
        """The same graph with these groups as one, whose sizes must agree in the forward.

        Channels go together by their place, modulo the largest number that divides all widths.
        """
        members = [self[name] for name in names]
        width = gcd(*(g.channels for g in members))
        slices = tuple(replace(s, number=s.number % width) for g in members for s in g.slices)
        filters = torch.stack([g.filters.reshape(-1, width).sum(0) for g in members]).sum(0)
        name = next(g.name for g in self.groups if g.name in names)
        one = replace(self[name], channels=width, slices=slices, filters=filters,
                      contracted=any(g.contracted for g in members))
        groups = tuple(one if g.name == name else g for g in self.groups
                       if g.name == name or g.name not in names)
        others = ", ".join(n for n in names if n != name)
        layers = {n: own for n, own in self.layers.items() if n == name or n not in names}
        return replace(self, groups=groups, channels=sum(g.channels for g in groups),
                       layers={**layers, name: one.layers},
                       notes=(*self.notes, f"{name} goes with {others}: in forward their sizes "
                                           "must agree"))

    def whole(self) -> Plan:
        """The plan that keeps everything."""
        return self.plan({})

    def plan(self, kept: Mapping[str, Iterable[int] | Tensor]) -> Plan:
        """Complete `kept` (groups not named stay whole) and work out every tensor's share.

        Raises GraphError for a group that cannot be cut, or a channel that it does not have.
        """
        full: dict[str, Tensor] = {}
        by_name = {g.name: g for g in self.groups}
        for name in kept:
            if name not in by_name:
                why = self.frozen.get(name, "no such group")
                raise GraphError(f"group '{name}' cannot be cut: {why}.")
        for group in self.groups:
            wanted = _numbers(group.name, kept.get(group.name, range(group.channels)))
            if not len(wanted) or wanted[0] < 0 or wanted[-1] >= group.channels:
                raise GraphError(f"group '{group.name}' has channels 0 to {group.channels - 1}, "
                                 f"at least one must stay; asked to keep {wanted.tolist()}.")
            full[group.name] = wanted
        shares = self._shares(full)
        emptied = [f"{name} (dimension {dim})" for name, dims in shares.items()
                   for dim, places in dims.items() if not len(places)]
        if emptied:
            raise GraphError(f"the plan leaves nothing of {', '.join(emptied)}; at least one "
                             "channel of every layer must stay.")
        products = {name: shares.pop(name) for name in list(shares) if name not in self._owner}
        return Plan(full, shares, products)

    @cached_property
    def _owner(self) -> Mapping[str, str]:
        """Any name of a tensor -> its first."""
        return {name: first for first, names in self.names.items() for name in names}

    def _shares(self, kept: Mapping[str, Tensor]) -> dict[str, dict[int, Tensor]]:
        gone: dict[tuple[str, int], Tensor] = {}
        for group in self.groups:
            alive = torch.zeros(group.channels, dtype=torch.bool)
            alive[kept[group.name]] = True
            if bool(alive.all()):
                continue
            for s in group.slices:
                lost = gone.get((s.tensor, s.dim))
                if lost is None:
                    lost = gone[s.tensor, s.dim] = torch.zeros(s.size, dtype=torch.bool)
                lost[s.at[~alive[s.number]]] = True
        shares: dict[str, dict[int, Tensor]] = {}
        for (tensor, dim), lost in gone.items():
            if bool(lost.any()):
                for name in self.names.get(tensor, (tensor,)):
                    shares.setdefault(name, {})[dim] = (~lost).nonzero().flatten()
        return shares

    def cost(self, plan: Plan | None = None) -> Cost:
        """Exact counts of the network cut by `plan` (None: the whole network)."""
        cut = plan.shares if plan else {}
        shapes = {}
        for name, shape in self.shapes.items():
            kept = cut.get(name, {})
            shapes[name] = [len(kept[d]) if d in kept else n for d, n in enumerate(shape)]
        numel = {name: int(torch.Size(shape).numel()) for name, shape in shapes.items()}
        macs = macs_by_layer(self.products, numel)
        filters: dict[str, int] = {}
        params: dict[str, int] = {}
        for weight, (dim, times) in self.convolutions.items():
            layer = layer_of(weight)
            filters[layer] = filters.get(layer, 0) + shapes[weight][dim] * times
        for name in self.shapes:
            if self.is_parameter(name):
                params[layer_of(name)] = params.get(layer_of(name), 0) + numel[name]
        layers = tuple(LayerCost(n, filters.get(n, 0), params.get(n, 0), macs.get(n, 0))
                       for n in dict.fromkeys([*params, *macs]))
        return Cost(macs=sum(macs.values()), params=sum(params.values()),
                    bytes=sum(numel[n] * size for n, size in self.itemsize.items()),
                    filters=sum(filters.values()), layers=layers, uncounted=self.uncounted)


def _numbers(group: str, kept: Iterable[int] | Tensor) -> Tensor:
    """(K,) the channels to keep, ascending. Raises GraphError for what is not their numbers."""
    given = torch.as_tensor(kept if isinstance(kept, Tensor) else list(kept))
    if given.numel() and (given.is_floating_point() or given.dtype == torch.bool):
        raise GraphError(f"group '{group}': the numbers of the channels to keep are whole, not "
                         f"{given.dtype}; for a mask give mask.nonzero().")
    numbers: Tensor = given.long().reshape(-1).unique()
    return numbers


def layer_of(tensor: str) -> str:
    """The module that owns a tensor: its name up to the last dot."""
    return tensor.rpartition(".")[0]
