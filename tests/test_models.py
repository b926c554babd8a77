"""Networks: the numbers of the requirements, torchvision as the other road, and what is refused.

Large networks are built on the meta device, which has shapes and no numbers.
"""

from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness.errors import ConfigError, ModelError, UnknownName
from harness.models import build

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


def test_a_persons_own_network_is_built_by_its_name() -> None:
    net = small(f"{__name__}:own", width=1, options={"depth": 3})
    assert len(convolutions(net)) == 3
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_factory_of_another_library_is_told_the_number_of_classes() -> None:
    """It takes the number through its **kwargs, and would keep its 1000 otherwise."""
    net = shapes_only("torchvision.models:squeezenet1_0", num_classes=7)
    assert shapes(net)["classifier.1.weight"][0] == 7


# --- VGG -----------------------------------------------------------------------------------------


def test_vgg16_with_the_seeds_head_has_the_numbers_of_the_requirements() -> None:
    """R001: 4224 filters; 14,714,688 parameters in convolutions, 134,268,738 in all."""
    net = shapes_only("vgg16", num_classes=2, input_size=224, options={"head": "seed"})
    assert sum(m.out_channels for m in convolutions(net).values()) == 4224
    assert parameters(net.get_submodule("features")) == 14_714_688
    assert parameters(net) == 134_268_738
    assert gigamacs(net, 3, 224, 224) == pytest.approx(15.35 + 0.12, abs=0.005)


def test_the_seeds_head_is_for_large_pictures_the_small_one_for_small() -> None:
    def linears(size: int) -> list[tuple[int, ...]]:
        net = shapes_only("vgg16", input_size=size)
        return [tuple(m.weight.shape) for m in net.modules() if isinstance(m, nn.Linear)]

    assert linears(32) == [(10, 512)]
    assert linears(63) == [(10, 512)]
    assert linears(64) == [(4096, 512 * 4), (4096, 4096), (10, 4096)]


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


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_at_full_width_and_large_pictures_it_is_torchvisions_own(name: str) -> None:
    """The same weights give the same logits."""
    ours = build(name, num_classes=10, in_channels=3, input_size=96).eval()
    theirs = torchvision.models.get_model(name, weights=None, num_classes=10).eval()
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


@pytest.mark.parametrize(("size", "stride"), [(32, 1), (64, 2)])
def test_mobilenet_keeps_the_resolution_of_small_pictures_at_the_start(
        size: int, stride: int) -> None:
    first = convolutions(shapes_only("mobilenet_v2", input_size=size))["features.0.0"]
    assert first.stride == (stride, stride)


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


# --- torchvision by name -------------------------------------------------------------------------


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
