"""What each operator does to channels: one table, operator -> rule.

Every channel that a layer writes has a number, its *atom*. A value of the traced graph carries
`ids`: a tensor of atoms of the value's rank, size 1 along every dimension on which the atom does
not depend, -1 where there is nothing to prune; or None when nothing in the value can be pruned.
So an activation (N, C, H, W) has ids (1, C, 1, 1), and an operator that only moves elements moves
ids by running itself on them. A rule is called as rule(walk, node) and returns the ids of the
node's value (a list of them for operators with several outputs).

An operator without a rule freezes the channels that reach it, by name. Nothing is guessed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.fx import Node

Ids = Tensor | None
Rule = Callable[["Walk", Node], "Ids | list[Ids]"]


class Walk(Protocol):
    """What a rule may ask and say while the graph is walked; `graph.Tracer` stands behind it."""

    def ids(self, node: object) -> Ids: ...
    def shape(self, node: object) -> tuple[int, ...]: ...
    def tensor(self, node: object) -> str | None: ...
    def write(self, tensor: str, dim: int) -> Tensor: ...
    def read(self, tensor: str, dim: int, ids: Ids, role: str) -> None: ...
    def tie(self, a: Tensor, b: Tensor) -> None: ...
    def freeze(self, ids: Ids, reason: str) -> None: ...
    def stay(self, tensor: str, reason: str) -> None: ...
    def multiply(self, node: Node, weight: str | None, rows: int, macs: int) -> None: ...


def squeeze_constant(ids: Tensor) -> Ids:
    """Drop the dimensions along which ids do not change; None if nothing is tracked."""
    if bool((ids < 0).all()):
        return None
    for dim in range(ids.dim()):
        if ids.shape[dim] > 1:
            first = ids.narrow(dim, 0, 1)
            if torch.equal(ids, first.expand_as(ids)):
                ids = first
    return ids


def spread(ids: Tensor, shape: Sequence[int], dims: Sequence[int]) -> Tensor:
    """Give ids their full size along `dims`."""
    sizes = [shape[d] if d in dims else ids.shape[d] for d in range(len(shape))]
    return ids.expand(sizes)


def vector(walk: Walk, ids: Ids, shape: Sequence[int], dim: int, what: str) -> Ids:
    """The (shape[dim],) atoms of a value that is pruned along `dim` alone; else freeze it all."""
    if ids is None:
        return None
    other = [d for d in range(ids.dim()) if d != dim and ids.shape[d] > 1]
    if other:
        walk.freeze(ids, f"{what} meets channels spread over several dimensions")
        return None
    return spread(ids, shape, [dim]).reshape(-1)


def argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    """An operator's argument, given by its place or by its name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def place(atoms: Ids, rank: int, dim: int) -> Ids:
    """(C,) atoms as ids of a value of this rank, along `dim`."""
    if atoms is None:
        return None
    return atoms.reshape([-1 if d == dim else 1 for d in range(rank)])


# --- layers that multiply by weights --------------------------------------------------------------


def convolution(walk: Walk, node: Node) -> Ids:
    """Reads the channels of dimension 1, writes new ones; groups stay in step."""
    source, weight, bias = (list(node.args) + [None] * 3)[:3]
    groups = argument(node, 6, "groups", 1)
    shape, out = walk.shape(source), walk.shape(node)
    name = walk.tensor(weight)
    channel_dim = len(shape) - len(walk.shape(weight)) + 1  # 0 for an unbatched input
    incoming = vector(walk, walk.ids(source), shape, channel_dim, "a convolution")
    if name is None:
        walk.freeze(incoming, "its reader computes its weights on the fly")
        walk.multiply(node, None, 0, _numel(out) * _numel(walk.shape(weight)[1:]))
        return None
    walk.multiply(node, name, _numel(out) // out[channel_dim], 0)
    if groups == 1:
        walk.read(name, 1, incoming, "reader")
        outgoing: Ids = walk.write(name, 0)
    elif groups == shape[channel_dim]:
        outgoing = _depthwise(walk, name, incoming, out[channel_dim] // groups)
    else:
        outgoing = _grouped(walk, name, incoming, groups)
    _affine(walk, bias, outgoing)
    return place(outgoing, len(out), channel_dim)


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
        per_group = incoming.reshape(groups, -1)
        if bool((per_group < 0).any()):
            walk.freeze(incoming, "a grouped convolution reads them beside channels that stay")
            per_group = per_group[:0]
        for other in per_group[1:]:
            walk.tie(per_group[0], other)
        if len(per_group):
            walk.read(name, 1, per_group[0], "reader")
    outgoing = walk.write(name, 0)
    rows = outgoing.reshape(groups, -1)
    for other in rows[1:]:
        walk.tie(rows[0], other)
    return outgoing


def transposed_convolution(walk: Walk, node: Node) -> Ids:
    """Like a convolution, with (in, out) weights; grouped ones are refused."""
    source, weight, bias = (list(node.args) + [None] * 3)[:3]
    name, shape, out = walk.tensor(weight), walk.shape(source), walk.shape(node)
    groups = argument(node, 6, "groups", 1)
    channel_dim = len(shape) - len(walk.shape(weight)) + 1
    incoming = vector(walk, walk.ids(source), shape, channel_dim, "a transposed convolution")
    positions = _numel(shape) // shape[channel_dim]
    if name is None:
        walk.freeze(incoming, "its reader computes its weights on the fly")
        walk.multiply(node, None, 0, positions * _numel(walk.shape(weight)))
        return None
    walk.multiply(node, name, positions, 0)
    if groups != 1:
        walk.freeze(incoming, "its reader is a grouped transposed convolution")
        walk.stay(name, "a grouped transposed convolution")
        return None
    walk.read(name, 0, incoming, "reader")
    outgoing = walk.write(name, 1)
    _affine(walk, bias, outgoing)
    return place(outgoing, len(out), channel_dim)


def linear(walk: Walk, node: Node) -> Ids:
    """Reads the last dimension, writes a new last dimension."""
    source, weight, bias = (list(node.args) + [None] * 3)[:3]
    name, shape, out = walk.tensor(weight), walk.shape(source), walk.shape(node)
    incoming = vector(walk, walk.ids(source), shape, len(shape) - 1, "a linear layer")
    if name is None or len(walk.shape(weight)) != 2:
        walk.freeze(incoming, "its reader computes its weights on the fly")
        walk.multiply(node, None, 0, _numel(out) * shape[-1])
        return None
    walk.multiply(node, name, _numel(out) // out[-1], 0)
    walk.read(name, 1, incoming, "reader")
    outgoing = walk.write(name, 0)
    _affine(walk, bias, outgoing)
    return place(outgoing, len(out), len(out) - 1)


def batch_norm(walk: Walk, node: Node) -> Ids:
    """Keeps every channel to itself; its four vectors shrink with the channels."""
    source = node.args[0]
    shape = walk.shape(source)
    atoms = vector(walk, walk.ids(source), shape, 1, "a batch norm")
    for vector_node in node.args[1:5]:
        _affine(walk, vector_node, atoms)
    return place(atoms, len(shape), 1)


def prelu(walk: Walk, node: Node) -> Ids:
    """One slope for all channels, or one for each."""
    source, slope = node.args[0], node.args[1]
    if _numel(walk.shape(slope)) > 1:
        atoms = vector(walk, walk.ids(source), walk.shape(source), 1, "a PReLU")
        _affine(walk, slope, atoms)
        return place(atoms, len(walk.shape(source)), 1)
    return walk.ids(source)


def _affine(walk: Walk, node: object, atoms: Ids) -> None:
    """A vector (bias, scale, statistics) that accompanies the channels."""
    if node is None:
        return
    name = walk.tensor(node)
    if name is None:
        walk.freeze(atoms, "a vector that goes with them is computed on the fly")
    else:
        walk.read(name, 0, atoms, "affine")


def _numel(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


# --- operators that look at one element at a time -------------------------------------------------


def follow(walk: Walk, node: Node) -> Ids:
    """One input, the same elements in the same places."""
    return walk.ids(node.args[0])


def combine(walk: Walk, node: Node) -> Ids:
    """Several inputs, element by element: channels that meet live and die together."""
    shape = walk.shape(node)
    operands = [a for a in _flat([*node.args, *node.kwargs.values()])
                if isinstance(a, Node) and walk.shape(a)]
    aligned = {a: _aligned(walk.ids(a), len(shape)) for a in operands}
    tracked = [ids for a, ids in aligned.items()
               if ids is not None and not _is_spread(walk, a, aligned, shape)]
    if not tracked:
        return None
    result = tracked[0]
    for ids in tracked[1:]:
        a, b = torch.broadcast_tensors(result, ids)
        both = (a >= 0) & (b >= 0)
        walk.tie(a[both], b[both])
        one_sided = torch.where(both, torch.full_like(a, -1), torch.maximum(a, b))
        walk.freeze(one_sided, "they meet values that cannot be cut")
        result = torch.maximum(a, b)
    _refuse_full_size_partners(walk, operands, result, shape)
    return result


def _is_spread(
    walk: Walk, operand: Node, aligned: Mapping[Node, Ids], shape: Sequence[int]
) -> bool:
    """One channel that weighs all channels of a partner stays; the partner's channels are free."""
    own = (1,) * (len(shape) - len(walk.shape(operand))) + walk.shape(operand)
    wide = [d for d in range(len(shape)) if own[d] == 1
            and any(p is not None and p.shape[d] > 1 for p in aligned.values())]
    if wide:
        walk.freeze(walk.ids(operand), "one channel is spread over many")
    return bool(wide)


def _refuse_full_size_partners(
    walk: Walk, operands: Sequence[Node], result: Tensor, shape: Sequence[int]
) -> None:
    """A partner of full size that nothing can cut pins the channels it is combined with."""
    for operand in operands:
        if walk.ids(operand) is not None:
            continue
        own = (1,) * (len(shape) - len(walk.shape(operand))) + walk.shape(operand)
        if any(result.shape[d] > 1 and own[d] > 1 for d in range(len(shape))):
            walk.freeze(result, "they meet values that cannot be cut")


def _aligned(ids: Ids, rank: int) -> Ids:
    return None if ids is None else ids.reshape((1,) * (rank - ids.dim()) + tuple(ids.shape))


def _flat(args: Sequence[object]) -> list[object]:
    flat: list[object] = []
    for arg in args:
        flat.extend(_flat(arg) if isinstance(arg, list | tuple) else [arg])
    return flat


# --- operators that work along space --------------------------------------------------------------


def spatial(walk: Walk, node: Node) -> Ids:
    """Pooling, upsampling, padding, rolling: over dimensions without channels."""
    ids = walk.ids(node.args[0])
    if ids is not None and any(ids.shape[d] > 1 for d in _swept(node, ids.dim())):
        walk.freeze(ids, f"{operator(node)} works along the dimension that holds them")
        return None
    return ids


def pooled_pair(walk: Walk, node: Node) -> list[Ids]:
    """Pooling that also returns indices, one for each value."""
    ids = spatial(walk, node)
    return [ids, ids]


def _swept(node: Node, rank: int) -> list[int]:
    """The dimensions along which an operator such as avg_pool2d or pad mixes positions."""
    name = operator(node)
    if name.endswith("pad") or "constant_pad" in name:
        padding = argument(node, 1, "pad")
        return [rank - 1 - i // 2 for i, amount in enumerate(padding) if amount]
    if name.endswith("roll"):
        return [d % rank for d in argument(node, 2, "dims") or range(rank)]
    (num_dims,) = re.findall(r"([123])d", name)
    return list(range(rank - int(num_dims), rank))


def reduce(walk: Walk, node: Node) -> Ids:
    """Mean, sum and the like over dimensions that hold no channels."""
    ids = walk.ids(node.args[0])
    if ids is None:
        return None
    rank = ids.dim()
    given = argument(node, 1, "dim")
    dims = [given] if isinstance(given, int) else list(given or range(rank))
    dims = [d % rank for d in dims]
    if any(ids.shape[d] > 1 for d in dims):
        walk.freeze(ids, f"{operator(node)} mixes them")
        return None
    keep = len(walk.shape(node)) == rank
    return ids if keep else ids.reshape([ids.shape[d] for d in range(rank) if d not in dims])


# --- operators that only move elements ------------------------------------------------------------


def concat(walk: Walk, node: Node) -> Ids:
    """Channels one behind the other: offsets come by themselves."""
    parts: Sequence[Node] = node.args[0]  # type: ignore[assignment]
    rank = len(walk.shape(node))
    along = argument(node, 1, "dim", 0) % rank
    if all(walk.ids(p) is None for p in parts):
        return None
    pieces = []
    for part in parts:
        ids = walk.ids(part)
        ids = torch.full((1,) * rank, -1) if ids is None else ids
        pieces.append(spread(ids, walk.shape(part), [along]))
    others = [d for d in range(rank) if d != along and any(p.shape[d] > 1 for p in pieces)]
    full = [spread(p, walk.shape(part), [along, *others]) for p, part in zip(pieces, parts)]
    joined = torch.cat(full, along)
    # Pruned on another dimension than the joined one, channels must go in all parts alike.
    if others:
        first = joined.narrow(along, 0, 1).expand_as(joined)
        both = (first >= 0) & (joined >= 0)
        walk.tie(first[both], joined[both])
        walk.freeze(torch.where(both, torch.full_like(joined, -1), torch.maximum(first, joined)),
                    "they stand beside values that cannot be cut")
        joined = joined.narrow(along, 0, 1)  # tied, one part stands for all
    return squeeze_constant(joined)


def reshape(walk: Walk, node: Node) -> Ids:
    """Join dimensions (flatten) or split one (heads, shuffles, groups)."""
    ids, old, new = walk.ids(node.args[0]), walk.shape(node.args[0]), walk.shape(node)
    if ids is None:
        return None
    full: list[int] = list(ids.shape)
    target: list[int] = []
    is_split = False
    for before, after in _segments(old, new):
        if all(ids.shape[d] == 1 for d in before):
            target += [1] * len(after)
        else:
            for d in before:
                full[d] = old[d]
            target += [new[d] for d in after]
            is_split = is_split or [old[d] for d in before] != [new[d] for d in after]
    moved = squeeze_constant(ids.expand(full).reshape(target))
    if moved is not None and is_split:
        _tie_split(walk, moved, _asked_size(node))
    return moved


def _tie_split(walk: Walk, ids: Tensor, asked: Sequence[object]) -> None:
    """Channels laid out over several dimensions go in whole rows, so that the layout stays a box.

    The dimension that shrinks is the one whose size the call leaves open (-1), else the last.
    """
    wide = [d for d in range(ids.dim()) if ids.shape[d] > 1]
    if len(wide) < 2:
        return
    open_dims = [d for d in wide if d < len(asked) and asked[d] == -1]
    free = open_dims[0] if open_dims else wide[-1]
    rows = ids.movedim(free, -1).reshape(-1, ids.shape[free])
    for other in rows[1:]:
        both = (rows[0] >= 0) & (other >= 0)
        walk.tie(rows[0][both], other[both])
        walk.freeze(torch.where(both, torch.full_like(other, -1), torch.maximum(rows[0], other)),
                    "they are laid out beside values that cannot be cut")


def _asked_size(node: Node) -> Sequence[object]:
    for arg in reversed(node.args):
        if isinstance(arg, list | tuple):
            return list(arg)
    return []


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


def move(walk: Walk, node: Node) -> Ids:
    """Permute, transpose, flip: the operator itself, run on the ids."""
    ids = walk.ids(node.args[0])
    if ids is None:
        return None
    moved: Tensor = cast(Any, node.target)(ids, *node.args[1:], **node.kwargs)
    return moved


def unsqueeze(walk: Walk, node: Node) -> Ids:
    ids = walk.ids(node.args[0])
    return None if ids is None else ids.unsqueeze(argument(node, 1, "dim"))


def squeeze(walk: Walk, node: Node) -> Ids:
    """The dimensions to drop are those of the value; ids of size 1 may stand for more."""
    ids, old = walk.ids(node.args[0]), walk.shape(node.args[0])
    if ids is None:
        return None
    given = argument(node, 1, "dim", range(len(old)))
    dims = {d % len(old) for d in ([given] if isinstance(given, int) else given)}
    return ids.reshape([ids.shape[d] for d in range(len(old)) if d not in dims or old[d] != 1])


def expand(walk: Walk, node: Node) -> Ids:
    ids, new = walk.ids(node.args[0]), walk.shape(node)
    return None if ids is None else ids.reshape((1,) * (len(new) - ids.dim()) + tuple(ids.shape))


def cut_open(walk: Walk, node: Node) -> "Ids | list[Ids]":
    """Split and chunk: along channels every part must lose the same positions."""
    ids, shape = walk.ids(node.args[0]), walk.shape(node.args[0])
    along = argument(node, 2, "dim", 0) % len(shape)
    parts = node.meta["val"]
    if ids is None or ids.shape[along] == 1:
        return [ids] * len(parts)
    literal = "chunk" not in str(node.target)
    pieces = list(torch.split(ids, [int(p.shape[along]) for p in parts], along))
    even = len({p.shape[along] for p in pieces}) == 1
    if literal or not even:
        walk.freeze(ids, "size written in forward: they are split at fixed places")
        return [None] * len(pieces)
    for other in pieces[1:]:
        walk.tie(pieces[0], other)
    return [squeeze_constant(p) for p in pieces]


def take(walk: Walk, node: Node) -> Ids:
    """Slice and select: fine beside the channels; at fixed places of them, refused."""
    ids, shape = walk.ids(node.args[0]), walk.shape(node.args[0])
    if ids is None:
        return None
    dim = argument(node, 1, "dim", 0) % len(shape)
    new = walk.shape(node)
    selects = len(new) < len(shape)
    if ids.shape[dim] == 1:
        return ids.squeeze(dim) if selects else ids
    if not selects and new == shape:
        return ids
    walk.freeze(ids, "size written in forward: some are taken at fixed places")
    return None


def operator(node: Node) -> str:
    """Name of a node's operator without its overload, as in 'aten.relu'."""
    return ".".join(str(node.target).split(".")[:2])


_ONE_TO_ONE = [
    "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "silu", "silu_", "gelu", "gelu_", "sigmoid",
    "sigmoid_", "tanh", "tanh_", "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_",
    "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "selu_", "celu", "celu_", "softplus",
    "mish", "mish_", "hardshrink", "softsign", "log_sigmoid", "dropout", "dropout_",
    "feature_dropout", "alpha_dropout", "clone", "contiguous", "alias", "detach", "detach_",
    "lift_fresh_copy", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "square", "sin", "cos", "erf",
    "to", "_to_copy", "positive", "reciprocal", "logical_not", "isnan",
]
_ELEMENTWISE = [
    "add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "maximum", "minimum",
    "where", "addcmul", "lerp", "fmod", "remainder", "atan2", "pow", "clamp", "clamp_", "clamp_min",
    "clamp_max",
]
_SPATIAL = [
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_trilinear3d",
    "upsample_linear1d", "upsample_bicubic2d", "_upsample_nearest_exact2d",
    "_upsample_bilinear2d_aa", "pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d",
    "replication_pad1d", "replication_pad2d", "roll",
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
    "prelu": prelu,
    **dict.fromkeys(_ONE_TO_ONE, follow),
    **dict.fromkeys(_ELEMENTWISE, combine),
    **dict.fromkeys(_SPATIAL, spatial),
    **dict.fromkeys(_POOLED_PAIRS, pooled_pair),
    **dict.fromkeys(["mean", "sum", "amax", "amin"], reduce),
    "cat": concat,
    **dict.fromkeys(["view", "reshape", "_unsafe_view", "flatten", "unflatten"], reshape),
    **dict.fromkeys(["permute", "transpose", "swapaxes", "movedim", "t", "flip"], move),
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    **dict.fromkeys(["expand", "expand_as"], expand),
    **dict.fromkeys(["split", "split_with_sizes", "chunk"], cut_open),
    **dict.fromkeys(["slice", "select", "narrow"], take),
}
# Operators that take a layer's tensors as what they are; any other use of such a tensor pins it.
TAKES_WEIGHTS = frozenset(["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
                           "conv_transpose3d", "linear", "batch_norm", "prelu"])


def _matmul_macs(walk: Walk, node: Node) -> int:
    """Both factors are activations: out elements times the length of the summed dimension."""
    return _numel(walk.shape(node)) * walk.shape(node.args[0])[-1]


def _attention_macs(walk: Walk, node: Node) -> int:
    query, key, value = (walk.shape(a) for a in node.args[:3])
    pairs = _numel(query[:-1]) * key[-2]
    return pairs * (query[-1] + value[-1])


def _einsum_macs(walk: Walk, node: Node) -> int:
    """Of two factors: the sizes of all letters multiplied, the summed ones included."""
    equation, factors = node.args[0], node.args[1]
    letters = str(equation).replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for names, factor in zip(letters, cast(Sequence[Node], factors)):
        shape = walk.shape(factor)
        hidden = [f"...{i}" for i in range(len(shape) - len(names.replace("...", "")))][::-1]
        before, dots, after = names.partition("...")
        for letter, size in zip([*before, *(hidden if dots else []), *after], shape):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return _numel(list(sizes.values())) * (len(letters) - 1)


# Products of activations: counted here, frozen for want of a rule.
PRODUCTS: dict[str, Callable[[Walk, Node], int]] = {
    **dict.fromkeys(["matmul", "mm", "bmm"], _matmul_macs),
    "einsum": _einsum_macs,
    "scaled_dot_product_attention": _attention_macs,
}
