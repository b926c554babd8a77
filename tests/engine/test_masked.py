"""Masks compute what cuts do, group by group, and leave no trace."""

import copy

import nets
import pytest
import torch

from engine.by_hand import outputs, snapshot, traced
from harness.engine.masked import Masked
from harness.engine.surgery import cut
from harness.errors import GraphError


@pytest.mark.rows("R060")
@pytest.mark.parametrize("net", nets.ALL, ids=nets.name)
def test_a_masked_group_is_as_one_that_is_cut(net: nets.Net) -> None:
    """In every net of the tests, one group at a time; in double precision."""
    model, example, graph = traced(net)
    model, inputs = model.double(), tuple(
        x.double() if x.is_floating_point() else x for x in example)
    masked = Masked(model, graph, graph.whole())
    before = snapshot(model)
    tried = 0
    for group in graph.groups:
        try:
            after = graph.plan({group.name: range(0, group.channels, 2)})
        except GraphError:
            continue
        small = copy.deepcopy(model)
        cut(small, graph.whole(), after)
        with torch.no_grad(), masked.without(group.name, after, inputs) as forward:
            found = outputs(forward(model, *inputs))
        for a, b in zip(found, outputs(small(*inputs)), strict=True):
            torch.testing.assert_close(a, b)
        assert snapshot(model) == before
        tried += 1
    assert tried or not graph.groups


def test_what_fails_inside_leaves_the_weights_as_they_were() -> None:
    model, example, graph = traced(nets.residual)
    before = snapshot(model)
    group = graph.groups[0]

    def fail() -> None:
        with Masked(model, graph, graph.whole()).without(
                group.name, graph.plan({group.name: [0]}), example):
            assert snapshot(model) != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert snapshot(model) == before
