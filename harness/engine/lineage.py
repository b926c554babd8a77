"""Where a surviving channel comes from, and how much two cuts of one network have in common."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.engine.graph import Graph, Group, Plan, Slice
from harness.errors import ConfigError, GraphError, unknown

SIDES = ("removed", "kept")


@dataclass(frozen=True)
class Origin:
    """What one input column of a layer reads: `column` of the whole network's layer, there
    `channel` of `group`; written by (layer, original output channel), one for every layer that has
    a part in it or lives and dies with it: a residual sum has several, so has a channel shuffle,
    and a grouped layer reads one in each of its groups.
    """

    column: int
    group: str
    channel: int
    writers: tuple[tuple[str, int], ...]


def origins(graph: Graph, plan: Plan, layer: str) -> tuple[Origin | None, ...]:
    """For every input column of a layer as `plan` leaves it: which original channel it reads.

    Follows concatenation, flattening (every channel a block of columns), sums and grouped layers.
    None: what it reads is in no group that can be cut, such as the network's own input.
    Raises GraphError for a layer that the plan could not have made narrower.
    """
    names = {f"{layer}.weight", layer}
    parts = [(g, s) for g in graph.groups for s in g.readers
             if s.tensor in graph.names and names & set(graph.names[s.tensor])]
    if not parts:
        layers = {s.layer for g in graph.groups for s in g.readers if s.tensor in graph.names}
        raise GraphError(f"origins: {unknown('reader', layer, layers)}")
    # A weight that is used twice, once transposed, is both: its input is where it does not write.
    parts = [(g, s) for g, s in parts if "writer" not in s.roles] or parts
    _, first = parts[0]
    parts = [(g, s) for g, s in parts if s.dim == first.dim]
    alive = plan.parameters.get(first.tensor, {}).get(first.dim)
    columns = torch.arange(first.size) if alive is None else alive
    found: dict[int, Origin] = {}
    for group, part in parts:
        writers = _writers(group)
        for column, channel in zip(columns.tolist(), part.channel[columns].tolist(), strict=True):
            if channel >= 0:
                found[column] = Origin(column, group.name, channel, tuple(writers[channel]))
    return tuple(found.get(column) for column in columns.tolist())


def removed_channels(graph: Graph, plan: Plan) -> dict[str, list[int]]:
    """Layer -> original output channels that a plan removes, ascending; layers that lose none are
    left out."""
    found: dict[str, list[int]] = {}
    for writer in (w for g in graph.groups for w in g.writers if w.tensor in graph.names):
        gone = _chosen(plan, writer, "removed").nonzero().flatten().tolist()
        if gone:
            found[writer.layer] = sorted({*found.get(writer.layer, []), *gone})
    return found


@dataclass(frozen=True)
class Difference:
    """1 - |A and B| / |A or B| of two sets of channels, by layer and over all; 0 if both are empty.

    The channel difference of ADaPT: 0 the same channels, 1 not one in common.
    """

    layers: Mapping[str, float]
    total: float


def channel_difference(graph: Graph, one: Plan, other: Plan, *, of: str = "removed") -> Difference:
    """How much two plans of one network differ in the channels that they remove, or keep.

    graph: one that has all groups which either plan cuts. Layers: those that write its groups.
    """
    if of not in SIDES:
        raise ConfigError(f"of: {unknown('set of channels', of, SIDES)}")
    common: dict[str, int] = {}
    either: dict[str, int] = {}
    for writer in (w for g in graph.groups for w in g.writers if w.tensor in graph.names):
        own = writer.channel >= 0
        a, b = (_chosen(plan, writer, of) & own for plan in (one, other))
        common[writer.layer] = common.get(writer.layer, 0) + int((a & b).sum())
        either[writer.layer] = either.get(writer.layer, 0) + int((a | b).sum())
    layers = {name: _distance(common[name], n) for name, n in either.items()}
    return Difference(layers, _distance(sum(common.values()), sum(either.values())))


def _distance(common: int, either: int) -> float:
    return 1 - common / either if either else 0.0


def _chosen(plan: Plan, part: Slice, of: str) -> Tensor:
    """(size,) which positions of the whole tensor the plan keeps, or removes."""
    alive = plan.parameters.get(part.tensor, {}).get(part.dim)
    kept = torch.full_like(part.channel, alive is None, dtype=torch.bool)
    if alive is not None:
        kept[alive] = True
    return kept if of == "kept" else ~kept


def _writers(group: Group) -> dict[int, list[tuple[str, int]]]:
    """Channel -> (layer, position) of all that write it."""
    found: dict[int, list[tuple[str, int]]] = {}
    for writer in group.writers:
        for position, channel in enumerate(writer.channel.tolist()):
            if channel >= 0:
                found.setdefault(channel, []).append((writer.layer, position))
    return found
