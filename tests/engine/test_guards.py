"""Mistakes that pruning codes have made before, each ruled out for networks of the table too."""

import copy
from collections.abc import Iterator

import nets
import pytest
import torch
from torch import Tensor, nn

import harness
from engine.by_hand import outputs, run, silenced, traced
from harness.engine import inventory
from harness.engine.evidence import Watch
from harness.engine.graph import Plan
from harness.engine.optimizer import check_optimizer
from harness.engine.surgery import cut
from harness.models import MODELS, build

# A few of every kind; the others are built of the same layers.
FEW = ["alexnet", "mobilenet_v2", "resnet18", "resnet20", "ritnet", "squeezenet", "unet",
       "vgg11_bn"]


def small(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A narrow network of the table with lively norms, and two pictures."""
    model, example = nets.made(lambda: build(name, num_classes=4, in_channels=3, width=0.125,
                                             input_size=32), (2, 3, 32, 32))
    assert isinstance(example, Tensor)
    return model, (example,)


def one_by_one(graph: harness.Graph) -> Iterator[tuple[str, Plan]]:
    """Every group cut alone, to half of its channels, those with odd numbers."""
    for group in graph.groups:
        yield group.name, graph.plan({group.name: range(group.channels % 2, group.channels, 2)
                                      if group.channels > 2 else [0]})


@pytest.mark.rows("R054", "R057", "R060", "R134")
@pytest.mark.parametrize("net", nets.ALL, ids=nets.name)
def test_every_group_alone_is_silenced_then_cut_to_the_same(net: nets.Net) -> None:
    """The other groups being whole, nothing hides behind anything."""
    model, example, graph = traced(net)
    assert graph.groups
    for name, plan in one_by_one(graph):
        less = copy.deepcopy(model)
        cut(less, graph.whole(), plan)
        expected = run(silenced(model, plan), example)
        torch.testing.assert_close(run(less, example), expected, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.rows("R134", "R135")
@pytest.mark.parametrize("name", FEW)
def test_networks_of_the_table_are_silenced_then_cut_to_the_same(name: str) -> None:
    """Half of every group goes at once; and every parameter of what is left learns."""
    model, example = small(name)
    graph = harness.trace(model, example)
    assert graph.groups
    halves = {g.name: range(0, g.channels, 2) for g in graph.groups}
    plan = graph.plan(halves)
    expected = run(silenced(model, plan), example)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    cut(model, graph.whole(), plan)
    for got, wanted in zip(run(model, example), expected, strict=True):
        assert float((got - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
    check_optimizer(optimizer, model)
    torch.stack([o.square().mean() for o in outputs(model.train()(*example))]).sum().backward()
    assert not [n for n, p in model.named_parameters()
                if p.grad is None or p.grad.shape != p.shape]


def test_the_few_are_in_the_table() -> None:
    assert set(FEW) <= set(MODELS)


def gathered(model: nn.Module, graph: harness.Graph, example: Tensor, *,
             meanwhile: bool = False) -> dict[str, Tensor]:
    """Activity of one backward; meanwhile the network may be counted."""
    targets = torch.tensor([0, 3])
    with Watch(model, graph) as watch:
        loss = nn.functional.cross_entropy(model(example), targets)
        if meanwhile:
            graph.cost()
            inventory.blocks(model)
            inventory.sparsity(model)
        loss.backward()
    return watch.gathered.tensors()


@pytest.mark.rows("R136")
def test_counting_does_not_disturb_what_is_being_gathered() -> None:
    """Between the forward and the backward of a batch, of which activations are kept."""
    model, example, graph = traced(nets.residual)
    quiet = gathered(model, graph, example[0])
    busy = gathered(model, graph, example[0], meanwhile=True)
    assert quiet
    assert quiet.keys() == busy.keys()
    assert all(torch.equal(quiet[key], busy[key]) for key in quiet)


@pytest.mark.rows("R018", "R138")
def test_two_networks_are_watched_without_mixing() -> None:
    """Nothing that is gathered lives outside of its own watch."""
    model, example, graph = traced(nets.residual)
    other, _, _ = traced(nets.residual)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    alone = gathered(model, graph, example[0])
    targets = torch.tensor([0, 3])
    with Watch(model, graph) as one, Watch(other, graph) as two:
        losses = [nn.functional.cross_entropy(m(example[0]), targets) for m in (model, other)]
        for loss in losses:
            loss.backward()
    together = one.gathered.tensors()
    assert all(torch.equal(alone[key], together[key]) for key in alone)
    others = two.gathered.tensors()
    assert any(not torch.equal(alone[key], others[key]) for key in alone)


@pytest.mark.rows("R138")
@pytest.mark.parametrize("criterion", sorted(harness.CRITERIA))
def test_a_cut_repeats_with_its_seed_data_and_device(criterion: str) -> None:
    """On a copy in another place of memory, whatever the global generator has been through."""
    plans = []
    for turn in range(2):
        model, example = nets.residual()
        torch.manual_seed(turn)
        batches = [(example, torch.tensor([0, 3]))]
        plans.append(harness.prune(model, example, target={"filters": 0.4}, criterion=criterion,
                                   batches=batches, certify_cut=False, seed=3).plan)
    assert plans[0] == plans[1]
