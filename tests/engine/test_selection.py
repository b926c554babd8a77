"""Who goes first, when it is enough, and what must stay: checked on the live, cut model."""

import copy
import time
from collections.abc import Callable

import nets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from engine.by_hand import traced
from harness.engine.floors import Floors, share_for
from harness.engine.graph import Graph, Plan
from harness.engine.selection import Selection, select, select_one_by_one, select_ratios
from harness.engine.surgery import cut
from harness.engine.tally import Counts, counts_of
from harness.engine.targets import left_of, target_of
from harness.engine.tracing import trace
from harness.errors import ConfigError, GraphError

every_net = pytest.mark.parametrize("net", nets.ALL, ids=nets.name)
SOME = (nets.chain, nets.residual, nets.sum_with_concat, nets.unet_transposed,
        nets.depthwise_multiplier, nets.flatten, nets.grouped)


def random_scores(graph: Graph, seed: int = 0, plan: Plan | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kept = (plan or graph.whole()).kept
    return {g.name: torch.rand(len(kept[g.name]), generator=generator, dtype=torch.float64)
            for g in graph.groups}


def after(graph: Graph, num_removals: int) -> Callable[[Counts], bool]:
    """Enough after so many removals from the whole network."""
    return lambda counts: counts.channels <= graph.channels - num_removals


def never(_: Counts) -> bool:
    return False


def filters_left(left: int) -> Callable[[Counts], bool]:
    return lambda counts: counts.filters <= left


def removed(graph: Graph, selection: Selection) -> dict[str, list[int]]:
    return {g.name: sorted(set(range(g.channels)) - set(selection.plan.kept[g.name].tolist()))
            for g in graph.groups}


# --- the order ------------------------------------------------------------------------------------


@pytest.mark.rows("R030")
def test_equal_scores_go_by_group_and_channel() -> None:
    """The earlier group first, then the lower index."""
    _, _, graph = traced(nets.chain)  # 8 and 6 channels
    even = {g.name: torch.ones(g.channels) for g in graph.groups}
    assert removed(graph, select(graph, even, filters_left(14 - 3))) == {
        "0.0": [0, 1, 2], "2.0": []}
    assert removed(graph, select(graph, even, filters_left(14 - 9))) == {
        "0.0": [0, 1, 2, 3, 4, 5, 6], "2.0": [0, 1]}


@pytest.mark.rows("R030")
def test_the_lowest_scores_of_all_groups_go_first() -> None:
    _, _, graph = traced(nets.chain)
    scores = {"0.0": torch.tensor([0.9, 0.1, 0.8, 0.3, 0.9, 0.9, 0.9, 0.9]),
              "2.0": torch.tensor([0.2, 0.9, 0.9, 0.4, 0.9, 0.9])}
    assert removed(graph, select(graph, scores, filters_left(14 - 3))) == {
        "0.0": [1, 3], "2.0": [0]}


@pytest.mark.rows("R031")
@pytest.mark.parametrize("asked", range(1, 13))
def test_exactly_what_is_asked_goes(asked: int) -> None:
    _, _, graph = traced(nets.chain)
    selection = select(graph, random_scores(graph), filters_left(14 - asked))
    assert selection.reached
    assert selection.counts.filters == 14 - asked
    assert sum(map(len, removed(graph, selection).values())) == asked


@every_net
def test_counts_are_exact_after_every_removal(net: nets.Net) -> None:
    """Incremental counts equal the counts of the plan, which other tests compare with the model."""
    _, _, graph = traced(net)
    scores = random_scores(graph)
    total = sum(g.channels for g in graph.groups)
    previous: Plan | None = None
    for num_removals in range(0, total, max(1, total // 8)):
        selection = select(graph, scores, after(graph, num_removals))
        cost = graph.cost(selection.plan)
        channels = sum(len(kept) for kept in selection.plan.kept.values())
        assert selection.counts == Counts(
            cost.filters, channels, cost.params, cost.macs, cost.bytes)
        if previous is not None:  # more asked, never less removed
            assert all(set(kept.tolist()) <= set(previous.kept[g].tolist())
                       for g, kept in selection.plan.kept.items())
        previous = selection.plan


@every_net
def test_survivors_outscore_victims_of_their_group(net: nets.Net) -> None:
    _, _, graph = traced(net)
    scores = random_scores(graph, seed=1)
    selection = select(graph, scores, never, floors=Floors(layer_min=0.4))
    found = 0
    for group, gone in removed(graph, selection).items():
        kept = selection.plan.kept[group]
        found += len(gone)
        assert not gone or float(scores[group][gone].max()) <= float(scores[group][kept].min())
    assert found


@pytest.mark.rows("R041")
def test_a_second_step_goes_on_from_the_first() -> None:
    """Scores are of the channels that are left; the plan is in original channels."""
    _, _, graph = traced(nets.chain)
    start = graph.plan({"0.0": [1, 3, 5, 7], "2.0": [0, 5]})
    scores = {"0.0": torch.tensor([3.0, 0.0, 4.0, 1.0]), "2.0": torch.tensor([9.0, 2.0])}
    selection = select(graph, scores, filters_left(3), start=start)
    assert selection.plan.as_json() == {"0.0": [1, 5], "2.0": [0]}
    assert selection.counts.filters == 3


def test_hidden_linear_layers_stay_when_filters_are_asked_for() -> None:
    _, _, graph = traced(nets.flatten)
    selection = select(graph, random_scores(graph), never, filters_only=True)
    assert len(selection.plan.kept["3"]) == 10
    assert len(selection.plan.kept["0.0"]) == 1
    assert len(select(graph, random_scores(graph), never).plan.kept["3"]) == 1


# --- targets --------------------------------------------------------------------------------------


RESOURCES = ("filters", "channels", "params", "macs", "flops", "memory")


@pytest.mark.rows("R033", "R034", "R139")
@pytest.mark.parametrize("resource", RESOURCES)
@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_target_is_met_within_one_channel_and_more_is_a_part_of_more(resource: str,
                                                                      scope: str) -> None:
    """With the last channel back it would not be met; what 30 % removes, 40 % removes too."""
    for net in SOME:
        _, _, graph = traced(net)
        scores = random_scores(graph, seed=2)
        before: dict[str, list[int]] = {}
        for share in (0.1, 0.3, 0.4, 0.65):
            target = target_of(graph, {resource: share})
            chosen = select(graph, scores, target.met, scope=scope)
            if not chosen.reached:
                continue
            whole, left = left_of(target.whole, resource), left_of(chosen.counts, resource)
            assert left <= whole * (1 - share) + 1e-6
            now = removed(graph, chosen)
            assert all(set(gone) <= set(now[g]) for g, gone in before.items())
            before = now
            back = [graph.plan({**chosen.plan.kept, g: [*chosen.plan.kept[g].tolist(), c]})
                    for g, gone in now.items() for c in gone
                    if float(scores[g][c]) == float(scores[g][gone].max())]
            assert max(left_of(counts_of(graph, p), resource) for p in back) > whole * (1 - share)


def test_what_cannot_be_met_is_told_with_the_nearest() -> None:
    _, _, graph = traced(nets.chain)  # 8 and 6 filters
    target = target_of(graph, {"filters": 0.9})
    chosen = select(graph, random_scores(graph), target.met, floors=Floors(layer_min=0.5))
    assert not chosen.reached
    assert chosen.counts.filters == 7
    assert target.nearest(chosen.counts) == "50.0% of the filters can go, 90.0% asked"
    assert chosen.bound.keys() == {"0.0", "2.0"}


def test_only_floors_that_were_met_on_the_way_are_named() -> None:
    """`0.0` is held at once, `2.0` never: half of what it may give is enough."""
    _, _, graph = traced(nets.chain)
    scores = {"0.0": torch.arange(8.0), "2.0": 10 + torch.arange(6.0)}
    floors = Floors(layer_min={"0": 1.0, "2": 0.5})
    chosen = select(graph, scores, filters_left(12), floors=floors)
    assert chosen.reached
    assert chosen.bound == {"0.0": "layer_min: 0.0 keeps 1 of its channels"}


# --- scope ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.25, 0.5, 0.6])
def test_a_local_scope_takes_the_same_share_of_every_group(share: float) -> None:
    """Within one channel, whatever the scores of one group are beside those of another."""
    for net in SOME:
        _, _, graph = traced(net)
        scores = {g.name: s * 10**i for i, (g, s) in enumerate(
            zip(graph.groups, random_scores(graph).values()))}
        chosen = select(graph, scores, after(graph, int(share * graph.channels)), scope="local")
        for group in graph.groups:
            gone = group.channels - len(chosen.plan.kept[group.name])
            held = group.name in chosen.bound
            assert held or abs(gone - share * group.channels) <= 1


def test_a_local_scope_goes_on_from_a_cut_network() -> None:
    """The share is of the whole network: who has lost more before, loses less now."""
    _, _, graph = traced(nets.chain)  # 8 and 6
    start = graph.plan({"0.0": [0, 1, 2, 3]})
    scores = {"0.0": torch.arange(4.0), "2.0": 100 + torch.arange(6.0)}
    chosen = select(graph, scores, filters_left(7), start=start, scope="local")
    assert [len(k) for k in chosen.plan.kept.values()] == [4, 3]
    assert chosen.plan.kept["2.0"].tolist() == [3, 4, 5]


# --- ratios ---------------------------------------------------------------------------------------


@pytest.mark.rows("R039")
def test_the_plan_of_the_seed_by_layer_and_ratio() -> None:
    """VGG-11: widths 57, 102, 128, 102, 128, 102, 76, 51, those with the highest scores."""
    whole = [64, 128, 256, 256, 512, 512, 512, 512]
    layers: list[nn.Module] = []
    for before, width in zip([3, *whole], whole):
        layers += [nn.Conv2d(before, width, 1), nn.ReLU()]
    graph = trace(nn.Sequential(*layers, nn.Conv2d(512, 2, 1)), torch.zeros(1, 3, 2, 2))
    scores = random_scores(graph)
    shares = [0.1, 0.2, 0.5, 0.6, 0.75, 0.8, 0.85, 0.9]
    ratios = {g.name: share for g, share in zip(graph.groups, shares)}
    chosen = select_ratios(graph, scores, ratios)
    assert chosen.reached
    assert [len(k) for k in chosen.plan.kept.values()] == [57, 102, 128, 102, 128, 102, 76, 51]
    for group in graph.groups:
        kept = chosen.plan.kept[group.name]
        best = scores[group.name].numpy().argsort()[::-1][:len(kept)]
        assert kept.tolist() == sorted(best.tolist())
    assert chosen.counts.filters == graph.cost(chosen.plan).filters == sum(
        len(k) for k in chosen.plan.kept.values()) + 2


def test_ratios_meet_floors_and_say_so(three: Graph) -> None:
    scores = random_scores(three)
    held = select_ratios(three, scores, {"first": 1.0, "block": 0.5}, floors=Floors(
        layer_min={"block.0": 0.7}))
    assert not held.reached
    assert [len(k) for k in held.plan.kept.values()] == [1, 7, 3]
    assert held.bound == {"first": "min_channels: first keeps 1",
                          "block.0": "layer_min: block.0 keeps 0.7 of its channels"}
    none = select_ratios(three, scores, {"first": 0.0})
    assert none.reached
    assert none.plan == three.whole()
    rounded = select_ratios(three, scores, {"": 0.5}, round_to=4)
    assert rounded.reached
    assert [len(k) for k in rounded.plan.kept.values()] == [4, 8, 4]


def test_ratios_count_from_the_whole_network(three: Graph) -> None:
    start = three.plan({"first": range(5), "block.0": range(4)})
    scores = random_scores(three, plan=start)
    chosen = select_ratios(three, scores, {"first": 0.5, "block.0": 0.5}, start=start)
    assert [len(k) for k in chosen.plan.kept.values()] == [4, 4, 6]


def test_mistakes_in_ratios_are_said() -> None:
    _, _, graph = traced(nets.residual)
    coupled = next(g for g in graph.groups if len(g.layers) > 1)
    one, two, *_ = coupled.layers
    with pytest.raises(ConfigError, match=f"cut together differ: .*{two} 0.3"):
        select_ratios(graph, random_scores(graph), {one: 0.5, two: 0.3})
    with pytest.raises(ConfigError, match="1.5 must be from 0 to 1"):
        select_ratios(graph, random_scores(graph), {one: 1.5})
    with pytest.raises(ConfigError, match="ratios: unknown module 'nobody'"):
        select_ratios(graph, random_scores(graph), {"nobody": 0.5})


# --- one by one -----------------------------------------------------------------------------------


@pytest.mark.rows("R037")
def test_scores_are_taken_anew_after_every_removal(three: Graph) -> None:
    """A score that is each channel's distance to its group's middle: the order moves as it goes."""
    asked: list[Plan] = []

    def rescore(plan: Plan) -> dict[str, Tensor]:
        asked.append(plan)
        return {g: (kept - kept.double().mean()).abs() for g, kept in plan.kept.items()}

    chosen = select_one_by_one(three, rescore, filters_left(24 + 2 - 6))
    assert chosen.reached
    assert len(asked) == 6
    kept = {g: list(range(n)) for g, n in (("first", 8), ("block.0", 10), ("block.1", 6))}
    for _ in range(6):
        distance = {(g, c): abs(c - sum(k) / len(k)) for g, k in kept.items() for c in k}
        group, channel = min(distance, key=lambda key: distance[key])
        kept[group].remove(channel)
    assert chosen.plan.as_json() == kept


def test_one_by_one_ends_where_floors_hold(three: Graph) -> None:
    chosen = select_one_by_one(three, lambda plan: random_scores(three, plan=plan), never,
                               floors=Floors(layer_min=0.5))
    assert not chosen.reached
    assert [len(k) for k in chosen.plan.kept.values()] == [4, 5, 3]
    assert chosen.bound.keys() == {"first", "block.0", "block.1"}


def test_with_fixed_scores_one_by_one_is_all_at_once() -> None:
    _, _, graph = traced(nets.residual)
    scores = random_scores(graph, seed=8)
    for asked in (1, 4, 7):
        anew = select_one_by_one(graph, lambda plan: {
            g: scores[g][kept] for g, kept in plan.kept.items()}, after(graph, asked))
        assert anew.plan == select(graph, scores, after(graph, asked)).plan


def test_a_group_that_is_held_is_left_as_it_is(three: Graph) -> None:
    start = three.plan({"first": range(6)})
    chosen = select(three, random_scores(three, plan=start), never, start=start,
                    held={"first": "for a reason"})
    assert [len(k) for k in chosen.plan.kept.values()] == [6, 1, 1]
    assert chosen.bound["first"] == "for a reason"


def test_a_hundred_thousand_channels_are_chosen_from_in_a_moment() -> None:
    """Linear in the channels: ten seconds here would be a loop over what a channel touches."""
    layers = [nn.Linear(a, b, device="meta") for a, b in zip([4] + [2000] * 50, [2000] * 50)]
    graph = trace(nn.Sequential(*layers, nn.Linear(2000, 2, device="meta")), torch.zeros(1, 4))
    scores = random_scores(graph)
    begun = time.process_time()
    chosen = select(graph, scores, target_of(graph, {"macs": 0.5}).met, floors=Floors(
        layer_min=0.1))
    assert time.process_time() - begun < 10
    assert chosen.reached
    assert chosen.counts.macs == graph.cost(chosen.plan).macs


# --- floors ---------------------------------------------------------------------------------------


class Sizes:
    """What every layer of a live model holds, read from its modules."""

    def __init__(self, model: nn.Module, positions: dict[str, int]) -> None:
        self.modules = {n: m for n, m in model.named_modules() if n in positions}
        self.positions = positions

    def width(self, layer: str) -> int:
        module = self.modules[layer]
        return int(getattr(module, "out_channels", 0) or getattr(module, "out_features", 0))

    def params(self, layer: str) -> int:
        return sum(p.numel() for p in self.modules[layer].parameters())

    def macs(self, layer: str) -> int:
        weight = self.modules[layer].weight
        assert isinstance(weight, Tensor)
        return weight.numel() * self.positions[layer]


def positions(model: nn.Module, example: tuple[Tensor, ...], layers: set[str]) -> dict[str, int]:
    """Layer -> how often an example uses its weight."""
    found: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        def hook(m: nn.Module, given: tuple[Tensor], out: Tensor, name: str = name) -> None:
            maps = given[0] if isinstance(m, nn.ConvTranspose2d) else out
            found[name] = maps.numel() // maps.shape[1] // maps.shape[0]
        if name in layers:
            handles.append(module.register_forward_hook(hook))
    model(*example)
    for handle in handles:
        handle.remove()
    return found


def broken(now: Sizes, whole: Sizes, floors: Floors) -> set[str]:
    """The floors that a cut model does not keep; relative ones aside."""
    found = set()
    block_now: dict[str, float] = {}
    block_whole: dict[str, float] = {}
    for layer in now.positions:
        own = now.width(layer) / whole.width(layer)
        is_own = floors.counting == "own"
        params = whole.params(layer) * own if is_own else now.params(layer)
        macs = whole.macs(layer) * own if is_own else now.macs(layer)
        block = layer.rpartition(".")[0]
        block_now[block] = block_now.get(block, 0) + params
        block_whole[block] = block_whole.get(block, 0) + whole.params(layer)
        checks = {"layer_min": own, "layer_min_params": params / whole.params(layer),
                  "layer_min_macs": macs / whole.macs(layer)}
        found |= {f"{name} {layer}" for name, share in checks.items()
                  if share < share_for(getattr(floors, name), layer) - 1e-9}
        if now.width(layer) < min(floors.min_channels, whole.width(layer)):
            found.add(f"min_channels {layer}")
    found |= {f"block {b}" for b in block_now
              if block_now[b] / block_whole[b] < share_for(floors.block_min_params, b) - 1e-9}
    return found


def live(model: nn.Module, graph: Graph, plan: Plan, where: dict[str, int]) -> Sizes:
    small = copy.deepcopy(model)
    cut(small, graph.whole(), plan)
    return Sizes(small, where)


shares = st.sampled_from([0.0, 0.0, 0.1, 0.25, 0.5, 0.7, 1.0])


@pytest.mark.rows("R042", "R043", "R049")
@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(net=st.sampled_from(SOME), seed=st.integers(0, 99), num_removals=st.integers(1, 40),
       floors=st.builds(Floors, layer_min=shares, layer_min_params=shares, layer_min_macs=shares,
                        block_min_params=shares, min_channels=st.sampled_from([1, 2, 3]),
                        counting=st.sampled_from(["own", "current"])))
def test_floors_hold_on_the_cut_model(net: nets.Net, seed: int, num_removals: int,
                                      floors: Floors) -> None:
    """And when nothing more goes, one more channel of any group would break one."""
    model, example, graph = traced(net)
    layers = {layer for g in graph.groups for layer in g.layers}
    where = positions(model, example, layers)
    whole, scores = Sizes(model, where), random_scores(graph, seed)
    some = select(graph, scores, after(graph, num_removals), floors=floors)
    assert broken(live(model, graph, some.plan, where), whole, floors) == set()
    most = select(graph, scores, never, floors=floors)
    assert broken(live(model, graph, most.plan, where), whole, floors) == set()
    assert not most.reached
    assert most.bound.keys() == {g.name for g in graph.groups}
    for group in graph.groups:
        kept = most.plan.kept[group.name]
        lowest = kept[scores[group.name][kept].argmin()]
        rest = kept[kept != lowest]
        if len(rest):
            try:
                less = graph.plan({**most.plan.kept, group.name: rest})
            except GraphError:  # it would empty a layer
                continue
            assert broken(live(model, graph, less, where), whole, floors), group.name


class ThreeLayers(nn.Module):
    """1 x 1 convolutions 4 -> 8 -> 10 -> 6 and an output, no biases; two of them in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 1, bias=False)
        self.block = nn.Sequential(nn.Conv2d(8, 10, 1, bias=False), nn.Conv2d(10, 6, 1, bias=False))
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.block(self.first(x)))
        return out


@pytest.fixture(scope="module")
def three() -> Graph:
    return trace(ThreeLayers(), torch.zeros(1, 4, 1, 1))


def widths(graph: Graph, floors: Floors, order: str = "first block.0 block.1") -> list[int]:
    """Widths when all that may go has gone, groups one after the other in this order."""
    scores = {name: torch.arange(graph[name].channels) + 100.0 * place
              for place, name in enumerate(order.split())}
    selection = select(graph, scores, never, floors=floors)
    return [len(selection.plan.kept[n]) for n in ("first", "block.0", "block.1")]


@pytest.mark.rows("R044")
def test_the_share_of_channels_is_rounded_up(three: Graph) -> None:
    assert widths(three, Floors(layer_min=0.5)) == [4, 5, 3]
    assert widths(three, Floors(layer_min=0.51)) == [5, 6, 4]
    assert widths(three, Floors(layer_min=0.3)) == [3, 3, 2]  # 10 x 0.3 is 3, not 3.0000000004
    assert widths(three, Floors(layer_min=1.0)) == [8, 10, 6]
    assert widths(three, Floors(min_channels=4)) == [4, 4, 4]
    assert widths(three, Floors(min_channels=7)) == [7, 7, 6]


@pytest.mark.rows("R042", "R049")
def test_own_parameters_are_counted_with_the_whole_input(three: Graph) -> None:
    """With 'own' a floor on parameters is one on filters, whatever went before."""
    for order in ("first block.0 block.1", "block.1 block.0 first"):
        assert widths(three, Floors(layer_min_params=0.5), order) == [4, 5, 3]
        assert widths(three, Floors(layer_min_macs=0.5), order) == [4, 5, 3]


@pytest.mark.rows("R049")
def test_current_parameters_are_counted_with_the_input_as_it_is(three: Graph) -> None:
    """With 'current' what is read counts too.

    Half of the parameters: 32 -> 16, 80 -> 40, 60 -> 30. `first` goes to 4 of 8, which leaves
    block.0 with 4 x 10 = 40: it may lose nothing, and block.1 may lose half of its filters.
    The other way round block.1 goes to 3 x 10 = 30, block.0 must keep its ten, and `first` goes
    to 4, which leaves block.0 with 40.
    """
    floors = Floors(layer_min_params=0.5, counting="current")
    assert widths(three, floors, "first block.0 block.1") == [4, 10, 3]
    assert widths(three, floors, "block.1 block.0 first") == [4, 10, 3]
    # block.0 first: 5 x 8 = 40; then `first` must keep its 8, and block.1 has 6 x 5 = 30 at once.
    assert widths(three, floors, "block.0 first block.1") == [8, 5, 6]


@pytest.mark.rows("R044")
def test_a_parents_floor_covers_its_children(three: Graph) -> None:
    """The longest name wins; layers that are not named are free."""
    floors = Floors(layer_min={"block": 0.5, "block.1": 1.0})
    assert widths(three, floors) == [1, 5, 6]
    assert widths(three, Floors(layer_min={"": 0.5, "first": 0.0})) == [1, 5, 3]


def test_names_are_compared_whole() -> None:
    """`block.1` is no parent of `block.10`."""
    assert share_for({"block.1": 0.5}, "block.10") == 0.0
    assert share_for({"block.1": 0.5}, "block.1.conv") == 0.5
    assert share_for(0.25, "anything") == 0.25


@pytest.mark.rows("R043")
def test_a_block_keeps_its_share_of_parameters(three: Graph) -> None:
    """`block` holds 80 + 60: of 140, 70 stay, whichever layer gives; `first` (32) keeps 16."""
    own = Floors(block_min_params=0.5)
    # block.0 to 2 (16) with block.1 whole (60) is 76; to 1 it would be 68. Then block.1 is stuck.
    assert widths(three, own, "block.0 block.1 first") == [4, 2, 6]
    # block.1 goes to 1 (10), block.0 must keep 8 (64): 74, for 7 would leave 66.
    assert widths(three, own, "block.1 block.0 first") == [4, 8, 1]
    assert widths(three, Floors(block_min_params={"block": 0.5}), "block.0 block.1 first") == [
        1, 2, 6]


@pytest.mark.rows("R045")
def test_a_relative_floor_sinks_with_the_network(three: Graph) -> None:
    """Of 24 channels c are alive: a layer of n keeps min(0.9, c / 24) of its n.

    Without `relative` little goes. With it the floors follow the network down, as far as whole
    channels let them: where all stop, each layer's next channel would be one too many.
    """
    assert widths(three, Floors(layer_min=0.9)) == [8, 9, 6]
    floors = Floors(layer_min=0.9, relative=1.0)
    first, middle, last = widths(three, floors)
    share = (first + middle + last) / 24
    for width, whole in ((first, 8), (middle, 10), (last, 6)):
        assert width >= share * whole or width >= 0.9 * whole
        assert width - 1 < share * whole
    low = widths(three, Floors(layer_min=0.9, relative=0.5))
    assert sum(low) < first + middle + last
    assert all(width - 1 < 0.5 * sum(low) / 24 * whole or width == 1
               for width, whole in zip(low, (8, 10, 6), strict=True))


@pytest.mark.rows("R045")
@pytest.mark.parametrize("seed", range(4))
def test_relative_floors_keep_the_order_within_a_group(seed: int) -> None:
    """A channel that was held once does not outlive a better one of its group."""
    _, _, graph = traced(nets.residual)
    scores = random_scores(graph, seed)
    selection = select(graph, scores, never, floors=Floors(layer_min=0.8, relative=0.7))
    for group, gone in removed(graph, selection).items():
        kept = selection.plan.kept[group]
        assert not gone or float(scores[group][gone].max()) <= float(scores[group][kept].min())


@pytest.mark.rows("R050")
def test_floors_are_of_the_whole_network_in_a_later_step(three: Graph) -> None:
    start = three.plan({"first": range(6)})
    scores = {g: torch.arange(len(kept)).double() for g, kept in start.kept.items()}
    selection = select(three, scores, never, start=start, floors=Floors(layer_min=0.5))
    assert [len(k) for k in selection.plan.kept.values()] == [4, 5, 3]


@pytest.mark.rows("R046")
def test_no_layer_is_emptied() -> None:
    """Not even one of several that write parts of a group."""
    _, _, graph = traced(nets.sum_with_concat)  # a writes 0-3, b 4-9, c all
    scores = {"a": torch.arange(10).double()}
    selection = select(graph, scores, never)
    assert selection.plan.as_json() == {"a": [3, 4, 5, 6, 7, 8, 9]}
    assert "a keeps 1" in selection.bound["a"]


def test_what_holds_a_group_back_is_named(three: Graph) -> None:
    floors = Floors(layer_min={"first": 0.5}, block_min_params=0.5, layer_min_macs={"block.1": 1.0})
    bound = select(three, random_scores(three), never, floors=floors).bound
    assert bound["first"] == "layer_min: first keeps 0.5 of its channels"
    assert bound["block.1"] == "layer_min_macs: block.1 keeps 1 of its macs"
    assert bound["block.0"] == "block_min_params: block keeps 0.5 of its params"


# --- rounding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("round_to", [2, 3, 4])
@pytest.mark.parametrize("asked", range(1, 8))
def test_widths_are_multiples_and_the_target_is_met(round_to: int, asked: int) -> None:
    """A width is a multiple, or the whole layer's own."""
    _, _, graph = traced(nets.chain)  # 8 and 6
    scores = random_scores(graph, seed=asked)
    selection = select(graph, scores, filters_left(14 - asked), round_to=round_to)
    left = {g: len(kept) for g, kept in selection.plan.kept.items()}
    assert all(width % round_to == 0 or width == graph[g].channels for g, width in left.items())
    assert sum(left.values()) <= 14 - asked or not selection.reached
    assert selection.counts.filters == sum(left.values()) == graph.cost(selection.plan).filters
    for group, gone in removed(graph, selection).items():
        kept = selection.plan.kept[group]
        assert not gone or float(scores[group][gone].max()) <= float(scores[group][kept].min())


def test_rounding_and_floors_together() -> None:
    """Half of 10 is 5; the next multiple of 4 above is 8."""
    graph = trace(ThreeLayers(), torch.zeros(1, 4, 1, 1))
    selection = select(graph, random_scores(graph), never, floors=Floors(layer_min=0.5), round_to=4)
    assert [len(k) for k in selection.plan.kept.values()] == [4, 8, 4]


def one_after_the_other(graph: Graph, scores: dict[str, Tensor], asked: int, share: float,
                        round_to: int) -> dict[str, list[int]]:
    """The rule as a loop: lowest score first; a layer's share stays; widths are multiples."""
    kept = {g.name: list(range(g.channels)) for g in graph.groups}
    waiting: dict[str, list[int]] = {g: [] for g in kept}
    queue = sorted((float(s), i, c) for i, g in enumerate(graph.groups)
                   for c, s in enumerate(scores[g.name]))
    stopped: set[str] = set()
    for _, i, channel in queue:
        group = graph.groups[i]
        if sum(g.channels - len(kept[g.name]) for g in graph.groups) >= asked:
            break
        if group.name in stopped:
            continue
        waiting[group.name].append(channel)
        left = [c for c in kept[group.name] if c not in waiting[group.name]]
        if len(left) % round_to:
            continue
        writes = [set(w.number.tolist()) for w in group.writers]
        if all(len(own & set(left)) >= max(1, share * len(own) - 1e-9) for own in writes):
            kept[group.name], waiting[group.name] = left, []
        else:
            stopped.add(group.name)
    return kept


@pytest.mark.rows("R030")
@pytest.mark.parametrize("round_to", [1, 2, 4])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.75])
def test_the_choice_is_that_of_a_plain_loop(share: float, round_to: int) -> None:
    for net in (nets.chain, nets.residual, nets.sum_with_concat, nets.unet_transposed):
        _, _, graph = traced(net)
        for asked in (0, 1, 5, 9, graph.channels):
            scores = random_scores(graph, seed=asked)
            chosen = select(graph, scores, after(graph, asked), floors=Floors(layer_min=share),
                            round_to=round_to)
            expected = one_after_the_other(graph, scores, asked, share, round_to)
            assert chosen.plan.as_json() == expected


# --- mistakes -------------------------------------------------------------------------------------


def test_all_mistakes_in_floors_are_said_at_once(three: Graph) -> None:
    floors = Floors(layer_min={"frist": 0.5, "block": 1.5}, relative=-0.1, min_channels=0,
                    block_min_params={"block.0": 0.5}, counting="currant")
    with pytest.raises(ConfigError) as caught:
        select(three, random_scores(three), never, floors=floors)
    for words in ("floors.layer_min: unknown module 'frist'. Nearest: first",
                  "floors.layer_min: 1.5 must be from 0 to 1",
                  "floors.relative: -0.1 must be from 0 to 1",
                  "floors.min_channels: 0 must be at least 1",
                  "floors.block_min_params: unknown module 'block.0'. Nearest: block",
                  "floors.counting: unknown way of counting 'currant'. Nearest: current"):
        assert words in str(caught.value)


def test_a_floor_may_name_a_layer_that_is_not_cut(three: Graph) -> None:
    assert widths(three, Floors(layer_min={"last": 1.0})) == [1, 1, 1]


def test_ratios_for_what_cannot_be_cut_are_not_passed_over(three: Graph) -> None:
    frozen = three.freeze({"first": "ignored by name (first)"})
    named = select_ratios(frozen, random_scores(frozen), {"first": 0.5, "block": 0.5})
    assert not named.reached
    assert named.bound == {"first": "ignored by name (first)"}
    assert [len(k) for k in named.plan.kept.values()] == [5, 3]
    everywhere = select_ratios(frozen, random_scores(frozen), {"": 0.5, "first": 0.0})
    assert everywhere.reached
    _, _, graph = traced(nets.chain)
    norm = select_ratios(graph, random_scores(graph), {"0.1": 0.5})
    assert (norm.reached, norm.bound) == (False, {"0.1": "no layer under it writes channels"})


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_multiple_that_held_a_group_back_is_named(three: Graph, share: float) -> None:
    """Of 10 channels 5 could stay, and 8 must: a group's own floor, and one of all together."""
    floors = Floors(layer_min=0.5, node_min={"": share})
    bound = select(three, random_scores(three), never, floors=floors, round_to=4).bound
    assert bound["block.0"] == ("layer_min: block.0 keeps 0.5 of its channels, and its width is a "
                                "multiple of 4")
