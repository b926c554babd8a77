"""Trajectories reach what they are asked, share what they have in common, and repeat to the bit."""

import copy
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import harness
from harness.engine.selection import Floors
from harness.errors import ConfigError
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

    def latency(self, model: nn.Module) -> float:
        return 1.0


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


def test_floors_end_the_walk_cleanly_and_say_which() -> None:
    walked, end = steps(NoStore(), Work(),
                        Settings(10, 95, criterion="l1", floors=Floors(layer_min=0.5)))
    assert not end.reached
    assert "layer_min" in end.reason
    assert "output of the network" in end.reason
    assert {g: len(k) for g, k in walked[-1].plan.kept.items()} == {"0": 4, "3": 6, "7": 6}


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


class SizeWritten(nn.Module):
    """`forward` holds the width of the first layer; the second may be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 2)

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


def test_wrong_arguments_are_all_said_at_once_and_before_anything() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match="percentage: 0 .*filters_per_step: 0 .*give batches"):
        harness.trajectory(model, pictures()[0], train=print, evaluate=lambda m: 0.0, percentage=0,
                           filters_per_step=0, retrain_epochs=1, criterion="taylor")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

