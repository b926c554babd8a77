"""Networks: the numbers of the requirements, torchvision as the other road, and what is refused.

Large networks are built on the meta device, which has shapes and no numbers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from harness.engine.selection import select
from harness.engine.surgery import cut
from harness.engine.tracing import trace
from harness.errors import ConfigError, ModelError, UnknownName
from harness.models import build
from harness.models.weights import adopt, digest_of, take_over

torch.set_num_threads(1)


def small(name: str, **settings: Any) -> nn.Module:
    return build(name, **{"num_classes": 10, "in_channels": 1, "width": 0.25, "input_size": 32,
                          **settings})


def shapes_only(name: str, **settings: Any) -> nn.Module:
    with torch.device("meta"):
        return build(name, **{"num_classes": 10, "in_channels": 3, "input_size": 32, **settings})


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def gigamacs(model: nn.Module, channels: int, height: int, width: int) -> float:
    """By torch's own counter; one multiply-add is two of its operations."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), counter:
        model.eval()(torch.empty(1, channels, height, width))
    return counter.get_total_flops() / 2e9


# --- a person's own ------------------------------------------------------------------------------


def own(num_classes: int, in_channels: int, depth: int = 1) -> nn.Module:
    layers = [nn.Conv2d(in_channels, in_channels, 3, padding=1) for _ in range(depth)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(in_channels, num_classes))


def no_net(num_classes: int) -> str:
    return "net"


def broken(num_classes: int) -> nn.Module:
    raise IndexError("no such layer")


@pytest.mark.rows("R005")
def test_a_persons_own_network_is_built_by_its_name() -> None:
    net = small(f"{__name__}:own", width=1, options={"depth": 3})
    assert len(convolutions(net)) == 3
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_factory_of_another_library_is_told_the_number_of_classes() -> None:
    """It takes the number through its **kwargs, and would keep its 1000 otherwise."""
    net = shapes_only("torchvision.models:squeezenet1_0", num_classes=7)
    assert shapes(net)["classifier.1.weight"][0] == 7


# --- VGG -----------------------------------------------------------------------------------------


@pytest.mark.rows("R001")
def test_vgg16_with_the_seeds_head_has_the_numbers_of_the_requirements() -> None:
    """4224 filters; 14,714,688 parameters in convolutions, 134,268,738 in all."""
    net = shapes_only("vgg16", num_classes=2, input_size=224, options={"head": "seed"})
    assert sum(m.out_channels for m in convolutions(net).values()) == 4224
    assert parameters(net.get_submodule("features")) == 14_714_688
    assert parameters(net) == 134_268_738
    assert gigamacs(net, 3, 224, 224) == pytest.approx(15.35 + 0.12, abs=0.005)


@pytest.mark.rows("R001")
def test_the_seeds_head_is_for_large_pictures_the_small_one_for_small() -> None:
    def linears(size: int) -> list[tuple[int, ...]]:
        net = shapes_only("vgg16", input_size=size)
        return [tuple(m.weight.shape) for m in net.modules() if isinstance(m, nn.Linear)]

    assert linears(32) == [(10, 512)]
    assert linears(63) == [(10, 512)]
    assert linears(64) == [(4096, 512 * 4), (4096, 4096), (10, 4096)]


@pytest.mark.rows("R002")
def test_vgg11_for_small_pictures_is_the_one_of_the_requirements() -> None:
    """Torchvision's head behind a pooling to 7 x 7, the last layer for ten classes."""
    ours = shapes_only("vgg11", options={"head": "imagenet"})
    assert parameters(ours) == 128_807_306
    with torch.device("meta"):
        theirs = torchvision.models.vgg11(weights=None, num_classes=10)
        assert ours(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert shapes(ours) == shapes(theirs)


@pytest.mark.rows("R002")
def test_the_imagenet_head_answers_as_torchvisions() -> None:
    ours = build("vgg11", num_classes=10, in_channels=3, width=0.0625, input_size=32,
                 options={"head": "imagenet"}).eval()
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs = torchvision.models.VGG(ours.get_submodule("features"), num_classes=10)  # type: ignore[arg-type]
    theirs.classifier = ours.get_submodule("classifier")  # type: ignore[assignment]
    with torch.no_grad():
        assert torch.equal(ours(pictures), theirs.eval()(pictures))


@pytest.mark.rows("R002")
@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn", "vgg16", "vgg16_bn"])
def test_convolutions_of_vgg_take_torchvisions_weights(name: str) -> None:
    net = shapes_only(name, input_size=224)
    with torch.device("meta"):
        original = torchvision.models.get_model(name, weights=None)
    assert shapes(net.get_submodule("features")) == shapes(original.features)


def test_the_width_scales_every_layer_and_the_hidden_units() -> None:
    net = shapes_only("vgg11", width=0.5, input_size=224)
    assert [m.out_channels for m in convolutions(net).values()] == [
        32, 64, 128, 128, 256, 256, 256, 256]
    assert shapes(net)["classifier.4.weight"] == (2048, 2048)


def test_convolutions_of_vgg_begin_as_torchvisions() -> None:
    """Kaiming over the fan out: variance 2 / (9 x filters); biases 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = small("vgg16", width=0.5)
    for convolution in convolutions(net).values():
        expected = (2 / (9 * convolution.out_channels)) ** 0.5
        assert float(convolution.weight.detach().std()) == pytest.approx(expected, rel=0.12)
        assert convolution.bias is not None
        assert (convolution.bias == 0).all()


# --- residual and mobile -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "theirs_name"), [
    ("alexnet", "alexnet"), ("mobilenet_v2", "mobilenet_v2"), ("resnet18", "resnet18"),
    ("squeezenet", "squeezenet1_1")])
def test_at_full_width_and_large_pictures_it_is_torchvisions_own(name: str,
                                                                 theirs_name: str) -> None:
    """The same weights give the same logits."""
    ours = build(name, num_classes=10, in_channels=3, input_size=96).eval()
    theirs = torchvision.models.get_model(theirs_name, weights=None, num_classes=10).eval()
    theirs.load_state_dict(ours.state_dict())
    pictures = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(pictures), theirs(pictures))


@pytest.mark.parametrize(("size", "stem", "expected"), [
    (32, "auto", (3, 1)), (64, "auto", (7, 2)), (32, "imagenet", (7, 2)), (64, "small", (3, 1))])
def test_the_stem_of_resnet_follows_the_picture_unless_told(
        size: int, stem: str, expected: tuple[int, int]) -> None:
    first = shapes_only("resnet18", input_size=size, options={"stem": stem}).get_submodule("conv1")
    assert isinstance(first, nn.Conv2d)
    assert (first.kernel_size[0], first.stride[0]) == expected


@pytest.mark.rows("R004")
@pytest.mark.parametrize(("size", "stride"), [(32, 1), (64, 2)])
def test_mobilenet_keeps_the_resolution_of_small_pictures_at_the_start(
        size: int, stride: int) -> None:
    first = convolutions(shapes_only("mobilenet_v2", input_size=size))["features.0.0"]
    assert first.stride == (stride, stride)


@pytest.mark.rows("R004")
@pytest.mark.parametrize(("size", "stride", "maps"), [(32, 1, 4), (64, 2, 3)])
def test_squeezenet_keeps_the_resolution_of_small_pictures_at_the_start(
        size: int, stride: int, maps: int) -> None:
    net = shapes_only("squeezenet", input_size=size)
    assert convolutions(net)["features.0"].stride == (stride, stride)
    with torch.device("meta"):
        out = net.get_submodule("features")(torch.empty(1, 3, size, size))
    assert out.shape[2:] == (maps, maps)


@pytest.mark.rows("R004")
def test_alexnet_for_small_pictures_reads_its_last_maps_in_one_linear_layer() -> None:
    """4 x 4 of 32 pixels after three halvings, 3 x 3 of 31."""
    for size, columns in ((32, 256 * 16), (31, 256 * 9)):
        net = shapes_only("alexnet", input_size=size, num_classes=100)
        assert shapes(net)["classifier.1.weight"] == (100, columns)
        with torch.device("meta"):
            assert net(torch.empty(2, 3, size, size)).shape == (2, 100)


# --- residual networks for small pictures --------------------------------------------------------


@pytest.mark.rows("R004")
@pytest.mark.parametrize(("layers", "count"), [
    (20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)])
def test_cifar_resnets_have_the_layers_and_parameters_of_the_paper(layers: int,
                                                                   count: int) -> None:
    """He et al. 2016, table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M and 1.7 M; 6n + 2 layers."""
    net = shapes_only(f"resnet{layers}")
    assert len(convolutions(net)) + 1 == layers
    assert parameters(net) == count
    n = (layers - 2) // 6
    inner = [(16, 16, 2 * n), (16, 32, 1), (32, 32, 2 * n - 1), (32, 64, 1), (64, 64, 2 * n - 1)]
    weights = 3 * 16 * 9 + sum(a * b * 9 * times for a, b, times in inner) + 64 * 10 + 10
    assert count == weights + 2 * (16 * (2 * n + 1) + 32 * 2 * n + 64 * 2 * n)


def option_a(state: dict[str, Tensor], pictures: Tensor) -> Tensor:
    """ResNet-20 written as formulas over a state dict; the shortcut pads a quarter on each side."""
    def norm(maps: Tensor, name: str) -> Tensor:
        return functional.batch_norm(maps, state[f"{name}.running_mean"],
                                     state[f"{name}.running_var"], state[f"{name}.weight"],
                                     state[f"{name}.bias"])

    maps = functional.conv2d(pictures, state["conv1.weight"], padding=1)
    maps = norm(maps, "bn1").relu()
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            at = f"layer{stage}.{block}"
            halves = stage > 1 and block == 0
            inner = functional.conv2d(maps, state[f"{at}.conv1.weight"], padding=1,
                                      stride=2 if halves else 1)
            inner = functional.conv2d(norm(inner, f"{at}.bn1").relu(), state[f"{at}.conv2.weight"],
                                      padding=1)
            if halves:
                side = maps.shape[1] // 2
                maps = functional.pad(maps[:, :, ::2, ::2], (0, 0, 0, 0, side, side))
            maps = (norm(inner, f"{at}.bn2") + maps).relu()
    return maps.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.rows("R004")
def test_a_cifar_resnet_computes_the_formula_over_the_well_known_names() -> None:
    """So that weights trained elsewhere can be loaded: the state dict has these names alone."""
    generator = torch.Generator().manual_seed(0)
    net = build("resnet20", num_classes=10, in_channels=3, input_size=32).eval()
    names = {"linear.weight", "linear.bias", "conv1.weight"}
    norms = ["bn1"]
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            names |= {f"layer{stage}.{block}.conv{k}.weight" for k in (1, 2)}
            norms += [f"layer{stage}.{block}.bn{k}" for k in (1, 2)]
    names |= {f"{n}.{v}" for n in norms for v in ("weight", "bias", "running_mean", "running_var",
                                                  "num_batches_tracked")}
    assert set(net.state_dict()) == names
    state = {n: t if t.dim() == 0 else torch.rand(t.shape, generator=generator) * 0.2 + 0.05
             for n, t in net.state_dict().items()}
    net.load_state_dict(state)
    pictures = torch.randn(2, 3, 16, 16, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(net(pictures), option_a(state, pictures))


def test_cifar_resnets_cost_what_the_formula_says() -> None:
    """A shortcut multiplies nothing; 40.55 M MACs for ResNet-20 at 32 x 32."""
    net = shapes_only("resnet20")
    stages = [(16, 32, 6), (32, 16, 5), (64, 8, 5)]
    macs = 3 * 16 * 9 * 32**2 + sum(c * c * 9 * s * s * times for c, s, times in stages)
    macs += 16 * 32 * 9 * 16**2 + 32 * 64 * 9 * 8**2 + 640
    assert macs == 40_551_040
    assert gigamacs(net, 3, 32, 32) == macs / 1e9


def zeros(net: nn.Module) -> list[int]:
    return [b.shape[1] for name, b in net.named_buffers() if "shortcut" in name]


@pytest.mark.rows("R057")
def test_the_zeros_of_a_shortcut_shrink_with_their_channels() -> None:
    """All stages are one group: 4 channels of all three stages, 2 + 2 of the last two, 4 + 4 of
    the last. One of each is kept; the trained weights of others know no zeros."""
    net = small("resnet20").eval()
    pictures = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    graph = trace(net, pictures)
    assert graph["conv1"].channels == 16
    assert zeros(net) == [2, 2, 4, 4]
    cut(net, graph.whole(), graph.plan({"conv1": [0, 4, 6, 8, 12]}))
    assert zeros(net) == [1, 1, 1, 1]
    assert [m.out_channels for n, m in convolutions(net).items() if n.endswith("conv2")] == [
        1, 1, 1, 3, 3, 3, 5, 5, 5]
    assert net(pictures).shape == (2, 10)
    assert not any("shortcut" in name for name in net.state_dict())


def test_nothing_of_a_shortcut_is_emptied_though_its_channels_score_lowest() -> None:
    net = small("resnet20").eval()
    graph = trace(net, torch.zeros(2, 1, 32, 32))
    worst_last = {g.name: -torch.arange(g.channels).float() for g in graph.groups}
    result = select(graph, worst_last, lambda counts: False)
    assert "layer3.0.shortcut.after keeps 1" in result.bound["conv1"]
    cut(net, graph.whole(), result.plan)
    assert zeros(net) == [2, 2, 4, 1]


# --- U-Net ---------------------------------------------------------------------------------------

# Requirements 001.2-C: weights and biases of convolutions alone, (block, first, second).
UNET = {
    "inc": (37568, 640, 36928),
    "down1.conv": (221440, 73856, 147584),
    "down2.conv": (885248, 295168, 590080),
    "down3.conv": (3539968, 1180160, 2359808),
    "down4.conv": (4719616, 2359808, 2359808),
    "up1.conv": (5899008, 4719104, 1179904),
    "up2.conv": (1474944, 1179904, 295040),
    "up3.conv": (368832, 295040, 73792),
    "up4.conv": (110720, 73792, 36928),
}


@pytest.mark.rows("R003")
def test_unet_has_the_blocks_of_the_seeds_table() -> None:
    found = convolutions(shapes_only("unet", num_classes=2, in_channels=1, input_size=400))
    assert len(found) == 19
    assert set(found) == {"outc"} | {f"{b}.{c}" for b in UNET for c in ("conv1", "conv2")}
    for block, (whole, first, second) in UNET.items():
        sizes = [parameters(found[f"{block}.{c}"]) for c in ("conv1", "conv2")]
        assert sizes == [first, second]
        assert sum(sizes) == whole


def test_unet_costs_what_the_requirements_measured() -> None:
    net = shapes_only("unet", num_classes=2, in_channels=1, input_size=400)
    assert gigamacs(net, 1, 640, 400) == pytest.approx(155.9, abs=0.05)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (33, 47), (31, 16)])
def test_unet_answers_for_every_pixel_of_odd_sizes_too(height: int, width: int) -> None:
    net = small("unet", width=0.05, num_classes=3).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 1, height, width)).shape == (1, 3, height, width)


@pytest.mark.rows("R003")
def test_unet_joins_the_skip_before_what_comes_from_below() -> None:
    """With every reader of the upsampled half silenced, only the skip is left to matter."""
    net = small("unet", width=0.25).eval()
    last = net.get_submodule("up4")
    first = last.get_submodule("conv.conv1")
    assert isinstance(first, nn.Conv2d)
    skip, below = torch.randn(2, 1, 16, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    with torch.no_grad():
        first.weight[:, 16:] = 0
        torch.testing.assert_close(last(below[..., ::2, ::2], skip),
                                   last(-below[..., ::2, ::2], skip))


# --- RITnet --------------------------------------------------------------------------------------

# Requirements 001.2-C: weights and biases, of a block with its batch norm.
RITNET_BLOCKS = {"down1": 22080, **{f"down{n}": 32992 for n in (2, 3, 4, 5)},
                 **{f"up{n}": 23680 for n in (1, 2, 3, 4)}}
RITNET_LAYERS = {
    "down1": {"conv1": 320, "conv21": 1088, "conv22": 9248, "conv31": 2112, "conv32": 9248},
    **{f"down{n}": {"conv1": 9248, "conv21": 2080, "conv22": 9248, "conv31": 3104, "conv32": 9248}
       for n in (2, 3, 4, 5)},
    **{f"up{n}": {"conv11": 2080, "conv12": 9248, "conv21": 3104, "conv22": 9248}
       for n in (1, 2, 3, 4)},
}
# Requirements 001.2-G: who reads what a convolution writes, by their order in the network.
RITNET_READERS = {n: [n + 1] for n in range(41)} | {
    0: [1, 3], 4: [5, 6, 8, 37, 39], 5: [6, 8], 9: [10, 11, 13, 33, 35], 10: [11, 13],
    14: [15, 16, 18, 29, 31], 15: [16, 18], 19: [20, 21, 23, 25, 27], 20: [21, 23], 24: [25, 27],
    28: [29, 31], 32: [33, 35], 36: [37, 39]}


@pytest.mark.rows("R003")
def test_ritnet_has_the_layers_and_blocks_of_the_seeds_table() -> None:
    net = shapes_only("ritnet", num_classes=4, in_channels=1, input_size=400)
    found = convolutions(net)
    assert len(found) == 42
    assert {name: parameters(layer) for name, layer in found.items()} == {
        **{f"{b}.{c}": size for b, layers in RITNET_LAYERS.items() for c, size in layers.items()},
        "outc": 32 * 4 + 4}
    assert {b: parameters(net.get_submodule(b)) for b in RITNET_BLOCKS} == RITNET_BLOCKS
    norms = [name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == [f"down{n}.bn" for n in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("classes", [2, 4])
def test_ritnet_costs_what_the_requirements_measured(classes: int) -> None:
    net = shapes_only("ritnet", num_classes=classes, in_channels=1, input_size=400)
    assert gigamacs(net, 1, 640, 400) == pytest.approx(16.4, abs=0.05)


@pytest.mark.rows("R003")
def test_the_readers_of_ritnets_convolutions_are_those_of_the_seeds_table() -> None:
    """Found by running the network with all convolutions silent but one: where does it arrive?"""
    net = small("ritnet", width=0.25).eval()
    found = list(convolutions(net).values())
    marks: dict[int, set[int]] = {}
    for writer in range(41):
        marks[writer] = arrivals(net, found, writer)
    assert marks == {n: set(readers) for n, readers in RITNET_READERS.items()}


UNET_READERS = {n: [n + 1] for n in range(18)} | {1: [2, 16], 3: [4, 14], 5: [6, 12], 7: [8, 10]}


@pytest.mark.rows("R053", "R054")
@pytest.mark.parametrize(("name", "readers"), [("unet", UNET_READERS), ("ritnet", RITNET_READERS)])
def test_the_engine_finds_the_readers_of_the_seeds_hand_written_tables(
        name: str, readers: dict[int, list[int]]) -> None:
    net = small(name)
    order = list(convolutions(net))
    graph = trace(net, torch.zeros(2, 1, 16, 16))
    assert {order.index(g.name): sorted(order.index(r.layer) for r in g.readers)
            for g in graph.groups} == readers
    assert dict(graph.frozen) == {"outc": "output of the network"}


def arrivals(net: nn.Module, layers: list[nn.Conv2d], writer: int) -> set[int]:
    """Numbers of the layers whose input is not zero when only `writer` puts out ones."""
    seen: set[int] = set()
    handles = []
    for number, layer in enumerate(layers):
        def hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor,
                 number: int = number) -> Tensor:
            if given[0].abs().max() > 0:
                seen.add(number)
            return torch.full_like(out, float(number == writer))
        handles.append(layer.register_forward_hook(hook))
    with torch.no_grad():
        net(torch.zeros(1, 1, 16, 16))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(("height", "width"), [(16, 16), (33, 47), (31, 16)])
def test_ritnet_answers_for_every_pixel_of_odd_sizes_too(height: int, width: int) -> None:
    net = small("ritnet", width=0.25, num_classes=3).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 1, height, width)).shape == (1, 3, height, width)


# --- weights that are taken over -----------------------------------------------------------------


@pytest.mark.rows("R001")
def test_the_convolutions_of_another_network_come_under_a_new_head() -> None:
    """Features from torchvision's VGG-16, the head of two classes as it was."""
    mine = build("vgg11", num_classes=2, in_channels=3, width=0.0625, input_size=32,
                 options={"head": "seed"})
    other = build("vgg11", num_classes=10, in_channels=3, width=0.0625, input_size=32,
                  options={"head": "imagenet"})
    before = {n: t.clone() for n, t in mine.state_dict().items()}
    left = adopt(mine, other.state_dict())
    assert set(left) == {n for n in before if n.startswith("classifier")}
    for name, tensor in mine.state_dict().items():
        wanted = before if name in left else other.state_dict()
        assert torch.equal(tensor, wanted[name]), name


def test_weights_of_a_stranger_are_refused() -> None:
    net = small("resnet20")
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(ModelError, match="no weight fits this CifarResNet.*conv1.weight"):
        adopt(net, small("vgg11").state_dict())
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


@pytest.mark.parametrize(("name", "size"), [("alexnet", 224), ("densenet121", 64),
                                            ("inception_v3", 299), ("vit_b_16", 64)])
def test_torchvisions_networks_are_built_by_name(name: str, size: int) -> None:
    """For grey pictures, our classes, and logits alone, in train mode too."""
    net = shapes_only(f"torchvision/{name}", num_classes=5, in_channels=1, input_size=size)
    with torch.device("meta"):
        assert net.train()(torch.empty(2, 1, size, size)).shape == (2, 5)


def test_options_reach_torchvisions_constructor() -> None:
    net = shapes_only("torchvision/alexnet", options={"dropout": 0.125})
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {0.125}


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings", "error", "words"), [
    ("vgg61", {}, UnknownName, "unknown model 'vgg61'. Nearest: vgg16.*torchvision/NAME"),
    ("torchvision/resnet19", {}, UnknownName, "unknown torchvision model.*Nearest: resnet1"),
    ("torchvision/alexnet", {"width": 0.5}, ModelError, "comes in one width; 0.5"),
    ("torchvision/alexnet", {"width": 1, "options": {"heads": 2}}, ModelError, "heads"),
    ("torchvision/vit_b_16", {"width": 1, "input_size": 33}, ModelError, "input size 33"),
    ("vgg16", {"width": 0.005}, ModelError, "width 0.005 leaves a layer of 64 channels with none"),
    ("unet", {"width": 0.005}, ModelError, "Use a width of at least 0.01562"),
    ("resnet18", {"width": 0.0}, ModelError, "width 0.0 must be above 0"),
    ("mobilenet_v2", {"width": -1}, ModelError, "width -1 must be above 0"),
    ("vgg16", {"input_size": 31}, ModelError, "input size 31 is too small, at least 32"),
    ("unet", {"input_size": 15}, ModelError, "input size 15 is too small, at least 16"),
    ("ritnet", {"input_size": 15}, ModelError, "input size 15 is too small, at least 16"),
    ("ritnet", {"width": 0.01}, ModelError, "width 0.01 leaves a layer of 32 channels with none"),
    ("resnet20", {"width": 0.01}, ModelError, "width 0.01 leaves a layer of 16 channels"),
    ("resnet20", {"options": {"stem": "small"}}, ConfigError, "unknown option of model resnet20"),
    ("alexnet", {"input_size": 7}, ModelError, "small stem: input size 7.*at least 8"),
    ("alexnet", {"options": {"stem": "imagenet"}}, ModelError, "imagenet stem: input size 32.*63"),
    ("squeezenet", {"input_size": 7}, ModelError, "small stem: input size 7.*at least 8"),
    ("squeezenet", {"input_size": 16, "options": {"stem": "imagenet"}}, ModelError,
     "imagenet stem: input size 16.*at least 17"),
    ("vgg16", {"options": {"head": "smal"}}, ModelError, "unknown head 'smal'. Nearest: small"),
    ("resnet18", {"options": {"stem": "big"}}, ModelError, "unknown stem 'big'.*auto, imagenet"),
    ("vgg16", {"options": {"haed": "seed"}}, ConfigError, "'haed'. Nearest: head. Known: head."),
    ("vgg16", {"options": {"width": 2}}, ConfigError, "'width' is a setting of its own"),
    (f"{__name__}:own", {}, ModelError, "takes no width; 0.25 was asked for"),
    (f"{__name__}:no_net", {"width": 1}, ModelError, "returned a str, not a torch.nn.Module"),
    (f"{__name__}:broken", {"width": 1}, ModelError, "failed: IndexError: no such layer"),
])
def test_a_network_that_cannot_be_built_says_why(
        name: str, settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        small(name, **settings)


def file_of(state: Mapping[str, Tensor], folder: Path, name: str) -> str:
    torch.save(dict(state), folder / name)
    return str(folder / name)


@pytest.mark.rows("R001", "R002")
def test_a_file_gives_what_fits_if_part_of_it_is_enough(tmp_path: Path) -> None:
    """ImageNet's convolutions under the seed's head."""
    theirs, mine = small("vgg11"), small("vgg11", options={"head": "seed"})
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    file = file_of(theirs.state_dict(), tmp_path, "w.pt")
    with pytest.raises(ModelError, match=r"(?s)does not fit.*model.partly: true"):
        take_over(mine, file, "vgg11", partly=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in mine.state_dict().items())
    left = take_over(mine, file, "vgg11", partly=True)
    assert left == tuple(name for name in before if name.startswith("classifier"))
    for name, tensor in mine.state_dict().items():
        wanted = before if name in left else theirs.state_dict()
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.rows("R001", "R002")
def test_torchvisions_own_weights_come_from_its_cache(tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """As a person puts them there who has no network; squeezenet's file is the smallest."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    theirs = torchvision.models.squeezenet1_1(weights=None)
    file_of(theirs.state_dict(), tmp_path / "hub" / "checkpoints", "squeezenet1_1-b8a52dc0.pth")
    mine = build("torchvision/squeezenet1_1", num_classes=1000, in_channels=3, width=1.0,
                 input_size=64)
    assert take_over(mine, "torchvision", "torchvision/squeezenet1_1", partly=False) == ()
    assert torch.equal(mine.state_dict()["features.0.weight"],
                       theirs.state_dict()["features.0.weight"])


@pytest.mark.parametrize(("network", "told"), [
    ("squeezenet1_1", r"squeezenet1_1 here: .*Fetch https://.*squeezenet1_1-.*put it at .*hub"),
    ("resnet20", "torchvision has no weights of resnet20. Give a file"),
])
def test_weights_that_torchvision_cannot_give_are_told_with_a_way_out(
        network: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(ModelError, match=told):
        take_over(small("vgg11"), "torchvision", network, partly=False)


def test_weights_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    state = small("vgg11").state_dict()
    one, other = (file_of(state, tmp_path, name) for name in ("a.pt", "b.pt"))
    Path(other).write_bytes(Path(one).read_bytes())
    assert digest_of(one, "vgg11") == digest_of(other, "vgg11")
    Path(other).write_bytes(b"else")
    assert digest_of(one, "vgg11") != digest_of(other, "vgg11")
    assert digest_of(None, "vgg11") is None
    assert digest_of("torchvision", "vgg16") != digest_of("torchvision", "vgg11")
