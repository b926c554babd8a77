"""What a live network holds: the seed's tables from the live model, and hand-made layers."""

import nets
import pytest
import torch
from torch import nn

from engine.by_hand import num_parameters, random_plan, snapshot, traced
from harness.engine.inventory import blocks, compression, is_in, is_zeroed, layers, sparsity
from harness.engine.surgery import cut
from harness.models import build

# Requirements 001.2-C. U-Net: weights and biases of convolutions alone; (block, conv1, conv2).
UNET = {
    "inc": (37568, 640, 36928), "down1": (221440, 73856, 147584),
    "down2": (885248, 295168, 590080), "down3": (3539968, 1180160, 2359808),
    "down4": (4719616, 2359808, 2359808), "up1": (5899008, 4719104, 1179904),
    "up2": (1474944, 1179904, 295040), "up3": (368832, 295040, 73792),
    "up4": (110720, 73792, 36928)}
# RITnet: blocks with their batch norm (64).
RITNET = {"down1": (22080, 320, 1088, 9248, 2112, 9248),
          **{f"down{n}": (32992, 9248, 2080, 9248, 3104, 9248) for n in (2, 3, 4, 5)},
          **{f"up{n}": (23680, 2080, 9248, 3104, 9248) for n in (1, 2, 3, 4)}}


def eye_network(name: str) -> nn.Module:
    with torch.device("meta"):
        return build(name, num_classes=4, in_channels=1, input_size=640)


@pytest.mark.rows("R003", "R050", "R077")
def test_the_seeds_table_of_unet_is_read_off_the_live_model() -> None:
    """Norms are counted, and told apart: the seed's table is without them."""
    net = eye_network("unet")
    sizes = {block.name: block for block in blocks(net)}
    for name, (whole, *each) in UNET.items():
        assert sizes[name].params - sizes[name].norm_params == whole
        assert [x.params for x in layers(net)
                if is_in(x.name, name) and x.kind == "convolution"] == each
    assert sizes["inc"].params == 37824  # with batch norms: 256 more than the table
    assert sizes[""].params == num_parameters(net)


@pytest.mark.rows("R003", "R050")
def test_the_seeds_table_of_ritnet_is_read_off_the_live_model() -> None:
    net = eye_network("ritnet")
    sizes = {block.name: block for block in blocks(net)}
    assert {name: sizes[name].params for name in RITNET} == {n: t[0] for n, t in RITNET.items()}
    assert {name: sizes[name].norm_params for name in RITNET} == {
        name: 64 if name.startswith("down") else 0 for name in RITNET}
    for name, (_, *each) in RITNET.items():
        assert [x.params for x in layers(net)
                if is_in(x.name, name) and x.kind == "convolution"] == each


@pytest.mark.rows("R077")
@pytest.mark.parametrize("net", nets.ALL, ids=nets.name)
def test_layers_hold_all_parameters_once_whole_and_cut(net: nets.Net) -> None:
    model, _, graph = traced(net)
    assert sum(x.params for x in layers(model)) == num_parameters(model)
    cut(model, graph.whole(), random_plan(graph, seed=1))
    assert sum(x.params for x in layers(model)) == num_parameters(model)
    whole = blocks(model)[0]
    assert (whole.name, whole.params) == ("", num_parameters(model))


@pytest.mark.rows("R077")
def test_a_block_is_a_node_of_the_tree_not_a_prefix_of_letters() -> None:
    net = nn.Module()
    net.up1 = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    net.up10 = nn.Sequential(nn.Linear(3, 5))
    assert {b.name: (b.params, b.norm_params, b.filters) for b in blocks(net)} == {
        "": (4 + 4 + 20, 4, 2), "up1": (8, 4, 2), "up10": (20, 0, 0)}


def test_a_network_of_one_layer_is_its_only_block() -> None:
    (found,) = blocks(nn.Conv2d(2, 3, 1))
    assert (found.name, found.kind, found.params, found.filters) == ("", "block", 9, 3)
    (found,) = blocks(nn.ReLU())
    assert (found.name, found.params) == ("", 0)


def test_every_layer_says_what_it_is() -> None:
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.LayerNorm(7),
                        nn.ConvTranspose1d(4, 2, 3), nn.Linear(7, 2, bias=False), nn.PReLU())
    assert [(x.kind, x.params, x.norm_params, x.filters) for x in layers(net)] == [
        ("convolution", 4 * 2 * 3 + 4, 0, 4), ("norm", 8, 8, 0), ("norm", 14, 14, 0),
        ("convolution", 4 * 2 * 3 + 2, 0, 2), ("linear", 14, 0, 0), ("other", 1, 0, 0)]


@pytest.mark.rows("R078")
def test_a_filter_is_zeroed_when_its_weights_and_its_bias_are() -> None:
    """Filter 1: all zero. Filter 2: a bias is left. Filter 3: one weight is left."""
    layer = nn.Conv2d(2, 4, 3)
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.bias.fill_(1)  # type: ignore[union-attr]
        layer.weight[1:] = 0
        layer.bias[1] = layer.bias[3] = 0  # type: ignore[index]
        layer.weight[3, 1, 2, 2] = 1e-30
    assert is_zeroed(layer).tolist() == [False, True, False, False]
    (found,) = layers(nn.Sequential(layer))
    assert (found.filters, found.zeroed) == (4, 1)


@pytest.mark.rows("R078")
@pytest.mark.parametrize("groups", [1, 2])
def test_a_zeroed_filter_of_a_transposed_convolution_puts_out_nothing(groups: int) -> None:
    """Told by its weights, or seen in its output: the same filters."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
    with torch.no_grad():
        layer.weight[:2, 1] = 0
        if groups == 1:
            layer.weight[:, 1] = 0
        out = layer(torch.rand(1, 4, 5, 5, generator=generator))
    assert is_zeroed(layer).tolist() == (out.abs().amax((0, 2, 3)) == 0).tolist()
    assert int(is_zeroed(layer).sum()) == 1


@pytest.mark.rows("R084")
def test_sparsity_is_the_share_of_zero_weights_without_biases_and_norms() -> None:
    """3 of 4 x 2 x 1 and 1 of 12 weights; zero biases and the norm's shift do not count."""
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1)
        net[0].weight.view(-1)[:3] = 0
        net[3].weight[1, 1] = 0
        net[0].bias.zero_()
        net[1].bias.zero_()
    assert sparsity(net) == 4 / 20
    assert sparsity(nn.ReLU()) == 0


@pytest.mark.rows("R084")
def test_a_weight_that_two_layers_share_is_sparse_once() -> None:
    """36 zeros of 36 + 6 x 6 weights: not 72 of 108."""
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    net[1].weight = net[0].weight
    nn.init.zeros_(net[0].weight)  # type: ignore[arg-type]
    nn.init.ones_(net[2].weight)  # type: ignore[arg-type]
    assert sparsity(net) == 36 / 72


@pytest.mark.rows("R084")
def test_compression_is_the_share_that_is_gone() -> None:
    assert compression(200, 43) == pytest.approx(0.785)
    assert compression(0, 0) == 0


@pytest.mark.rows("R136")
def test_taking_the_inventory_changes_nothing() -> None:
    model, example, _ = traced(nets.residual)
    model(*example).sum().backward()
    before = snapshot(model)
    layers(model), blocks(model), sparsity(model)
    assert snapshot(model) == before
