"""Counts along a sequence of removals are those of the plan after each one."""

import nets
import pytest
import torch
from torch import Tensor

from engine.by_hand import random_plan, traced
from harness.engine.graph import Graph, Plan
from harness.engine.tally import Alive, Counts, Tally, counts_of

every_net = pytest.mark.parametrize("net", nets.ALL, ids=nets.name)


def some_removals(graph: Graph, start: Plan, seed: int) -> tuple[Tensor, Tensor]:
    """(group numbers, channels): all that `start` keeps and a random smaller plan does not."""
    kept = random_plan(graph, seed, start).kept
    pairs = [(i, c) for i, g in enumerate(graph.groups)
             for c in sorted(set(start.kept[g.name].tolist()) - set(kept[g.name].tolist()))]
    generator = torch.Generator().manual_seed(seed)
    pairs = [pairs[i] for i in torch.randperm(len(pairs), generator=generator)]
    group, channel = torch.tensor([*pairs, (0, 0)], dtype=torch.long)[:-1].unbind(1)
    return group, channel


def plans(graph: Graph, start: Plan, group: Tensor, channel: Tensor) -> list[Plan]:
    """The plan before any removal, and after each."""
    kept = {name: set(channels.tolist()) for name, channels in start.kept.items()}
    found = [start]
    for g, c in zip(group.tolist(), channel.tolist()):
        kept[graph.groups[g].name].remove(c)
        found.append(graph.plan({name: sorted(channels) for name, channels in kept.items()}))
    return found


@every_net
def test_every_removal_is_counted_as_its_plan_is(net: nets.Net) -> None:
    _, _, graph = traced(net)
    for start in (graph.whole(), random_plan(graph, seed=3)):
        group, channel = some_removals(graph, start, seed=5)
        trail = Tally(graph).along(start, group, channel)
        gone = sum(g.channels - len(start.kept[g.name]) for g in graph.groups)
        for k, plan in enumerate(plans(graph, start, group, channel)):
            cost = graph.cost(plan)
            assert trail[k] == Counts(cost.filters, graph.channels - gone - k, cost.params,
                                      cost.macs, cost.bytes)
            assert trail[k].flops == cost.flops


def test_counts_of_a_plan_need_no_removal() -> None:
    _, _, graph = traced(nets.residual)
    plan = random_plan(graph, seed=1)
    assert counts_of(graph, plan).params == graph.cost(plan).params


def test_a_share_that_is_alive_is_counted_one_by_one() -> None:
    _, _, graph = traced(nets.unet_transposed)
    start = random_plan(graph, seed=2)
    group, channel = some_removals(graph, start, seed=4)
    alive = Alive(graph, start)
    whole = graph.cost()
    for plan, g, c in zip(plans(graph, start, group, channel)[1:], group.tolist(),
                          channel.tolist()):
        alive.remove(graph.groups[g].name, [c])
        assert alive.share("params") == graph.cost(plan).params / whole.params
        assert alive.share("macs") == graph.cost(plan).macs / whole.macs


def test_latency_is_the_sum_over_layers_at_their_sizes() -> None:
    """With a layer's time its numel in thousands, whatever its sizes: 8x3x3x3, 6x8x3x3, 2x6."""
    _, _, graph = traced(nets.chain)
    weights = [p.weight for p in graph.products if p.weight]

    def time(sizes: Tensor) -> Tensor:
        return sizes.prod(1).double() / 1000

    group, channel = some_removals(graph, graph.whole(), seed=0)
    trail = Tally(graph, dict.fromkeys(weights, time)).along(graph.whole(), group, channel)
    for k, plan in enumerate(plans(graph, graph.whole(), group, channel)):
        by_hand = 0
        for weight in weights:
            sizes = list(graph.shapes[weight])
            for dim, kept in plan.parameters.get(weight, {}).items():
                sizes[dim] = len(kept)
            by_hand += int(torch.Size(sizes).numel())
        assert trail[k].latency_ms == pytest.approx(by_hand / 1000, rel=1e-12)
    assert Tally(graph).along(graph.whole(), group, channel)[0].latency_ms is None
