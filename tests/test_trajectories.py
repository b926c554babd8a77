"""Trajectories reach what they are asked, share what they have in common, and repeat to the bit."""

import copy
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import harness
from harness.engine.criteria import Criterion
from harness.engine.floors import Floors
from harness.engine.tally import counts_of
from harness.errors import ConfigError, ModelError, TargetError
from harness.store import FolderStore, NoStore, Store
from harness.trajectories import EpochRow, Lab, Observe, Path, Settings, Stage, Step, walk


def net() -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))


def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(24, 1, 8, 8, generator=generator)
    return inputs, torch.randint(0, 3, (24,), generator=generator)


@dataclass
class Work:
    """A few steps of SGD with noise from the stage's seed, and a count of what was trained."""

    epochs: int = 1
    trained: list[int] = field(default_factory=list)
    fail_at: int | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"retrain": {"epochs": self.epochs}, "ranking": "all"}

    def retrain(self, model: nn.Module, seed: int, observe: Observe) -> list[EpochRow]:
        if self.fail_at == len(self.trained):
            raise KeyboardInterrupt
        self.trained.append(seed)
        generator = torch.Generator().manual_seed(seed)
        inputs, targets = pictures()
        rows = []
        for epoch in range(self.epochs):
            model.train()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            with observe() if epoch == self.epochs - 1 else nullcontext():
                for chosen in torch.randperm(24, generator=generator).split(8):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(inputs[chosen]), targets[chosen]).backward()
                    optimizer.step()
            rows.append(EpochRow(0.0, 0.0, self.evaluate(model)[0], 0.05))
        return rows

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        inputs, targets = pictures()
        with torch.no_grad():
            logits = model.eval()(inputs)
        return float((logits.argmax(1) == targets).float().mean()), 0.0

    def batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        return [pictures()]

    def latency(self, model: nn.Module) -> Mapping[str, float]:
        return {"latency_ms": 1.0}


def lab(store: Store, work: Work) -> tuple[Lab, Stage]:
    made = Lab(net(), pictures()[0][:4], work, store=store)
    return made, made.first("root", lambda model: [])


def steps(store: Store, work: Work, settings: Settings) -> tuple[list[Step], Path]:
    events = list(walk(*lab(store, work), settings))
    end = events[-1]
    assert isinstance(end, Path)
    return [e for e in events if isinstance(e, Step)], end


def weights(step: Step) -> Mapping[str, Tensor]:
    return step.stage.tensors


def equal(a: Step, b: Step) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.rows("R031", "R032")
@pytest.mark.parametrize(("percentage", "each", "filters"), [
    (50, 5, [32, 27, 22, 17, 16]), (70, 32, [32, 9]), (25, 8, [32, 24]), (26, 8, [32, 24, 23])])
def test_exactly_the_percentage_goes_and_the_last_step_is_smaller(
        percentage: float, each: int, filters: list[int]) -> None:
    """32 filters: 70 % is 22.4, so 23 go."""
    walked, end = steps(NoStore(), Work(), Settings(each, percentage, criterion="l1"))
    assert [s.filters for s in walked] == filters
    assert end.reached
    assert end.reason == "the percentage is reached"
    assert [round(s.percentage, 6) for s in walked] == [
        round(100 * (1 - f / 32), 6) for f in filters]


def test_what_is_counted_is_what_torch_counts() -> None:
    made, start = lab(NoStore(), Work())
    for event in walk(made, start, Settings(6, 60, criterion="random")):
        if isinstance(event, Step):
            model = made.model(event.stage)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model(pictures()[0][:1])
            assert event.flops == counter.get_total_flops() == 2 * event.macs
            assert event.params == sum(p.numel() for p in model.parameters())


def test_a_macs_limit_ends_the_walk_at_the_first_network_within_it() -> None:
    whole = steps(NoStore(), Work(), Settings(4, 10, criterion="l1"))[0][0].macs
    walked, end = steps(NoStore(), Work(), Settings(4, macs=whole // 3, criterion="l1"))
    assert end.reason == "the MACs are reached"
    assert walked[-1].macs <= whole // 3 < walked[-2].macs


@pytest.mark.rows("R051")
def test_floors_end_the_walk_cleanly_and_say_which() -> None:
    walked, end = steps(NoStore(), Work(),
                        Settings(10, 95, criterion="l1", floors=Floors(layer_min=0.5)))
    assert not end.reached
    assert "layer_min" in end.reason
    assert "output of the network" in end.reason
    assert {g: len(k) for g, k in walked[-1].plan.kept.items()} == {"0": 4, "3": 6, "7": 6}


@pytest.mark.rows("R138")
@pytest.mark.parametrize("ranking", ["merged", "pass"])
@pytest.mark.parametrize("criterion", ["taylor", "l1", "random"])
def test_the_store_changes_no_bit(tmp_path: FilePath, criterion: str, ranking: str) -> None:
    settings = Settings(7, 70, criterion=criterion, ranking=ranking)
    without, _ = steps(NoStore(), Work(), settings)
    first, _ = steps(FolderStore(tmp_path), Work(), settings)
    again_work = Work()
    again, _ = steps(FolderStore(tmp_path), again_work, settings)
    assert again_work.trained == []
    assert all(s.stage.reused for s in again)
    assert len(without) == len(first) == len(again)
    for a, b, c in zip(without, first, again):
        assert equal(a, b)
        assert equal(a, c)
        assert a.plan == b.plan == c.plan


@pytest.mark.rows("R120")
def test_trials_share_what_they_have_in_common(tmp_path: FilePath) -> None:
    """A floor that does not bind changes nothing: the longer trial begins as the short one."""
    short, long = Work(), Work()
    steps(FolderStore(tmp_path), short, Settings(6, 40, criterion="taylor"))
    walked, _ = steps(FolderStore(tmp_path), long, Settings(
        6, 75, criterion="taylor", floors=Floors(layer_min=0.01)))
    assert len(short.trained) == 3  # 13 of 32 in sixes
    assert len(long.trained) == len(walked) - 1 - 2  # the third step of the first was cut short
    alone, _ = steps(NoStore(), Work(), Settings(6, 75, criterion="taylor"))
    assert equal(alone[-1], walked[-1])


@pytest.mark.rows("R120")
def test_a_walk_that_was_cut_short_goes_on_at_its_last_stage(tmp_path: FilePath) -> None:
    settings = Settings(5, 70, criterion="taylor")
    undisturbed, _ = steps(NoStore(), Work(), settings)
    with pytest.raises(KeyboardInterrupt):
        steps(FolderStore(tmp_path), Work(fail_at=2), settings)
    work = Work()
    resumed, _ = steps(FolderStore(tmp_path), work, settings)
    assert len(work.trained) == len(resumed) - 1 - 2
    assert all(equal(a, b) for a, b in zip(undisturbed, resumed, strict=True))


def test_a_stage_that_was_evicted_is_made_again_to_the_bit(tmp_path: FilePath) -> None:
    settings = Settings(6, 60, criterion="taylor")
    before, _ = steps(FolderStore(tmp_path), Work(), settings)
    next(tmp_path.glob(f"{before[1].stage.key}.*safetensors")).unlink()
    work = Work()
    after, _ = steps(FolderStore(tmp_path), work, settings)
    assert len(work.trained) == 1
    assert all(equal(a, b) for a, b in zip(before, after, strict=True))


def test_every_cut_is_certified_and_logged() -> None:
    walked, _ = steps(NoStore(), Work(), Settings(8, 50, criterion="l1"))
    for step in walked[1:]:
        found = step.stage.facts["certificate"]
        assert found["difference"] <= found["tolerance"] == 1e-8
        assert found["control"] >= 100 * found["tolerance"]


@pytest.mark.rows("R064")
def test_a_leaf_hangs_off_a_step_and_is_made_once(tmp_path: FilePath) -> None:
    made, start = lab(FolderStore(tmp_path), Work())
    step = next(e for e in walk(made, start, Settings(8, 50)) if isinstance(e, Step) and e.number)
    seeds: list[int] = []

    def train(model: nn.Module, seed: int) -> list[EpochRow]:
        seeds.append(seed)
        with torch.no_grad():
            model[0].bias.add_(1.0)  # type: ignore[index, union-attr, operator]
        return [EpochRow(0.0, 0.0, 0.75, 0.1)]

    leaf = made.leaf(step.stage, {"epochs": 1}, train)
    again = made.leaf(step.stage, {"epochs": 1}, train)
    made.leaf(step.stage, {"epochs": 2}, train)
    assert len(seeds) == 2
    assert again.reused
    assert not leaf.reused
    assert leaf.accuracy == 0.75
    torch.testing.assert_close(leaf.tensors["0.bias"], step.stage.tensors["0.bias"] + 1.0)


@pytest.mark.rows("R033", "R034", "R139")
@pytest.mark.parametrize("resource", ["channels", "params", "macs", "flops", "memory"])
def test_the_percentage_may_be_of_another_resource(resource: str) -> None:
    """The walk ends with the first network that holds it, one channel too many at most."""
    settings = Settings(7, 60, criterion="l1", percentage_of=resource)
    walked, end = steps(NoStore(), Work(epochs=0), settings)
    assert end.reached
    whole, *_, before, last = (
        {"params": s.params, "macs": s.macs, "flops": s.flops, "memory": s.cost.bytes,
         "channels": sum(len(k) for k in s.plan.kept.values())}[resource] for s in walked)
    assert last <= 0.4 * whole + 1e-6 < before


@pytest.mark.rows("R035", "R036")
def test_a_step_may_be_a_share_of_the_macs_and_the_steps_add_up() -> None:
    """After step k at least k tenths are gone, and not a channel's worth more than that.

    No channel counts for more than the first layer's: 9 MACs at 64 places, and 9 x 12 behind it.
    """
    walked, end = steps(NoStore(), Work(epochs=0), Settings(
        1, 70, criterion="l1", percentage_of="macs", step={"macs": 0.1}))
    assert end.reached
    whole = walked[0].macs
    channel = 64 * 9 * (8 + 12 // 4) + 64 * 9
    for step in walked[1:]:
        gone = whole - step.macs
        assert gone >= step.number * 0.1 * whole - 1
        assert gone < step.number * 0.1 * whole + channel
    assert len(walked) == 8


@pytest.mark.rows("R036")
def test_a_step_may_be_a_number_of_parameters() -> None:
    walked, _ = steps(NoStore(), Work(epochs=0), Settings(1, 50, criterion="l1",
                                                         step={"params": 300}))
    whole = walked[0].params
    assert all(whole - s.params >= 300 * s.number for s in walked[1:-1])
    assert walked[-1].filters == 16


@pytest.mark.rows("R032")
def test_the_origins_loop_makes_its_number_of_steps() -> None:
    """32 filters, 5 a step, 70 %: int(int(32 / 5) x 0.7) = 4 steps, 20 filters, not 23."""
    settings = Settings(5, 70, criterion="l1", iterations="origin")
    walked, end = steps(NoStore(), Work(epochs=0), settings)
    assert [s.filters for s in walked] == [32, 27, 22, 17, 12]
    assert end.reached
    none, end = steps(NoStore(), Work(), Settings(33, 70, criterion="l1", iterations="origin"))
    assert len(none) == 1
    assert end.reached


@pytest.mark.rows("R032")
def test_whole_steps_pass_the_percentage_and_are_the_same_for_all_percentages() -> None:
    """32 filters, 5 a step: 50 % are passed at 12 left, 70 % at 7; cut short at 16 and at 9."""
    def walked(percentage: float, iterations: str) -> tuple[list[int], list[str]]:
        found, end = steps(NoStore(), Work(epochs=0), Settings(
            5, percentage, criterion="l1", iterations=iterations))
        assert end.reached
        return [s.filters for s in found], [s.stage.key for s in found]

    half, half_keys = walked(50, "whole")
    more, more_keys = walked(70, "whole")
    assert (half, more) == ([32, 27, 22, 17, 12], [32, 27, 22, 17, 12, 7])
    assert more_keys[:5] == half_keys
    short, short_keys = walked(50, "exact")
    assert short == [32, 27, 22, 17, 16]
    assert [a == b for a, b in zip(short_keys, more_keys)] == [True, True, True, True, False]


@pytest.mark.rows("R039")
def test_ratios_are_met_in_one_step() -> None:
    ratios = {"0": 0.5, "3": 0.25, "7": 0.9}
    walked, end = steps(NoStore(), Work(), Settings(1, ratios=ratios, criterion="taylor"))
    assert end.reached
    assert end.reason == "the ratios are met"
    assert [{g: len(k) for g, k in s.plan.kept.items()} for s in walked] == [
        {"0": 8, "3": 12, "7": 12}, {"0": 4, "3": 9, "7": 1}]
    walked, end = steps(NoStore(), Work(), Settings(1, ratios=ratios, criterion="l1",
                                                    floors=Floors(min_channels=3)))
    assert not end.reached
    assert "min_channels: 7 keeps 3" in end.reason
    assert len(walked[-1].plan.kept["7"]) == 3


@pytest.mark.parametrize("criterion", ["l1", "taylor"])
def test_one_by_one_scores_anew_within_a_step(criterion: str) -> None:
    """As many filters go; which ones is decided on the network that is cut so far."""
    settings = Settings(6, 40, criterion=criterion, one_by_one=True)
    walked, end = steps(NoStore(), Work(), settings)
    assert end.reached
    assert [s.filters for s in walked] == [32, 26, 20, 19]
    again, _ = steps(NoStore(), Work(), settings)
    assert all(equal(a, b) for a, b in zip(walked, again, strict=True))


@pytest.mark.rows("R037")
def test_one_by_one_is_the_loop_over_single_cuts() -> None:
    """Every removal is the lowest L1 per mean of its layer, in the weights that are left."""
    walked, _ = steps(NoStore(), Work(epochs=0), Settings(6, 18, criterion="l1", one_by_one=True))
    model = net()
    weights = {n: model.get_parameter(f"{n}.weight").detach().double() for n in ("0", "3", "7")}
    kept = {n: list(range(len(w))) for n, w in weights.items()}
    reads = {"3": "0", "7": "3"}
    for _ in range(6):
        scores = {}
        for n, w in weights.items():
            seen = w[kept[n]][:, kept[reads[n]]] if n in reads else w[kept[n]]
            norms = seen.abs().sum((1, 2, 3))
            scores |= {(n, c): float(s / norms.mean()) for c, s in zip(kept[n], norms)}
        layer, channel = min(scores, key=lambda key: scores[key])
        kept[layer].remove(channel)
    assert walked[-1].plan.as_json() == kept


def test_a_local_scope_and_layer_types_reach_the_choice() -> None:
    walked, _ = steps(NoStore(), Work(epochs=0), Settings(16, 50, criterion="l1", scope="local"))
    assert {g: len(k) for g, k in walked[-1].plan.kept.items()} == {"0": 4, "3": 6, "7": 6}
    walked, end = steps(NoStore(), Work(), Settings(4, 50, criterion="l1", layer_types="1x1"))
    assert len(walked) == 1
    assert "no convolution of the type asked for (1x1)" in end.reason
    walked, _ = steps(NoStore(), Work(epochs=0), Settings(4, 12, criterion="l1",
                                                          only_follow=["0", "3"]))
    assert {g: len(k) for g, k in walked[-1].plan.kept.items()} == {"0": 8, "3": 12, "7": 8}


def test_the_percentage_may_be_of_measured_latency(tmp_path: FilePath) -> None:
    """The tables are measured once; the walk ends at the first network whose tables add up."""
    file = tmp_path / "latency.json"
    ends = []
    for _ in range(2):
        made = Lab(net(), pictures()[0][:4], Work(epochs=0), store=NoStore(), latency_file=file)
        start = made.first("root", lambda model: [])
        settings = Settings(4, 50, criterion="l1", percentage_of="latency")
        *walked, end = walk(made, start, settings)
        assert isinstance(end, Path)
        ends.append(end)
        last = walked[-1]
        assert isinstance(last, Step)
        whole, left = (counts_of(made.graph, plan, made.times).latency_ms
                       for plan in (made.graph.whole(), last.plan))
        assert whole is not None
        assert left is not None
        assert left <= whole / 2 + 1e-6 or not end.reached
    assert ends[0].steps[-1].plan == ends[1].steps[-1].plan


def test_settings_that_contradict_each_other_are_refused() -> None:
    for settings, words in (
            ({"percentage_of": "filter"}, "unknown resource 'filter'. Nearest: filters"),
            ({"iterations": "orign"}, "Nearest: origin"), ({"scope": "globl"}, "Nearest: global"),
            ({"layer_types": "1by1"}, "unknown type"), ({"step": {"mac": 1}}, "Nearest: macs"),
            ({"iterations": "origin", "step": {"macs": 0.1}}, "the origin counts filters")):
        with pytest.raises(ConfigError, match=words):
            Settings(1, 50, **settings)  # type: ignore[arg-type]


class Two(nn.Module):
    """Two convolutions of eight channels, and a head that is never cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 2)


class SizeWritten(Two):
    """`forward` holds the width of the first layer; the second may be cut."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.a(inputs)
        hidden = hidden.view(-1, 8, 6 * 6).view(-1, 8, 6, 6)
        out: Tensor = self.head(self.b(hidden).mean((2, 3)))
        return out


def test_a_size_written_in_forward_freezes_its_layer_and_the_walk_goes_on() -> None:
    made = Lab(SizeWritten(), torch.randn(4, 1, 8, 8), Work(epochs=0), store=NoStore())
    start = made.first("root", lambda model: [])
    events = list(walk(made, start, Settings(2, 25, criterion="l1")))
    last = [e for e in events if isinstance(e, Step)][-1]
    assert {g: len(k) for g, k in last.plan.kept.items()} == {"b": 4}
    assert "size written in forward" in made.graph.frozen["a"]


class NeedsThree(Two):
    """`forward` runs while the first layer has three channels or more."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.a(inputs)
        if hidden.shape[1] < 3:
            raise ValueError("three channels at least")
        out: Tensor = self.head(self.b(hidden).mean((2, 3)))
        return out


def a_before_b(group: Any, evidence: Any) -> Tensor:
    kept: Tensor = evidence.plan.kept[group.name]
    return (kept + 1.0) * (1.0 if group.name == "a" else 100.0)


def test_a_group_that_was_cut_and_then_cannot_be_keeps_its_cut() -> None:
    """`a` goes from 8 to 5; 2 would break forward, so that the next three are of `b`."""
    model = NeedsThree()
    made = Lab(model, torch.randn(4, 1, 8, 8), Work(epochs=0), store=NoStore())
    start = made.first("root", lambda model: [])
    criterion = Criterion(a_before_b, "weights", "none")
    events = list(walk(made, start, Settings(3, 37.5, criterion=criterion)))
    walked = [e for e in events if isinstance(e, Step)]
    assert [{g: k.tolist() for g, k in step.plan.kept.items()} for step in walked[1:]] == [
        {"a": [3, 4, 5, 6, 7], "b": list(range(8))}, {"a": [3, 4, 5, 6, 7], "b": [3, 4, 5, 6, 7]}]
    assert "size written in forward" in made.held["a"]
    last = made.model(walked[-1].stage)
    assert last.get_submodule("b").weight.shape == (5, 5, 3, 3)
    torch.testing.assert_close(last.get_submodule("a").weight, model.a.weight[3:])


def test_a_list_of_floors_holds_when_a_cut_has_frozen_a_layer_of_it() -> None:
    """`a` cannot go from 8 to 2, and is frozen: the second share stays that of `b`."""
    criterion, floors = Criterion(a_before_b, "weights", "none"), Floors(layer_min=[0.1, 0.25])
    made = Lab(NeedsThree(), torch.randn(4, 1, 8, 8), Work(epochs=0), store=NoStore())
    *_, end = walk(made, made.first("root", lambda model: []),
                   Settings(6, 37.5, criterion=criterion, floors=floors))
    assert isinstance(end, Path)
    result = harness.prune(NeedsThree(), torch.randn(4, 1, 8, 8), target={"filters": 0.375},
                           criterion=criterion, floors=floors)
    for plan, frozen in ((end.steps[-1].plan, made.graph.frozen), (result.plan, result.frozen)):
        assert {g: k.tolist() for g, k in plan.kept.items()} == {"b": [6, 7]}
        assert "size written in forward" in frozen["a"]


@pytest.mark.parametrize(("settings", "asked"), [
    ({"percentage": 50}, {"filters": 0.5}),
    ({"percentage": 50, "percentage_of": "macs"}, {"macs": 0.5}),
    ({"percentage": 50, "percentage_of": "macs", "step": {"flops": 0.9}}, {"macs": 0.5}),
    ({"percentage": 50, "step": {"macs": 0.9}}, {"filters": 0.5}),
    ({"macs": 40338}, {"macs": 0.5}),  # of 80676
    ({"percentage": 90, "floors": Floors(layer_min=0.75)}, {"filters": 20 / 32}),
    ({"ratios": {"0": 0.5}}, {})], ids=str)
def test_a_step_that_the_end_cuts_short_was_asked_for_no_more_than_the_end(
        settings: dict[str, Any], asked: Mapping[str, float]) -> None:
    """20 of 32 filters a step: what is asked of the first, also where a floor stops it."""
    walked, end = steps(NoStore(), Work(epochs=0), Settings(20, criterion="l1", **settings))
    told = walked[1].ledger
    assert told is not None
    assert told.asked == pytest.approx(asked)
    assert end.reached == ("floors" not in settings)
    assert all((told.reached[r] >= share - 1e-8) == end.reached for r, share in told.asked.items())


def test_a_walk_begins_only_if_the_network_has_all_that_is_named() -> None:
    """Before the first step, the whole network, is told."""
    settings = Settings(8, 50, criterion="l1", only_follow=["hed"], ratios={"44": 0.5},
                        floors=Floors(layer_min={"33": 0.5}, node_min=[0.5]))
    with pytest.raises(ConfigError) as caught:
        next(walk(*lab(NoStore(), Work()), settings))
    for words in ("only_follow: unknown module 'hed'", "ratios: unknown module '44'",
                  "floors.layer_min: unknown module '33'", "floors.node_min: a list is of layers"):
        assert words in str(caught.value)


# --- the loop for people who have their own training --------------------------------------------


def own_training() -> tuple[Any, Any]:
    inputs, targets = pictures()

    def train_one_epoch(model: nn.Module) -> None:
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model.eval()(inputs).argmax(1) == targets).float().mean())

    return train_one_epoch, accuracy


@pytest.mark.rows("R088", "R131")
@pytest.mark.parametrize("criterion", ["l1", "taylor"])
def test_the_users_own_module_is_cut_and_trained(criterion: str) -> None:
    model, (train, accuracy) = net(), own_training()
    found = []
    for step in harness.trajectory(model, pictures()[0][:2], train=train, evaluate=accuracy,
                                   percentage=70, filters_per_step=10, retrain_epochs=2,
                                   criterion=criterion, batches=[pictures()]):
        found.append(step)
        assert accuracy(model) == step.accuracy
        assert sum(p.numel() for p in model.parameters()) == step.params
    assert [s.filters for s in found] == [32, 22, 12, 9]
    assert model[3].out_channels == len(found[-1].plan.kept["3"])


@pytest.mark.rows("R131")
def test_wrong_arguments_are_all_said_at_once_and_before_anything() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match="percentage: 0 .*filters_per_step: 0 .*give batches"):
        harness.trajectory(model, pictures()[0], train=print, evaluate=lambda m: 0.0, percentage=0,
                           filters_per_step=0, retrain_epochs=1, criterion="taylor")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# --- what is done around a cut --------------------------------------------------------------------


@pytest.mark.rows("R088")
def test_norms_are_measured_on_the_cut_network_before_it_is_judged() -> None:
    """By hand: the same cut, its norms in train mode over the pictures; and it is another stage."""
    work = Work(epochs=0)
    laboratory, start = lab(NoStore(), work)
    asked = Settings(filters_per_step=8, percentage=25, criterion="l1")
    plain, step = (
        [s for s in walk(laboratory, start, replace(asked, norm_batches=n)) if isinstance(s, Step)]
        [1] for n in (0, 1))
    assert plain.plan == step.plan
    assert plain.stage.key != step.stage.key
    assert step.stage.facts["recalibration"]["examples"] == 24
    assert "recalibration" not in plain.stage.facts
    model = laboratory.model(plain.stage)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(pictures()[0])
    torch.testing.assert_close(step.stage.tensors["1.running_mean"],
                               model.get_buffer("1.running_mean"))
    assert step.accuracy_cut == work.evaluate(model)[0]


def test_folding_is_written_down_and_makes_another_stage() -> None:
    """No channel of this network is constant."""
    laboratory, start = lab(NoStore(), Work(epochs=0))
    asked = Settings(filters_per_step=4, percentage=10, criterion="l1")
    steps = [next(s for s in walk(laboratory, start, replace(asked, fold=fold))
                  if isinstance(s, Step) and s.number) for fold in (False, True)]
    assert steps[0].stage.key != steps[1].stage.key
    assert steps[1].stage.facts["folding"] == {"channels": {}, "refused": {}}
    assert steps[1].ledger is not None
    assert steps[1].ledger.changed


@pytest.mark.rows("R056")
def test_named_modules_begin_anew_after_every_cut() -> None:
    """The classifier, as in seed 003; all else is what the cut left of it."""
    asked = Settings(8, 50, criterion="l1", renew=["12"])
    walked, _ = steps(NoStore(), Work(epochs=0), asked)
    again, _ = steps(NoStore(), Work(epochs=0), asked)
    plain, _ = steps(NoStore(), Work(epochs=0), replace(asked, renew=[]))
    whole = net()
    assert len(walked) == 3
    for step, same, sliced in zip(walked[1:], again[1:], plain[1:], strict=True):
        assert step.plan == sliced.plan
        assert step.stage.key != sliced.stage.key
        assert equal(step, same)
        first, last = (step.plan.kept[group] for group in ("0", "7"))
        assert torch.equal(weights(step)["0.weight"], whole.get_parameter("0.weight")[first])
        kept = whole.get_parameter("12.weight")[:, last]
        assert torch.equal(weights(sliced)["12.weight"], kept)
        new = weights(step)["12.weight"]
        assert new.shape == kept.shape
        assert not bool((new == kept).any())
        assert float(new.abs().max()) <= len(last) ** -0.5  # as PyTorch begins linear layers
    assert not torch.equal(weights(walked[1])["12.weight"][:, :4], weights(walked[2])["12.weight"])
    with pytest.raises(ConfigError, match="renew: unknown module 'hed'"):
        steps(NoStore(), Work(), replace(asked, renew=["hed"]))


def test_norms_cannot_be_measured_on_nothing() -> None:
    with pytest.raises(ConfigError, match="norm_batches: give batches"):
        harness.trajectory(net(), pictures()[0], train=lambda m: None, evaluate=lambda m: 0.0,
                           percentage=50, filters_per_step=4, retrain_epochs=0, norm_batches=2)


def test_mistakes_of_all_kinds_are_said_together() -> None:
    with pytest.raises(ConfigError) as caught:
        harness.trajectory(net(), pictures()[0], train=print, evaluate=lambda m: 0.0, percentage=0,
                           filters_per_step=8, retrain_epochs=1, criterion="tailor", scope="x",
                           floors={"layer_mn": 0.1}, normalize="l3")
    for words in ("percentage: 0", "'tailor'", "unknown scope 'x'", "'layer_mn'", "'l3'"):
        assert words in str(caught.value)


def test_floors_are_given_by_name_too() -> None:
    model = net()
    steps = list(harness.trajectory(
        model, pictures()[0], train=lambda m: None, evaluate=lambda m: 0.0, percentage=90,
        filters_per_step=8, retrain_epochs=0, floors={"layer_min": 0.5}))
    assert [len(kept) for kept in steps[-1].plan.kept.values()] == [4, 6, 6]


def test_a_step_that_fails_leaves_the_model_as_the_last_one_left_it() -> None:
    model = net()
    before = {n: (p, p.detach().clone()) for n, p in model.named_parameters()}
    steps = harness.trajectory(
        model, pictures()[0], train=lambda m: m.get_parameter("0.weight").data.fill_(torch.nan),
        evaluate=lambda m: 0.0, percentage=60, filters_per_step=8, retrain_epochs=1)
    next(steps)
    with pytest.raises(ModelError, match="0.weight holds numbers that are not finite"):
        next(steps)
    for name, parameter in model.named_parameters():
        old, value = before[name]
        assert parameter is old
        assert torch.equal(parameter, value)


def test_where_nothing_at_all_can_go_it_is_an_error() -> None:
    """A walk that ends at once would look like one that did what was asked."""
    with pytest.raises(TargetError, match="nothing more may be cut: 12 .output of the network"):
        list(harness.trajectory(net(), pictures()[0], train=lambda m: None,
                                evaluate=lambda m: 0.0, ratios={"12": 0.5}, retrain_epochs=0))


@pytest.mark.parametrize(("given", "words"), [
    ({"ranking": "mergd"}, "ranking: unknown ranking 'mergd'. Nearest: merged"),
    ({"percentage": "60"}, "percentage: '60' must be above 0")])
def test_a_mistyped_argument_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        harness.trajectory(net(), pictures()[0], train=print, evaluate=lambda m: 0.0,
                           filters_per_step=8, retrain_epochs=1, **given)
    assert words in str(caught.value)
