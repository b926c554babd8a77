"""Which channels live and die together, what is refused and why, and what a plan says."""

from collections.abc import Mapping
from typing import ClassVar

import nets
import pytest
import token_nets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from engine.by_hand import run, silenced, snapshot, traced
from harness.engine.graph import Graph, Slice
from harness.engine.surgery import cut
from harness.engine.tracer import _components
from harness.engine.tracing import trace
from harness.errors import GraphError


def part(graph: Graph, group: str, tensor: str, dim: int) -> Slice:
    (found,) = [s for s in graph[group].slices if (s.tensor, s.dim) == (tensor, dim)]
    return found


def writers(graph: Graph) -> dict[str, set[str]]:
    return {group.name: set(group.layers) for group in graph.groups}


@pytest.mark.rows("R048")
def test_a_chain_has_a_group_a_layer_and_a_frozen_output() -> None:
    _, _, graph = traced(nets.chain)
    assert writers(graph) == {"0.0": {"0.0"}, "2.0": {"2.0"}}
    assert graph.frozen == {"3.2": "output of the network"}
    slices = {(s.tensor, s.dim): s.roles for s in graph["0.0"].slices}
    vectors = ("weight", "bias", "running_mean", "running_var")
    affine = {(f"0.1.{n}", 0): {"affine"} for n in vectors}
    assert slices == {("0.0.weight", 0): {"writer"}, ("2.0.weight", 1): {"reader"}, **affine}


@pytest.mark.rows("R057")
def test_what_is_added_lives_and_dies_together() -> None:
    _, _, graph = traced(nets.residual)
    assert writers(graph) == {
        "0.0": {"0.0", "1.second.0"}, "1.first.0": {"1.first.0"}, "2.first.0": {"2.first.0"},
        "2.second.0": {"2.second.0", "2.around"}}


def test_filters_of_a_group_count_every_convolution_that_writes_it() -> None:
    """A residual group of two convolutions counts two for a channel; a linear layer counts none."""
    _, _, residual = traced(nets.residual)
    assert residual["0.0"].filters.tolist() == [2] * 8
    _, _, flat = traced(nets.flatten)
    assert flat["3"].filters.tolist() == [0] * 10
    _, _, double = traced(nets.depthwise_multiplier)
    assert double["0.0"].filters.tolist() == [1 + 2] * 5
    _, _, unet = traced(nets.unet_transposed)
    assert unet["up"].filters.tolist() == [1] * 5
    _, _, transposed = traced(nets.depthwise_transposed)
    assert transposed["0.0"].filters.tolist() == [1 + 1] * 8
    _, _, halves = traced(nets.grouped_transposed)  # a position writes for both groups
    assert halves["1"].filters.tolist() == [2] * 3
    _, _, unequal = traced(nets.sum_with_concat)  # 4 + 6 beside each other, 10 that meet them
    assert unequal["a"].filters.tolist() == [2] * 10


@pytest.mark.rows("R054")
def test_concatenation_shifts_the_columns_of_the_reader() -> None:
    _, _, graph = traced(nets.dense_concat)  # stem 6, then 4, 4, 4
    assert part(graph, "convs.0", "convs.2.weight", 1).channel.tolist() == [
        *[-1] * 6, 0, 1, 2, 3, *[-1] * 4]
    assert part(graph, "stem", "norms.2.running_var", 0).channel.tolist() == [
        0, 1, 2, 3, 4, 5, *[-1] * 8]
    _, _, unet = traced(nets.unet_transposed)  # the skip of 6 first, then the 5 that came up
    assert part(unet, "up", "join.0.weight", 1).channel.tolist() == [*[-1] * 6, 0, 1, 2, 3, 4]


@pytest.mark.rows("R056")
def test_flattening_gives_each_channel_a_block_of_columns() -> None:
    _, _, graph = traced(nets.flatten)  # 6 channels of 4 x 4
    expected = [c for c in range(6) for _ in range(16)]
    assert part(graph, "0.0", "3.weight", 1).channel.tolist() == expected


@pytest.mark.rows("R058")
def test_depthwise_filters_go_with_their_input_channel() -> None:
    _, _, graph = traced(nets.depthwise_multiplier)
    depthwise = part(graph, "0.0", "1.0.weight", 0)
    assert depthwise.roles == {"writer"}
    assert depthwise.channel.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.rows("R058")
def test_groups_of_a_grouped_convolution_lose_the_same_positions() -> None:
    _, _, graph = traced(nets.grouped)  # 8 -> 12 in 4 groups -> 6 in 2 groups
    assert graph["0.0"].channels == 2  # 8 inputs in 4 groups
    assert part(graph, "0.0", "0.0.weight", 0).channel.tolist() == [0, 1] * 4
    assert part(graph, "1.0", "1.0.weight", 0).channel.tolist() == [0, 1, 2] * 4


@pytest.mark.rows("R058")
def test_a_transposed_convolution_writes_its_second_dimension() -> None:
    _, _, graph = traced(nets.unet_transposed)
    assert part(graph, "up", "up.weight", 1).roles == {"writer"}
    assert part(graph, "middle.0", "up.weight", 0).roles == {"reader"}


def test_a_depthwise_layer_over_a_concatenation_does_not_couple_its_sources() -> None:
    _, _, graph = traced(nets.depthwise_over_concat)
    assert writers(graph) == {"a": {"a", "over.0"}, "b.0": {"b.0", "over.0"}}
    assert graph["a"].channels == 4
    assert graph["b.0"].channels == 6


def test_one_weight_used_twice_is_one_slice() -> None:
    _, _, shared = traced(nets.shared_module)
    assert writers(shared) == {"stem.0": {"stem.0", "again"}}
    assert part(shared, "stem.0", "again.weight", 1).roles == {"reader"}
    _, _, tied = traced(nets.tied_weights)
    assert writers(tied) == {"stem.0": {"stem.0", "one"}}
    assert tied.names["one.weight"] == ("one.weight", "two.weight")
    plan = tied.plan({"stem.0": [1, 4]})
    assert plan.parameters["two.weight"][1].tolist() == [1, 4]
    _, _, transposed = traced(nets.tied_transposed)
    assert part(transposed, "encode", "encode.weight", 0).roles == {"writer", "reader"}


def test_halves_of_a_gated_unit_go_together() -> None:
    _, _, graph = traced(nets.gated_linear_unit)  # 12 -> 6, 8 -> 4
    assert part(graph, "0", "0.weight", 0).channel.tolist() == [*range(6)] * 2
    assert part(graph, "4", "4.bias", 0).channel.tolist() == [*range(4)] * 2
    assert part(graph, "0", "2.weight", 1).channel.tolist() == [*range(6)]


def test_pixels_are_dealt_out_in_blocks_of_four() -> None:
    """Four neighbours become one channel; one channel becomes four."""
    _, _, graph = traced(nets.pixel_shuffle)  # 12 -> 3 -> 5 -> 20 -> 6
    assert part(graph, "0.0", "0.0.weight", 0).channel.tolist() == [
        c for c in range(3) for _ in range(4)]
    assert part(graph, "2.0", "4.weight", 1).channel.tolist() == [
        c for c in range(5) for _ in range(4)]


def test_groups_of_a_norm_lose_the_same_positions() -> None:
    """Two groups of four; one group of all; and a group for each, which goes."""
    _, _, graph = traced(nets.group_norm)
    assert part(graph, "0", "1.weight", 0).channel.tolist() == [*range(4)] * 2
    assert graph["3"].channels == 6
    _, _, each = traced(nets.group_norm_of_each)
    assert part(each, "0", "1.bias", 0).channel.tolist() == [*range(8)]


def test_a_norm_of_maps_shrinks_along_the_channels() -> None:
    _, _, graph = traced(nets.layer_norm_of_maps)
    assert part(graph, "0", "1.weight", 0).channel.tolist() == [*range(8)]
    assert {s.dim for s in graph["0"].slices if s.tensor == "1.bias"} == {0}


def test_own_parameters_go_with_the_channels_they_meet() -> None:
    _, _, scaled = traced(nets.own_scale)
    assert {(s.tensor, s.dim) for s in scaled["0"].slices if "1." in s.tensor} == {
        ("1.scale", 1), ("1.shift", 0)}
    _, _, tokens = traced(token_nets.vision_transformer)
    assert {(s.tensor, s.dim) for s in tokens["patches"].slices if s.tensor in (
        "label", "places")} == {("label", 2), ("places", 2)}


def test_columns_of_attention_heads_go_together() -> None:
    """Two heads of four: column c of both. Queries with keys, and values by themselves."""
    _, _, graph = traced(token_nets.vision_transformer)
    queries, values = graph["blocks.0.attend.query"], graph["blocks.0.attend.value"]
    assert queries.layers == ("blocks.0.attend.query", "blocks.0.attend.key")
    assert part(graph, queries.name, "blocks.0.attend.key.weight", 0).channel.tolist() == [
        *range(4)] * 2
    assert (queries.contracted, queries.readers) == (True, ())
    assert (values.contracted, [s.tensor for s in values.readers]) == (
        False, ["blocks.0.attend.out.weight"])


def test_whole_heads_go_where_their_number_is_open() -> None:
    """Three of two columns, packed with keys and values; with a bias for each."""
    _, _, graph = traced(token_nets.windowed_attention)
    heads = part(graph, "windows.0.together", "windows.0.together.weight", 0)
    assert heads.channel.tolist() == [0, 0, 1, 1, 2, 2] * 3
    assert part(graph, "windows.0.together", "windows.0.table", 1).channel.tolist() == [0, 1, 2]
    assert not graph["windows.0.together"].contracted


def test_products_of_activations_cost_less_with_every_channel() -> None:
    """They are no tensors of the model: 5 x 5 scores of 2 heads, 4 columns each."""
    model, _, graph = traced(token_nets.vision_transformer)
    (columns,) = [s for s in graph["blocks.0.attend.query"].slices if "product" in s.roles]
    assert columns.tensor.startswith("@scaled_dot_product_attention")
    assert not graph.is_parameter(columns.tensor)
    assert columns.tensor not in graph.names
    whole = graph.cost()
    narrow = graph.cost(graph.plan({"blocks.0.attend.query": [0, 1, 2]}))
    projections = 2 * 2 * 6 * 5  # two layers of six inputs lose a column of both heads, 5 tokens
    assert whole.macs - narrow.macs == 2 * 5 * 5 + projections
    assert whole.params - narrow.params == 2 * 2 * (6 + 1)
    assert sum(p.numel() for p in model.parameters()) == whole.params


def test_rows_of_a_token_layer_are_counted_with_the_channels() -> None:
    """A linear layer over 4 tokens, 6 times: a channel less is a row less."""
    _, _, graph = traced(token_nets.token_mixing)
    cost, less = graph.cost(), graph.cost(graph.plan({"patches": range(5)}))
    by_layer = {c.layer: c.macs for c in cost.layers}
    left = {c.layer: c.macs for c in less.layers}
    assert (by_layer["tokens.0"], left["tokens.0"]) == (6 * 4 * 5, 5 * 4 * 5)
    assert graph.frozen["tokens.2"] == "they meet values that cannot be cut"


def test_one_weight_may_write_two_kinds_of_channels() -> None:
    """Heads and their columns; every group has a name of its own."""
    _, _, graph = traced(token_nets.equations)
    names = [g.name for g in graph.groups]
    assert len(set(names)) == len(names)
    assert graph["value"].channels == 3
    assert graph["value (dimension 2)"].channels == 4
    _, _, tied = traced(token_nets.tied_embedding)
    assert tied.frozen == {"table (dimension 0)": "an embedding works along the dimension that "
                           "holds them; output of the network"}
    assert part(tied, "table", "table.weight", 1).roles == {"writer", "reader"}


def test_channels_that_stay_are_listed_by_their_number() -> None:
    """Zeros stand beside the shortcut: of ten channels the two at either end stay."""
    _, _, graph = traced(nets.padded_shortcut)
    assert graph.frozen == {"0.0 (4 of 10 channels)": "they meet values that cannot be cut",
                            "2.2": "output of the network"}
    free = [-1, -1, *range(6), -1, -1]
    assert part(graph, "0.0", "1.second.0.weight", 0).channel.tolist() == free
    assert part(graph, "0.0", "0.0.weight", 0).channel.tolist() == [*range(6)]
    assert graph["0.0"].filters.tolist() == [2] * 6
    _, _, beside = traced(nets.beside_input)
    assert beside.frozen["first.0 (3 of 8 channels)"] == "they meet values that cannot be cut"


def test_what_only_training_runs_is_traced_too() -> None:
    _, _, graph = traced(nets.auxiliary_head)
    assert ("aux.0.0.weight", 1) in {(s.tensor, s.dim) for s in graph["stem.0"].slices}
    assert graph.frozen["aux.2"] == "output of the network"
    assert graph.notes == ()


def test_a_layer_that_cannot_be_cut_at_all_is_listed() -> None:
    _, _, graph = traced(nets.depthwise_on_input)
    assert graph.frozen["0.0"] == "its filters go with an input that cannot be cut"


def test_a_layer_that_the_forward_never_calls_is_listed() -> None:
    model = nn.ModuleDict({"first": nn.Linear(4, 6), "spare": nn.Linear(6, 6)})

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.last = model, nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.layers["first"](x))
            return out

    graph = trace(Partly(), torch.zeros(2, 4))
    assert graph.frozen == {"last": "output of the network",
                            "layers.spare": "no traced forward uses it"}


def test_a_weight_that_is_computed_is_listed() -> None:
    """Of a convolution with weight norm the direction is what would be cut."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), weight_norm(nn.Conv2d(8, 6, 3)), nets.head(6))
    graph = trace(model, torch.zeros(2, 3, 8, 8))
    assert graph.groups == ()
    assert graph.frozen == {
        "0": "its reader computes its weights on the fly", "2.2": "output of the network",
        "1.parametrizations.weight.original0": "only _weight_norm uses it",
        "1.parametrizations.weight.original1": "only _weight_norm uses it"}


@pytest.mark.rows("R058")
@pytest.mark.parametrize("case", nets.REFUSED)
def test_what_is_not_understood_is_refused_by_name(case: str) -> None:
    net, group, reason = nets.REFUSED[case]
    graph = trace(*net())
    assert reason in graph.frozen[group]
    assert group not in {g.name for g in graph.groups}


class LookedUp(nn.Module):
    """Rows of a scaled table by number; the table is a layer's weight too, a hidden one's."""

    reads: ClassVar[Mapping[str, tuple[int, ...]]] = {"table": (1,)}

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 8))
        self.wide, self.narrow, self.last = nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(9, 3)

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.narrow(F.relu(self.wide(F.embedding(numbers, self.table * 2))))
        out: Tensor = self.last(F.relu(F.linear(x, self.table)))
        return out


def test_rows_of_an_embedding_stay_and_its_columns_go() -> None:
    """A row less, and every number behind it would mean another one."""
    torch.manual_seed(0)
    model, numbers = LookedUp(), torch.randint(0, 9, (4, 5))
    graph = trace(model, numbers)
    assert writers(graph) == {"table (dimension 1)": {"table", "narrow"}, "wide": {"wide"}}
    assert "an embedding works along" in graph.frozen["table"]
    plan = graph.plan({"table (dimension 1)": [0, 3, 4]})
    expected = run(silenced(model, plan), (numbers,))
    cut(model, graph.whole(), plan)
    torch.testing.assert_close(run(model, (numbers,)), expected)


@pytest.mark.rows("R058")
@pytest.mark.parametrize("net", nets.ALL, ids=nets.name)
def test_every_convolution_is_in_a_group_or_refused(net: nets.Net) -> None:
    """Nothing is left out in silence."""
    _, _, graph = traced(net)
    written = {layer for group in graph.groups for layer in group.layers}
    for weight in graph.convolutions:
        layer = weight.removesuffix(".weight")
        assert layer in written or layer in graph.frozen, layer


def test_what_runs_without_gradients_can_be_cut_too() -> None:
    """A graph within the graph: a trunk that is not trained."""
    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.last = nn.Sequential(nets.conv_norm(3, 8), nets.head(8)), nets.head(4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                features = self.trunk(x)
            out: Tensor = self.last(features[:, :, None, None])
            return out

    graph = trace(Trunk(), torch.zeros(2, 3, 8, 8))
    assert writers(graph) == {"trunk.0.0": {"trunk.0.0"}, "trunk.1.2": {"trunk.1.2"}}
    assert graph.frozen == {"last.2": "output of the network"}


def test_shares_of_the_channels_go_together() -> None:
    """Halves, and quarters beside a half; a mask goes with the weight, which is the one weighed."""
    _, _, halves = traced(nets.shares_by_slices)
    assert part(halves, "stem.0", "stem.0.weight", 0).channel.tolist() == [*range(4)] * 2
    _, _, quarters = traced(nets.shift_in_time)
    assert part(quarters, "0.0", "0.0.weight", 0).channel.tolist() == [0, 1] * 4
    _, _, masked = traced(nets.factored_weights)
    assert writers(masked) == {"stem": {"stem"}, "mix": {"mix"}}
    assert part(masked, "stem", "mix.weight", 1).roles == {"reader"}
    assert part(masked, "stem", "mask", 1).roles == {"affine"}


def test_queries_of_the_network_are_counted_once_an_example() -> None:
    """By hand: 3 queries of 4 numbers, repeated for each of two examples, times (4, 5)."""
    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries, self.mix = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.mix(self.queries.expand(len(x), -1, -1)) @ x
            return out

    graph = trace(Queries(), torch.zeros(2, 5, 6))
    assert graph.cost().macs == 3 * 4 * 5 + 3 * 5 * 6


@pytest.mark.rows("R136")
def test_tracing_changes_nothing() -> None:
    """Weights, statistics, gradients, modes and the random generator are as before."""
    model, example = nets.auxiliary_head()
    model.stem.train()  # type: ignore[union-attr]
    modes = [m.training for m in model.modules()]
    before, generator = snapshot(model), torch.get_rng_state()
    trace(model, example)
    assert snapshot(model) == before
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)


class Undecided(nn.Module):
    """Looks at values: a graph cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_traced_is_an_error_with_its_name() -> None:
    with pytest.raises(GraphError, match="cannot trace Undecided"):
        trace(Undecided(), torch.ones(2, 3))


class UndecidedInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.training and x.sum() > 0:
            x = -x
        out: Tensor = self.last(x)
        return out


def test_a_train_mode_that_cannot_be_traced_is_noted() -> None:
    graph = trace(UndecidedInTraining(), torch.ones(2, 4))
    assert [g.name for g in graph.groups] == ["first"]
    (note,) = graph.notes
    assert "train-mode" in note


@pytest.mark.rows("R041")
def test_a_plan_keeps_original_channels_in_order() -> None:
    _, _, graph = traced(nets.chain)
    plan = graph.plan({"0.0": [5, 2, 5]})
    assert plan.as_json() == {"0.0": [2, 5], "2.0": [0, 1, 2, 3, 4, 5]}
    assert {n: {d: k.tolist() for d, k in dims.items()} for n, dims in plan.parameters.items()} == {
        "0.0.weight": {0: [2, 5]}, "2.0.weight": {1: [2, 5]},
        **{f"0.1.{n}": {0: [2, 5]} for n in ("weight", "bias", "running_mean", "running_var")}}
    assert plan == graph.plan({"0.0": torch.tensor([2, 5])}) == graph.plan({"0.0": {5, 2}})
    assert plan != graph.whole()


def test_a_plan_that_cannot_be_is_an_error() -> None:
    _, _, graph = traced(nets.chain)
    with pytest.raises(GraphError, match=r"'3\.2' cannot be cut: output of the network"):
        graph.plan({"3.2": [0]})
    with pytest.raises(GraphError, match="'nowhere' cannot be cut: no such group"):
        graph.plan({"nowhere": [0]})
    for wrong in ([], [8], [-1]):
        with pytest.raises(GraphError, match="has channels 0 to 7, at least one must stay"):
            graph.plan({"0.0": wrong})
    with pytest.raises(GraphError, match=r"'0\.0': .* not torch\.bool; for a mask give"):
        graph.plan({"0.0": torch.tensor([True, False] * 4)})
    with pytest.raises(GraphError, match=r"'0\.0': .* not torch\.float32"):
        graph.plan({"0.0": [0.5, 3.7]})  # type: ignore[list-item]


def test_a_plan_may_not_empty_one_of_several_writers() -> None:
    """Of ten channels four are written by `a`: they may not all go, though six would stay."""
    _, _, graph = traced(nets.sum_with_concat)
    with pytest.raises(GraphError, match=r"leaves nothing of a\.weight"):
        graph.plan({"a": range(4, 10)})


def test_a_frozen_group_is_no_longer_cut() -> None:
    _, _, graph = traced(nets.chain)
    frozen = graph.freeze({"0.0": "because"})
    assert [g.name for g in frozen.groups] == ["2.0"]
    assert frozen.frozen["0.0"] == "because"
    assert [g.name for g in graph.groups] == ["0.0", "2.0"]


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(st.integers(1, 30).flatmap(lambda n: st.tuples(
    st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40))))
def test_ties_are_solved_as_a_union_find_does(case: tuple[int, list[tuple[int, int]]]) -> None:
    size, pairs = case
    parent = list(range(size))

    def root(i: int) -> int:
        return i if parent[i] == i else root(parent[i])

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    edges = [(torch.tensor([a]), torch.tensor([b])) for a, b in pairs]
    assert _components(size, edges).tolist() == [root(i) for i in range(size)]
