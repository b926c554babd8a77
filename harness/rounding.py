"""Widths that fast kernels like: those of a cut network rounded up, by what it lost last.

Kernels work on 8 or 16 channels at a time, so that 33 cost what 40 or 48 do; what is rounded up is
often faster, though it multiplies more.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from harness.engine.graph import Graph, Plan
from harness.trajectories import Stage

ScoresOf = Callable[[Stage], Mapping[str, Tensor]]  # group -> (channels that the stage keeps,)


def rounded_up(graph: Graph, chain: Sequence[Stage], scores_of: ScoresOf, to: int,
               ) -> tuple[Stage, Plan]:
    """The stage to cut anew from, and what is to stay of it.

    chain: the stages of a trajectory, from the whole network to the one whose widths are rounded.
    Every group's width becomes a multiple of `to`, or stays whole where it has no more channels;
    the channels that were cut last come back first, and of one step those with the highest scores.
    The stage is the last that still has them all. Raises ValueError for `to` below 1.
    """
    if to < 1:
        raise ValueError(f"widths are rounded to multiples of at least 1, not {to}")
    last = chain[-1].plan.kept
    wide = {name: min(-(-len(kept) // to) * to, graph[name].channels)
            for name, kept in last.items()}
    place = max(i for i, stage in enumerate(chain)
                if all(len(stage.plan.kept[name]) >= width for name, width in wide.items()))
    kept = dict(last)
    for stage in reversed(chain[place:-1]):
        lacking = [name for name, width in wide.items() if len(kept[name]) < width]
        scores = scores_of(stage) if lacking else {}
        for name in lacking:
            lost = ~torch.isin(stage.plan.kept[name], kept[name])
            best = scores[name][lost].argsort(descending=True, stable=True)
            back = stage.plan.kept[name][lost][best[:wide[name] - len(kept[name])]]
            kept[name] = torch.cat([kept[name], back]).sort().values
    return chain[place], graph.plan(kept)
