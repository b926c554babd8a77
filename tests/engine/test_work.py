"""Training and inference counted against PyTorch's own counter, formulas, and the literature."""

import copy

import nets
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg16

from engine.by_hand import as_tuple, outputs, random_plan, snapshot, traced
from engine.test_cost import KNOWN
from harness.engine.cost import Work
from harness.engine.surgery import cut
from harness.engine.tracing import trace
from harness.engine.work import gradients, work


def run_macs(model: nn.Module, example: tuple[torch.Tensor, ...]) -> float:
    """MACs of a forward and a backward, per example, as PyTorch's own counter sees them run."""
    with FlopCounterMode(display=False) as counter:
        out = copy.deepcopy(model).eval()(*example)
        torch.stack([o.sum() for o in outputs(out)]).sum().backward()
    return float(counter.get_total_flops()) / 2 / len(example[0])


def recomputed(found: Work) -> int:
    """Fused attention forgets its scores and computes them again on the way back: counted by
    PyTorch, which runs it so; not here, where a product has two gradients. Scores come first."""
    fused = [use.macs for use in found.uses if "scaled_dot_product" in use.operator]
    return sum(fused[::2])


def has_groups(model: nn.Module) -> bool:
    """PyTorch's counter takes the weight gradient of a grouped convolution for that of a full."""
    return any(getattr(m, "groups", 1) > 1 for m in model.modules())


def is_fused(model: nn.Module) -> bool:
    """PyTorch's own attention computes its scores a second time in the backward pass."""
    return any(getattr(m, "is_fused", False) for m in model.modules())


# A product that no layer's own weight is in is taken to need the gradients of both factors.
PLAIN = [n for n in (*nets.ALL, *KNOWN)
         if not has_groups(n()[0]) and not is_fused(n()[0])
         and n not in (nets.tied_weights, nets.tied_transposed, nets.factored_weights,
                       nets.fixed_features)]


@pytest.mark.rows("R082")
@pytest.mark.parametrize("net", PLAIN, ids=nets.name)
def test_training_is_counted_as_it_runs_whole_and_cut(net: nets.Net) -> None:
    """Forward, gradients of inputs (not of the pictures), gradients of weights."""
    model, example, graph = traced(net)
    needed = gradients(model, example)
    whole = work(graph, needed)
    assert whole.training_macs + recomputed(whole) == run_macs(model, example)
    plan = random_plan(graph, seed=0)
    cut(model, graph.whole(), plan)
    found = work(graph, needed, plan)
    assert found.macs == graph.cost(plan).macs
    assert found.training_macs + recomputed(found) == run_macs(model, example)
    assert gradients(model, example) == needed


@pytest.mark.rows("R082")
def test_the_parts_of_training_by_hand() -> None:
    """Two convolutions with stride and groups, a linear layer: each part has the forward's MACs,
    but the pictures need no gradient."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(),
                          nn.Conv2d(8, 12, 3, groups=4), nn.Flatten(), nn.Linear(12 * 4, 5))
    example = torch.zeros(3, 3, 8, 8)
    found = work(trace(model, example), gradients(model, example))
    first, second, last = 4 * 4 * 8 * 3 * 9, 2 * 2 * 12 * 2 * 9, 48 * 5
    assert [use.macs for use in found.uses] == [first, second, last]
    assert found.macs == found.weight_gradient_macs == first + second + last
    assert found.input_gradient_macs == second + last
    assert found.training_macs == 3 * found.macs - first
    assert found.training_flops == 2 * found.training_macs
    assert found.flops == 2 * found.macs


@pytest.mark.rows("R006")
def test_a_frozen_part_costs_no_gradients() -> None:
    """With frozen features a step is their forward, and the head without input gradient."""
    model, example, graph = traced(nets.chain)
    model.get_submodule("0").requires_grad_(False)
    found = work(graph, gradients(model, example))
    assert found.training_macs == run_macs(model, example)
    last = graph.cost().layers[-1].macs
    everything = copy.deepcopy(model)
    for parameter in everything.parameters():
        parameter.requires_grad_(False)
    for parameter in list(everything.parameters())[-2:]:  # of the last linear layer
        parameter.requires_grad_(True)
    head = work(graph, gradients(everything, example))
    assert (head.input_gradient_macs, head.weight_gradient_macs) == (0, last)


def test_both_factors_of_a_product_of_activations_have_a_gradient() -> None:
    model, example = nets.REFUSED["attention"][0]()
    graph = trace(model, example)
    found = work(graph, gradients(model, example))
    products = [use for use in found.uses if not use.layer]
    assert products
    assert all(use.input_gradient and use.weight_gradient for use in products)


@pytest.fixture(scope="module")
def vgg() -> Work:
    """VGG-16 with 1000 classes at 224 x 224, on the meta device."""
    with torch.device("meta"):
        model, example = vgg16(), torch.empty(1, 3, 224, 224)
    return work(trace(model, example), gradients(model, example))


@pytest.mark.rows("R080")
def test_vgg16_as_others_count_it(vgg: Work) -> None:
    """Molchanov et al. 2017 give 30.96 GFLOPs; seed 001 would say 15.47 for the same."""
    macs, maps = 15_346_630_656, 13_547_520
    linear, hidden = 25088 * 4096 + 4096 * 4096 + 4096 * 1000, 4096 + 4096 + 1000
    assert vgg.counted_as("macs") == vgg.macs == macs + linear
    assert vgg.counted_as("flops") == vgg.flops == 2 * (macs + linear)
    assert vgg.counted_as("flops_and_bias") == vgg.flops + maps + hidden
    assert vgg.counted_as("paper") == 2 * (macs + maps) + 2 * linear - hidden
    assert vgg.counted_as("paper") / 1e9 == pytest.approx(30.96, abs=0.01)
    assert vgg.counted_as("adapt") == 2 * macs + linear + hidden
    assert 2 * macs / 1e9 == pytest.approx(30.7, abs=0.01)


@pytest.mark.rows("R079")
def test_operators_are_told_apart(vgg: Work) -> None:
    assert vgg.by_operator() == {"aten.conv2d": (13, 15_346_630_656),
                                 "aten.linear": (3, vgg.macs - 15_346_630_656)}
    assert vgg.uncounted["aten.relu_"] == 15


@pytest.mark.rows("R080")
def test_biases_count_where_there_are_some() -> None:
    """Five outputs of the linear layer; the convolution's have none."""
    model, example = nets.made(lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(4 * 36, 5)), (2, 3, 8, 8))
    found = work(trace(model, example), gradients(model, example))
    assert found.counted_as("flops_and_bias") == 2 * (36 * 4 * 27 + 144 * 5) + 5
    assert [use.has_bias for use in found.uses] == [False, True]


@pytest.mark.rows("R136")
def test_looking_for_gradients_changes_nothing() -> None:
    """Weights, statistics, gradients, mode, plain attributes, and torch's generator."""
    model, example, _ = traced(nets.residual)
    model.train()
    model(*example).sum().backward()
    before, seed = snapshot(model), torch.get_rng_state()
    gradients(model, as_tuple(example))
    assert snapshot(model) == before
    assert model.training
    assert torch.equal(torch.get_rng_state(), seed)
