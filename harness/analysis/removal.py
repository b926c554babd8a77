"""What pruning took: parameters of every layer, and of every block, that have gone."""

from collections.abc import Iterator
from typing import NamedTuple

from harness.engine.cost import Cost


class Removed(NamedTuple):
    """One layer, or a block: all layers anywhere under a module; '' is the whole network.

    params: how many there were; removed: how many of them have gone; percent: 100 x the share.
    """

    kind: str
    name: str
    params: int
    removed: int
    percent: float


def removed(whole: Cost, now: Cost) -> Iterator[Removed]:
    """Of every layer that has parameters, in the network's order, then of every block."""
    before = {layer.layer: layer.params for layer in whole.layers if layer.params}
    after = {layer.layer: layer.params for layer in now.layers}
    for layer in before:
        yield _row("layer", layer, before[layer], after[layer])
    for block in dict.fromkeys(block for layer in before for block in _blocks(layer)):
        inside = [layer for layer in before if block in _blocks(layer)]
        yield _row("block", block, sum(before[n] for n in inside), sum(after[n] for n in inside))


def _blocks(layer: str) -> list[str]:
    """The modules around a layer, outermost first: '', 'up1', 'up1.conv' of 'up1.conv.conv2'."""
    parts = layer.split(".")
    return [".".join(parts[:count]) for count in range(len(parts))]


def _row(kind: str, name: str, params: int, left: int) -> Removed:
    return Removed(kind, name, params, params - left, 100 * (params - left) / params)
