"""Counts against PyTorch's own counter, the live model, and numbers of the literature."""

from itertools import pairwise
from math import prod

import nets
import pytest
import torch
from torch import nn
from torchvision.models import vgg16

from engine.by_hand import counted_macs, num_parameters, random_plan, snapshot, traced
from harness.engine.cost import Cost, Product, macs_by_layer
from harness.engine.graph import Graph
from harness.engine.surgery import cut
from harness.engine.tracing import trace
from harness.models import build


def known(name: str) -> nets.Net:
    """A small version of one of our networks, at a tiny input."""
    def net() -> nets.Made:
        width = 1.0 if name == "mobilenet_v2" else 0.125
        return nets.made(lambda: build(name, num_classes=4, in_channels=3, width=width,
                                       input_size=32), (2, 3, 32, 32))
    net.__name__ = name
    return net


KNOWN = tuple(known(name) for name in ("vgg11", "vgg16_bn", "resnet18", "resnet20", "alexnet",
                                       "squeezenet", "mobilenet_v2", "unet", "ritnet"))


def check(model: nn.Module, example: tuple[torch.Tensor, ...], cost: Cost) -> None:
    assert cost.macs == counted_macs(model, example)
    assert cost.flops == 2 * cost.macs
    assert cost.params == num_parameters(model)
    tensors = [*model.parameters(), *model.buffers()]
    assert cost.bytes == sum(t.numel() * t.element_size() for t in tensors)
    assert cost.size_mb == cost.bytes / 1e6
    for field in ("macs", "params", "filters"):
        assert getattr(cost, field) == sum(getattr(layer, field) for layer in cost.layers)


@pytest.mark.rows("R079")
@pytest.mark.parametrize("net", [*nets.ALL, *KNOWN], ids=nets.name)
def test_counts_are_those_of_the_model_whole_and_cut(net: nets.Net) -> None:
    model, example, graph = traced(net)
    check(model, example, graph.cost())
    assert graph.cost() == graph.cost(graph.whole())
    plan = random_plan(graph, seed=0)
    cut(model, graph.whole(), plan)
    check(model, example, graph.cost(plan))


IN_MODULES = [n for n in nets.ALL
              if n not in (nets.functional, nets.tied_weights, nets.tied_transposed)]


@pytest.mark.rows("R076")
@pytest.mark.parametrize("net", IN_MODULES, ids=nets.name)
def test_filters_are_output_channels_of_convolutions(net: nets.Net) -> None:
    model, _, graph = traced(net)
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)

    def filters() -> int:
        return sum(m.out_channels for m in model.modules() if isinstance(m, kinds))

    assert graph.cost().filters == filters()
    removed = sum(int(group.filters[0]) for group in graph.groups)
    plan = graph.plan({g.name: range(1, g.channels) for g in graph.groups})
    cut(model, graph.whole(), plan)
    assert graph.cost(plan).filters == filters() == graph.cost().filters - removed


def test_filters_of_convolutions_that_are_no_modules_count_too() -> None:
    """Two of them under one module; and a weight under two names counts once."""
    _, _, functional = traced(nets.functional)
    assert functional.cost().filters == 6 + 8 + 5
    assert {g.name: int(g.filters.sum()) for g in functional.groups} == {
        "0.stem.0": 6, "0.kernel": 8, "0.second": 5, "0.head.2": 0}
    _, _, tied = traced(nets.tied_weights)
    assert tied.cost().filters == 6 + 6


@pytest.fixture(scope="module")
def vgg() -> Graph:
    """VGG-16 with two classes at 224 x 224; on the meta device it needs no memory."""
    with torch.device("meta"):
        model, example = vgg16(num_classes=2), torch.empty(1, 3, 224, 224)
    return trace(model, example)


@pytest.mark.rows("R001", "R076")
def test_vgg16_has_the_counts_of_the_literature(vgg: Graph) -> None:
    """4224 filters, 15.35 G MACs in its convolutions, 134,268,738 parameters with two classes."""
    cost = vgg.cost()
    assert cost.filters == 4224
    assert cost.params == 134_268_738
    convolutions = {c.layer: c.macs for c in cost.layers if c.layer.startswith("features")}
    assert sum(convolutions.values()) == 15_346_630_656
    assert convolutions["features.0"] == 224 * 224 * 64 * 3 * 9
    assert cost.macs - 15_346_630_656 == 25088 * 4096 + 4096 * 4096 + 4096 * 2
    assert cost.size_mb == 4 * 134_268_738 / 1e6


@pytest.mark.rows("R003", "R079")
@pytest.mark.parametrize(("name", "gigamacs"), [("unet", 155.9), ("ritnet", 16.4)])
def test_eye_networks_have_the_macs_of_the_requirements(name: str, gigamacs: float) -> None:
    """At one channel of 640 x 400, convolutions alone."""
    with torch.device("meta"):
        model = build(name, num_classes=4, in_channels=1, input_size=640)
        example = torch.empty(2, 1, 640, 400)
    cost = trace(model, example).cost()
    assert cost.macs / 1e9 == pytest.approx(gigamacs, abs=0.05)


def test_half_of_vgg16_is_counted_by_formula(vgg: Graph) -> None:
    plan = vgg.plan({g.name: range(0, g.channels, 2) for g in vgg.groups})
    cost = vgg.cost(plan)
    widths = [3, 32, 32, 64, 64, 128, 128, 128, 256, 256, 256, 256, 256, 256]
    maps = [224, 224, 112, 112, 56, 56, 56, 28, 28, 28, 14, 14, 14]
    macs = sum(m * m * a * b * 9 for (a, b), m in zip(pairwise(widths), maps, strict=True))
    linear = [(256 * 49, 2048), (2048, 2048), (2048, 2)]
    assert cost.filters == 2112
    assert cost.macs == macs + sum(a * b for a, b in linear)
    assert cost.params == (sum(a * b * 9 + b for a, b in pairwise(widths))
                           + sum(a * b + b for a, b in linear))


def test_counts_are_per_example() -> None:
    """A larger batch costs the same for each example."""
    model, example = nets.channels_last()
    assert isinstance(example, torch.Tensor)
    one, five = trace(model, example[:1]), trace(model, torch.randn(5, 3, 8, 8))
    assert one.cost() == five.cost()


@pytest.mark.rows("R079")
def test_products_of_activations_are_counted() -> None:
    """Attention of T tokens, E wide: four projections of T x E x E, and twice T x T x E."""
    model, example = nets.REFUSED["attention"][0]()
    graph = trace(model, example)
    tokens, width = 64, 8
    by_operator = macs_by_layer(graph.products, {n: prod(s) for n, s in graph.shapes.items()})
    assert by_operator["aten.scaled_dot_product_attention"] == 2 * tokens * tokens * width
    rest = {"first": 64 * 8 * 27, "second": 64 * 6 * 8, "head.2": 6 * 4}
    assert graph.cost().macs == (sum(rest.values()) + 4 * tokens * width * width
                                 + 2 * tokens * tokens * width)


@pytest.mark.rows("R079")
def test_what_is_not_counted_is_listed() -> None:
    _, _, graph = traced(nets.chain)
    assert graph.cost().uncounted == {"aten.batch_norm": 2, "aten.relu_": 2, "aten.max_pool2d": 1,
                                      "aten.adaptive_avg_pool2d": 1, "aten.flatten": 1}


def test_a_product_counts_its_uses() -> None:
    assert Product("a", "conv", "a.weight", 10, 0).count({"a.weight": 7}) == 70
    assert Product("", "matmul", None, 0, 33).count({}) == 33
    products = [Product("a", "conv", "a.weight", 10, 0), Product("a", "conv", "a.weight", 1, 0)]
    assert macs_by_layer(products, {"a.weight": 7}) == {"a": 77}


@pytest.mark.rows("R079", "R136")
def test_counting_changes_nothing() -> None:
    model, example, graph = traced(nets.residual)
    model(*example).sum().backward()
    before = snapshot(model)
    graph.cost(random_plan(graph, seed=0))
    assert snapshot(model) == before
