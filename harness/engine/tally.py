"""What is left after every single removal: exact counts, of a whole sequence or one by one.

A removal takes one channel. Every position of every tensor's dimension belongs to one channel (or
to none, and stays); it goes when its channel goes. So the sizes of all tensors after each of n
removals are running sums, and the counts are sums of products of sizes: nothing is counted again.

Letters: n removals, C channels of all groups together, E entries: (tensor, dimension, channel) and
how many positions there are the channel's. D dimensions, the last that shrinks anywhere included.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from harness.engine.graph import Graph, Group, Plan

LayerTime = Callable[[Tensor], Tensor]  # (E, dimensions) sizes of a weight -> (E,) milliseconds


@dataclass(frozen=True)
class Counts:
    """What is left of the network.

    filters: convolution outputs. memory: bytes of parameters and buffers. latency_ms: of the
    layers with a table; None without tables.
    """

    filters: int
    channels: int
    params: int
    macs: int
    memory: int
    latency_ms: float | None = None

    @property
    def flops(self) -> int:
        """2 x macs."""
        return 2 * self.macs


@dataclass(frozen=True)
class Trail:
    """Counts after 0, 1, ... n removals: (n + 1,) each, none of them ever rising."""

    filters: Tensor
    channels: Tensor
    params: Tensor
    macs: Tensor
    memory: Tensor
    latency_ms: Tensor | None

    def __getitem__(self, num_removals: int) -> Counts:
        k = num_removals
        time = None if self.latency_ms is None else float(self.latency_ms[k])
        return Counts(int(self.filters[k]), int(self.channels[k]), int(self.params[k]),
                      int(self.macs[k]), int(self.memory[k]), time)


class Tally:
    """Counts along any sequence of removals of one graph.

    times: weight -> milliseconds of its layer by the sizes of the weight, if latency is counted.
    """

    def __init__(self, graph: Graph, times: Mapping[str, LayerTime] | None = None) -> None:
        self._graph = graph
        self._times = times
        self._first: dict[str, int] = {}  # group -> number of its first channel among all C
        self._num_channels = 0
        for group in graph.groups:
            self._first[group.name] = self._num_channels
            self._num_channels += group.channels
        self._tensors = list(dict.fromkeys(s.tensor for g in graph.groups for s in g.slices))
        self._place()
        self._weigh()

    def along(self, start: Plan, group: Tensor, channel: Tensor) -> Trail:
        """The counts while channels go, in order, from what `start` keeps.

        group: (n,) numbers of groups in the graph's order; channel: (n,) original channels.
        """
        length = len(channel)
        first = torch.tensor(list(self._first.values()), dtype=torch.long)
        when = torch.zeros(self._num_channels, dtype=torch.long)  # 0: it had gone before
        for name, kept in start.kept.items():
            when[self._first[name] + kept] = length + 1  # it stays
        when[first[group] + channel] = torch.arange(1, length + 1)

        gone = when <= length
        fewer = torch.zeros(length + 1, 5, dtype=torch.long)
        fewer.index_add_(0, when[gone], self._each[gone])
        fewer[:, 2:] += self._products_fewer(when, length)
        left = self._whole - fewer.cumsum(0)
        filters, channels, params, macs, memory = left.unbind(1)
        return Trail(filters, channels, params, macs, memory, self._time_left(when, length))

    def _place(self) -> None:
        """Which positions of each tensor's dimension belong to which channel: (E,) each."""
        number = {name: i for i, name in enumerate(self._tensors)}
        slices = [(self._first[g.name], s) for g in self._graph.groups for s in g.slices]
        lengths = torch.tensor([len(s.number) for _, s in slices], dtype=torch.long)
        channel = torch.cat([torch.zeros(0, dtype=torch.long), *(s.number for _, s in slices)])
        about = torch.tensor([(number[s.tensor], s.dim, first) for first, s in slices],
                             dtype=torch.long).reshape(-1, 3)
        about = about.repeat_interleave(lengths, 0)
        self._num_dims = int(about[:, 1].max()) + 1 if len(about) else 1
        place = about[:, 0] * self._num_dims + about[:, 1]
        key = place * self._num_channels + about[:, 2] + channel
        key, self._count = key.unique(return_counts=True)
        self._channel = key % max(self._num_channels, 1)
        place = key // max(self._num_channels, 1)
        self._tensor, self._dim = place // self._num_dims, place % self._num_dims

    def _weigh(self) -> None:
        """What each tensor's elements count for, and which channels count by themselves alone."""
        graph = self._graph
        depth = self._num_dims
        shapes = [graph.shapes[name] for name in self._tensors]
        self._shape = torch.tensor([(*s, *[1] * depth)[:depth] for s in shapes],
                                   dtype=torch.long).reshape(-1, depth)
        rows = uses(graph)
        # (tensors, 3): parameters, MACs and bytes of what lies at one position of all D dimensions.
        rest = torch.tensor([prod(s[depth:]) for s in shapes], dtype=torch.long)
        self._worth = rest[:, None] * torch.tensor(
            [element_worth(graph, rows, n) for n in self._tensors], dtype=torch.long).reshape(-1, 3)
        touched = torch.zeros(len(self._tensors), depth, dtype=torch.bool)
        touched[self._tensor, self._dim] = True
        self._timed = torch.tensor([n in (self._times or {}) for n in self._tensors],
                                   dtype=torch.bool)
        # A tensor that shrinks in one dimension alone loses the same with every position.
        simple = touched.sum(1) < 2
        lone = simple[self._tensor]
        tensor, dim = self._tensor[lone], self._dim[lone]
        numel = self._count[lone] * (
            self._shape.prod(1)[tensor] // self._shape[tensor, dim].clamp_min(1))
        self._each = torch.zeros(self._num_channels, 5, dtype=torch.long)
        self._each[:, 2:].index_add_(0, self._channel[lone], numel[:, None] * self._worth[tensor])
        written = torch.tensor([graph.convolutions.get(n, (-1, 0)) for n in self._tensors],
                               dtype=torch.long).reshape(-1, 2)[self._tensor]
        filters = self._count * torch.where(written[:, 0] == self._dim, written[:, 1], 0)
        self._each[:, 0].index_add_(0, self._channel, filters)
        self._each[:, 1] = 1
        self._several = ~simple
        cost = graph.cost()
        self._whole = torch.tensor(
            [cost.filters, graph.channels, cost.params, cost.macs, cost.bytes])

    def _products_fewer(self, when: Tensor, length: int) -> Tensor:
        """(n + 1, 3) what tensors lose at every removal that shrink in several dimensions."""
        tensor, time, sizes, before = self._sizes(self._several, when, length)
        fewer = torch.zeros(length + 1, 3, dtype=torch.long)
        numel = before.prod(1) - sizes.prod(1)
        return fewer.index_add_(0, time, numel[:, None] * self._worth[tensor])

    def _time_left(self, when: Tensor, length: int) -> Tensor | None:
        if self._times is None:
            return None
        tensor, time, sizes, before = self._sizes(self._timed, when, length)
        fewer = torch.zeros(length + 1, dtype=torch.float64)
        whole = 0.0
        for name, layer_time in self._times.items():
            shape = torch.tensor([self._graph.shapes[name]])
            whole += float(layer_time(shape))
            if name in self._tensors:
                own = tensor == self._tensors.index(name)
                then, now = (self._full(s[own], shape) for s in (before, sizes))
                fewer.index_add_(0, time[own], layer_time(then) - layer_time(now))
        return whole - fewer.cumsum(0)

    def _full(self, sizes: Tensor, shape: Tensor) -> Tensor:
        """(E, dimensions of the tensor) from sizes of the first D."""
        full = shape.repeat(len(sizes), 1)
        depth = min(self._num_dims, full.shape[1])
        full[:, :depth] = sizes[:, :depth]
        return full

    def _sizes(self, which: Tensor, when: Tensor, length: int,
               ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For every entry that goes, of these tensors, one tensor after the other, in time.

        Returns: (E,) tensor, (E,) removal, (E, D) the tensor's sizes when it is gone, and before.
        """
        time = when[self._channel]
        chosen = which[self._tensor] & (time <= length)
        tensor, time = self._tensor[chosen], time[chosen]
        order = (tensor * (length + 2) + time).argsort(stable=True)
        tensor, time = tensor[order], time[order]
        dim, count = self._dim[chosen][order], self._count[chosen][order]
        went = count[:, None] * (dim[:, None] == torch.arange(self._num_dims))
        total = went.cumsum(0)
        begins = torch.searchsorted(tensor, tensor)  # where the tensor's first position stands
        within = total - (total - went)[begins]
        sizes = self._shape[tensor] - within
        return tensor, time, sizes, sizes + went


def tally_of(graph: Graph, times: Mapping[str, LayerTime] | None = None) -> Tally:
    """The graph's tally; without tables it is made once and kept with the graph."""
    if times is not None:
        return Tally(graph, times)
    kept = vars(graph)  # as functools.cached_property would: a graph never changes
    if "_tally" not in kept:
        kept["_tally"] = Tally(graph)
    tally: Tally = kept["_tally"]
    return tally


def counts_of(graph: Graph, plan: Plan, times: Mapping[str, LayerTime] | None = None) -> Counts:
    """Counts of what a plan keeps."""
    nobody = torch.zeros(0, dtype=torch.long)
    return tally_of(graph, times).along(plan, nobody, nobody)[0]


class Alive:
    """The share of the network that is left while channels go one by one.

    For whom the next removal depends on it; a whole sequence is counted faster by `Tally`.
    """

    def __init__(self, graph: Graph, start: Plan) -> None:
        cost = graph.cost()
        self._graph = graph
        self._start = start
        self._totals = {"channels": graph.channels, "params": cost.params, "macs": cost.macs}
        now = graph.cost(start)
        gone = sum(g.channels - len(start.kept[g.name]) for g in graph.groups)
        self._left = {"channels": graph.channels - gone, "params": now.params, "macs": now.macs}
        self._shape = shapes_of(graph, start)
        rows = uses(graph)
        self._worth = {n: element_worth(graph, rows, n) for n in graph.shapes}
        self._takes = {g.name: takes(g) for g in graph.groups}

    def share(self, what: str) -> float:
        """Of the channels, parameters or MACs."""
        return self._left[what] / self._totals[what] if self._totals[what] else 0.0

    def remove(self, group: str, channels: Sequence[int]) -> None:
        self._left["channels"] -= len(channels)
        before = {n: prod(self._shape[n]) for n in self._takes[group]}
        for name, dims in self._takes[group].items():
            for dim, each in dims:
                self._shape[name][dim] -= sum(each[c] for c in channels)
            fewer = before[name] - prod(self._shape[name])
            params, macs, _ = self._worth[name]
            self._left["params"] -= fewer * params
            self._left["macs"] -= fewer * macs


def takes(group: Group) -> dict[str, list[tuple[int, list[int]]]]:
    """Tensor -> [(dimension, its positions that each of the group's channels takes)]."""
    found: dict[str, list[tuple[int, list[int]]]] = {}
    for part in group.slices:
        each = torch.bincount(part.number, minlength=group.channels)
        found.setdefault(part.tensor, []).append((part.dim, each.tolist()))
    return found


def shapes_of(graph: Graph, plan: Plan) -> dict[str, list[int]]:
    """The sizes of all tensors of the network cut by a plan."""
    shapes = {name: list(shape) for name, shape in graph.shapes.items()}
    for name, dims in plan.shares.items():
        if name in shapes:
            for dim, alive in dims.items():
                shapes[name][dim] = len(alive)
    return shapes


def uses(graph: Graph) -> dict[str, int]:
    """Weight -> how many times an example uses it."""
    rows: dict[str, int] = {}
    for product in graph.products:
        if product.weight:
            rows[product.weight] = rows.get(product.weight, 0) + product.rows
    return rows


def element_worth(graph: Graph, rows: Mapping[str, int], tensor: str) -> tuple[int, int, int]:
    """(parameters, MACs, bytes) that one element of a tensor counts for.

    A product of activations is no parameter and takes no bytes of the network.
    """
    size = graph.itemsize.get(tensor, 0) if tensor in graph.names else 0
    return int(graph.is_parameter(tensor)), rows.get(tensor, 0), size
