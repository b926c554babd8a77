"""Rules of operators that only move elements: join, split, lay out anew, take, sample."""

from collections.abc import Sequence
from dataclasses import replace
from math import gcd, prod
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node

from harness.engine.axes import (
    Axes,
    Axis,
    Walk,
    alone,
    argument,
    channels,
    operator,
    placed,
    places_stay,
    tie_rows,
)


def concat(walk: Walk, node: Node) -> Axes:
    """Channels one behind the other: offsets come by themselves."""
    parts = cast(Sequence[Node], node.args[0])
    rank = len(walk.shape(node))
    parts = [p for p in parts if len(walk.shape(p)) == rank]  # torch allows an empty vector
    dim = argument(node, 1, "dim", int("hstack" in operator(node) and rank > 1)) % rank
    pieces = []
    for part in parts:
        ids, _ = channels(walk, part, dim, "a concatenation")
        pieces.append(torch.full((walk.shape(part)[dim],), -1) if ids is None else ids)
    row = torch.cat(pieces)
    beside = _stacked(walk, parts, {d: d for d in range(rank) if d != dim})
    return (*beside, *placed(row if bool((row >= 0).any()) else None, dim))


def stack(walk: Walk, node: Node) -> Axes:
    """Values one behind the other along a new dimension."""
    parts = cast(Sequence[Node], node.args[0])
    rank = len(walk.shape(node))
    dim = argument(node, 1, "dim", 0) % rank
    return _stacked(walk, parts, {d: d + (d >= dim) for d in range(rank - 1)})


def _stacked(walk: Walk, parts: Sequence[Node], moved: dict[int, int]) -> Axes:
    """Pruned on another dimension than the joined one, channels go in all parts alike."""
    result = []
    for dim, new in moved.items():
        found = [channels(walk, part, dim, "a concatenation")[0] for part in parts]
        held = [ids for ids in found if ids is not None]
        if len(held) < len(parts):
            for ids in held:
                walk.freeze(ids, "they stand beside values that cannot be cut")
        elif held:
            result.append(Axis(new, tie_rows(walk, torch.stack(held))))
    return tuple(result)


def reshape(walk: Walk, node: Node) -> Axes:
    """Join dimensions (flatten) or split one (heads, shuffles, groups)."""
    old, new = walk.shape(node.args[0]), walk.shape(node)
    moved = []
    for axis in walk.axes(node.args[0]):
        before, after = next(s for s in _segments(old, new) if axis.dim in s[0])
        if len(before) == len(after) == 1:
            moved.append(replace(axis, dim=after[0]))
            continue
        place = before.index(axis.dim)
        full = axis.ids.reshape([-1 if i == place else 1 for i in range(len(before))])
        full = full.expand([old[d] for d in before]).reshape([new[d] for d in after])
        found = _box(walk, full, [_asked(node, d) for d in after])
        if found is not None:
            moved.append(Axis(after[found[0]], found[1]))
    return tuple(moved)


def _box(walk: Walk, ids: Tensor, asked: Sequence[object]) -> tuple[int, Tensor] | None:
    """(dimension, (size,) atoms) of atoms laid out in a box; None if they do not vary.

    Channels laid out over several dimensions go in whole rows, so that the layout stays a box. The
    dimension that shrinks is the one whose size the call leaves open (-1), else the last.
    """
    wide = [d for d in range(ids.dim())
            if not torch.equal(ids, ids.narrow(d, 0, 1).expand_as(ids))]
    if not wide:
        return None
    open_dims = [d for d in wide if asked[d] == -1]
    free = open_dims[0] if open_dims else wide[-1]
    return free, tie_rows(walk, ids.movedim(free, -1).reshape(-1, ids.shape[free]))


def _asked(node: Node, dim: int) -> object:
    """What the call asks of a dimension's size; None if it does not say."""
    for arg in reversed(node.args):
        if isinstance(arg, list | tuple):
            start = argument(node, 1, "dim") if "unflatten" in operator(node) else 0
            place = dim - cast(int, start)
            return arg[place] if 0 <= place < len(arg) else None
    return None


def _segments(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of old and new dimensions that hold the same elements."""
    segments = []
    i = j = 0
    while i < len(old) or j < len(new):
        before, after = [], []
        left, right = 1, 1
        if i < len(old):
            before.append(i)
            left, i = old[i], i + 1
        if j < len(new):
            after.append(j)
            right, j = new[j], j + 1
        while left != right:
            if left < right:
                before.append(i)
                left, i = left * old[i], i + 1
            else:
                after.append(j)
                right, j = right * new[j], j + 1
        segments.append((before, after))
    return segments


def permute(walk: Walk, node: Node) -> Axes:
    """Any order of the dimensions, asked of the operator itself."""
    rank = len(walk.shape(node.args[0]))
    # Sizes 1, 2, 3, ... tell where each dimension has gone; nothing is allocated.
    probe = torch.empty([i + 1 for i in range(rank)], device="meta")
    moved: Tensor = cast(Any, node.target)(probe, *node.args[1:], **node.kwargs)
    return tuple(replace(a, dim=moved.shape.index(a.dim + 1)) for a in walk.axes(node.args[0]))


def flip(walk: Walk, node: Node) -> Axes:
    """The other way round."""
    dims = [d % len(walk.shape(node)) for d in argument(node, 1, "dims")]
    return tuple(replace(a, ids=a.ids.flip(0), home=None) if a.dim in dims else a
                 for a in walk.axes(node.args[0]))


def unsqueeze(walk: Walk, node: Node) -> Axes:
    dim = argument(node, 1, "dim") % len(walk.shape(node))
    return tuple(replace(a, dim=a.dim + (a.dim >= dim)) for a in walk.axes(node.args[0]))


def squeeze(walk: Walk, node: Node) -> Axes:
    """Only dimensions of one position fall away, and those hold no channels."""
    old = walk.shape(node.args[0])
    given = argument(node, 1, "dim", range(len(old)))
    dims = {d % len(old) for d in ([given] if isinstance(given, int) else given) if old}
    gone = {d for d in dims if old[d] == 1}
    return tuple(replace(a, dim=a.dim - sum(d < a.dim for d in gone))
                 for a in walk.axes(node.args[0]))


def expand(walk: Walk, node: Node) -> Axes:
    shift = len(walk.shape(node)) - len(walk.shape(node.args[0]))
    return tuple(replace(a, dim=a.dim + shift) for a in walk.axes(node.args[0]))


def repeat(walk: Walk, node: Node) -> Axes:
    """Several copies, one behind the other."""
    times = argument(node, 1, "repeats")
    shift = len(times) - len(walk.shape(node.args[0]))
    return tuple(Axis(a.dim + shift, a.ids.repeat(times[a.dim + shift]))
                 for a in walk.axes(node.args[0]))


def cut_open(walk: Walk, node: Node) -> list[Axes]:
    """Split and chunk: along channels every part must lose the same positions.

    Of unequal parts every share of their common measure, if they have one. Whether the places are
    fixed, or shares of a width that is asked for in Python, is for the rehearsal to find out.
    """
    source, parts = node.args[0], node.meta["val"]
    dim = argument(node, 2, "dim", 0) % len(walk.shape(source))
    sizes = [int(p.shape[dim]) for p in parts]
    result: list[list[Axis]] = [[] for _ in parts]
    for axis in walk.axes(source):
        if axis.dim != dim:
            for part in result:
                part.append(axis)
        elif gcd(*sizes) == 1 < len(sizes):
            walk.freeze(axis.ids, "size written in forward: they are split at fixed places")
        else:
            tie_rows(walk, axis.ids.reshape(-1, gcd(*sizes)))
            for part, ids in zip(result, axis.ids.split(sizes)):
                part.append(Axis(dim, ids))
    return [tuple(part) for part in result]


def gated_halves(walk: Walk, node: Node) -> Axes:
    """GLU: the first half times the gated second."""
    dim = argument(node, 1, "dim", -1) % len(walk.shape(node))
    return tuple(Axis(dim, tie_rows(walk, a.ids.reshape(2, -1))) if a.dim == dim
                 else replace(a, home=None) for a in walk.axes(node.args[0]))


def unbind(walk: Walk, node: Node) -> list[Axes]:
    """One value for each position."""
    dim = argument(node, 1, "dim", 0) % len(walk.shape(node.args[0]))
    return [_taken(walk, node, dim)] * len(node.meta["val"])


def take(walk: Walk, node: Node) -> Axes:
    """Slice and select: fine beside the channels; of them, what may be a share of their number.

    `x[:, : c // 2]` looks like any other number here: the rehearsal tells (`shares`).
    """
    source = node.args[0]
    dim = argument(node, 1, "dim", 0) % len(walk.shape(source))
    if walk.shape(node) == walk.shape(source):
        return walk.axes(source)
    if "slice" in operator(node) and argument(node, 4, "step", 1) == 1:
        return _share(walk, node, dim)
    return _taken(walk, node, dim, drops=len(walk.shape(node)) < len(walk.shape(source)))


def _share(walk: Walk, node: Node, dim: int) -> Axes:
    """Some channels in a row, where they make up a share of all: every share loses the same."""
    size, width = walk.shape(node.args[0])[dim], walk.shape(node)[dim]
    start = min(cast(int, argument(node, 2, "start") or 0), size)
    start += size if start < 0 else 0
    step = gcd(start, width, size)
    if step == 1:
        return _taken(walk, node, dim, drops=False)
    moved = []
    for axis in walk.axes(node.args[0]):
        if axis.dim == dim:
            tie_rows(walk, axis.ids.reshape(-1, step))
            axis = Axis(dim, axis.ids[start:start + width])
        moved.append(axis)
    return tuple(moved)


def _taken(walk: Walk, node: Node, dim: int, *, drops: bool = True) -> Axes:
    moved = []
    for axis in walk.axes(node.args[0]):
        if axis.dim == dim:
            walk.freeze(axis.ids, "size written in forward: some are taken at fixed places")
        else:
            moved.append(replace(axis, dim=axis.dim - (drops and axis.dim > dim), home=None))
    return tuple(moved)


def index(walk: Walk, node: Node) -> Axes:
    """A table of places along one dimension."""
    source, places = node.args[0], cast(Sequence[Node | None], node.args[1])
    at = [d for d, place in enumerate(places) if place is not None]
    more = len(walk.shape(node)) - len(walk.shape(source))
    for place in places:
        places_stay(walk, place)
    moved = []
    for axis in walk.axes(source):
        if axis.dim in at or len(at) != 1:
            walk.freeze(axis.ids, "size written in forward: some are taken at fixed places")
        else:
            moved.append(Axis(axis.dim + (more if axis.dim > at[0] else 0), axis.ids))
    return tuple(moved)


def sampled(walk: Walk, node: Node) -> Axes:
    """Every channel at the places that a grid names; the grid's own numbers stay."""
    values, grid = node.args[:2]
    places_stay(walk, grid)
    return placed(alone(walk, values, 1, "grid sampling"), 1)


def pixel_shuffle(walk: Walk, node: Node) -> Axes:
    """r x r channels become one of r times the height and width: they go together."""
    dim, block = len(walk.shape(node)) - 3, cast(int, node.args[1]) ** 2
    ids = alone(walk, node.args[0], dim, "a pixel shuffle")
    return () if ids is None else (Axis(dim, tie_rows(walk, ids.reshape(-1, block).t())),)


def pixel_unshuffle(walk: Walk, node: Node) -> Axes:
    """One channel becomes r x r."""
    dim, block = len(walk.shape(node)) - 3, cast(int, node.args[1]) ** 2
    ids = alone(walk, node.args[0], dim, "a pixel unshuffle")
    return () if ids is None else (Axis(dim, ids.repeat_interleave(block)),)


def channel_shuffle(walk: Walk, node: Node) -> Axes:
    """Channels of groups are dealt out in turn: every group loses the same positions."""
    groups = cast(int, node.args[1])
    moved = []
    for axis in walk.axes(node.args[0]):
        if axis.dim == 1:
            rows = axis.ids.reshape(groups, -1)
            tie_rows(walk, rows)
            axis = Axis(1, rows.t().reshape(-1))
        moved.append(axis)
    return tuple(moved)


def unfold(walk: Walk, node: Node) -> Axes:
    """Patches as columns: one channel becomes as many rows as a patch has places."""
    source, places = node.args[0], prod(cast(Sequence[int], node.args[1]))
    dim = len(walk.shape(node)) - 2
    ids = alone(walk, source, dim, "an unfolding")
    return () if ids is None else (Axis(dim, ids.repeat_interleave(places)),)


def fold(walk: Walk, node: Node) -> Axes:
    """Columns as patches, added up where they overlap: the rows of a patch go together."""
    source, places = node.args[0], prod(cast(Sequence[int], node.args[2]))
    dim = len(walk.shape(source)) - 2
    ids = alone(walk, source, dim, "a folding")
    return () if ids is None else (Axis(dim, tie_rows(walk, ids.reshape(-1, places).t())),)
