"""Random small networks, composed of all pieces, and random plans: every certificate must hold.

FUZZ=1000 pytest tests/engine/test_fuzz.py draws a thousand cases instead of a few dozen.
"""

import copy
import os
from collections.abc import Callable, Mapping
from typing import ClassVar

import nets
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from token_nets import OwnWeight, Turned
from torch import Tensor, nn
from torch.nn import functional as F

from engine.by_hand import counted_macs, num_parameters, outputs, random_plan, run, silenced
from harness.engine.certificate import certify
from harness.engine.selection import Floors, select
from harness.engine.surgery import cut
from harness.engine.tracing import trace

NUM_CASES = int(os.environ.get("FUZZ", "24"))
SIZE = 6  # height and width of every map

Shared = dict[int, nn.Module]  # width -> a convolution that is used several times
Made = tuple[nn.Module, int]  # a piece, and how many channels it puts out


class Apply(nn.Module):
    """A function of one or two maps and of some layers."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.function(a, b, *self.layers)


def layer(module: nn.Module) -> Apply:
    return Apply(lambda a, _, layer: layer(a), module)


def plain(function: Callable[[Tensor], Tensor]) -> Apply:
    return Apply(lambda a, _: function(a))


def in_place(a: Tensor, b: Tensor, fit: nn.Module) -> Tensor:
    result = a.clone()
    result += fit(b)
    return result


def fit(a: int, b: int) -> nn.Module:
    return nn.Identity() if a == b else nn.Conv2d(b, a, 1)


def even(a: int, function: Callable[[Tensor], Tensor]) -> Apply:
    return plain(function if a % 2 == 0 else lambda x: x)


class Last(nn.Module):
    """A layer over maps whose channels are turned to the last dimension."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.permute(0, 2, 3, 1))
        return out.permute(0, 3, 1, 2)


class Tokens(nn.Module):
    """A layer over the places of maps."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.flatten(2).transpose(1, 2))
        return out.transpose(1, 2).unflatten(2, x.shape[2:])


class Equation(nn.Module):
    reads: ClassVar[Mapping[str, tuple[int, ...]]] = {"kernel": (0,)}

    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(incoming, outgoing))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nc...,cd->nd...", x, self.kernel)


# Called with the widths of both maps, a number that chooses, and what is shared.
PIECES: dict[str, Callable[[int, int, int, Shared], Made]] = {
    "conv": lambda a, b, n, s: (layer(nn.Conv2d(a, n, 3, padding=1)), n),
    "conv_norm": lambda a, b, n, s: (layer(nets.conv_norm(a, n)), n),
    "bias_free": lambda a, b, n, s: (layer(nn.Conv2d(a, n, 1, bias=False)), n),
    "grouped": lambda a, b, n, s: (
        layer(nn.Conv2d(a, 2 * n, 3, padding=1, groups=2 - a % 2)), 2 * n),
    "depthwise": lambda a, b, n, s: (layer(nets.conv_norm(a, a, groups=a)), a),
    "double": lambda a, b, n, s: (layer(nn.Conv2d(a, 2 * a, 3, padding=1, groups=a)), 2 * a),
    "transposed": lambda a, b, n, s: (layer(nn.ConvTranspose2d(a, n, 3, padding=1)), n),
    "shared": lambda a, b, n, s: (layer(s.setdefault(a, nn.Conv2d(a, a, 3, padding=1))), a),
    "norm": lambda a, b, n, s: (layer(nn.BatchNorm2d(a)), a),
    "prelu": lambda a, b, n, s: (layer(nn.PReLU(a if n % 2 else 1)), a),
    "gate": lambda a, b, n, s: (layer(nets.Gate(a)), a),
    "linear": lambda a, b, n, s: (Apply(
        lambda x, _, mix: F.gelu(mix(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2),
        nn.Linear(a, n)), n),
    "spatial_gate": lambda a, b, n, s: (
        Apply(lambda x, _, weigh: x * torch.sigmoid(weigh(x)), nn.Conv2d(a, 1, 1)), a),
    "add": lambda a, b, n, s: (Apply(lambda x, y, fit: x + fit(y), fit(a, b)), a),
    "add_in_place": lambda a, b, n, s: (Apply(in_place, fit(a, b)), a),
    "multiply": lambda a, b, n, s: (Apply(lambda x, y, fit: x * fit(y).sigmoid(), fit(a, b)), a),
    "concat": lambda a, b, n, s: (Apply(lambda x, y: torch.cat([x, y], 1)), a + b),
    "flip": lambda a, b, n, s: (plain(lambda x: x.flip(1, 2).roll(1, 3)), a),
    "swap_halves": lambda a, b, n, s: (
        even(a, lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), a),
    "half": lambda a, b, n, s: (even(a, lambda x: x.chunk(2, 1)[1]), a if a % 2 else a // 2),
    # Two channels in two groups of one look like a view that adds a dimension: refused when tried.
    "shuffle": lambda a, b, n, s: (layer(nets.Shuffle(2 if a % 2 == 0 and a > 2 else 1)), a),
    "relu": lambda a, b, n, s: (plain(F.relu), a),
    "relu_in_place": lambda a, b, n, s: (plain(lambda x: F.relu_(x.clone())), a),
    "pool": lambda a, b, n, s: (plain(lambda x: F.max_pool2d(x, 3, stride=1, padding=1)), a),
    "down_up": lambda a, b, n, s: (
        plain(lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")), a),
    "center": lambda a, b, n, s: (plain(lambda x: x - x.mean((2, 3), keepdim=True)), a),
    "dropout": lambda a, b, n, s: (layer(nn.Dropout2d(0.3)), a),
    "layer_norm": lambda a, b, n, s: (layer(nets.LayerNorm2d(a)), a),
    "rms_norm": lambda a, b, n, s: (layer(Last(nn.RMSNorm(a))), a),
    "group_norm": lambda a, b, n, s: (
        layer(nn.GroupNorm(2 if a % 2 == 0 and a > 2 else 1, a)), a),
    "norm_of_each": lambda a, b, n, s: (
        layer(nn.GroupNorm(a, a) if n % 2 else nn.InstanceNorm2d(a, affine=True)), a),
    "own_scale": lambda a, b, n, s: (layer(nets.Scale(a)), a),
    "own_weight": lambda a, b, n, s: (layer(Last(OwnWeight(a, n))), n),
    "turned_weight": lambda a, b, n, s: (layer(Last(Turned(a, n))), n),
    "einsum": lambda a, b, n, s: (layer(Equation(a, n)), n),
    "attention": lambda a, b, n, s: (layer(Tokens(nets.Attention(
        a, 2, n, whole_heads=n % 3 == 0, is_fused=n % 2 == 0))), a),
    "mix_columns": lambda a, b, n, s: (layer(nn.Linear(SIZE, SIZE)), a),
    "pixels": lambda a, b, n, s: (layer(nn.Sequential(
        nn.PixelUnshuffle(2), nn.Conv2d(4 * a, 4 * n, 1), nn.PixelShuffle(2))), n),
    "pixels_in_turn": lambda a, b, n, s: (layer(nn.Sequential(
        nn.Conv2d(a, 4 * n, 1), nn.PixelShuffle(2), nn.ReLU(), nn.PixelUnshuffle(2))), 4 * n),
    "gated_unit": lambda a, b, n, s: (
        layer(nn.Sequential(nn.Conv2d(a, 2 * n, 1), nn.GLU(1))), n),
    "pad": lambda a, b, n, s: (plain(lambda x: F.pad(x, (0, 0, 0, 0, n % 3, 1))), a + n % 3 + 1),
    "stack": lambda a, b, n, s: (
        Apply(lambda x, y, fit: torch.stack([x, fit(y)], 1).amax(1), fit(a, b)), a),
    "interleave": lambda a, b, n, s: (
        Apply(lambda x, y, fit: torch.stack([x, fit(y)], 2).flatten(1, 2), fit(a, b)), 2 * a),
    "grouped_transposed": lambda a, b, n, s: (
        layer(nn.ConvTranspose2d(a, 2 * n, 3, padding=1, groups=2 - a % 2)), 2 * n),
    "depthwise_transposed": lambda a, b, n, s: (
        layer(nn.ConvTranspose2d(a, a, 3, padding=1, groups=a)), a),
    "shuffle_module": lambda a, b, n, s: (
        layer(nn.ChannelShuffle(2 if a % 2 == 0 and a > 2 else 1)), a),
}
TAKE_TWO = ("add", "add_in_place", "multiply", "concat", "stack", "interleave")
Piece = tuple[str, int, int, int]


class Composed(nn.Module):
    """Every piece takes two of the values so far, all of them maps of one size."""

    def __init__(self, pieces: list[Piece], is_flat: bool, has_aux: bool) -> None:
        super().__init__()
        widths, shared = [4], Shared()
        self.stem, self.pieces = nets.conv_norm(3, 4), nn.ModuleList()
        self.sources: list[tuple[int, int]] = []
        for name, first, second, number in pieces:
            a, b = (len(widths) - 1 - i % len(widths) for i in (first, second))
            module, width = PIECES[name](widths[a], widths[b], 2 + number, shared)
            self.sources.append((a, b if name in TAKE_TWO else a))
            self.pieces.append(module)
            widths.append(width)
        taken = {i for source in self.sources for i in source}
        self.ends = [i for i in range(len(widths)) if i not in taken]
        self.is_flat = is_flat
        columns = sum(widths[i] for i in self.ends) * (SIZE * SIZE if is_flat else 1)
        self.head = nn.Linear(columns, 3)
        self.aux = nn.Conv2d(widths[len(widths) // 2], 2, 1) if has_aux else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        values = [self.stem(x)]
        for module, (a, b) in zip(self.pieces, self.sources, strict=True):
            values.append(module(values[a], values[b]))
        last = torch.cat([values[i] for i in self.ends], 1)
        out: Tensor = self.head(last.flatten(1) if self.is_flat else last.mean((2, 3)))
        if self.aux is not None and self.training:
            return out, self.aux(values[len(values) // 2])
        return out


small = st.integers(0, 5)
pieces = st.lists(st.tuples(st.sampled_from(sorted(PIECES)), small, small, small),
                  min_size=2, max_size=9)


# No shrinking: a failing case is small enough, and shrinking takes minutes.
@pytest.mark.rows("R005")
@settings(max_examples=NUM_CASES, derandomize=True, deadline=None, database=None,
          phases=[Phase.generate])
@given(pieces=pieces, is_flat=st.booleans(), has_aux=st.booleans(), seed=st.integers(0, 999))
def test_any_composition_is_cut_exactly(pieces: list[Piece], is_flat: bool, has_aux: bool,
                                        seed: int) -> None:
    """Certificate, silencing by hand, both counts, all gradients; and once more, from there."""
    model, example = nets.made(lambda: Composed(pieces, is_flat, has_aux), (3, 3, SIZE, SIZE))
    assert isinstance(example, Tensor)
    graph = trace(model, example)
    assert not graph.notes
    plan = random_plan(graph, seed)
    whole = copy.deepcopy(model)
    cut(model, graph.whole(), plan)
    certificate = certify(whole, model, graph, graph.whole(), plan, example)
    assert certificate.holds
    torch.testing.assert_close(run(model, (example,)), run(silenced(whole, plan), (example,)),
                               rtol=1e-8, atol=1e-9)
    # PyTorch's counter does not see the products of an equation that sums over one channel alone.
    is_counted = not any(name == "einsum" for name, *_ in pieces)
    cost = graph.cost(plan)
    assert cost.params == num_parameters(model)
    assert cost.macs == counted_macs(model, (example,)) or not is_counted
    loss = sum((o.square().mean() for o in outputs(model.train()(example))), torch.tensor(0.0))
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())

    scores = {g: torch.rand(len(kept)) for g, kept in plan.kept.items()}
    chosen = select(graph, scores, lambda _: False, start=plan, floors=Floors(layer_min=0.3))
    smaller = copy.deepcopy(model)
    cut(smaller, plan, chosen.plan)
    assert certify(model, smaller, graph, plan, chosen.plan, example).holds
    assert chosen.counts.macs == counted_macs(smaller, (example,)) or not is_counted
    assert chosen.counts.params == num_parameters(smaller)
