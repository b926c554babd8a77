"""One tiny net a topology, for tests of the engine: what it can cut, and what it must refuse.

A net is a function without arguments that gives (model, example): seeded, in eval mode, its batch
norms with random affine parameters and calibrated statistics, two different examples in the batch.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import ClassVar

import token_nets
import torch
from made import Made as Made
from made import Net as Net
from made import conv_norm as conv_norm
from made import head as head
from made import made as made
from made import name as name
from token_nets import Attention as Attention
from token_nets import scale_by_width as scale_by_width
from torch import Tensor, nn
from torch.nn import functional as F

# --- nets that can be cut -------------------------------------------------------------------------


def chain() -> Made:
    return made(lambda: nn.Sequential(conv_norm(3, 8), nn.MaxPool2d(2), conv_norm(8, 6), head(6)),
                (2, 3, 8, 8))


def chain_without_norm() -> Made:
    return made(lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 6, 3), nn.GELU(), head(6)),
        (2, 3, 8, 8))


def bias_free() -> Made:
    return made(lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.SiLU(), nn.Conv2d(8, 6, 3, bias=False), nn.Flatten(),
        nn.Linear(6 * 16, 4, bias=False)), (2, 3, 8, 8))


def multilayer_perceptron() -> Made:
    return made(lambda: nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(),
        nn.Linear(6, 3)), (2, 5))


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.first = conv_norm(incoming, outgoing)
        self.second = nn.Sequential(nn.Conv2d(outgoing, outgoing, 3, padding=1),
                                    nn.BatchNorm2d(outgoing))
        self.around = nn.Identity() if incoming == outgoing else nn.Conv2d(incoming, outgoing, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.first(x))
        out += self.around(x)
        result: Tensor = self.relu(out)
        return result


def residual() -> Made:
    return made(lambda: nn.Sequential(conv_norm(3, 8), Block(8, 8), Block(8, 6), head(6)),
                (2, 3, 8, 8))


class PreActivation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return x + out


def preactivation() -> Made:
    return made(lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), PreActivation(6), PreActivation(6), nn.BatchNorm2d(6),
        nn.ReLU(), head(6)), (2, 3, 8, 8))


class Dense(nn.Module):
    """Every layer reads all before it, through a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), head(18)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        out: Tensor = self.head(torch.cat(features, 1))
        return out


def dense_concat() -> Made:
    return made(Dense, (2, 3, 8, 8))


class UNet(nn.Module):
    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.down, self.middle = conv_norm(3, 6), conv_norm(6, 8)
        self.up: nn.Module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        if transposed:
            self.up = nn.ConvTranspose2d(8, 5, 2, stride=2)
        self.join = conv_norm(6 + (5 if transposed else 8), 6)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        deep = self.up(self.middle(F.max_pool2d(skip, 2)))
        out: Tensor = self.last(self.join(torch.cat([skip, deep], 1)))
        return out


def unet_transposed() -> Made:
    return made(lambda: UNet(True), (2, 3, 8, 8))


def unet_bilinear() -> Made:
    return made(lambda: UNet(False), (2, 3, 8, 8))


def grouped() -> Made:
    return made(lambda: nn.Sequential(
        conv_norm(3, 8), conv_norm(8, 12, groups=4), conv_norm(12, 6, groups=2), head(6)),
        (2, 3, 8, 8))


def depthwise() -> Made:
    return made(lambda: nn.Sequential(
        conv_norm(3, 8), conv_norm(8, 8, groups=8), conv_norm(8, 6, 1), head(6)), (2, 3, 8, 8))


def depthwise_multiplier() -> Made:
    return made(lambda: nn.Sequential(
        conv_norm(3, 5), conv_norm(5, 10, groups=5), conv_norm(10, 6, 1), head(6)), (2, 3, 8, 8))


def depthwise_on_input() -> Made:
    """The filters of a depthwise layer on the picture itself have no channel to go with."""
    return made(lambda: nn.Sequential(conv_norm(3, 6, groups=3), conv_norm(6, 5), head(5)),
                (2, 3, 8, 8))


class Concatenated(nn.Module):
    """Two layers side by side; then a depthwise one over both, or a sum with a third."""

    def __init__(self, is_sum: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), conv_norm(3, 6)
        self.c = nn.Conv2d(3, 10, 1) if is_sum else None
        self.over = nn.Identity() if is_sum else conv_norm(10, 10, groups=10)
        self.head = head(10)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.a(x), self.b(x)], 1)
        out: Tensor = self.head(self.over(both + self.c(x) if self.c else both))
        return out


def depthwise_over_concat() -> Made:
    return made(lambda: Concatenated(False), (2, 3, 6, 6))


def sum_with_concat() -> Made:
    """A group whose layers write different parts of it: none may be emptied."""
    return made(lambda: Concatenated(True), (2, 3, 6, 6))


class Shuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.view(batch, self.groups, channels // self.groups, height, width)
        return x.transpose(1, 2).reshape(batch, -1, height, width)


def channel_shuffle() -> Made:
    return made(lambda: nn.Sequential(
        conv_norm(3, 8), conv_norm(8, 12, groups=4), Shuffle(4), conv_norm(12, 12, groups=12),
        conv_norm(12, 6, 1), head(6)), (2, 3, 8, 8))


class Chunk(nn.Module):
    """ShuffleNet V2: half of the channels pass by, then both halves are mixed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.side, self.shuffle = conv_norm(channels // 2, channels // 2), Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, dim=1)
        out: Tensor = self.shuffle(torch.cat([one, self.side(other)], 1))
        return out


def chunk() -> Made:
    return made(lambda: nn.Sequential(conv_norm(3, 16), Chunk(16), Chunk(16), head(16)),
                (2, 3, 8, 8))


def flatten() -> Made:
    """Each channel is a block of H x W columns of the linear layer."""
    return made(lambda: nn.Sequential(
        conv_norm(3, 6), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6 * 16, 10), nn.ReLU(),
        nn.Linear(10, 4)), (2, 3, 8, 8))


class Shared(nn.Module):
    """One module called three times, at two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = conv_norm(3, 6), nn.Conv2d(6, 6, 3, padding=1), head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.again(x))
        x = F.relu(self.again(F.max_pool2d(x, 2)))
        out: Tensor = self.head(self.again(x))
        return out


def shared_module() -> Made:
    return made(Shared, (2, 3, 8, 8))


class Tied(nn.Module):
    """Two modules that hold one weight, each with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_norm(3, 6), head(6)
        self.one, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.two.weight = self.one.weight
        self.norm1, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.one(self.stem(x))))
        out: Tensor = self.head(F.relu(self.norm2(self.two(x))))
        return out


def tied_weights() -> Made:
    return made(Tied, (2, 3, 8, 8))


class Autoencoder(nn.Module):
    """The decoder uses the encoder's weight, transposed by its operator."""

    reads: ClassVar[Mapping[str, tuple[int, ...]]] = {"encode.weight": (0, 1)}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.encode, self.last = conv_norm(3, 6), nn.Conv2d(6, 8, 3), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.encode(self.stem(x)))
        out: Tensor = self.last(F.conv_transpose2d(code, self.encode.weight))
        return out


def tied_transposed() -> Made:
    return made(Autoencoder, (2, 3, 8, 8))


class Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.up(F.relu(self.down(pooled))))


def squeeze_excite() -> Made:
    return made(lambda: nn.Sequential(conv_norm(3, 8), Gate(8), conv_norm(8, 6), head(6)),
                (2, 3, 8, 8))


class SpatialGate(nn.Module):
    """One channel weighs all channels of another value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.weigh, self.head = conv_norm(3, 8), nn.Conv2d(8, 1, 3, padding=1), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out: Tensor = self.head(x * torch.sigmoid(self.weigh(x)))
        return out


def spatial_gate() -> Made:
    return made(SpatialGate, (2, 3, 8, 8))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.pool = conv_norm(3, 4, 1), conv_norm(3, 2, 1)
        self.three = nn.Sequential(conv_norm(3, 6, 1), conv_norm(6, 7))

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(F.avg_pool2d(x, 3, stride=1, padding=1))
        return torch.cat([self.one(x), self.three(x), pooled], 1)


class SideBySide(nn.Module):
    """Two maps joined in space, and two batches joined: their channels go alike."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.mix = conv_norm(3, 8), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.cat([self.one(x), self.two(x)], 3)
        both = torch.cat([self.mix(wide), self.mix(wide.flip(1, 2).flip(1).roll(1, 3))], 0)
        return torch.cat(self.last(both).chunk(2, 0), 1)


def concat_in_space() -> Made:
    return made(SideBySide, (2, 3, 8, 8))


def branches() -> Made:
    return made(lambda: nn.Sequential(Branches(), conv_norm(13, 6), head(6)), (2, 3, 8, 8))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector, self.head = conv_norm(3, 6), nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        out: Tensor = self.head(self.image(image).mean((2, 3)) + self.vector(vector))
        return out


def two_inputs() -> Made:
    return made(TwoInputs, (2, 3, 8, 8), (2, 5))


class Outputs(nn.Module):
    def __init__(self, is_dict: bool) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv_norm(3, 8), head(8), nn.Conv2d(8, 2, 1)
        self.is_dict = is_dict

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        x = self.stem(x)
        if self.is_dict:
            return {"label": self.one(x), "map": self.two(x)}
        return self.one(x), self.two(x)


def two_outputs() -> Made:
    return made(lambda: Outputs(False), (2, 3, 8, 8))


def dict_output() -> Made:
    return made(lambda: Outputs(True), (2, 3, 8, 8))


class Functional(nn.Module):
    """Two convolutions with parameters of its own, by names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_norm(3, 6), head(5)
        self.kernel = nn.Parameter(torch.randn(8, 6, 3, 3))
        self.shift = nn.Parameter(torch.randn(8))
        self.second = nn.Parameter(torch.randn(5, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(self.stem(x), weight=self.kernel, bias=self.shift))
        out: Tensor = self.head(F.conv2d(x, self.second))
        return out


def functional() -> Made:
    return made(lambda: nn.Sequential(Functional(), nn.ReLU(), nn.Linear(4, 3)), (2, 3, 8, 8))


def conv1d() -> Made:
    return made(lambda: nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 6, 3),
        nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(12, 4)), (2, 3, 16))


def conv3d() -> Made:
    return made(lambda: nn.Sequential(
        nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.ConvTranspose3d(6, 5, 2),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(5, 3)), (2, 2, 5, 6, 6))


class Auxiliary(nn.Module):
    """A second head that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv_norm(3, 8), conv_norm(8, 6), head(6)
        self.aux = nn.Sequential(conv_norm(8, 5, 1), nn.Flatten(), nn.Linear(5 * 64, 4))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x)
        out: Tensor = self.head(self.body(x))
        return (out, self.aux(x)) if self.training else out


def auxiliary_head() -> Made:
    return made(Auxiliary, (2, 3, 8, 8))


class PlainTensor(nn.Module):
    """Tensors that are neither parameters nor buffers; one is kept by the forward for later."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv_norm(3, 8), conv_norm(8, 6), head(6)
        self.scale = torch.tensor([[[[2.0]]]])
        self.places: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.places is None:
            self.places = torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)
        out: Tensor = self.head(self.body(self.stem(x) * self.scale + self.places))
        return out


def plain_tensor() -> Made:
    return made(PlainTensor, (2, 3, 8, 8))


def slopes() -> Made:
    """One learned slope a channel; norms without scale, and with cumulative statistics."""
    return made(lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6, affine=False),
        nn.PReLU(), nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5, momentum=None), head(5)), (2, 3, 8, 8))


class ChannelsLast(nn.Module):
    """Channels in the last dimension for a while, and a linear layer over them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.last = conv_norm(3, 8), nn.Linear(8, 6), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.mix(self.stem(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        places = torch.linspace(0, 1, x.shape[-1])  # made here, on the default device
        out: Tensor = self.last((x + places)[:, :, ::2]).flatten(2).mean(-1)
        return out


def channels_last() -> Made:
    return made(ChannelsLast, (2, 3, 8, 8))


def group_norm() -> Made:
    """Several channels a group, and all of them in one."""
    return made(lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.GroupNorm(1, 6),
        nn.ReLU(), head(6)), (2, 3, 8, 8))


def group_norm_of_each() -> Made:
    """One channel a group: groups go."""
    return made(lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(8, 8), nn.ReLU(), nn.Conv2d(8, 6, 3), head(6)),
        (2, 3, 8, 8))


def instance_norm() -> Made:
    """Statistics of each map, and running ones."""
    return made(lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 6, 3),
        nn.InstanceNorm2d(6, affine=True, track_running_stats=True), nn.ReLU(),
        head(6)), (2, 3, 8, 8))


def layer_norm_of_maps() -> Made:
    """Over channels and places together."""
    return made(lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.LayerNorm([8, 6, 6]), nn.GELU(), nn.Conv2d(8, 6, 3), head(6)),
        (2, 3, 8, 8))


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of maps."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.wide, self.narrow = nn.Linear(width, 10), nn.Linear(10, width)
        self.scale = nn.Parameter(torch.rand(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.spread(x).permute(0, 2, 3, 1))
        out = self.narrow(F.gelu(self.wide(out))).permute(0, 3, 1, 2)
        return x + self.scale * out


def convnext() -> Made:
    return made(lambda: nn.Sequential(
        nn.Conv2d(3, 6, 2, 2), LayerNorm2d(6), ConvNeXtBlock(6), ConvNeXtBlock(6), LayerNorm2d(6),
        nn.Conv2d(6, 7, 2, 2), ConvNeXtBlock(7), head(7)), (2, 3, 8, 8))


class Scale(nn.Module):
    """A factor and a summand for each channel, one of them computed from a parameter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.shift = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.exp() + self.shift.view(1, -1, 1, 1)


def own_scale() -> Made:
    return made(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Scale(8), nn.ReLU(), nn.Conv2d(8, 6, 3),
                                      nn.ReLU(), head(6)), (2, 3, 8, 8))


def gated_linear_unit() -> Made:
    """The first half of the channels is weighed by the second."""
    return made(lambda: nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.GLU(1), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(5 * 16, 8),
        nn.GLU(), nn.Linear(4, 3)), (2, 3, 8, 8))


def pixel_shuffle() -> Made:
    """Four channels become one of four times the size, and back."""
    return made(lambda: nn.Sequential(
        conv_norm(3, 12), nn.PixelShuffle(2), conv_norm(3, 5), nn.PixelUnshuffle(2),
        nn.Conv2d(20, 6, 1), nn.ReLU(), head(6)), (2, 3, 6, 6))


def channel_shuffle_module() -> Made:
    return made(lambda: nn.Sequential(
        conv_norm(3, 8), nn.Conv2d(8, 12, 3, groups=2), nn.ChannelShuffle(2),
        conv_norm(12, 12, groups=12), nn.Conv2d(12, 6, 1), head(6)), (2, 3, 8, 8))


class Padded(nn.Module):
    """CIFAR ResNets, option A: every second pixel, and zeros for the channels that are new."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(6, 10, 3, stride=2, padding=1), nn.BatchNorm2d(10),
                                   nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(10, 10, 3, padding=1), nn.BatchNorm2d(10))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x))
                      + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))


def padded_shortcut() -> Made:
    return made(lambda: nn.Sequential(conv_norm(3, 6), Padded(), head(10)), (2, 3, 8, 8))


class BesideInput(nn.Module):
    """Channels of a layer stand beside those of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv_norm(3, 5), nn.Conv2d(3, 8, 1), head(8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([self.first(x), x], 1) * self.second(x))
        return out


def beside_input() -> Made:
    return made(BesideInput, (2, 3, 8, 8))


def grouped_transposed() -> Made:
    return made(lambda: nn.Sequential(
        conv_norm(3, 8), nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), nn.BatchNorm2d(6),
        nn.ReLU(), nn.Conv2d(6, 5, 1), head(5)), (2, 3, 6, 6))


def depthwise_transposed() -> Made:
    return made(lambda: nn.Sequential(
        conv_norm(3, 8), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8), nn.ReLU(),
        nn.Conv2d(8, 5, 1), head(5)), (2, 3, 6, 6))


class Stacked(nn.Module):
    """Two values along a new dimension, reduced away again or laid out channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (conv_norm(3, 8), nn.Conv2d(3, 8, 3, padding=1),
                                          nn.Conv2d(8, 5, 1))
        self.four, self.head = nn.Conv2d(8, 5, 1), head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([self.one(x), self.two(x)], 1).amax(1)
        both = torch.stack([self.three(x), F.relu(self.four(x))], 2).flatten(1, 2)
        out: Tensor = self.head(both)
        return out


def stacked() -> Made:
    return made(Stacked, (2, 3, 8, 8))


class Shares(nn.Module):
    """Some channels go through a layer, the others pass; their number is asked for in Python."""

    def __init__(self, ways: str) -> None:
        super().__init__()
        self.stem, self.side, self.mix = conv_norm(3, 8), conv_norm(4, 4), conv_norm(8, 6, 1)
        self.head, self.ways = head(6), ways

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        half = x.shape[1] // 2
        if self.ways == "slices":
            one, other = x[:, :half], x[:, half:]
        else:
            one, other = x.split(half if self.ways == "split" else [half, half], 1)
        out: Tensor = self.head(self.mix(torch.cat([self.side(one), other], 1)))
        return out


def shares_by_slices() -> Made:
    return made(lambda: Shares("slices"), (2, 3, 8, 8))


def shares_by_split() -> Made:
    return made(lambda: Shares("split"), (2, 3, 8, 8))


def shares_by_sizes() -> Made:
    return made(lambda: Shares("sizes"), (2, 3, 8, 8))


class ShiftInTime(nn.Module):
    """A quarter of the channels comes from the next picture, a quarter from the one before."""

    def forward(self, x: Tensor) -> Tensor:
        pictures = x.view(-1, 2, *x.shape[1:])
        quarter, shifted = x.shape[1] // 4, torch.zeros_like(pictures)
        shifted[:, :-1, :quarter] = pictures[:, 1:, :quarter]
        shifted[:, 1:, quarter:2 * quarter] = pictures[:, :-1, quarter:2 * quarter]
        shifted[:, :, 2 * quarter:] = pictures[:, :, 2 * quarter:]
        return shifted.view(x.shape)


def shift_in_time() -> Made:
    return made(lambda: nn.Sequential(conv_norm(3, 8), ShiftInTime(), conv_norm(8, 6), head(6)),
                (4, 3, 8, 8))


class Film(nn.Module):
    """A scale and a shift for every channel, from another input, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.both = nn.Conv2d(3, 8, 3), nn.Linear(5, 16)
        self.mix, self.head = nn.Conv2d(8, 6, 1), head(6)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x, both = self.stem(x), self.both(condition)[..., None, None]
        x = F.relu(x * both[:, : x.shape[1]] + both[:, x.shape[1]:])
        out: Tensor = self.head(self.mix(x))
        return out


def scale_and_shift() -> Made:
    return made(Film, (2, 3, 8, 8), (2, 5))


class Unpool(nn.Module):
    """Indices of one value's maxima, used for another."""

    def __init__(self) -> None:
        super().__init__()
        self.between = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled, indices = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(self.between(pooled), indices, [2, 2])


def unpool() -> Made:
    return made(lambda: nn.Sequential(conv_norm(3, 8), Unpool(), nn.Conv2d(8, 6, 1), head(6)),
                (2, 3, 8, 8))


class Patches(nn.Module):
    """Patches as columns, mixed, and put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.narrow = conv_norm(3, 6), nn.Linear(24, 7), nn.Linear(7, 24)
        self.apart, self.together = nn.Unfold(2, stride=2), nn.Fold((8, 8), 2, stride=2)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        columns = self.apart(x).transpose(1, 2)
        columns = self.narrow(F.gelu(self.wide(columns))).transpose(1, 2)
        out: Tensor = self.last(x + self.together(columns))
        return out


def unfold_and_fold() -> Made:
    return made(Patches, (2, 3, 8, 8))


class Warped(nn.Module):
    """Maps are sampled at places that a layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.flow, self.last = conv_norm(3, 8), nn.Conv2d(8, 2, 3, padding=1), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        grid = torch.tanh(self.flow(x)).permute(0, 2, 3, 1)
        out: Tensor = self.last(F.grid_sample(x, grid, align_corners=False))
        return out


def warped() -> Made:
    return made(Warped, (2, 3, 8, 8))


class Factored(nn.Module):
    """Weights times a mask, and times a factor for each filter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), head(6)
        self.factor = nn.Parameter(torch.rand(8, 1, 1, 1) + 0.5)
        self.register_buffer("mask", (torch.rand(6, 8, 3, 3) > 0.3).float())

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.stem.weight * self.factor / 2, self.stem.bias))
        x = F.conv2d(x, self.get_buffer("mask") * self.mix.weight, self.mix.bias)
        out: Tensor = self.head(F.relu(x))
        return out


def factored_weights() -> Made:
    return made(Factored, (2, 3, 8, 8))


class Inner(nn.Module):
    """Its features come under a rule of their own, which is a graph within the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.hidden, self.last = conv_norm(3, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            features = self.trunk(x).mean((2, 3))
        out: Tensor = self.last(F.relu(self.hidden(features)))
        return out


def without_autocast() -> Made:
    return made(Inner, (2, 3, 8, 8))


class TwoWays(nn.Module):
    """Two vectors meet in one weight of three dimensions."""

    reads: ClassVar[Mapping[str, tuple[int, ...]]] = {"meet.weight": (1, 2)}

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 8), nn.Linear(4, 7)
        self.meet, self.last = nn.Bilinear(8, 7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.last(F.relu(self.meet(F.relu(self.one(x)), F.relu(self.two(y)))))
        return out


def bilinear() -> Made:
    return made(TwoWays, (4, 5), (4, 4))


class WideAndNarrow(nn.Module):
    """Octave convolution's end: vectors of two widths, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.last = conv_norm(3, 8), conv_norm(3, 5), nn.Linear(13, 3)

    def forward(self, x: Tensor) -> Tensor:
        small = self.narrow(F.avg_pool2d(x, 2))
        out: Tensor = self.last(torch.hstack((self.wide(x).mean((2, 3)), small.mean((2, 3)))))
        return out


def horizontal_stack() -> Made:
    return made(WideAndNarrow, (2, 3, 8, 8))


class FixedFeatures(nn.Module):
    """Sines and cosines of fixed random projections: no learned weight writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(3, 6))
        self.first, self.second = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        angles = x @ self.get_buffer("frequencies")
        waves = torch.cat([angles.sin(), angles.cos()], 1)
        out: Tensor = self.second(torch.tanh(self.first(waves)))
        return out


def fixed_features() -> Made:
    return made(FixedFeatures, (4, 3))


class Ranked(nn.Module):
    """Sorting, choosing and windows beside the channels; and their halves, in another word."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.last = conv_norm(3, 8), nn.Conv2d(4, 6, 1), nn.Linear(6, 3)
        self.register_buffer("columns", torch.tensor([0, 3, 5]))

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.stem(x).tensor_split(2, 1)
        x = self.mix((one * other).index_select(3, self.get_buffer("columns")))
        x = x.unfold(2, 4, 2).amax(-1).flatten(2).sort(-1)[0]
        out: Tensor = self.last(x.topk(2, -1).values.mean(-1))
        return out


def ranked() -> Made:
    return made(Ranked, (2, 3, 8, 8))


ALL: tuple[Net, ...] = (
    chain, chain_without_norm, bias_free, multilayer_perceptron, residual, preactivation,
    dense_concat, unet_transposed, unet_bilinear, grouped, depthwise, depthwise_multiplier,
    depthwise_on_input, depthwise_over_concat, sum_with_concat, channel_shuffle, chunk, flatten,
    shared_module, tied_weights, tied_transposed, squeeze_excite, spatial_gate, branches,
    concat_in_space, two_inputs, two_outputs, dict_output, functional, conv1d, conv3d,
    auxiliary_head, plain_tensor, slopes, channels_last, group_norm, group_norm_of_each,
    instance_norm, layer_norm_of_maps, convnext, own_scale, gated_linear_unit, pixel_shuffle,
    channel_shuffle_module, padded_shortcut, beside_input, grouped_transposed,
    depthwise_transposed, stacked, shares_by_slices, shares_by_split, shares_by_sizes,
    shift_in_time, scale_and_shift, unpool, unfold_and_fold, warped, factored_weights,
    without_autocast, bilinear, horizontal_stack, fixed_features, ranked,
    *token_nets.ALL)


# --- nets of which a part must be refused by name -------------------------------------------------


class Middle(nn.Module):
    """conv -> something that cannot be cut through -> conv; the first is to be refused."""

    def __init__(self, middle: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(channels, 6, 1)
        self.middle, self.head = middle, head(6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.second(self.middle(self.first(x))))
        return out


def middle(build: Callable[[], Callable[[Tensor], Tensor]], channels: int = 8) -> Net:
    return lambda: made(lambda: Middle(build(), channels), (2, 3, 8, 8))


class PackedAttention(nn.Module):
    """PyTorch's own module, which holds its width as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        out: Tensor = self.attend(tokens, tokens, tokens, need_weights=False)[0]
        return out.transpose(1, 2).reshape(x.shape)


def spectral_norm() -> Made:
    """PyTorch's old hook: all weights are divided by a number that is computed from them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is said to go, but is still about
        return made(lambda: nn.Sequential(
            nn.Linear(5, 8), nn.ReLU(), nn.utils.spectral_norm(nn.Linear(8, 6)), nn.ReLU(),
            nn.Linear(6, 3)), (4, 5))


def size_in_view() -> Made:
    """The number of columns stands in the forward."""

    class View(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
            self.last = nn.Linear(6 * 64, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.second(F.relu(self.first(x))).view(-1, 384))
            return out

    return made(View, (2, 3, 8, 8))


class HeadsInNumbers(nn.Module):
    """Both the number of the heads and their width stand in the view."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 12)
        self.last = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.mix(x.flatten(2).transpose(1, 2))
        heads = tokens.view(len(x), -1, 3, 4).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        out: Tensor = self.last(mixed).transpose(1, 2).reshape(len(x), -1, 8, 8)
        return out


class ReadAtPlaces(nn.Module):
    """What a channel holds is a place in a table; then the mean over all of them."""

    def __init__(self, is_layer: bool) -> None:
        super().__init__()
        self.table, self.is_layer = nn.Embedding(4, 8), is_layer

    def forward(self, x: Tensor) -> Tensor:
        places = (x.mean((2, 3)).sigmoid() * 3.99).long()
        rows = self.table(places) if self.is_layer else self.table.weight[places]
        return rows.mean(1)[:, :, None, None]


class AskedByChannels(nn.Module):
    """Attention whose queries are the channels: a mean over them depends on their number."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 64))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.table.expand(len(x), -1, -1)
        mixed = F.scaled_dot_product_attention(x.flatten(2), tokens, tokens)
        return mixed.mean(1).view(-1, 1, 8, 8)


# net -> (the group that is to be refused, words of the reason)
REFUSED: dict[str, tuple[Net, str, str]] = {
    "norm_without_scale": (middle(lambda: nn.GroupNorm(1, 8, affine=False)), "first",
                           "no scale of its own that could shrink"),
    "attention": (middle(PackedAttention), "middle.attend.in_proj_weight",
                  "size written in forward"),
    "softmax": (middle(lambda: nn.Softmax(dim=1)), "first",
                "softmax works along the dimension that holds them"),
    "response_norm": (middle(lambda: nn.LocalResponseNorm(3)), "first",
                      "dimension that holds them"),
    "pool_over_channels": (
        middle(lambda: lambda x: F.max_pool3d(x.unsqueeze(1), (3, 1, 1), 1, (1, 0, 0)).squeeze(1)),
        "first", "max_pool3d works along the dimension that holds them"),
    "roll_of_channels": (middle(lambda: lambda x: x.roll(1, 1)), "first",
                         "roll works along the dimension that holds them"),
    "shift_of_channels": (middle(lambda: lambda x: F.pad(x, (0, 0, 0, 0, 1, -1))), "first",
                          "pad works along the dimension that holds them"),
    "split_at_places": (middle(lambda: lambda x: x.split([2, 6], 1)[1], 6), "first",
                        "size written in forward"),
    "shuffle_between_groups": (lambda: made(lambda: nn.Sequential(
        conv_norm(3, 16), conv_norm(16, 16, groups=4), Shuffle(4), conv_norm(16, 16, groups=4),
        head(16)), (2, 3, 8, 8)), "1.0", "all of its channels can only go together"),
    "uneven_chunk": (middle(lambda: lambda x: x.chunk(3, 1)[0], 3), "first",
                     "size written in forward"),
    "some_taken": (middle(lambda: lambda x: x[:, 2:6], 4), "first", "size written in forward"),
    "mean_over_channels": (middle(lambda: lambda x: x.mean(1, keepdim=True), 1), "first",
                           "mean mixes them"),
    "places_of_samples": (warped, "flow", "the places at which another value is sampled"),
    "weights_by_a_norm": (spectral_norm, "2.weight_orig", "a number computed from all of them"),
    "fixed_features": (fixed_features, "frequencies", "only buffers write them"),
    "unequal_shares": (middle(lambda: lambda x: x[:, : x.shape[1] // 2 + 2], 6), "first",
                       "size written in forward"),
    "size_in_view": (size_in_view, "second", "size written in forward"),
    "heads_in_numbers": (middle(HeadsInNumbers), "middle.mix", "size written in forward"),
    "sum_over_channels": (middle(lambda: lambda x: x.cumsum(1)), "first",
                          "cumsum works along the dimension that holds them"),
    "diagonal": (middle(lambda: lambda x: torch.einsum("bccw->bcw", x).unsqueeze(3)), "first",
                 "has no rule"),
    "places_from_a_table": (middle(lambda: lambda x: x[:, [0, 3, 4]], 3), "first",
                            "size written in forward"),
    "variance_of_all": (middle(lambda: lambda x: x / (1 + x.var(unbiased=False))), "first",
                        "var mixes them"),
    "places_in_an_embedding": (middle(lambda: ReadAtPlaces(True)), "first",
                               "the places at which another value is sampled"),
    "places_in_a_parameter": (middle(lambda: ReadAtPlaces(False)), "first",
                              "the places at which another value is sampled"),
    "queries": (middle(AskedByChannels, 1), "first", "attention mixes them"),
    "computed_kernel": (middle(lambda: lambda x: F.conv2d(x, x[:1, :, :3, :3] ** 2), 1), "first",
                        "its reader computes its weights on the fly"),
}
