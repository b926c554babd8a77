"""Which layers may be chosen, and which go only with others."""

import pytest
import torch
from torch import Tensor, nn

from harness.engine.choices import not_chosen
from harness.engine.graph import Graph
from harness.engine.selection import select
from harness.engine.tracing import trace
from harness.errors import ConfigError


class Bottleneck(nn.Module):
    """A 3 x 3 stem and a 1 x 1 expansion in one sum, both between, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.squeeze, self.middle = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.expand = nn.Conv2d(4, 8, 1)
        self.hidden, self.head = nn.Linear(8, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.expand(self.middle(self.squeeze(x).relu()).relu())
        out: Tensor = self.head(self.hidden(x.relu().mean((2, 3))).relu())
        return out


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(Bottleneck(), torch.zeros(1, 3, 4, 4))


@pytest.mark.rows("R038")
def test_types_are_told_by_the_kernel_and_coupled_layers_follow(graph: Graph) -> None:
    """The sum's group holds both types, so that either choice may cut it."""
    assert {frozenset(g.layers) for g in graph.groups} == {
        frozenset({"stem", "expand"}), frozenset({"squeeze"}), frozenset({"middle"}),
        frozenset({"hidden"})}
    assert not_chosen(graph) == {}
    assert set(not_chosen(graph, "1x1")) == {"middle", "hidden"}
    assert set(not_chosen(graph, "not_1x1")) == {"squeeze", "hidden"}


@pytest.mark.rows("R048")
def test_a_follower_goes_only_with_another(graph: Graph) -> None:
    """`stem` may still go with `expand`; once both follow, nobody leads."""
    assert set(not_chosen(graph, only_follow=["stem", "middle"])) == {"middle"}
    assert set(not_chosen(graph, only_follow=["stem", "expand"])) == {"stem"}
    assert set(not_chosen(graph, "not_1x1", ["stem"])) == {"stem", "squeeze", "hidden"}


def test_what_may_not_be_chosen_stays_whole_and_says_why(graph: Graph) -> None:
    scores = {g.name: torch.arange(g.channels).double() for g in graph.groups}
    held = not_chosen(graph, "1x1")
    chosen = select(graph, scores, lambda counts: False, held=held)
    assert {g: len(k) for g, k in chosen.plan.kept.items()} == {
        "stem": 1, "squeeze": 1, "middle": 4, "hidden": 5}
    assert "type asked for (1x1)" in chosen.bound["middle"]


def test_wrong_names_are_said(graph: Graph) -> None:
    with pytest.raises(ConfigError, match="unknown type '1by1'"):
        not_chosen(graph, "1by1")
    with pytest.raises(ConfigError, match="only_follow: unknown module 'stm'. Nearest: stem"):
        not_chosen(graph, only_follow=["stm"])
