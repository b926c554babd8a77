"""What each operator does to channels: one table, operator -> rule.

Every channel that a layer writes has a number, its *atom*. A value of the traced graph carries
*axes*: along one of its dimensions, an axis says which atom each position holds (-1: nothing to
prune). An activation (N, C, H, W) has one axis, along dimension 1; a product of two activations may
have two. An operator that only moves elements moves axes. A rule is called as rule(walk, node) and
returns the axes of the node's value, or a list of such, for operators with several outputs.

An operator without a rule freezes the channels that reach it, by name. Nothing is guessed.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol, cast

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


def _placed(ids: Ids, dim: int) -> Axes:
    return () if ids is None else (Axis(dim, ids),)


# --- layers that multiply by weights --------------------------------------------------------------


def convolution(walk: Walk, node: Node) -> Axes:
    """Reads the channels of dimension 1, writes new ones; groups stay in step."""
    source, weight, bias = (list(node.args) + [None] * 3)[:3]
    groups = argument(node, 6, "groups", 1)
    shape, out = walk.shape(source), walk.shape(node)
    name = walk.tensor(weight)
    dim = len(shape) - len(walk.shape(weight)) + 1  # 0 for an unbatched input
    incoming = _alone(walk, source, dim, "a convolution")
    if name is None:
        _refuse_weights(walk, incoming, weight)
        walk.multiply(node, None, 0, prod(out) * prod(walk.shape(weight)[1:]))
        return ()
    walk.multiply(node, name, prod(out) // out[dim], 0)
    if groups == 1:
        walk.read(name, 1, incoming, "reader")
        outgoing = walk.write(name, 0)
    elif groups == shape[dim]:
        outgoing = _depthwise(walk, name, incoming, out[dim] // groups)
    else:
        outgoing = _grouped(walk, name, incoming, groups)
    _affine(walk, bias, outgoing)
    return _placed(outgoing, dim)


def _alone(walk: Walk, source: object, dim: int, what: str) -> Ids:
    """The channels along `dim`; whatever else could be cut is frozen, the operator mixes it."""
    ids, others = channels(walk, source, dim, what)
    for axis in others:
        walk.freeze(axis.ids, f"{what} works along the dimension that holds them")
    return ids


def _refuse_weights(walk: Walk, incoming: Ids, weight: object) -> None:
    reason = "its reader computes its weights on the fly"
    walk.freeze(incoming, reason)
    for axis in walk.axes(weight):
        walk.freeze(axis.ids, "a convolution's weights are computed from it on the fly")


def _depthwise(walk: Walk, name: str, incoming: Ids, multiplier: int) -> Ids:
    """Filter o belongs to input channel o // multiplier and goes with it."""
    outgoing = None if incoming is None else incoming.repeat_interleave(multiplier)
    if outgoing is None:
        walk.stay(name, "its filters go with an input that cannot be cut")
    walk.read(name, 0, outgoing, "writer")
    return outgoing


def _grouped(walk: Walk, name: str, incoming: Ids, groups: int) -> Ids:
    """Every group loses the same positions: in on dimension 1, out on dimension 0."""
    if incoming is not None:
        walk.read(name, 1, tie_rows(walk, incoming.reshape(groups, -1)), "reader")
    outgoing = walk.write(name, 0)
    if outgoing is not None:
        tie_rows(walk, outgoing.reshape(groups, -1))
    return outgoing


def transposed_convolution(walk: Walk, node: Node) -> Axes:
    """Like a convolution, with (in, out / groups) weights: one position writes for every group."""
    source, weight, bias = (list(node.args) + [None] * 3)[:3]
    name, shape = walk.tensor(weight), walk.shape(source)
    groups = argument(node, 6, "groups", 1)
    dim = len(shape) - len(walk.shape(weight)) + 1
    incoming = _alone(walk, source, dim, "a transposed convolution")
    positions = prod(shape) // shape[dim]
    if name is None:
        _refuse_weights(walk, incoming, weight)
        walk.multiply(node, None, 0, positions * prod(walk.shape(weight)))
        return ()
    walk.multiply(node, name, positions, 0)
    per_group = walk.shape(weight)[1]
    if groups == shape[dim] > 1 and per_group == 1:
        outgoing = _depthwise(walk, name, incoming, 1)
    else:
        if groups > 1 and incoming is not None:
            tie_rows(walk, incoming.reshape(groups, -1))
        walk.read(name, 0, incoming, "reader")
        written = walk.write(name, 1)
        outgoing = None if written is None else written.repeat(groups)
    _affine(walk, bias, outgoing)
    return _placed(outgoing, dim)


def linear(walk: Walk, node: Node) -> Axes:
    """Reads the last dimension, writes a new last dimension; passes the others."""
    source, weight, bias = (list(node.args) + [None] * 3)[:3]
    name, shape, out = walk.tensor(weight), walk.shape(source), walk.shape(node)
    last = len(shape) - 1
    if name is None or len(walk.shape(weight)) != 2:
        return _computed_linear(walk, node, source, weight, bias)
    incoming, others = channels(walk, source, last, "a linear layer")
    walk.read(name, 1, incoming, "reader")
    outgoing = walk.write(name, 0)
    _affine(walk, bias, outgoing)
    if others:  # its rows are channels too, so its cost follows three dimensions, or more
        sizes = [*out, shape[-1]]
        ids = {a.dim: a.ids for a in others} | {last: outgoing, last + 1: incoming}
        walk.product(node, sizes, [ids.get(d) for d in range(len(sizes))], name)
    else:
        walk.multiply(node, name, prod(out) // out[-1], 0)
    return (*others, *_placed(outgoing, last))


def _computed_linear(walk: Walk, node: Node, source: Any, weight: Any, bias: Any) -> Axes:
    """A linear layer whose weights are computed, a transposed parameter for one: a product."""
    batch = [f"b{i}" for i in range(len(walk.shape(source)) - 1)]
    own = ["o", "i"][-len(walk.shape(weight)):]
    result = contract(walk, node, [(source, [*batch, "i"]), (weight, own)],
                      [*batch, "o"][: len(walk.shape(node))])
    last = [a.ids for a in result if a.dim == len(walk.shape(node)) - 1]
    _affine(walk, bias, last[0] if last else None)
    return result


def batch_norm(walk: Walk, node: Node) -> Axes:
    """Keeps every channel to itself; its vectors shrink with the channels."""
    return _per_channel(walk, node, node.args[1:5], "a batch norm")


def _per_channel(walk: Walk, node: Node, vectors: Sequence[object], what: str) -> Axes:
    source = node.args[0]
    ids, others = channels(walk, source, min(1, len(walk.shape(source)) - 1), what)
    for one in vectors:
        _affine(walk, one, ids)
    return (*_placed(ids, min(1, len(walk.shape(source)) - 1)), *others)


def layer_norm(walk: Walk, node: Node) -> Axes:
    """Its statistics are over the channels that stay; its scale and shift shrink with them."""
    source, sizes = node.args[0], cast(Sequence[int], node.args[1])
    weight = argument(node, 2, "weight")
    vectors = [weight, argument(node, 3, "bias") if "layer" in operator(node) else None]
    first = len(walk.shape(source)) - len(sizes)
    for place in range(len(sizes)):
        ids, _ = channels(walk, source, first + place, "a norm")
        if walk.tensor(weight) is None:
            walk.freeze(ids, "a norm over them has no scale of its own that could shrink")
        for one in vectors:
            _affine(walk, one, ids, place)
    return follow(walk, node)


def group_norm(walk: Walk, node: Node) -> Axes:
    """Every group of it keeps the same number; with one channel a group, groups go."""
    source, groups = node.args[0], cast(int, node.args[1])
    shape = walk.shape(source)
    vectors = [argument(node, 2, "weight"), argument(node, 3, "bias")]
    for axis in walk.axes(source):
        if axis.dim == 1:
            if walk.tensor(vectors[0]) is None:
                walk.freeze(axis.ids, "a norm over them has no scale of its own that could shrink")
            if groups < shape[1]:
                tie_rows(walk, axis.ids.reshape(groups, -1))
        elif axis.dim > 1:
            walk.freeze(axis.ids, "a group norm works along the dimension that holds them")
    return _per_channel(walk, node, vectors, "a group norm")


def instance_norm(walk: Walk, node: Node) -> Axes:
    """Like a batch norm, whose statistics are one map's."""
    for axis in walk.axes(node.args[0]):
        if axis.dim > 1:
            walk.freeze(axis.ids, "an instance norm works along the dimension that holds them")
    return _per_channel(walk, node, node.args[1:5], "an instance norm")


def prelu(walk: Walk, node: Node) -> Axes:
    """One slope for all channels, or one for each."""
    if prod(walk.shape(node.args[1])) > 1:
        return _per_channel(walk, node, [node.args[1]], "a PReLU")
    return follow(walk, node)


def embedding(walk: Walk, node: Node) -> Axes:
    """A table whose columns are channels."""
    name = walk.tensor(node.args[0])
    if name is None:
        return ()
    return _placed(walk.write(name, 1), len(walk.shape(node)) - 1)


def _affine(walk: Walk, node: object, ids: Ids, dim: int = 0) -> None:
    """A vector (bias, scale, statistics) that accompanies the channels."""
    if node is None:
        return
    name = walk.tensor(node)
    if name is not None:
        walk.read(name, dim, ids, "affine")
        return
    own, _ = channels(walk, node, dim, "a vector")
    if own is not None and ids is not None:
        meet(walk, own, ids)
    else:
        walk.freeze(own, "they meet values that cannot be cut")
        walk.freeze(ids, "a vector that goes with them is computed on the fly")


# --- products of values ---------------------------------------------------------------------------


def contract(walk: Walk, node: Node, factors: Sequence[tuple[Node, Sequence[str]]],
             out: Sequence[str]) -> Axes:
    """A product of values, summed over the letters that `out` lacks, as in einsum.

    Factors that share a letter lose the same positions of it. Where one is a parameter, it reads
    the channels of a summed letter, and writes those of its other letters.
    """
    sizes: dict[str, int] = {}
    along: dict[str, list[Axis]] = {}
    wide: dict[str, int] = {}  # letter -> factors that have it in full
    for factor, letters in factors:
        for dim, (letter, size) in enumerate(zip(letters, walk.shape(factor), strict=True)):
            sizes[letter] = max(size, sizes.get(letter, 1))
            wide[letter] = wide.get(letter, 0) + (size > 1)
            along.setdefault(letter, []).extend(a for a in walk.axes(factor) if a.dim == dim)
    tracked: dict[str, Tensor] = {}
    for letter, axes in along.items():
        if not axes:
            continue
        if len(axes) != wide[letter]:
            for axis in axes:
                walk.freeze(axis.ids, "they meet values that cannot be cut")
            continue
        ids = axes[0].ids
        for axis in axes[1:]:
            ids = meet(walk, ids, axis.ids)
        tracked[letter] = ids
        if letter not in out:
            _read_by_product(walk, axes, ids)
    for factor, _ in factors:
        own = walk.axes(factor)
        if any(a.home and letters_of(factors, factor)[a.dim] not in out for a in own):
            for axis in own:
                if axis.home and letters_of(factors, factor)[axis.dim] in out:
                    walk.role(axis.home, "writer")
    walk.product(node, list(sizes.values()), [tracked.get(letter) for letter in sizes])
    return tuple(Axis(out.index(letter), ids) for letter, ids in tracked.items() if letter in out)


def letters_of(factors: Sequence[tuple[Node, Sequence[str]]], factor: Node) -> Sequence[str]:
    return next(letters for node, letters in factors if node is factor)


def _read_by_product(walk: Walk, axes: Sequence[Axis], ids: Tensor) -> None:
    homes = [axis.home for axis in axes if axis.home]
    if len(homes) == 1 and len(axes) > 1:
        walk.role(homes[0], "reader")
    else:
        walk.contracted(ids)


def matmul(walk: Walk, node: Node) -> Axes:
    """(..., n, k) x (..., k, m); a factor with one dimension is a row or a column."""
    a, b = cast(tuple[Node, Node], tuple(node.args[:2]))
    rank_a, rank_b = len(walk.shape(a)), len(walk.shape(b))
    left = ["k"] if rank_a == 1 else [*_batch(rank_a), "n", "k"]
    right = ["k"] if rank_b == 1 else [*_batch(rank_b), "k", "m"]
    batch = _batch(max(rank_a, rank_b))
    out = [*batch, *(["n"] if rank_a > 1 else []), *(["m"] if rank_b > 1 else [])]
    return contract(walk, node, [(a, left), (b, right)], out)


def _batch(rank: int) -> list[str]:
    """Letters of the leading dimensions, counted from the right, as they are broadcast."""
    return [f"b{i}" for i in range(rank - 2)][::-1]


def einsum(walk: Walk, node: Node) -> Axes:
    """Any equation whose letters occur once in each factor."""
    factors = cast(Sequence[Node], node.args[1])
    terms, arrow, out = str(node.args[0]).replace(" ", "").partition("->")
    letters = [_letters(term, len(walk.shape(f))) for term, f in zip(terms.split(","), factors)]
    every = [letter for term in letters for letter in term]
    if not arrow or any(len(set(term)) < len(term) for term in letters):
        for factor in factors:
            for axis in walk.axes(factor):
                walk.freeze(axis.ids, f"the equation '{node.args[0]}' has no rule")
        return ()
    hidden = sorted({e for e in every if e.startswith("b.")}, reverse=True)
    result = [*out.partition("...")[0], *(hidden if "..." in out else []), *out.partition("...")[2]]
    return contract(walk, node, list(zip(factors, letters)), result)


def _letters(term: str, rank: int) -> list[str]:
    before, dots, after = term.partition("...")
    hidden = [f"b.{i}" for i in range(rank - len(before) - len(after))][::-1] if dots else []
    return [*before, *hidden, *after]


def attention(walk: Walk, node: Node) -> Axes:
    """softmax(q k^T) v: queries and keys are contracted, values come out."""
    query, key, value = cast(tuple[Node, Node, Node], tuple(node.args[:3]))
    mask = argument(node, 3, "attn_mask")
    batch = _batch(len(walk.shape(query)))
    factors = [(query, [*batch, "n", "d"]), (key, [*batch, "m", "d"])]
    if isinstance(mask, Node) and walk.shape(mask):
        mask_letters = [*batch, "n", "m"][-len(walk.shape(mask)):]
        factors.append((mask, mask_letters))
    if argument(node, 7, "enable_gqa", False):
        for factor, _ in [*factors, (value, [])]:
            for axis in walk.axes(factor):
                walk.freeze(axis.ids, "grouped-query attention has no rule")
        return ()
    weights = contract(walk, node, factors, [*batch, "n", "m"])
    # The weights' axes meet the values' along the letters that both have.
    known = {axis.dim: axis.ids for axis in weights}
    letters = [*batch, "m", "e"]
    result, sizes, ids = [], [], []
    shape = walk.shape(value)
    for dim, letter in enumerate(letters):
        found: Ids = next((a.ids for a in walk.axes(value) if a.dim == dim), None)
        other = known.get(dim) if letter in batch else None
        if letter in batch and (found is None) != (other is None):
            walk.freeze(found if other is None else other, "they meet values that cannot be cut")
            found = None
        elif found is not None and other is not None:
            found = meet(walk, found, other)
        elif letter == "m" and found is not None:
            walk.freeze(found, "attention mixes them")
            found = None
        if found is not None:
            result.append(Axis(dim, found))
        sizes.append(shape[dim])
        ids.append(found)
    walk.product(node, [*sizes, walk.shape(query)[-2]], [*ids, None])
    return tuple(result)


# --- operators that look at one element at a time -------------------------------------------------


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


# --- operators that work along dimensions ---------------------------------------------------------


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
    return _reduced(walk, node, argument(node, 1, "dim"))


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


# --- operators that only move elements ------------------------------------------------------------


def concat(walk: Walk, node: Node) -> Axes:
    """Channels one behind the other: offsets come by themselves."""
    parts = cast(Sequence[Node], node.args[0])
    rank = len(walk.shape(node))
    parts = [p for p in parts if len(walk.shape(p)) == rank]  # torch allows an empty vector
    dim = argument(node, 1, "dim", 0) % rank
    pieces = []
    for part in parts:
        ids, _ = channels(walk, part, dim, "a concatenation")
        pieces.append(torch.full((walk.shape(part)[dim],), -1) if ids is None else ids)
    row = torch.cat(pieces)
    beside = _stacked(walk, parts, {d: d for d in range(rank) if d != dim})
    return (*beside, *_placed(row if bool((row >= 0).any()) else None, dim))


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
    """Split and chunk: along channels every part must lose the same positions."""
    source, parts = node.args[0], node.meta["val"]
    dim = argument(node, 2, "dim", 0) % len(walk.shape(source))
    sizes = [int(p.shape[dim]) for p in parts]
    result: list[list[Axis]] = [[] for _ in parts]
    for axis in walk.axes(source):
        if axis.dim != dim:
            for part in result:
                part.append(axis)
        elif "chunk" not in str(node.target) or len(set(sizes)) > 1:
            walk.freeze(axis.ids, "size written in forward: they are split at fixed places")
        else:
            tie_rows(walk, axis.ids.reshape(len(parts), -1))
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
    """Slice and select: fine beside the channels; at fixed places of them, refused."""
    source = node.args[0]
    dim = argument(node, 1, "dim", 0) % len(walk.shape(source))
    if walk.shape(node) == walk.shape(source):
        return walk.axes(source)
    return _taken(walk, node, dim, drops=len(walk.shape(node)) < len(walk.shape(source)))


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
    moved = []
    for axis in walk.axes(source):
        if axis.dim in at or len(at) != 1:
            walk.freeze(axis.ids, "size written in forward: some are taken at fixed places")
        else:
            moved.append(Axis(axis.dim + (more if axis.dim > at[0] else 0), axis.ids))
    return tuple(moved)


def pixel_shuffle(walk: Walk, node: Node) -> Axes:
    """r x r channels become one of r times the height and width: they go together."""
    dim, block = len(walk.shape(node)) - 3, cast(int, node.args[1]) ** 2
    ids = _alone(walk, node.args[0], dim, "a pixel shuffle")
    return () if ids is None else (Axis(dim, tie_rows(walk, ids.reshape(-1, block).t())),)


def pixel_unshuffle(walk: Walk, node: Node) -> Axes:
    """One channel becomes r x r."""
    dim, block = len(walk.shape(node)) - 3, cast(int, node.args[1]) ** 2
    ids = _alone(walk, node.args[0], dim, "a pixel unshuffle")
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


_ONE_TO_ONE = [
    "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "silu", "silu_", "gelu", "gelu_", "sigmoid",
    "sigmoid_", "tanh", "tanh_", "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_",
    "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "selu_", "celu", "celu_", "softplus",
    "mish", "mish_", "hardshrink", "softshrink", "softsign", "log_sigmoid", "rrelu", "threshold",
    "dropout", "dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout", "neg", "abs",
    "exp", "exp_", "log", "sqrt", "rsqrt", "square", "sin", "cos", "erf", "reciprocal", "round",
    "floor", "ceil", "sign", "logical_not", "isnan", "fill_", "zero_", "zeros_like", "ones_like",
    "empty_like", "full_like", "rand_like", "randn_like", "bernoulli", "bernoulli_", "isfinite",
    "nan_to_num", "log1p", "expm1",
]
_THE_SAME = ["clone", "contiguous", "alias", "detach", "detach_", "lift_fresh_copy", "to",
             "_to_copy", "positive", "type_as", "identity"]
_ELEMENTWISE = [
    "add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "maximum", "minimum",
    "where", "addcmul", "addcdiv", "lerp", "fmod", "remainder", "atan2", "pow", "clamp", "clamp_",
    "clamp_min", "clamp_max", "masked_fill", "masked_fill_", "copy_", "eq", "ne", "lt", "le", "gt",
    "ge", "logical_and", "logical_or", "floor_divide",
]
_SPATIAL = [
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_trilinear3d",
    "upsample_linear1d", "upsample_bicubic2d", "_upsample_nearest_exact2d",
    "_upsample_bilinear2d_aa",
]
_POOLED_PAIRS = [
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
]

# The table. Keys are operator names without namespace and overload.
RULES: dict[str, Rule] = {
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], convolution),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"],
                    transposed_convolution),
    "linear": linear,
    "batch_norm": batch_norm,
    **dict.fromkeys(["layer_norm", "rms_norm"], layer_norm),
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "prelu": prelu,
    "embedding": embedding,
    **dict.fromkeys(["matmul", "mm", "bmm", "mv", "dot"], matmul),
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
    **dict.fromkeys(_ONE_TO_ONE, follow),
    **dict.fromkeys(_THE_SAME, same),
    **dict.fromkeys(_ELEMENTWISE, combine),
    **dict.fromkeys(_SPATIAL, spatial),
    **dict.fromkeys(_POOLED_PAIRS, pooled_pair),
    **dict.fromkeys(["softmax", "log_softmax", "cumsum", "cumprod", "_softmax"], mixing),
    "roll": roll,
    **dict.fromkeys(["pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d",
                     "replication_pad1d", "replication_pad2d"], pad),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "prod", "logsumexp", "var", "std"], reduce),
    "linalg_vector_norm": vector_norm,
    **dict.fromkeys(["max", "min"], extreme),
    **dict.fromkeys(["cat", "concat"], concat),
    "stack": stack,
    **dict.fromkeys(["view", "reshape", "_unsafe_view", "flatten", "unflatten"], reshape),
    **dict.fromkeys(["permute", "transpose", "swapaxes", "movedim", "t", "numpy_T", "mT",
                     "transpose_", "adjoint"], permute),
    "flip": flip,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    **dict.fromkeys(["expand", "expand_as", "broadcast_to"], expand),
    "repeat": repeat,
    **dict.fromkeys(["split", "split_with_sizes", "chunk"], cut_open),
    "glu": gated_halves,
    "unbind": unbind,
    **dict.fromkeys(["slice", "select", "narrow"], take),
    "index": index,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    **dict.fromkeys(["_assert_tensor_metadata", "_assert_async", "_assert_scalar", "new_zeros",
                     "new_ones", "new_full", "new_empty"], nothing),
}
# Operators whose second argument is a layer's weight, where a parameter stands there.
LAYERS = frozenset(["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
                    "conv_transpose3d", "linear"])
