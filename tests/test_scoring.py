"""How a trajectory comes by its scores: riding along, in a pass, in a pass that ends early."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath

import pytest
import test_trajectories as base
import tiny
import torch
from torch import Tensor

import harness
from harness.engine.criteria import CRITERIA, criterion_of
from harness.engine.graph import Plan
from harness.errors import ConfigError, HarnessError
from harness.experiment import Training
from harness.store import FolderStore, NoStore, Store
from harness.trajectories import Lab, Path, Settings, Stage, Step, walk
from harness.translation import settings_of


@dataclass
class Batches(base.Work):
    """The pictures in batches of four, and a count of those that were asked for."""

    asked: list[int] = field(default_factory=list)

    def batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        inputs, targets = base.pictures()
        for place, pair in enumerate(zip(inputs.split(4), targets.split(4))):
            self.asked.append(place)
            yield pair


def walked(store: Store, work: base.Work, settings: Settings) -> list[Step]:
    made, start = base.lab(store, work)
    return [event for event in walk(made, start, settings) if isinstance(event, Step)]


def opened(work: base.Work, store: Store | None = None) -> tuple[Lab, Stage]:
    return base.lab(store or NoStore(), work)


@pytest.mark.rows("R019")
@pytest.mark.parametrize("ranking", ["merged", "pass"])
@pytest.mark.parametrize("name", ["ipad", "apoz", "entropy", "taylor_weight"])
def test_every_kind_of_evidence_rides_along_or_takes_a_pass(tmp_path: FilePath, name: str,
                                                            ranking: str) -> None:
    """The store changes no bit; after the first ranking a merged one asks for no batches."""
    settings = Settings(8, 70, criterion=name, ranking=ranking)
    works = [Batches(), Batches(), Batches()]
    first, *others = [walked(store, work, settings) for store, work in zip(
        [NoStore(), FolderStore(tmp_path), FolderStore(tmp_path)], works)]
    for other in others:
        assert all(base.equal(a, b) for a, b in zip(first, other, strict=True))
    passes = 1 if ranking == "merged" else len(first) - 1
    assert [len(work.asked) for work in works] == [6 * passes, 6 * passes, 0]
    kinds = criterion_of(name).wants if ranking == "merged" else frozenset()
    assert first[-1].stage.gathered.kinds == kinds


def test_passes_are_kept_apart_by_what_they_gathered(tmp_path: FilePath) -> None:
    """Another criterion of the same evidence finds the pass made, one of other evidence not."""
    asked = []
    for name in ("mean_activation", "apoz", "ipad"):
        work = Batches()
        made, start = opened(work, FolderStore(tmp_path))
        made.scores(start, Settings(8, criterion=name, ranking="pass"))
        assert made.batches_used == 6
        asked.append(len(work.asked))
    assert asked == [6, 0, 6]


def test_a_pass_ends_when_what_would_go_is_settled() -> None:
    """The same channels go in the next two batches too; how many were used is told."""
    settings = Settings(8, criterion="taylor", ranking="pass", settle_batches=2)
    plans: list[list[int]] = []

    def choose(scores: dict[str, Tensor]) -> list[int]:
        lowest = torch.cat([scores[g] for g in sorted(scores)]).argsort()[:4]
        plans.append(sorted(lowest.tolist()))
        return plans[-1]

    work = Batches()
    made, start = opened(work)
    made.scores(start, settings, choose)
    assert made.batches_used == len(plans) == len(work.asked)
    assert plans[-3:] == [plans[-1]] * 3
    assert all(plans[n:n + 3] != [plans[n]] * 3 for n in range(len(plans) - 3))
    made.scores(start, settings)  # nobody chooses: all batches
    assert made.batches_used == 6


def test_a_walk_may_settle_early_and_still_goes_where_it_should() -> None:
    whole = walked(NoStore(), Batches(), Settings(8, 50, criterion="taylor", ranking="pass"))
    work = Batches()
    early = walked(NoStore(), work, Settings(8, 50, criterion="taylor", ranking="pass",
                                             settle_batches=1))
    assert [s.filters for s in early] == [s.filters for s in whole]
    assert len(work.asked) < 6 * (len(whole) - 1)


def test_prune_tells_how_many_batches_it_used() -> None:
    inputs, targets = base.pictures()

    def data() -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(inputs.split(4), targets.split(4))

    def pruned(settle: int, criterion: str = "taylor") -> tuple[int, Plan]:
        result = harness.prune(base.net(), inputs[:2], target={"filters": 0.25}, batches=data(),
                               criterion=criterion, settle_batches=settle)
        return result.batches_used, result.plan

    used, plan = pruned(2)
    assert 3 <= used <= 6
    assert pruned(0)[0] == 6
    assert pruned(0, "l1")[0] == 0
    assert sum(len(kept) for kept in plan.kept.values()) == 24


@pytest.mark.rows("R027")
def test_options_and_the_penalty_reach_the_scores() -> None:
    made, start = opened(base.Work())
    plain = made.scores(start, Settings(8, criterion="lp"))
    other = made.scores(start, Settings(8, criterion=criterion_of("lp", {"p": 0.5})))
    dearer = made.scores(start, Settings(8, criterion="lp", flops_penalty=10.0))
    assert any(not torch.equal(plain[g], other[g]) for g in plain)
    # 8x8 positions, 9 weights, two FLOPs a MAC
    torch.testing.assert_close(dearer["0"], plain["0"] - 10 * 2e-6 * 64 * 9)

    one, two = (harness.prune(base.net(), base.pictures()[0][:2], target={"filters": 0.5},
                              criterion="lp", criterion_options=options).plan
                for options in ({"p": 1}, None))
    assert one == harness.prune(base.net(), base.pictures()[0][:2], target={"filters": 0.5},
                                criterion="l1").plan
    assert one != two


def test_a_configuration_carries_them_all() -> None:
    config = tiny.run(prune__criterion="ipad", prune__criterion_options={"omega": 0.1},
                      prune__flops_penalty=0.5, prune__settle_batches=3)
    settings = settings_of(config)
    assert (settings.flops_penalty, settings.settle_batches) == (0.5, 3)
    assert criterion_of(settings.criterion).wants == {"maps"}
    with pytest.raises(ConfigError, match="omega: 2 must be a number from 0 to 1"):
        settings_of(tiny.run(prune__criterion="ipad", prune__criterion_options={"omega": 2}))


def test_a_loop_of_ones_own_takes_the_options_too() -> None:
    train, accuracy = base.own_training()

    def steps(**more: object) -> list[Step]:
        return list(harness.trajectory(
            base.net(), base.pictures()[0][:2], train=train, evaluate=accuracy, percentage=50,
            filters_per_step=16, retrain_epochs=0, **more))  # type: ignore[arg-type]

    assert steps(criterion="lp", criterion_options={"p": 1})[-1].plan == steps(
        criterion="l1")[-1].plan
    with pytest.raises(ConfigError, match="give batches"):
        steps(criterion="ipad")
    with pytest.raises(HarnessError, match="unknown option 'q'"):
        steps(criterion="lp", criterion_options={"q": 1})


def test_every_criterion_ranks_a_walk() -> None:
    for name in CRITERIA:
        made, start = opened(Batches())
        end = list(walk(made, start, Settings(16, 50, criterion=name)))[-1]
        assert isinstance(end, Path)
        assert end.reached, name


@pytest.mark.rows("R019")
def test_passes_in_train_and_in_eval_mode_are_kept_apart(tmp_path: FilePath) -> None:
    made, start = opened(Batches(), FolderStore(tmp_path))
    settings = Settings(8, criterion="taylor", ranking="pass")
    fixed = made.scores(start, settings)
    own = made.scores(start, replace(settings, ranking_mode="train"))
    assert any(not torch.equal(fixed[g], own[g]) for g in fixed)
    again = made.scores(start, replace(settings, ranking_mode="train"))
    assert all(torch.equal(own[g], again[g]) for g in own)


@pytest.mark.rows("R019", "R140")
def test_a_pass_goes_over_the_split_that_is_asked_for_and_never_over_the_test_split() -> None:
    data = tiny.digits(size=8, val=0.2, test=0.2, seed=0)

    def batches(**changes: object) -> list[Tensor]:
        return [x for x, _ in Training(tiny.run(**changes), data).batches()]

    assert torch.equal(torch.cat(batches()), data.train.inputs)
    assert torch.equal(torch.cat(batches(prune__ranking_data="val")), data.val.inputs)
    (last,) = batches(prune__ranking_data="last_batch")
    assert torch.equal(last, batches()[-1])
    few = batches(prune__ranking_examples=40)
    assert [len(x) for x in few] == [32, 8]
    assert data.test_reads == 0
