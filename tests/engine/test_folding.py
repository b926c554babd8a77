"""A channel that is constant whatever the input goes into the bias of who reads it: exactly."""

import copy
from collections.abc import Callable

import nets
import pytest
import torch
from torch import Tensor, nn

from engine.by_hand import as_tuple, outputs, snapshot
from harness.engine.folding import Folding, fold_constants
from harness.engine.surgery import cut
from harness.engine.tracing import trace

Killing = Callable[[nn.Module], None]


def unpadded() -> nets.Made:
    """Bias-free layers between norms, as in most networks; then layers with a bias."""
    return nets.made(lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
        nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), nn.SiLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(5, 4)), (2, 3, 10, 10))


def kill(model: nn.Module, norm: str, channels: list[int], bias: float = 0.7) -> None:
    """The norm multiplies these channels by zero, and adds a bias."""
    with torch.no_grad():
        model.get_parameter(f"{norm}.weight")[channels] = 0
        model.get_parameter(f"{norm}.bias")[channels] = bias


def silence(model: nn.Module, layer: str, channels: list[int]) -> None:
    """The layer's weights of these channels are zero; its bias is not."""
    with torch.no_grad():
        model.get_parameter(f"{layer}.weight")[channels] = 0


def folded(model: nn.Module, example: Tensor | tuple[Tensor, ...],
           kept: dict[str, list[int]]) -> tuple[nn.Module, Folding]:
    """A copy, folded and cut."""
    small = copy.deepcopy(model)
    graph = trace(model, example)
    plan = graph.plan(kept)
    found = fold_constants(small, graph, graph.whole(), plan, example)
    cut(small, graph.whole(), plan)
    return small, found


def same(one: nn.Module, other: nn.Module, shape: tuple[int, ...]) -> None:
    """On inputs that the folding never saw, far from those that it saw."""
    generator = torch.Generator().manual_seed(9)
    given = 3 * torch.randn(shape, generator=generator, dtype=torch.float64) + 1
    with torch.no_grad():
        expected = copy.deepcopy(one).double().eval()(given)
        got = copy.deepcopy(other).double().eval()(given)
    for e, g in zip(outputs(expected), outputs(got), strict=True):
        # Biases are kept in float32, the dense network's constants are not.
        torch.testing.assert_close(g, e, rtol=1e-5, atol=1e-5)


def test_removing_what_a_norm_has_killed_changes_nothing() -> None:
    """By hand: ReLU6(0.7) = 0.7 in two channels, read by a bias-free layer before a norm."""
    model, example = unpadded()
    kill(model, "1", [2, 5])
    small, found = folded(model, example, {"0": [0, 1, 3, 4, 6, 7]})
    assert found == Folding({"3": 2}, {})
    same(model, small, (5, 3, 10, 10))
    weight = model.get_parameter("3.weight")[:, [2, 5]].sum((1, 2, 3)).detach()
    old, new = model.get_buffer("4.running_mean"), small.get_buffer("4.running_mean")
    torch.testing.assert_close(old - new, 0.7 * weight)


@pytest.mark.parametrize(("net", "dead", "kept", "where"), [
    # a norm's zero, through SiLU and pooling, into the bias of a convolution
    (unpadded, lambda m: kill(m, "4", [0, 4], bias=-0.4), {"3": [1, 2, 3, 5]}, {"7": 2}),
    # a layer's zero rows: its bias, through tanh, into a linear layer
    (unpadded, lambda m: silence(m, "7", [1]), {"7": [0, 2, 3, 4]}, {"10": 1}),
    # all members of a sum must be dead
    (nets.residual, lambda m: [kill(m, n, [3]) for n in ("0.1", "1.second.1")],
     {"0.0": [0, 1, 2, 4, 5, 6, 7]}, {"2.around": 1}),
    # through a norm of one dimension; into a block of 4 x 4 columns; behind a 1-d convolution
    (nets.multilayer_perceptron, lambda m: silence(m, "0", [3]),
     {"0": [0, 1, 2, 4, 5, 6, 7]}, {"3": 1}),
    (nets.flatten, lambda m: kill(m, "0.1", [1]), {"0.0": [0, 2, 3, 4, 5]}, {"3": 16}),
    (nets.conv1d, lambda m: kill(m, "1", [1, 2]), {"0": [0, 3, 4, 5, 6, 7]}, {"4": 2}),
])
def test_constants_reach_the_next_bias(net: nets.Net, dead: Killing, kept: dict[str, list[int]],
                                       where: dict[str, int]) -> None:
    model, example = net()
    dead(model)
    small, found = folded(model, example, kept)
    assert found.channels == where
    if net is not nets.residual:  # there one of the readers pads
        assert found.refused == {}
        same(model, small, (3, *as_tuple(example)[0].shape[1:]))
    else:
        assert found.refused == dict.fromkeys(
            ["1.first.0", "2.first.0"],
            "zeros are padded to constant channels: the borders would differ")


def test_living_channels_are_silenced_as_ever() -> None:
    """A dead and a living one go: what is left is the dense one with the living one silenced."""
    model, example = unpadded()
    kill(model, "1", [2])
    small, found = folded(model, example, {"0": [0, 1, 3, 4, 6, 7]})
    assert found.channels == {"3": 1}
    with torch.no_grad():
        model.get_parameter("3.weight")[:, 5] = 0
    same(model, small, (5, 3, 10, 10))


def test_a_channel_that_is_saturated_on_the_data_is_not_dead() -> None:
    """ReLU6 puts out 6 for all that it was shown; other inputs would show another value."""
    model, example = unpadded()
    with torch.no_grad():
        model.get_parameter("1.bias")[2] = 1000.0
        model.get_parameter("1.bias")[3] = -1000.0
    _, found = folded(model, example, {"0": [0, 1, 4, 5, 6, 7]})
    assert found == Folding({}, {})


def test_one_dead_member_of_a_sum_is_not_a_dead_sum() -> None:
    """Constant is what the dead member's own reader sees, not what those of the sum see."""
    model, example = nets.residual()
    kill(model, "0.1", [3])
    _, found = folded(model, example, {"0.0": [0, 1, 2, 4, 5, 6, 7]})
    assert found.channels == {}
    assert set(found.refused) == {"1.first.0"}


def test_what_depends_on_the_input_behind_a_dead_layer_is_not_dead() -> None:
    """One channel weighs all others: a constant times it is none."""
    model, example = nets.spatial_gate()
    kill(model, "stem.1", [1])
    _, found = folded(model, example, {"stem.0": [0, 2, 3, 4, 5, 6, 7]})
    assert "head.2" not in found.channels


@pytest.mark.parametrize(("net", "dead", "kept", "layer", "why"), [
    (nets.chain, lambda m: kill(m, "0.1", [1]), {"0.0": [0, 2, 3, 4, 5, 6, 7]}, "2.0",
     "zeros are padded"),
    (nets.chain_without_norm, lambda m: silence(m, "0", [1]), {}, "2", ""),
    (nets.bias_free, lambda m: silence(m, "0", [1]), {"0": [0, 2, 3, 4, 5, 6, 7]}, "2", ""),
    (nets.tied_weights, lambda m: kill(m, "stem.1", [1]), {"stem.0": [0, 2, 3, 4, 5]}, "one",
     "its weight is used by other layers too"),
    (nets.grouped, lambda m: kill(m, "0.1", list(range(8))), {"0.0": [0]}, "1.0",
     "a grouped convolution"),
    (nets.functional, lambda m: kill(m, "0.stem.1", [1]), {"0.stem.0": [0, 2, 3, 4, 5]},
     "0.kernel", "not a convolution or linear module"),
])
def test_what_cannot_be_folded_is_named(net: nets.Net, dead: Killing, kept: dict[str, list[int]],
                                        layer: str, why: str) -> None:
    model, example = net()
    dead(model)
    before = snapshot(model)
    graph = trace(model, example)
    found = fold_constants(model, graph, graph.whole(), graph.plan(kept), example)
    assert found.channels == {}
    assert found.refused.get(layer, "").startswith(why)
    assert bool(found.refused) == bool(why)
    assert snapshot(model) == before


def test_no_place_for_a_constant() -> None:
    """No bias, no norm: a bias is not invented."""
    model, example = nets.made(lambda: nn.Sequential(
        nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 3, bias=False)), (2, 5))
    silence(model, "0", [2])
    _, found = folded(model, example, {"0": [0, 1, 3, 4, 5, 6, 7]})
    assert found.refused == {"2": "it has no bias, nor a batch norm of its own behind it"}


class Single(nn.Module):
    """Its forward insists on float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)
        self.turn = torch.eye(5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.sigmoid(self.first(x @ self.turn)))
        return out


def test_a_forward_in_single_precision_alone_is_not_folded() -> None:
    torch.manual_seed(0)
    model, example = Single(), torch.randn(2, 5)
    silence(model, "first", [2])
    before = snapshot(model)
    graph = trace(model, example)
    plan = graph.plan({"first": [0, 1, 3, 4, 5, 6, 7]})
    found = fold_constants(model, graph, graph.whole(), plan, example)
    assert "does not run in float64" in found.refused["second"]
    assert snapshot(model) == before


def test_a_network_cut_before_is_folded_too() -> None:
    """Channels keep their original numbers through both cuts."""
    model, example = unpadded()
    kill(model, "1", [5])
    graph = trace(model, example)
    half = graph.plan({"0": [0, 3, 5, 6], "3": [0, 2, 5]})
    cut(model, graph.whole(), half)
    dense, end = copy.deepcopy(model), graph.plan({"0": [0, 3, 6], "3": [0, 2, 5]})
    found = fold_constants(model, graph, half, end, example)
    cut(model, half, end)
    assert found == Folding({"3": 1}, {})
    same(dense, model, (4, 3, 10, 10))
