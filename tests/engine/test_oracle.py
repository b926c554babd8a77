"""Silencing equals cutting; the oracle is a true change of the loss; ranks as scipy has them."""

import copy
import math

import nets
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from engine.by_hand import outputs, random_plan, snapshot, traced
from harness.engine.evidence import gather
from harness.engine.graph import Graph, Plan
from harness.engine.oracle import loss_changes, sample, silenced, spearman
from harness.engine.surgery import cut
from harness.errors import GraphError

# Zero stays zero behind the gates of these: a channel that is silenced is as one that is cut.
EXACT = [nets.chain, nets.chain_without_norm, nets.bias_free, nets.residual, nets.branches,
         nets.multilayer_perceptron, nets.depthwise_multiplier, nets.conv1d, nets.shared_module]


def removed(graph: Graph, before: Plan, after: Plan) -> dict[str, list[int]]:
    return {g.name: [c for c in before.kept[g.name].tolist() if c not in after.kept[g.name]]
            for g in graph.groups}


def data(example: tuple[Tensor, ...], classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, *example[0].shape[1:], generator=generator, dtype=torch.float64),
             torch.randint(0, classes, (n,), generator=generator)) for n in (3, 5)]


@pytest.mark.rows("R060")
@pytest.mark.parametrize("net", EXACT, ids=nets.name)
def test_a_silenced_network_computes_what_the_cut_one_does(net: nets.Net) -> None:
    """Also one that is cut already; no weight is touched, and afterwards all is as before."""
    model, example, graph = traced(net)
    model, inputs = model.double(), [x.double() for x in example]
    first = random_plan(graph, seed=1)
    has_effect = False
    for before, after in [(graph.whole(), first), (first, random_plan(graph, 2, first))]:
        cut(model, graph.whole() if before is first else before, before)
        state = snapshot(model)
        small = copy.deepcopy(model)
        cut(small, before, after)
        with torch.no_grad(), silenced(model, graph, before, removed(graph, before, after)):
            found = outputs(model(*inputs))
        assert snapshot(model) == state
        for a, b in zip(found, outputs(small(*inputs)), strict=True):
            torch.testing.assert_close(a, b)
        has_effect |= not torch.equal(outputs(model(*inputs))[0], found[0])
    assert has_effect


@pytest.mark.rows("R029")
def test_the_oracle_is_the_loss_without_the_channel_minus_the_loss_with_it() -> None:
    """Against networks that are really cut; batches of unequal size count by their examples."""
    model, example, graph = traced(nets.residual)
    model, given = model.double(), data(example)
    group = graph.groups[0]
    model.train()
    before = snapshot(model)
    changes = loss_changes(model, graph, graph.whole(), given, F.cross_entropy,
                           {group.name: [6, 0, 3]})
    assert snapshot(model) == before
    model.eval()

    def loss(network: nn.Module) -> float:
        inputs, targets = (torch.cat(parts) for parts in zip(*given))
        return F.cross_entropy(network(inputs), targets).item()

    for channel, found in zip([6, 0, 3], changes[group.name].tolist(), strict=True):
        small = copy.deepcopy(model)
        rest = [c for c in range(group.channels) if c != channel]
        cut(small, graph.whole(), graph.plan({group.name: rest}))
        assert found == pytest.approx(loss(small) - loss(model), rel=1e-9)


@pytest.mark.rows("R017")
def test_taylor_estimates_the_oracle_where_channels_matter_little() -> None:
    """To first order: scaled down a thousandfold, a channel's effect on the loss is linear."""
    model, example, graph = traced(nets.chain)
    model, (batch, _) = model.double(), data(example)
    norm = model.get_submodule("0.1")
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.mul_(1e-3)
    activity = gather(model, graph, [batch], F.cross_entropy, ["activity"]).activity["0.1"]
    changes = loss_changes(model, graph, graph.whole(), [batch], F.cross_entropy,
                           {"0.0": range(8)})
    # The gate's gradient is a mean over 64 positions; silencing takes all of them.
    torch.testing.assert_close(changes["0.0"], -64 * len(batch[1]) * activity.signed,
                               rtol=2e-2, atol=1e-7)


def test_what_cannot_be_silenced_is_named() -> None:
    model, _, graph = traced(nets.chain)
    with pytest.raises(GraphError, match=r"group '0\.0' has no channels \[8\] to silence"):
        with silenced(model, graph, graph.whole(), {"0.0": [1, 8]}):
            pass
    with pytest.raises(GraphError, match="the oracle has no batches"):
        loss_changes(model, graph, graph.whole(), [], F.cross_entropy, {"0.0": [1]})
    model, _, graph = traced(nets.functional)
    with pytest.raises(GraphError, match="0.kernel is no module that can be silenced"):
        with silenced(model, graph, graph.whole(), {"0.kernel": [0]}):
            pass


def test_a_sample_takes_about_as_many_of_every_group() -> None:
    _, _, graph = traced(nets.residual)
    plan = random_plan(graph, seed=3)
    found = sample(graph, plan, 7, seed=1)
    assert sum(map(len, found.values())) == 7
    assert found == sample(graph, plan, 7, seed=1)
    for group, numbers in found.items():
        assert set(numbers) <= set(plan.kept[group].tolist())
        assert len(set(numbers)) == len(numbers)
    full = min(len(numbers) for g, numbers in found.items() if len(numbers) < len(plan.kept[g]))
    assert max(map(len, found.values())) - full <= 1
    everything = sample(graph, plan, 10_000)
    assert everything == {g: kept.tolist() for g, kept in plan.kept.items()}
    _, _, functional = traced(nets.functional)
    assert "0.kernel" not in sample(functional, functional.whole(), 100)


@pytest.mark.rows("R029")
def test_rank_correlation_by_its_formula() -> None:
    """1 - 6 sum d^2 / (N (N^2 - 1)) where nothing is tied; 1 with itself, -1 turned round."""
    generator = np.random.default_rng(0)
    a, b = generator.permutation(20), generator.permutation(20)
    rho = 1 - 6 * ((a - b) ** 2).sum() / (20 * (20**2 - 1))
    assert spearman(torch.tensor(a), torch.tensor(b)) == pytest.approx(rho)
    assert spearman(torch.tensor(a), torch.tensor(a).exp()) == pytest.approx(1.0)
    assert spearman(torch.tensor(a), -torch.tensor(a)) == pytest.approx(-1.0)


def test_equal_numbers_share_a_rank() -> None:
    generator = np.random.default_rng(0)
    for _ in range(10):
        a, b = generator.integers(0, 5, 12), generator.integers(0, 4, 12)
        expected = stats.spearmanr(a, b).statistic
        assert spearman(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected)
    assert math.isnan(spearman(torch.ones(4), torch.arange(4)))
    assert math.isnan(spearman(torch.ones(1), torch.ones(1)))
