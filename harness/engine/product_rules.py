"""Rules of products of values: matrix products, einsum, attention.

Factors that share a dimension lose the same positions of it.
"""

from collections.abc import Sequence
from typing import cast

from torch import Tensor
from torch.fx import Node

from harness.engine.axes import Axes, Axis, Ids, Walk, argument, meet


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
    for factor, letters in factors:
        own = walk.axes(factor)
        if any(axis.home and letters[axis.dim] not in out for axis in own):
            for axis in own:
                if axis.home and letters[axis.dim] in out:
                    walk.role(axis.home, "writer")
    walk.product(node, list(sizes.values()), [tracked.get(letter) for letter in sizes])
    return tuple(Axis(out.index(letter), ids) for letter, ids in tracked.items() if letter in out)


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
    for dim in range(len(batch), len(batch) + 2):
        walk.freeze(known.get(dim), "attention mixes them")
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
