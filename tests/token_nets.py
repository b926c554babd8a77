"""Tiny nets whose channels stand in the last dimension: attention, products, own parameters."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from made import Made, conv_norm, head, made
from torch import Tensor, nn
from torch.nn import functional as F

Dims = Mapping[str, tuple[int, ...]]  # own parameter -> dimensions along which it reads channels


class Attention(nn.Module):
    """Multi-head attention by hand. A cut takes columns of every head, or whole heads.

    is_fused: by PyTorch's operator, whose scale is 1 / sqrt(columns of a head); else the scale is
    a constant.
    """

    multiplied: ClassVar[tuple[str, ...]] = ("query", "key")  # channels of both meet in products

    def __init__(self, width: int, heads: int, columns: int, *, whole_heads: bool = False,
                 is_fused: bool = True) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, heads * columns) for _ in range(3))
        self.out = nn.Linear(heads * columns, width)
        self.heads, self.columns = (-1, columns) if whole_heads else (heads, -1)
        self.is_fused = is_fused

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).view(x.shape[0], x.shape[1], self.heads, self.columns).transpose(1, 2)
            for layer in (self.query, self.key, self.value))
        if self.is_fused:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query @ key.transpose(-2, -1) * 0.5).softmax(-1) @ value
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class TransformerBlock(nn.Module):
    def __init__(self, width: int, attend: nn.Module, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attend = attend
        self.wide, self.narrow = nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        out: Tensor = x + self.narrow(F.gelu(self.wide(self.norm2(x))))
        return out


class Transformer(nn.Module):
    """Patches, a class token and a place for every token."""

    def __init__(self, *blocks: nn.Module, width: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.label = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 5, width))
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.label.expand(len(x), -1, -1), tokens], 1) + self.places
        out: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return out


def vision_transformer() -> Made:
    return made(lambda: Transformer(TransformerBlock(6, Attention(6, 2, 4)),
                                    TransformerBlock(6, Attention(6, 2, 3))), (2, 3, 8, 8))


def attention_by_matmul() -> Made:
    return made(lambda: Transformer(TransformerBlock(6, Attention(6, 2, 4, is_fused=False))),
                (2, 3, 8, 8))


def attention_heads() -> Made:
    """The number of heads is open, their width is not."""
    return made(lambda: Transformer(
        TransformerBlock(6, Attention(6, 4, 3, whole_heads=True)),
        TransformerBlock(6, Attention(6, 3, 2, whole_heads=True, is_fused=False))), (2, 3, 8, 8))


class DividedWidth(Attention):
    """Its heads divide the width of its input: that and its own widths have to agree."""

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = (
            layer(x).view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value))
        mixed = (query @ key.transpose(-2, -1) * 0.5).softmax(-1) @ value
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(x.shape))
        return out


def divided_width() -> Made:
    return made(lambda: Transformer(TransformerBlock(12, DividedWidth(12, 2, 6, is_fused=False)),
                                    TransformerBlock(12, DividedWidth(12, 3, 4, is_fused=False)),
                                    width=12),
                (2, 3, 8, 8))


def rms_norm() -> Made:
    return made(lambda: Transformer(TransformerBlock(6, Attention(6, 2, 3), nn.RMSNorm)),
                (2, 3, 8, 8))


class Windows(nn.Module):
    """Attention in shifted windows of 2 x 2, with a bias for every relative position and head."""

    def __init__(self, width: int, heads: int, columns: int, *, is_fused: bool) -> None:
        super().__init__()
        self.columns, self.is_fused = columns, is_fused
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(heads * columns, width)
        self.together = nn.Linear(width, 3 * heads * columns)
        self.table = nn.Parameter(torch.randn(9, heads))
        places = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        offsets = places[:, None] - places[None] + 1
        self.register_buffer("index", (3 * offsets[..., 0] + offsets[..., 1]).flatten())

    def forward(self, x: Tensor) -> Tensor:  # (N, H, W, C)
        batch, height, width, _ = x.shape
        moved = self.norm(x).roll((-1, -1), (1, 2))
        cells = moved.view(batch, height // 2, 2, width // 2, 2, -1).transpose(2, 3)
        query, key, value = (self.together(cells.reshape(batch * 4, 4, -1))
                             .view(batch * 4, 4, 3, -1, self.columns)
                             .permute(2, 0, 3, 1, 4))
        bias = self.table[self.index].view(4, 4, -1).permute(2, 0, 1).unsqueeze(0)
        if self.is_fused:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        else:
            mixed = (query @ key.transpose(-2, -1) + bias).softmax(-1) @ value
        cells = self.out(mixed.transpose(1, 2).flatten(2))
        cells = cells.view(batch, height // 2, width // 2, 2, 2, -1).transpose(2, 3)
        out: Tensor = x + cells.reshape(x.shape).roll((1, 1), (1, 2))
        return out


class Swin(nn.Module):
    def __init__(self, *, is_fused: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 2, stride=2)
        self.windows = nn.Sequential(Windows(6, 3, 2, is_fused=is_fused),
                                     Windows(6, 2, 3, is_fused=is_fused))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.windows(self.patches(x).permute(0, 2, 3, 1))
        out: Tensor = self.head(self.norm(x).mean((1, 2)))
        return out


def windowed_attention() -> Made:
    return made(lambda: Swin(is_fused=False), (2, 3, 8, 8))


def windowed_attention_fused() -> Made:
    return made(lambda: Swin(is_fused=True), (2, 3, 8, 8))


class Mixer(nn.Module):
    """Linear layers over the tokens, whose rows are channels, and over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm1, self.norm2 = nn.Conv2d(3, 6, 4, 4), *(
            nn.LayerNorm(6) for _ in range(2))
        self.tokens = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4))
        self.channels = nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.head((x + self.channels(self.norm2(x))).mean(1))
        return out


def token_mixing() -> Made:
    return made(Mixer, (2, 3, 8, 8))


class OwnWeight(nn.Module):
    """x W + b with tensors of its own, (in, out); in two operators or in one."""

    reads: ClassVar[Dims] = {"weight": (0,)}

    def __init__(self, incoming: int, outgoing: int, *, is_one: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(incoming, outgoing) / incoming ** 0.5)
        self.shift = nn.Parameter(torch.randn(outgoing))
        self.is_one = is_one

    def forward(self, x: Tensor) -> Tensor:
        if self.is_one:
            return torch.addmm(self.shift, x, self.weight)
        return x @ self.weight + self.shift


class Turned(nn.Module):
    """(out, in) weights of its own, turned each time."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(outgoing, incoming) / incoming ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel.t()


def own_weight() -> Made:
    return made(lambda: nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), OwnWeight(8, 6), nn.Tanh(), Turned(6, 7), nn.Tanh(),
        OwnWeight(7, 6, is_one=True), nn.Linear(6, 3)), (4, 5))


class Equations(nn.Module):
    """Attention in einsum; the values have heads, of which each is mixed into the outputs."""

    multiplied: ClassVar[tuple[str, ...]] = ("query", "key")
    reads: ClassVar[Dims] = {"mix": (0,), "value": (1,), "out": (0, 1)}

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.query, self.key = nn.Conv2d(3, 6, 4, 4), *(
            nn.Linear(8, 5) for _ in range(2))
        self.mix = nn.Parameter(torch.randn(6, 8) / 3)
        self.value = nn.Parameter(torch.randn(3, 8, 4) / 3)
        self.out = nn.Parameter(torch.randn(3, 4, 5) / 3)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bcn, cd -> bnd", self.patches(x).flatten(2), self.mix)
        scores = torch.einsum("...nd,...md->...nm", self.query(x), self.key(x))
        values = torch.einsum("bmd,hde->bhme", x, self.value)
        mixed = torch.einsum("bnm,bhme->bnhe", scores.softmax(-1), values)
        out: Tensor = self.last(torch.einsum("bnhe,hec->bnc", mixed, self.out)).mean(1)
        return out


def equations() -> Made:
    return made(Equations, (2, 3, 8, 8))


class Language(nn.Module):
    """Words in; their table, turned, puts words out."""

    def __init__(self, is_tied: bool) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(7, 6), nn.LayerNorm(6)
        self.block = TransformerBlock(6, Attention(6, 2, 3))
        self.last = None if is_tied else nn.Linear(6, 7)

    def forward(self, words: Tensor) -> Tensor:
        x = self.norm(self.block(self.table(words)))
        out: Tensor = F.linear(x, self.table.weight) if self.last is None else self.last(x)
        return out


def _words() -> Tensor:
    return torch.tensor([[0, 3, 1, 5, 6], [2, 2, 4, 0, 5]])


def embedding() -> Made:
    return made(lambda: Language(is_tied=False), _words())


def tied_embedding() -> Made:
    return made(lambda: Language(is_tied=True), _words())


class TiedLinear(nn.Module):
    """h = W x + b, and W again, transposed, as another layer."""

    reads: ClassVar[Dims] = {"first.weight": (0, 1)}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.middle(F.relu(self.first(x)))
        out: Tensor = self.last(F.linear(hidden, self.first.weight.t()))
        return out


def tied_linear() -> Made:
    return made(TiedLinear, (4, 5))


class WidthScaled(nn.Module):
    """Attention whose scale is the width, asked for in Python: a trace sees a constant."""

    multiplied: ClassVar[tuple[str, ...]] = ("query", "key")

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.query, self.key = conv_norm(3, 6), *(nn.Conv2d(6, 8, 1) for _ in range(2))
        self.head = head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        query, key = self.query(x).flatten(2), self.key(x).flatten(2)
        scores = query.transpose(1, 2) @ key * query.shape[1] ** -0.5
        mixed = scores.softmax(-1) @ x.flatten(2).transpose(1, 2)
        out: Tensor = self.head(mixed.transpose(1, 2).reshape(x.shape))
        return out


def scale_by_width() -> Made:
    return made(WidthScaled, (2, 3, 4, 4))


ALL = (vision_transformer, attention_by_matmul, attention_heads, divided_width,
       rms_norm, windowed_attention,
       windowed_attention_fused, token_mixing, own_weight, equations, embedding, tied_embedding,
       tied_linear)
