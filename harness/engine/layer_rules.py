"""Rules of operators that hold weights of their own: convolutions, linear layers, norms, tables."""

from collections.abc import Sequence
from math import prod
from typing import Any, cast

from torch.fx import Node

from harness.engine.axes import (
    Axes,
    Ids,
    Walk,
    alone,
    argument,
    channels,
    meet,
    operator,
    placed,
    places_stay,
    tie_rows,
)
from harness.engine.product_rules import contract
from harness.engine.value_rules import follow


def convolution(walk: Walk, node: Node) -> Axes:
    """Reads the channels of dimension 1, writes new ones; groups stay in step."""
    source, weight, bias = (list(node.args) + [None] * 3)[:3]
    groups = argument(node, 6, "groups", 1)
    shape, out = walk.shape(source), walk.shape(node)
    name = _parameter(walk, weight)
    dim = len(shape) - len(walk.shape(weight)) + 1  # 0 for an unbatched input
    incoming = alone(walk, source, dim, "a convolution")
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
    return placed(outgoing, dim)


def _parameter(walk: Walk, weight: object) -> str | None:
    """The tensor that is a layer's weight, as it is, or scaled and masked in its own shape."""
    name = walk.tensor(weight)
    if name is None:
        axes = walk.axes(weight)
        homes = {axis.home[0] for axis in axes if axis.home and axis.home[1] == axis.dim}
        wide = [d for d, size in enumerate(walk.shape(weight)) if size > 1]
        if len(homes) == 1 and wide == sorted(axis.dim for axis in axes if axis.home):
            (name,) = homes
    return name


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
    name, shape = _parameter(walk, weight), walk.shape(source)
    groups = argument(node, 6, "groups", 1)
    dim = len(shape) - len(walk.shape(weight)) + 1
    incoming = alone(walk, source, dim, "a transposed convolution")
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
    return placed(outgoing, dim)


def linear(walk: Walk, node: Node) -> Axes:
    """Reads the last dimension, writes a new last dimension; passes the others."""
    source, weight, bias = (list(node.args) + [None] * 3)[:3]
    name, shape, out = _parameter(walk, weight), walk.shape(source), walk.shape(node)
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
    return (*others, *placed(outgoing, last))


def _computed_linear(walk: Walk, node: Node, source: Any, weight: Any, bias: Any) -> Axes:
    """A linear layer whose weights are computed, a transposed parameter for one: a product."""
    if not walk.axes(weight):
        walk.freeze(alone(walk, source, len(walk.shape(source)) - 1, "a linear layer"),
                    "its reader computes its weights on the fly")
    batch = [f"b{i}" for i in range(len(walk.shape(source)) - 1)]
    own = ["o", "i"][-len(walk.shape(weight)):]
    result = contract(walk, node, [(source, [*batch, "i"]), (weight, own)],
                      [*batch, "o"][: len(walk.shape(node))])
    last = [a.ids for a in result if a.dim == len(walk.shape(node)) - 1]
    _affine(walk, bias, last[0] if last else None)
    return result


def vector_and_product(walk: Walk, node: Node) -> Axes:
    """addmm: a linear layer whose matrix is (in, out). The vector goes with the columns."""
    bias, a, b = cast(tuple[Node, Node, Node], tuple(node.args[:3]))
    result = contract(walk, node, [(a, ["n", "k"]), (b, ["k", "m"])], ["n", "m"])
    if len(walk.shape(bias)) == 1:
        _affine(walk, bias, next((axis.ids for axis in result if axis.dim == 1), None))
        return result
    for axis in (*result, *walk.axes(bias)):
        walk.freeze(axis.ids, "a matrix is added to their product")
    return ()


def batch_norm(walk: Walk, node: Node) -> Axes:
    """Keeps every channel to itself; its vectors shrink with the channels."""
    return _per_channel(walk, node, node.args[1:5], "a batch norm")


def _per_channel(walk: Walk, node: Node, vectors: Sequence[object], what: str) -> Axes:
    ids, others = channels(walk, node.args[0], 1, what)
    for one in vectors:
        _affine(walk, one, ids)
    return (*placed(ids, 1), *others)


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
    """A table whose columns are channels. Its rows are asked for by number, so all of them stay."""
    table, places = node.args[:2]
    places_stay(walk, places)
    name = _parameter(walk, table)
    if name is not None:
        walk.write(name, 1)
    return placed(alone(walk, table, 1, "an embedding"), len(walk.shape(node)) - 1)


def bilinear(walk: Walk, node: Node) -> Axes:
    """Reads the last dimensions of two values, through two dimensions of one weight."""
    first, second, weight, bias = (list(node.args) + [None] * 4)[:4]
    name, out = _parameter(walk, weight), walk.shape(node)
    last = len(out) - 1
    incoming = [alone(walk, source, last, "a bilinear layer") for source in (first, second)]
    if name is None:
        for ids in (*incoming, *(a.ids for a in walk.axes(weight))):
            walk.freeze(ids, "a bilinear layer's weights are computed on the fly")
        return ()
    for dim, ids in enumerate(incoming, start=1):
        walk.read(name, dim, ids, "reader")
    outgoing = walk.write(name, 0)
    _affine(walk, bias, outgoing)
    return placed(outgoing, last)


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
