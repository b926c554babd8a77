"""The words in which rules speak of channels: atoms, axes, and what may be said while walking.

Every channel that a layer writes has a number, its *atom*. A value of the traced graph carries
*axes*: along one of its dimensions, an axis says which atom each position holds (-1: nothing to
prune). An activation (N, C, H, W) has one axis, along dimension 1; a product of two activations may
have two. An operator that only moves elements moves axes. A rule is called as rule(walk, node) and
returns the axes of the node's value, or a list of such, for operators with several outputs.

An operator without a rule freezes the channels that reach it, by name. Nothing is guessed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import Node

Ids = Tensor | None


@dataclass(frozen=True)
class Axis:
    """One dimension of a value, and the atom at each of its positions: ids (size,).

    home: (tensor, dimension) of a parameter, as long as the parameter was only moved about.
    """

    dim: int
    ids: Tensor
    home: tuple[str, int] | None = None


Axes = tuple[Axis, ...]
Rule = Callable[["Walk", Node], "Axes | list[Axes]"]


class Walk(Protocol):
    """What a rule may ask and say while the graph is walked; `tracer.Tracer` stands behind it."""

    def axes(self, node: object) -> Axes: ...
    def shape(self, node: object) -> tuple[int, ...]: ...
    def tensor(self, node: object) -> str | None: ...
    def is_buffer(self, tensor: str) -> bool: ...
    def write(self, tensor: str, dim: int) -> Ids: ...
    def read(self, tensor: str, dim: int, ids: Ids, role: str) -> None: ...
    def role(self, home: tuple[str, int], role: str) -> None: ...
    def tie(self, a: Tensor, b: Tensor) -> None: ...
    def freeze(self, ids: Ids, reason: str) -> None: ...
    def stay(self, tensor: str, reason: str) -> None: ...
    def contracted(self, ids: Tensor) -> None: ...
    def multiply(self, node: Node, weight: str | None, rows: int, macs: int) -> None: ...
    def product(self, node: Node, sizes: Sequence[int], ids: Sequence[Ids],
                weight: str | None = None) -> None: ...


def argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    """An operator's argument, given by its place or by its name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def operator(node: Node) -> str:
    """Name of a node's operator without its overload, as in 'aten.relu'."""
    return ".".join(str(node.target).split(".")[:2])


def channels(walk: Walk, node: object, dim: int, what: str) -> tuple[Ids, Axes]:
    """The (shape[dim],) atoms along `dim`, and the axes along other dimensions."""
    along = [a for a in walk.axes(node) if a.dim == dim]
    for more in along[1:]:
        walk.freeze(more.ids, f"{what} meets two kinds of channels in one dimension")
    others = tuple(a for a in walk.axes(node) if a.dim != dim)
    return (along[0].ids if along else None), others


def meet(walk: Walk, a: Tensor, b: Tensor) -> Tensor:
    """Channels that meet live and die together; beside a value that stays they stay."""
    both = (a >= 0) & (b >= 0)
    walk.tie(a[both], b[both])
    walk.freeze(torch.where(both, -1, torch.maximum(a, b)), "they meet values that cannot be cut")
    return torch.maximum(a, b)


def tie_rows(walk: Walk, rows: Tensor) -> Tensor:
    """(R, C) atoms whose columns go together, in all rows; (C,) atoms that stand for them."""
    together = rows[0]
    for other in rows[1:]:
        together = meet(walk, together, other)
    return together


def placed(ids: Ids, dim: int) -> Axes:
    return () if ids is None else (Axis(dim, ids),)


def places_stay(walk: Walk, places: object) -> None:
    """Whatever channels the value has at which another one is looked up."""
    for axis in walk.axes(places):
        walk.freeze(axis.ids, "they are the places at which another value is sampled")


def alone(walk: Walk, source: object, dim: int, what: str) -> Ids:
    """The channels along `dim`; whatever else could be cut is frozen, the operator mixes it."""
    ids, others = channels(walk, source, dim, what)
    for axis in others:
        walk.freeze(axis.ids, f"{what} works along the dimension that holds them")
    return ids
