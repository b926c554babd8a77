"""A request is one target or ratios; `prune` meets it, or says what is nearest and in the way."""

import copy

import nets
import pytest
import torch
from torch import Tensor, nn

import harness
from engine.by_hand import counted_macs, num_parameters
from harness.engine.floors import Floors
from harness.engine.request import Request
from harness.errors import ConfigError, TargetError


def widths(model: nn.Module) -> dict[str, int]:
    return {n: m.out_channels for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("resource", ["filters", "channels", "params", "macs", "flops", "memory"])
def test_the_live_network_meets_the_target(resource: str, scope: str) -> None:
    model, example = nets.unet_bilinear()
    whole = copy.deepcopy(model)
    harness.prune(model, example, target={resource: 0.45}, scope=scope)

    def left(net: nn.Module) -> float:
        tensors = [*net.parameters(), *net.buffers()]
        return {"filters": sum(widths(net).values()), "params": num_parameters(net),
                "macs": counted_macs(net, (example,)), "flops": counted_macs(net, (example,)),
                "memory": sum(t.numel() * t.element_size() for t in tensors),
                "channels": sum(w for n, w in widths(net).items() if n != "last")}[resource]

    assert left(model) <= 0.55 * left(whole) + 1e-6
    assert left(model) > 0.35 * left(whole)


def test_a_plan_by_layer() -> None:
    model, example = nets.chain()
    whole = copy.deepcopy(model)
    harness.prune(model, example, ratios={"0": 0.5, "2.0": 0.34}, criterion="l1")
    assert model[0][0].out_channels == 4
    assert model[2][0].out_channels == 3  # int(6 x 0.66)
    norms = whole[0][0].weight.abs().sum((1, 2, 3))
    best = norms.argsort(descending=True)[:4].sort().values
    torch.testing.assert_close(model[0][0].weight, whole[0][0].weight[best])


def test_ratios_that_cannot_be_met_touch_nothing() -> None:
    model, example = nets.chain()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TargetError, match="the ratios cannot be met. In the way:\n  0.0: min_chan"):
        harness.prune(model, example, ratios={"0": 1.0})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.rows("R037")
def test_one_by_one_and_all_at_once_both_meet_the_target() -> None:
    plans = []
    for one_by_one in (False, True):
        model, example = nets.residual()
        result = harness.prune(model, example, target={"filters": 0.4}, one_by_one=one_by_one)
        assert sum(widths(model).values()) <= 0.6 * result.before.filters + 1e-9
        plans.append(result.plan)
    assert plans[0] != plans[1]  # the input that a filter has lost no longer counts


def test_one_by_one_asks_the_data_again(recwarn: pytest.WarningsRecorder) -> None:
    """Batches from a generator are enough: they are kept."""
    model, example = nets.chain()
    classes = model(example).shape[1]
    batches = ((example, torch.zeros(len(example), dtype=torch.long) % classes) for _ in range(2))
    result = harness.prune(model, example, target={"filters": 0.3}, criterion="taylor",
                           batches=batches, one_by_one=True)
    assert result.after.filters <= 0.7 * result.before.filters
    assert not recwarn


@pytest.mark.rows("R038", "R048")
def test_types_and_followers() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
            self.c, self.head = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.c(self.b(self.a(x).relu()).relu()).relu())
            return out

    for options, left in (({"layer_types": "1x1"}, [8, 3, 8]),
                          ({"layer_types": "not_1x1", "only_follow": ["a"]}, [8, 8, 3])):
        model = Two()
        harness.prune(model, torch.randn(2, 3, 8, 8), target={"filters": 5 / 26},
                      **options)  # type: ignore[arg-type]
        assert [model.a.out_channels, model.b.out_channels, model.c.out_channels] == left
    with pytest.raises(TargetError, match="type asked for"):
        harness.prune(Two(), torch.randn(2, 3, 8, 8), target={"filters": 0.5}, layer_types="1x1")


@pytest.mark.rows("R047")
def test_the_group_rule_works_from_what_is_asked() -> None:
    """ADaPT's at 30 %: a coupled group keeps 0.3 of it, ours 0.7."""
    for rule, share in (("origin", 0.3), ("monotone", 0.7)):
        model, example = nets.residual()
        result = harness.prune(model, example, target={"filters": 0.3},
                               floors={"group_rule": rule})
        coupled = [g for g in result.graph.groups if len(g.layers) > 1]
        assert coupled
        for group in coupled:
            assert len(result.plan.kept[group.name]) >= share * group.channels - 1e-9


def test_what_contradicts_itself_is_refused() -> None:
    for asked, words in (
            ({}, "name one of"), ({"target": {"macs": 0.5}, "ratios": {"a": 0.5}}, "give one of"),
            ({"target": {"macs": 0.5}, "scope": "loca"}, "Nearest: local"),
            ({"target": {"macs": 0.5}, "round_to": 0}, "round_to: 0 must be at least 1"),
            ({"ratios": {"a": 0.5}, "scope": "local"}, "scope: does not go with ratios"),
            ({"ratios": {"a": 0.5}, "floors": Floors(group_rule="origin")}, "group_rule")):
        with pytest.raises(ConfigError, match=words):
            Request(**asked)  # type: ignore[arg-type]
