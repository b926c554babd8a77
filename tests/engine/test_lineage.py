"""Every surviving channel knows where it comes from; two cuts can be compared."""

import copy

import nets
import pytest
import torch
from torch import nn

import harness
from engine.by_hand import random_plan, traced
from harness.engine.lineage import Origin, channel_difference, origins
from harness.engine.surgery import cut
from harness.errors import ConfigError, GraphError


def sources(net: nets.Net, kept: dict[str, list[int]], layer: str) -> list[object]:
    model, example = net()
    graph = harness.trace(model, example)
    found = origins(graph, graph.plan(kept), layer)
    return [o and (o.column, o.writers) for o in found]


@pytest.mark.rows("R054")
def test_through_concatenation() -> None:
    """The last layer reads the stem's six channels, then four of each layer before it."""
    kept = {"stem": [0, 3, 5], "convs.0": [1, 2], "convs.1": [3]}
    assert sources(nets.dense_concat, kept, "convs.2") == [
        (0, (("stem", 0),)), (3, (("stem", 3),)), (5, (("stem", 5),)),
        (7, (("convs.0", 1),)), (8, (("convs.0", 2),)), (13, (("convs.1", 3),))]


@pytest.mark.rows("R056")
def test_through_flattening() -> None:
    """Every channel is a block of 4 x 4 columns."""
    found = sources(nets.flatten, {"0.0": [1, 4]}, "3")
    assert found == [(c, (("0.0", c // 16),)) for c in [*range(16, 32), *range(64, 80)]]


def test_through_a_sum() -> None:
    found = sources(nets.residual, {"0.0": [2, 7]}, "2.around")
    assert found == [(2, (("0.0", 2), ("1.second.0", 2))), (7, (("0.0", 7), ("1.second.0", 7)))]


def test_through_chunks_and_shuffles() -> None:
    """Half of 16 channels pass by, then both halves are mixed: four at a time live and die."""
    model, example = nets.chunk()
    graph = harness.trace(model, example)
    found = origins(graph, graph.whole(), "1.side.0")
    coupled = [[i for layer, i in o.writers if layer == "0.0"] for o in found if o]
    assert coupled == [[i % 4 + 4 * n for n in range(4)] for i in range(8)]


def test_what_the_input_gives_has_no_origin() -> None:
    model, example = nets.unet_bilinear()
    graph = harness.trace(model, example)
    with pytest.raises(GraphError, match="unknown reader 'down.0'"):
        origins(graph, graph.whole(), "down.0")
    assert origins(graph, graph.whole(), "last")[0] == Origin(0, "join.0", 0, (("join.0", 0),))


@pytest.mark.parametrize("net", [
    nets.residual, nets.dense_concat, nets.unet_transposed, nets.grouped, nets.chunk, nets.flatten,
    nets.shared_module, nets.branches, nets.two_inputs, nets.conv1d], ids=nets.name)
def test_columns_are_those_of_the_whole_network(net: nets.Net) -> None:
    """A column of the cut weight is the whole weight's column of that number."""
    model, _, graph = traced(net)
    plan = random_plan(graph, seed=3)
    small = copy.deepcopy(model)
    cut(small, graph.whole(), plan)
    checked = 0
    for reader in {s.layer for g in graph.groups for s in g.readers}:
        dim = int(isinstance(model.get_submodule(reader), nn.Linear | nn.Conv1d | nn.Conv2d))
        now, whole = (m.get_parameter(f"{reader}.weight") for m in (small, model))
        rows = plan.parameters.get(f"{reader}.weight", {}).get(1 - dim)
        found = origins(graph, plan, reader)
        assert len(found) == now.shape[dim]
        for column, origin in enumerate(found):
            if origin is not None:
                expected = whole.select(dim, origin.column)
                assert torch.equal(now.select(dim, column),
                                   expected if rows is None else expected[rows])
                checked += 1
    assert checked


# --- two cuts -------------------------------------------------------------------------------------


@pytest.mark.rows("R111")
def test_differences_by_hand() -> None:
    """Of the first layer {0,1,2} and {2,3} go: 1 in common of 4. Of the second nothing."""
    model, example = nets.chain()
    graph = harness.trace(model, example)
    one = graph.plan({"0.0": [3, 4, 5, 6, 7]})
    other = graph.plan({"0.0": [0, 1, 4, 5, 6, 7]})
    found = channel_difference(graph, one, other)
    assert found.layers == {"0.0": 0.75, "2.0": 0.0}
    assert found.total == 0.75
    kept = channel_difference(graph, one, other, of="kept")
    assert kept.layers == {"0.0": 1 - 4 / 7, "2.0": 0.0}
    assert kept.total == 1 - 10 / 13


@pytest.mark.rows("R111")
@pytest.mark.parametrize("net", [nets.residual, nets.sum_with_concat, nets.grouped])
def test_it_is_a_distance(net: nets.Net) -> None:
    _, _, graph = traced(net)
    a, b, c = (random_plan(graph, seed) for seed in range(3))
    for of in ("removed", "kept"):
        assert channel_difference(graph, a, a, of=of).total == 0
        there, back = (channel_difference(graph, *pair, of=of) for pair in ((a, b), (b, a)))
        assert there == back
        assert 0 <= there.total <= 1
        direct = channel_difference(graph, a, c, of=of).total
        assert direct <= there.total + channel_difference(graph, b, c, of=of).total + 1e-12


def test_a_set_that_is_not_known_is_refused() -> None:
    _, _, graph = traced(nets.chain)
    with pytest.raises(ConfigError, match="unknown set of channels 'keep'. Nearest: kept"):
        channel_difference(graph, graph.whole(), graph.whole(), of="keep")
