"""The certificate holds for right cuts, fails for wrong ones, and knows that it could fail."""

import copy
from dataclasses import replace

import nets
import pytest
import token_nets
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.by_hand import random_plan, run, silenced, snapshot, traced
from harness.engine.certificate import Certificate, certify
from harness.engine.graph import Graph, Plan, Slice
from harness.engine.surgery import cut
from harness.engine.tracing import trace
from harness.errors import SurgeryError


def certified(model: nn.Module, graph: Graph, plan: Plan, example: tuple[Tensor, ...],
              wrong: Plan | None = None) -> Certificate:
    """Cut a copy by `wrong` (default: rightly) and certify it as cut by `plan`."""
    small = copy.deepcopy(model)
    cut(small, graph.whole(), wrong or plan)
    return certify(model, small, graph, graph.whole(), plan, example)


@pytest.mark.parametrize("net", nets.ALL, ids=nets.name)
def test_a_right_cut_is_certified(net: nets.Net) -> None:
    """It holds, and a wrong one would have been noticed."""
    model, example, graph = traced(net)
    kept = {g.name: [c for c in range(g.channels) if c % 3] for g in graph.groups}
    certificate = certified(model, graph, graph.plan(kept), example)
    assert certificate.dtype == "float64"
    assert certificate.difference <= 1e-12
    assert certificate.certified


def test_the_difference_is_measured_in_spreads_of_the_outputs() -> None:
    """By hand: largest difference of any output, over the largest range of one over the batch."""
    model, example, graph = traced(nets.chain)
    plan, other = (graph.plan({"0.0": channels}) for channels in ([0, 1, 2], [1, 2, 3]))
    small = copy.deepcopy(model)
    cut(small, graph.whole(), other)
    certificate = certify(model, small, graph, graph.whole(), plan, example)
    (whole,), (expected,), (got,) = (run(m, example) for m in (model, silenced(model, plan), small))
    spread = (whole.max(dim=0).values - whole.min(dim=0).values).max()
    assert certificate.difference == pytest.approx(float((expected - got).abs().max() / spread))


@pytest.mark.parametrize("net", nets.ALL, ids=nets.name)
def test_cutting_other_channels_is_noticed(net: nets.Net) -> None:
    """One channel goes, the certificate is asked for another."""
    model, example, graph = traced(net)
    found = 0
    for group in graph.groups:
        first, second = (graph.plan({group.name: [c for c in range(group.channels) if c != gone]})
                         for gone in (0, group.channels - 1))
        certificate = certified(model, graph, first, example, wrong=second)
        if group.name.startswith("aux"):  # eval mode does not run it
            assert certificate.difference == 0.0
            continue
        found += 1
        assert not certificate.holds, group.name
    assert found


def corrupted(graph: Graph, tensor: str, dim: int) -> Graph:
    """The same graph with the index map of one slice turned by one position."""
    def turned(part: Slice) -> Slice:
        if (part.tensor, part.dim) != (tensor, dim):
            return part
        return replace(part, number=part.number.roll(1))

    groups = tuple(replace(g, slices=tuple(map(turned, g.slices))) for g in graph.groups)
    pairs = [(s.channel, t.channel) for g, h in zip(groups, graph.groups, strict=True)
             for s, t in zip(g.slices, h.slices, strict=True)]
    assert not all(torch.equal(turned, right) for turned, right in pairs)
    return replace(graph, groups=groups)


@pytest.mark.parametrize(("net", "tensor", "dim"), [
    (nets.chain, "0.0.weight", 0), (nets.chain, "2.0.weight", 1), (nets.chain, "0.1.bias", 0),
    (nets.chain, "0.1.running_var", 0), (nets.residual, "1.second.0.weight", 0),
    (nets.dense_concat, "convs.2.weight", 1), (nets.flatten, "3.weight", 1),
    (nets.depthwise_multiplier, "1.0.weight", 0), (nets.unet_transposed, "up.weight", 0),
    (nets.chunk, "1.side.0.weight", 1), (nets.squeeze_excite, "1.up.weight", 0)])
def test_a_wrong_index_map_is_noticed(net: nets.Net, tensor: str, dim: int) -> None:
    model, example, graph = traced(net)
    wrong = corrupted(graph, tensor, dim)
    plan = wrong.plan({g.name: range(0, g.channels, 2) for g in wrong.groups})
    assert not certified(model, wrong, plan, example).holds


@pytest.mark.rows("R053")
def test_a_forgotten_reader_is_noticed() -> None:
    """Two layers of one shape read a value; the map of the first is given the second's place."""
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.last = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            out: Tensor = self.last(F.relu(self.one(x)) * self.two(x))
            return out

    torch.manual_seed(0)
    model, example = Fork(), torch.randn(4, 3)
    graph = trace(model, example)
    plan = graph.plan({"stem": [0, 1, 2]})
    assert certified(model, graph, plan, (example,)).certified
    broken = copy.deepcopy(model)
    cut(broken, graph.whole(), plan)
    broken.two.weight.data = model.two.weight.data[:, 3:].clone()  # the columns that should be gone
    assert not certify(model, broken, graph, graph.whole(), plan, (example,)).holds


@pytest.mark.parametrize("net", [
    nets.dense_concat, nets.group_norm, nets.convnext, nets.layer_norm_of_maps,
    token_nets.vision_transformer, token_nets.windowed_attention_fused, token_nets.equations],
    ids=nets.name)
def test_a_second_cut_is_compared_with_the_first(net: nets.Net) -> None:
    """Original channel numbers, also when the dense one is cut already."""
    model, example, graph = traced(net)
    first = random_plan(graph, seed=1)
    second = random_plan(graph, seed=2, start=first)
    cut(model, graph.whole(), first)
    small = copy.deepcopy(model)
    cut(small, first, second)
    assert certify(model, small, graph, first, second, example).holds
    cut(model, first, second)
    assert certify(model, small, graph, second, second, example).difference == 0.0


def test_a_network_that_puts_out_next_to_nothing_is_still_certified() -> None:
    """Outputs of 1e-9: any difference looks small, but not against their spread."""
    model, example, graph = traced(nets.chain)
    with torch.no_grad():
        model.get_parameter("3.2.weight").mul_(1e-9)
        model.get_parameter("3.2.bias").zero_()
    plan, other = (graph.plan({"0.0": channels}) for channels in ([0, 1, 2], [1, 2, 3]))
    assert certified(model, graph, plan, example).certified
    assert not certified(model, graph, plan, example, wrong=other).holds


def test_a_network_that_is_deaf_is_not_controlled() -> None:
    """Where nothing reaches the output no mistake would be seen: it holds, but proves nothing."""
    model, example, graph = traced(nets.chain)
    nn.init.zeros_(model.get_parameter("3.2.weight"))
    certificate = certified(model, graph, graph.plan({"0.0": [0, 1, 2]}), example)
    assert certificate.holds
    assert not certificate.controlled
    assert not certificate.certified


def test_where_only_queries_and_keys_are_cut_a_mistake_would_be_noticed() -> None:
    """No weight reads them; a key that takes the place of another is seen to differ."""
    model, example, graph = traced(token_nets.vision_transformer)
    plan = graph.plan({"blocks.0.attend.query": [0, 1, 2], "blocks.1.attend.query": [2]})
    assert certified(model, graph, plan, example).certified
    other = graph.plan({"blocks.0.attend.query": [0, 1, 3], "blocks.1.attend.query": [2]})
    assert not certified(model, graph, plan, example, wrong=other).holds


def test_a_silent_query_that_stays_counts_in_the_scale() -> None:
    """Attention scales by its width, not by what happens to be other than zero."""
    model, example, graph = traced(token_nets.vision_transformer)
    with torch.no_grad():
        for name in ("weight", "bias"):  # column 1 of both heads
            model.get_parameter(f"blocks.0.attend.query.{name}")[[1, 5]] = 0.0
    plan = graph.plan({"blocks.0.attend.query": [0, 1, 2]})
    assert certified(model, graph, plan, example).certified


def test_attention_that_scales_by_its_width_in_python_is_certified() -> None:
    """By hand: the whole network with dead queries, rescaled to the width that stays."""
    model, example = nets.scale_by_width()
    assert isinstance(example, Tensor)
    graph = trace(model, example)
    plan, other = graph.plan({"query": [0, 1, 2]}), graph.plan({"query": [1, 2, 3]})
    assert certified(model, graph, plan, (example,)).certified
    assert not certified(model, graph, plan, (example,), wrong=other).holds

    by_hand, small = copy.deepcopy(model), copy.deepcopy(model)
    cut(small, graph.whole(), plan)
    with torch.no_grad():
        for name in ("query.weight", "query.bias"):
            by_hand.get_parameter(name)[3:] = 0.0
            by_hand.get_parameter(name).mul_((8 / 3) ** 0.5)
    torch.testing.assert_close(run(small, (example,)), run(by_hand, (example,)),
                               rtol=1e-6, atol=1e-7)


def test_a_norm_over_one_channel_puts_out_its_shift() -> None:
    """By hand: of one channel nothing is left when its mean goes."""
    norm = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    inputs = torch.randn(4, 5)
    graph = trace(norm, inputs)
    nn.init.normal_(norm.get_parameter("1.bias"))
    plan = graph.plan({"0": [4]})
    small = copy.deepcopy(norm)
    cut(small, graph.whole(), plan)
    expected = (norm.get_parameter("2.weight")[:, 4] * norm.get_parameter("1.bias")[4]
                + norm.get_parameter("2.bias"))
    torch.testing.assert_close(small(inputs), expected.expand(4, 3))
    assert certify(norm, small, graph, graph.whole(), plan, inputs).holds


def test_outputs_that_are_not_finite_do_not_certify() -> None:
    """No group is to blame: it was so before the cut."""
    model, example, graph = traced(nets.chain)
    nn.init.constant_(model.get_parameter("3.2.bias"), torch.inf)
    with pytest.raises(SurgeryError, match="before any cut, the network puts out NaN or infinity"):
        certified(model, graph, graph.plan({"0.0": [0, 1]}), example)


def test_one_example_is_enough_and_may_stand_twice() -> None:
    model, example, graph = traced(nets.chain)
    plan = graph.plan({"0.0": [0, 1, 2]})
    assert certified(model, graph, plan, (example[0][:1],)).certified
    assert certified(model, graph, plan, (example[0][[0, 0]],)).certified
    assert certified(model, graph, plan, (torch.ones(3, 3, 8, 8),)).certified


class OnlySingle(nn.Module):
    """Its forward insists on float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nets.chain()[0]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x.float())
        return out


def test_float32_where_the_forward_insists_on_it() -> None:
    torch.manual_seed(0)
    model, example = OnlySingle().eval(), torch.randn(2, 3, 8, 8)
    graph = trace(model, example)
    certificate = certified(model, graph, graph.plan({"body.0.0": [0, 1, 2]}), (example,))
    assert (certificate.dtype, certificate.tolerance) == ("float32", 1e-4)
    assert certificate.certified


def test_nothing_to_compare_is_an_error() -> None:
    class Labels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nets.chain()[0]

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.body(x).argmax(1)
            return out

    model, example = Labels().eval(), torch.randn(2, 3, 8, 8)
    graph = trace(model, example)
    with pytest.raises(SurgeryError, match="no floating-point tensor"):
        certified(model, graph, graph.plan({"body.0.0": [0, 1, 2]}), (example,))


def test_certifying_changes_nothing() -> None:
    model, example, graph = traced(nets.residual)
    model.train()
    before, generator = snapshot(model), torch.get_rng_state()
    certified(model, graph, random_plan(graph, seed=0), example)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), generator)


class Stateful(nn.Module):
    """Every forward counts, keeps a mean, and drops some of what it puts out."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nets.chain()[0]
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        self.mean = 0.5 * self.mean + 0.5 * out.detach().mean(0)
        return F.dropout(out - self.mean, 0.3, training=True)


def test_a_forward_with_memory_and_chance_is_compared_like_with_like() -> None:
    torch.manual_seed(0)
    model, example = Stateful().eval(), torch.randn(3, 3, 8, 8)
    graph = trace(model, example)
    before, generator = snapshot(model), torch.get_rng_state()
    plan, other = graph.plan({"body.0.0": [0, 1, 2]}), graph.plan({"body.0.0": [1, 2, 3]})
    assert certified(model, graph, plan, (example,)).certified
    assert not certified(model, graph, plan, (example,), wrong=other).holds
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_control_asks_other_channels_where_the_first_are_silent() -> None:
    """The ReLU lets nothing of channels 0 and 3 through, for any example."""
    torch.manual_seed(0)
    model, example = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(5, 3)
    with torch.no_grad():
        model.get_parameter("0.weight").abs_()
        model.get_parameter("0.weight")[[0, 3]] *= -1.0
        model.get_parameter("0.bias").zero_()
    graph = trace(model, example)
    assert certified(model, graph, graph.plan({"0": [0, 1]}), (example,)).certified
