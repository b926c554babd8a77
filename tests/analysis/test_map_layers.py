"""The layer is fine enough and late; maps of tokens are those of the formula, done by hand."""

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer

from harness.analysis.gradcam import View, look
from harness.analysis.map_layers import Layer, layer_of_maps
from harness.errors import GraphError


def pictures(count: int, height: int, width: int | None = None, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, height, width or height,
                       generator=torch.Generator().manual_seed(count))


def vit(side: int, patch: int) -> nn.Module:
    torch.manual_seed(5)
    net = torchvision.models.VisionTransformer(
        image_size=side, patch_size=patch, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=24,
        num_classes=5)
    nn.init.normal_(net.heads.head.weight)  # torchvision begins with zeros
    return net.eval()


def swin() -> nn.Module:
    torch.manual_seed(5)
    return SwinTransformer(patch_size=[4, 4], embed_dim=12, depths=[1, 2, 2], num_heads=[1, 2, 4],
                           window_size=[4, 4], num_classes=5).eval()


class Encoder(nn.Module):
    """PyTorch's own encoder of tokens; by default it has them first, and the pictures second."""

    def __init__(self, *, is_batch_first: bool, has_patches_cut: bool = False) -> None:
        super().__init__()
        self.cut = has_patches_cut
        self.patches = nn.Linear(48, 16) if self.cut else nn.Conv2d(3, 16, 4, stride=4)
        self.label = nn.Parameter(torch.randn(1, 2, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 24, norm_first=True, dropout=0.1,
                                           batch_first=is_batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.turn, self.head = not is_batch_first, nn.Linear(16, 5)

    def forward(self, given: Tensor) -> Tensor:
        if self.cut:
            tokens = self.patches(nn.functional.unfold(given, 4, stride=4).transpose(1, 2))
        else:
            tokens = self.patches(given).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.label.expand(len(given), -1, -1), tokens], 1)
        tokens = self.encoder(tokens.transpose(0, 1) if self.turn else tokens)
        out: Tensor = self.head(tokens.mean(0) if self.turn else tokens.mean(1))
        return out


def encoder(*, is_batch_first: bool = True, has_patches_cut: bool = False) -> nn.Module:
    torch.manual_seed(5)
    return Encoder(is_batch_first=is_batch_first, has_patches_cut=has_patches_cut).eval()


@pytest.mark.rows("R127")
@pytest.mark.parametrize(("name", "side", "layer", "size"), [
    ("vgg11_bn", 32, "features.13", (8, 8)),  # the last would have 2 x 2
    ("vgg11_bn", 224, "features.27", (14, 14)),
    ("resnet18", 224, "layer4.1", (7, 7)),  # the sum, not what is inside the block
    ("resnet18", 64, "layer2.1", (8, 8)),
    ("squeezenet1_1", 224, "classifier.2", (13, 13)),
    ("maxvit_t", 224, "blocks.3.layers.1.layers.grid_attention", (7, 7)),
])
def test_the_layer_is_the_last_with_seven_by_seven(name: str, side: int, layer: str,
                                                   size: tuple[int, int]) -> None:
    net = getattr(torchvision.models, name)(weights=None).eval()
    assert layer_of_maps(net, pictures(1, side)) == Layer(layer, size)


@pytest.mark.rows("R127")
def test_where_no_map_is_fine_enough_it_is_the_last_of_the_largest() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Conv2d(2, 2, 2),
                        nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(98, 3)).eval()
    found = layer_of_maps(net, pictures(1, 9, channels=1))
    assert found == Layer("1", (4, 4)), "pooling makes no map finer"


@pytest.mark.rows("R127")
def test_a_network_without_maps_says_so() -> None:
    with pytest.raises(GraphError, match="nothing that Grad-CAM could show"):
        layer_of_maps(nn.Sequential(nn.Flatten(), nn.Linear(243, 3)), pictures(1, 9))


@pytest.mark.rows("R127")
@pytest.mark.parametrize(("net", "given", "layer"), [
    # Of the last block and its norm the class's token alone is read.
    (vit(32, 4), pictures(2, 32), Layer("encoder.layers.encoder_layer_1", (8, 8), "NTC", 1)),
    (swin(), pictures(2, 64), Layer("features.3.1", (8, 8), "NhwC")),
    (swin(), pictures(2, 112), Layer("norm", (7, 7), "NhwC")),
    (encoder(), pictures(2, 32, 48), Layer("encoder.layers.1", (8, 12), "NTC", 2)),
    (encoder(is_batch_first=False), pictures(2, 32), Layer("encoder.layers.1", (8, 8), "TNC", 2)),
    (encoder(has_patches_cut=True), pictures(2, 32, 64),
     Layer("encoder.layers.1", (8, 16), "NTC", 2)),
    # Nowhere seven: the last of those that are as fine as any.
    (vit(32, 8), pictures(2, 32), Layer("encoder.layers.encoder_layer_1", (4, 4), "NTC", 1)),
], ids=["vit", "swin at 64", "swin at 112", "rows", "tokens first", "cut patches", "coarse"])
def test_of_tokens_it_is_the_last_block_whose_places_are_read(
        net: nn.Module, given: Tensor, layer: Layer) -> None:
    assert layer_of_maps(net, given) == layer


def by_hand(net: nn.Module, layer: str, given: Tensor, axes: str) -> np.ndarray:
    """The formula on what a module puts out; axes: of its tokens, for einsum, without the class's.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        out.retain_grad()
        kept.append(out)

    hook = net.get_submodule(layer).register_forward_hook(keep)
    net(given).amax(1).sum().backward()
    hook.remove()
    net.zero_grad()
    values, gradient = kept[0].detach().numpy(), kept[0].grad.numpy()
    if axes == "ntc":
        values, gradient = values[:, -64:], gradient[:, -64:]
    if axes == "tnc":
        values, gradient = values[-64:], gradient[-64:]
    weights = np.einsum(f"{axes}->nc", gradient) / 64
    places = axes.replace("n", "").replace("c", "")
    summed = np.einsum(f"{axes},nc->n{places}", values, weights)
    return np.maximum(summed.reshape(len(given), 8, 8), 0)


@pytest.mark.rows("R127")
@pytest.mark.parametrize(("net", "side", "axes"), [
    (vit(32, 4), 32, "ntc"), (swin(), 64, "nhwc"), (encoder(), 32, "ntc"),
    (encoder(is_batch_first=False), 32, "tnc")], ids=["vit", "swin", "rows", "tokens first"])
def test_maps_of_tokens_are_those_of_the_formula_without_the_class_token(
        net: nn.Module, side: int, axes: str) -> None:
    given = pictures(3, side)
    expected = by_hand(net, layer_of_maps(net, given).name, given, axes)
    found = look("tokens", net, given, torch.zeros(3, dtype=torch.long), batch_size=2)
    assert isinstance(found, View)
    assert expected.max() > 0, "nothing is tested"
    np.testing.assert_allclose(found.maps.numpy(), expected, rtol=1e-3, atol=1e-5 * expected.max())


class InPlace(nn.Module):
    """What the layer put out is changed behind it, in place and by no module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, given: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(given).mul_(-3).mean((2, 3)))
        return out


@pytest.mark.rows("R127")
def test_a_map_is_of_what_the_layer_put_out_whatever_is_made_of_it_in_place() -> None:
    torch.manual_seed(5)
    net, given = InPlace().eval(), pictures(3, 9)
    found = look("in place", net, given, torch.zeros(3, dtype=torch.long))
    assert isinstance(found, View)
    with torch.no_grad():
        values, classes = net.conv(given).numpy(), net(given).argmax(1)
    weights = -3 * net.head.weight.detach().numpy()[classes] / 81
    expected = np.maximum(np.einsum("nc,nchw->nhw", weights, values), 0)
    np.testing.assert_allclose(found.maps.numpy(), expected, atol=1e-6)
