"""Floors on modules anywhere in the tree, on coupled groups, by list, by name: to the channel."""

from typing import Any

import nets
import pytest
import torch
from torch import Tensor, nn

from engine.by_hand import traced
from harness.engine.floors import Floors, floors_of, group_share
from harness.engine.graph import Graph
from harness.engine.selection import select
from harness.engine.tracing import trace
from harness.errors import ConfigError


class Tree(nn.Module):
    """1 x 1 convolutions 4 -> 8 -> 10 -> 6 and an output, no biases; `body.deep` holds the last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 1, bias=False)
        self.body = nn.ModuleDict({
            "wide": nn.Conv2d(8, 10, 1, bias=False),
            "deep": nn.Sequential(nn.Conv2d(10, 6, 1, bias=False))})
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.body["deep"](self.body["wide"](self.first(x))))
        return out


@pytest.fixture(scope="module")
def tree() -> Graph:
    return trace(Tree(), torch.zeros(1, 4, 1, 1))


def widths(graph: Graph, floors: Floors) -> list[int]:
    """When all that may go has gone, groups one after the other: first, wide, deep."""
    scores = {g.name: torch.arange(g.channels) + 100.0 * i for i, g in enumerate(graph.groups)}
    plan = select(graph, scores, lambda counts: False, floors=floors).plan
    return [len(plan.kept[n]) for n in ("first", "body.wide", "body.deep.0")]


def test_a_floor_on_a_module_is_on_all_layers_below_it_together(tree: Graph) -> None:
    """`body` holds 10 + 6 channels, 80 + 60 parameters; `deep` alone 6 and 60."""
    assert widths(tree, Floors(node_min={"body": 0.5})) == [1, 2, 6]  # 8 of 16 stay
    assert widths(tree, Floors(node_min={"body": 0.75})) == [1, 6, 6]
    # 70 of 140: two of `wide` are 16, and 60 of `deep`; one would be 68.
    assert widths(tree, Floors(node_min_params={"body": 0.5})) == [1, 2, 6]
    assert widths(tree, Floors(node_min_params={"body.deep": 0.5})) == [1, 1, 3]
    assert widths(tree, Floors(node_min_macs={"": 0.9})) == [4, 10, 6]  # 172 - 17.2: 4 x 4 go


def test_one_number_is_for_every_module_and_layer(tree: Graph) -> None:
    """The layers themselves are nodes: 4, 5 and 3 stay; of all 24 that is half as well."""
    assert widths(tree, Floors(node_min=0.5)) == [4, 5, 3]


@pytest.mark.rows("R042", "R044")
def test_a_list_has_a_share_for_each_layer_in_order(tree: Graph) -> None:
    assert widths(tree, Floors(layer_min=[0.5, 0.3, 1.0])) == [4, 3, 6]
    assert widths(tree, Floors(layer_min_params=(0.0, 0.0, 0.5))) == [1, 1, 3]


@pytest.mark.rows("R046")
def test_layers_that_are_coupled_to_no_other_may_have_to_keep_more() -> None:
    _, _, graph = traced(nets.residual)
    coupled = {g.name for g in graph.groups if len(g.layers) > 1}
    assert coupled
    assert coupled != {g.name for g in graph.groups}
    scores = {g.name: torch.arange(g.channels).double() for g in graph.groups}
    chosen = select(graph, scores, lambda counts: False, floors=Floors(min_channels_alone=3))
    assert {g: len(kept) for g, kept in chosen.plan.kept.items()} == {
        g.name: 1 if g.name in coupled else 3 for g in graph.groups}
    assert all(("min_channels_alone" in why) == (g not in coupled)
               for g, why in chosen.bound.items())


@pytest.mark.rows("R047")
def test_a_coupled_group_keeps_its_share_and_the_others_need_not() -> None:
    _, _, graph = traced(nets.residual)
    scores = {g.name: torch.arange(g.channels).double() for g in graph.groups}
    chosen = select(graph, scores, lambda counts: False, floors=Floors(group_min=0.4))
    for group in graph.groups:
        least = -(-4 * group.channels // 10) if len(group.layers) > 1 else 1
        assert len(chosen.plan.kept[group.name]) == least


@pytest.mark.rows("R047")
@pytest.mark.parametrize(("percentage", "kept"), [
    (5, 4), (25, 16), (45, 29), (50, 32), (75, 16), (95, 4)])
def test_the_origins_group_rule(percentage: int, kept: int) -> None:
    """Numbers of ADaPT for a group of 64: it keeps the least where little is asked, too."""
    assert _least(64, group_share("origin", percentage)) == kept


def _least(width: int, share: float) -> int:
    return next(n for n in range(width + 1) if n >= share * width - 1e-9)


@pytest.mark.rows("R047")
def test_our_group_rule_never_rises_with_what_is_asked() -> None:
    kept = [_least(64, group_share("monotone", p)) for p in range(1, 101)]
    assert kept == sorted(kept, reverse=True)
    assert kept[49] == 32
    assert [_least(64, group_share("successor", p)) for p in (25, 50, 75)] == [48, 32, 48]


def test_all_mistakes_are_said_at_once(tree: Graph) -> None:
    floors = Floors(layer_min=[0.5, 2.0], node_min=[0.1], node_min_macs={"bodi": 0.1},
                    group_min=1.5, min_channels_alone=0, group_rule="orgin")
    with pytest.raises(ConfigError) as caught:
        widths(tree, floors)
    for words in ("floors.layer_min: 2 shares for 3 layers", "floors.layer_min: 2.0 must be from",
                  "floors.node_min: a list is of layers", "floors.node_min_macs: unknown module "
                  "'bodi'. Nearest: body", "floors.group_min: 1.5", "min_channels_alone: 0",
                  "floors.group_rule: unknown rule 'orgin'. Nearest: origin"):
        assert words in str(caught.value)


def test_floors_given_by_name_are_checked_by_name() -> None:
    assert floors_of({"layer_min": 0.2}) == Floors(layer_min=0.2)
    assert floors_of(None) == Floors()
    with pytest.raises(ConfigError, match="unknown floor 'layer_mni'. Nearest: layer_min"):
        floors_of({"layer_mni": 0.2})


@pytest.mark.parametrize(("given", "words"), [
    ({"layer_min": "half"}, "layer_min: 'half' must be a number, or of each layer"),
    ({"layer_min": {"a": "half"}}, "layer_min: {'a': 'half'} must be"),
    ({"layer_min": True}, "layer_min: True must be"),
    ({"relative": [0.5]}, "relative: [0.5] must be a number"),
    ({"min_channels": 1.5, "counting": 3}, "min_channels: 1.5 must be a whole number; counting: 3"),
    (Floors(group_min="2"), "group_min: '2' must be a number"),  # type: ignore[arg-type]
])
def test_what_is_no_number_is_refused(given: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        floors_of(given)
    assert words in str(caught.value)
