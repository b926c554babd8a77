"""Rules of operators that compute values from values: one by one, together, along dimensions."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node

from harness.engine.axes import Axes, Axis, Rule, Walk, argument, channels, meet, operator


def follow(walk: Walk, node: Node) -> Axes:
    """One input, a function of each of its elements."""
    return tuple(replace(axis, home=None) for axis in walk.axes(node.args[0]))


def same(walk: Walk, node: Node) -> Axes:
    """One input, the very same elements."""
    return walk.axes(node.args[0])


def nothing(walk: Walk, node: Node) -> Axes:
    """A check that puts out no value, or a new value that has none of the channels."""
    return ()


def combine(walk: Walk, node: Node) -> Axes:
    """Several inputs, element by element: channels that meet live and die together."""
    operands = [a for a in _flat([*node.args, *node.kwargs.values()])
                if isinstance(a, Node) and walk.shape(a)]
    return joined(walk, operands, len(walk.shape(node)))


def scaled(walk: Walk, node: Node) -> Axes:
    """A product or quotient, element by element. A parameter that others scale is still that one.

    So is one that a mask multiplies: where it is zero the result is. But not by anything computed:
    a norm of the weights is another when some of them have gone.
    """
    factors = [a for a in node.args[:2] if isinstance(a, Node)]
    for one in factors:
        for axis in walk.axes(one):
            if axis.home and any(_comes_from(walk, axis.home[0], other) for other in factors
                                 if other is not one and not walk.axes(other)):
                walk.freeze(axis.ids, "weights are scaled by a number computed from all of them")
    met = combine(walk, node)
    if not all(walk.tensor(f) or _is_own(walk.axes(f)) for f in factors):
        return met
    named = factors[:1] if "div" in operator(node) else factors
    whole = [walk.axes(f) for f in named if walk.shape(f) == walk.shape(node)]
    learned = [axes for axes in whole
               if not any(axis.home and walk.is_buffer(axis.home[0]) for axis in axes)]
    homes = {axis.dim: axis.home for axis in (learned or whole or [()])[0]}
    return tuple(replace(axis, home=homes.get(axis.dim)) for axis in met)


def _is_own(axes: Axes) -> bool:
    return bool(axes) and all(axis.home for axis in axes)


def _comes_from(walk: Walk, tensor: str, node: Node) -> bool:
    """Whether a value is computed from a tensor of the model, among others."""
    seen, todo = {node}, [node]
    while todo:
        for before in todo.pop().all_input_nodes:
            if walk.tensor(before) == tensor:
                return True
            if before not in seen:
                seen.add(before)
                todo.append(before)
    return False


def joined(walk: Walk, operands: Sequence[Node], rank: int) -> Axes:
    """The axes of values that are broadcast together, aligned at their last dimensions."""
    result: dict[int, Tensor] = {}
    full: dict[int, int] = {}  # dimension -> operands that have it in full
    held: dict[int, int] = {}  # dimension -> operands that can be cut along it
    for operand in operands:
        shift = rank - len(walk.shape(operand))
        for dim, size in enumerate(walk.shape(operand)):
            full[dim + shift] = full.get(dim + shift, 0) + (size > 1)
        for dim in {a.dim for a in walk.axes(operand)}:
            ids, _ = channels(walk, operand, dim, "an elementwise operator")
            assert ids is not None
            before = result.get(dim + shift)
            result[dim + shift] = ids if before is None else meet(walk, before, ids)
            held[dim + shift] = held.get(dim + shift, 0) + 1
    for dim in list(result):
        if held[dim] < full[dim]:
            walk.freeze(result.pop(dim), "they meet values that cannot be cut")
    return tuple(Axis(dim, ids) for dim, ids in result.items())


def _flat(args: Sequence[object]) -> list[object]:
    flat: list[object] = []
    for arg in args:
        flat.extend(_flat(arg) if isinstance(arg, list | tuple) else [arg])
    return flat


def along(dims_of: Callable[[Node, int], Sequence[int]]) -> Rule:
    """A rule for operators that mix the positions of some dimensions and keep the rank."""

    def rule(walk: Walk, node: Node) -> Axes:
        source = node.args[0]
        swept = dims_of(node, len(walk.shape(source)))
        for axis in walk.axes(source):
            if axis.dim in swept:
                walk.freeze(axis.ids, f"{operator(node)} works along the dimension that holds them")
        return tuple(replace(a, home=None) for a in walk.axes(source) if a.dim not in swept)

    return rule


def _spatial_dims(node: Node, rank: int) -> Sequence[int]:
    """The last one, two or three dimensions: pooling and upsampling."""
    (num_dims,) = re.findall(r"([123])d", operator(node))
    return range(rank - int(num_dims), rank)


def _given_dim(node: Node, rank: int) -> Sequence[int]:
    return [argument(node, 1, "dim", -1) % rank]


spatial = along(_spatial_dims)
mixing = along(_given_dim)


def pooled_pair(walk: Walk, node: Node) -> list[Axes]:
    """Pooling that also returns indices, one for each value."""
    axes = cast(Axes, spatial(walk, node))
    return [axes, axes]


def ranked(walk: Walk, node: Node) -> list[Axes]:
    """The largest along a dimension, and their places."""
    dims = along(lambda n, rank: [argument(n, 1 + ("topk" in operator(n)), "dim", -1) % rank])
    axes = cast(Axes, dims(walk, node))
    return [axes, axes]


def unpooled(walk: Walk, node: Node) -> Axes:
    """Values at the places that a pooling found: channel by channel, as the places."""
    values, places = cast(tuple[Node, Node], tuple(node.args[:2]))
    swept = _spatial_dims(node, len(walk.shape(values)))
    for axis in (*walk.axes(values), *walk.axes(places)):
        if axis.dim in swept:
            walk.freeze(axis.ids, f"{operator(node)} works along the dimension that holds them")
    met = joined(walk, [values, places], len(walk.shape(values)))
    return tuple(a for a in met if a.dim not in swept)


def roll(walk: Walk, node: Node) -> Axes:
    """Turn positions round; without dimensions it turns the flat value."""
    dims = [d % len(walk.shape(node)) for d in argument(node, 2, "dims", [])]
    moved = []
    for axis in walk.axes(node.args[0]):
        if not dims or axis.dim in dims:
            walk.freeze(axis.ids, f"{operator(node)} works along the dimension that holds them")
        else:
            moved.append(axis)
    return tuple(moved)


def pad(walk: Walk, node: Node) -> Axes:
    """Beside the channels it is no matter; along them, constants stand beside channels."""
    source, amounts = node.args[0], argument(node, 1, "pad")
    rank = len(walk.shape(source))
    sides = {rank - 1 - i // 2: (amounts[i], amounts[i + 1]) for i in range(0, len(amounts), 2)}
    is_constant = "constant" in (operator(node) + str(argument(node, 2, "mode", "constant")))
    moved = []
    for axis in walk.axes(source):
        before, after = sides.get(axis.dim, (0, 0))
        if (before or after) and (not is_constant or min(before, after) < 0):
            walk.freeze(axis.ids, f"{operator(node)} works along the dimension that holds them")
            continue
        moved.append(Axis(axis.dim, torch.nn.functional.pad(axis.ids, (before, after), value=-1)))
    return tuple(moved)


def reduce(walk: Walk, node: Node) -> Axes:
    """Mean, sum and the like over dimensions that hold no channels."""
    given = argument(node, 1, "dim")
    # In var(False) it says how to divide, and all dimensions are meant.
    return _reduced(walk, node, None if isinstance(given, bool) else given)


def vector_norm(walk: Walk, node: Node) -> Axes:
    """Reduces the dimensions of its third argument."""
    return _reduced(walk, node, argument(node, 2, "dim"))


def extreme(walk: Walk, node: Node) -> "Axes | list[Axes]":
    """The larger of two values; or the largest along a dimension, and its places."""
    if isinstance(argument(node, 1, "other"), Node):
        return combine(walk, node)
    axes = reduce(walk, node)
    return [axes, axes] if isinstance(node.meta["val"], list | tuple) else axes


def _reduced(walk: Walk, node: Node, given: Any) -> Axes:
    source = node.args[0]
    rank = len(walk.shape(source))
    dims = [given] if isinstance(given, int) else list(given or range(rank))
    dims = [d % rank for d in dims if rank]
    keeps = len(walk.shape(node)) == rank
    moved = []
    for axis in walk.axes(source):
        if axis.dim in dims:
            walk.freeze(axis.ids, f"{operator(node)} mixes them")
        else:
            moved.append(Axis(axis.dim - (0 if keeps else sum(d < axis.dim for d in dims)),
                              axis.ids))
    return tuple(moved)
