"""Studies of other kinds than `budget`, and those with stoppers: what was stopped, and why, found
again by hand from the curves in MLflow."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from optuna.trial import FrozenTrial
from tiny import Machine, found

from harness import train as training
from harness.config import Study
from harness.evaluate import Latency
from harness.sweep.outcome import Outcome
from harness.sweep.telling import networks

PARETO: dict[str, Any] = {"kind": "pareto", "budget": {}, "controls": [], "tolerance": 0.5,
                          "stopper": {"warmup": 0.1, "margin": 0.02}, "trials": 8}
MEDIAN: dict[str, Any] = {"controls": [], "sampler": {"name": "random", "seed": 11}, "trials": 8,
                          "budget": {"flops": 0.9},
                          "stopper": {"name": "median", "startup": 2, "warmup": 0.2}}
SEARCH: dict[str, Any] = {"kind": "binary_search", "budget": {}, "space": {}, "controls": [],
                          "tolerance": 0.0}

SLOW: dict[str, Any] = {"controls": [], "budget": {"latency": 0.4}, "trials": 3}


def walked(study: Study, place: Path) -> tuple[Machine, Outcome, list[FrozenTrial]]:
    machine = Machine(place)
    outcome, _ = machine.conduct(study)
    return machine, outcome, machine.ledger(study).trials()


@pytest.fixture(scope="module")
def pareto(tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, Outcome, list[FrozenTrial]]:
    return walked(tiny.study(**PARETO), tmp_path_factory.mktemp("pareto"))


@pytest.fixture(scope="module")
def median(tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, Outcome, list[FrozenTrial]]:
    return walked(tiny.study(**MEDIAN), tmp_path_factory.mktemp("median"))


def curves(machine: Machine) -> dict[int, list[tuple[float, float]]]:
    """Trial -> (share of the FLOPs gone, accuracy) of every step, as MLflow shows them."""
    return {int(run.tags["ordinal"]): [(gone, accuracy) for (_, gone), (_, accuracy) in zip(
                run.curve("flops_reduction"), run.curve("val_accuracy"), strict=True)]
            for run in machine.runs("trial")}


@pytest.mark.rows("R105")
def test_a_front_is_told_accuracy_and_flops(
        pareto: tuple[Machine, Outcome, list[FrozenTrial]]) -> None:
    machine, _, every = pareto
    assert machine.ledger(tiny.study(**PARETO)).study.directions[1].name == "MINIMIZE"
    by_ordinal = {int(run.tags["ordinal"]): run for run in machine.runs("trial")}
    for trial in every:
        run = by_ordinal[trial.user_attrs.get("duplicate_of", trial.number)]
        (_, accuracy), = run.curve("final_val_accuracy")
        (_, gone), = run.curve("final_flops_reduction")
        assert trial.values == pytest.approx([accuracy, 1 - gone])


def beaten(curve: list[tuple[float, float]], others: list[tuple[float, float]]) -> list[bool]:
    """Whether each step loses to a point of others by two points of accuracy or more."""
    return [gone >= 0.1 and any(more >= gone - 1e-12 and better >= accuracy + 0.02 - 1e-9
                                for more, better in others) for gone, accuracy in curve]


def test_a_trial_ends_where_finished_ones_beat_it_at_two_steps_in_a_row(
        pareto: tuple[Machine, Outcome, list[FrozenTrial]]) -> None:
    machine, _, _ = pareto
    stopped = 0
    every = curves(machine)
    for number, curve in every.items():
        others = [p for n, c in every.items() if n < number for p in c[1:]]
        lost = beaten(curve, others)
        twice = [n for n in range(1, len(lost)) if lost[n] and lost[n - 1]]
        assert twice in ([], [len(curve) - 1]), f"trial {number} went on after it was beaten"
        run = next(r for r in machine.runs("trial") if r.tags["ordinal"] == str(number))
        assert run.tags["stop_reason"].startswith("dominated") == bool(twice)
        stopped += bool(twice)
    assert 0 < stopped < len(every), "all or none were stopped: nothing is tested"


def test_what_was_stopped_is_not_fine_tuned(
        pareto: tuple[Machine, Outcome, list[FrozenTrial]]) -> None:
    for run in pareto[0].runs("trial"):
        is_stopped = run.tags["stop_reason"].startswith("dominated")
        (_, final), = run.curve("final_val_accuracy")
        assert (final == run.curve("val_accuracy")[-1][1]) or not is_stopped
        epochs = (len(run.curve("val_accuracy")) - 1) * int(run.params["retrain_epochs"])
        assert len(run.curve("train_loss")) == epochs + (not is_stopped)


@pytest.mark.rows("R106")
def test_a_trial_under_the_median_where_as_many_flops_are_gone_is_stopped(
        median: tuple[Machine, Outcome, list[FrozenTrial]]) -> None:
    """By numpy's interpolation, over trials that ended before and were not stopped themselves."""
    machine, outcome, every = median
    drawn = curves(machine)
    complete: list[FrozenTrial] = []
    states = []
    for trial in every:
        if "duplicate_of" not in trial.user_attrs:
            gone, accuracy = map(np.array, zip(*drawn[trial.number]))
            for rung, value in trial.intermediate_values.items():
                assert value == pytest.approx(np.interp(rung / 10, gone, accuracy))
            reached = int(gone[-1] * 10 + 1e-9)
            assert sorted(trial.intermediate_values) == list(range(1, reached + 1))
            assert (trial.state.name == "PRUNED") == is_under(trial, complete)
            states.append(trial.state.name)
        if trial.state.name == "COMPLETE":
            complete.append(trial)
    assert {"PRUNED", "COMPLETE"} == set(states)
    assert outcome.settings_finished == len(states) == 8


def is_under(trial: FrozenTrial, complete: list[FrozenTrial]) -> bool:
    """At the last rung: its best so far is below the median of what others had there."""
    last = max(trial.intermediate_values)
    others = [t.intermediate_values[last] for t in complete if last in t.intermediate_values]
    best = max(trial.intermediate_values.values())
    return len(complete) >= 2 and last >= 2 and bool(others) and best < float(np.median(others))


@pytest.mark.parametrize("changes", [PARETO, MEDIAN, SEARCH], ids=["pareto", "median", "search"])
def test_whatever_cuts_trials_short_the_same_are_stopped_at_the_same_step(
        changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny.study(**changes)
    whole, straight, _ = walked(study, tmp_path / "whole")
    machine, train, seen = Machine(tmp_path / "cut"), training.train, set[int]()

    def interrupted(*given: Any, seed: int, **more: Any) -> Any:
        if seed not in seen:
            seen.add(seed)
            if len(seen) % 2:
                raise KeyboardInterrupt
        return train(*given, seed=seed, **more)

    monkeypatch.setattr(training, "train", interrupted)
    outcome = None
    while outcome is None:
        with suppress(KeyboardInterrupt):
            outcome, _ = machine.conduct(study)
    assert len(seen) > 5
    assert found(outcome) == found(straight)
    assert trials_of(machine, study) == trials_of(whole, study)
    assert curves(machine) == curves(whole)


def trials_of(machine: Machine, study: Study) -> list[tuple[Any, ...]]:
    return [(t.number, t.params, t.state.name, t.values, t.intermediate_values, t.constraints)
            for t in machine.ledger(study).trials()]


@pytest.mark.rows("R108")
def test_a_binary_search_ends_at_the_largest_percentage_that_keeps_the_accuracy(
        tmp_path: Path) -> None:
    machine, outcome, every = walked(tiny.study(**SEARCH, trials=12), tmp_path)
    tried = {int(t.params["prune.percentage"]): t.value for t in every}
    assert next(iter(tried)) == 50
    kept = [percentage for percentage, accuracy in tried.items()
            if accuracy is not None and accuracy >= outcome.baseline.accuracy - 1e-9]
    champion = outcome.champion
    assert champion is not None
    assert int(champion.settings["percentage"]) == max(kept)
    assert max(kept) + 5 in tried or max(kept) == 95, "the next percentage was not tried"
    assert not machine.conduct(tiny.study(**SEARCH, trials=12))[1], "it is finished"


@pytest.mark.rows("R108")
def test_a_binary_search_on_the_origins_way_tries_what_the_origin_tried(tmp_path: Path) -> None:
    """With nothing to lose every percentage holds but one that cannot be reached."""
    study = tiny.study(**{**SEARCH, "tolerance": 1.0}, search={"path": "origin"}, trials=12)
    _, _, every = walked(study, tmp_path)
    assert [t.params["prune.percentage"] for t in every][:4] == [50, 75, 85, 90]


def test_optunas_other_stoppers_end_trials_too(tmp_path: Path) -> None:
    for name in ("threshold", "percentile", "halving", "hyperband"):
        stopper = {"name": name, "startup": 1, "warmup": 0.2, "accuracy": 0.5}
        study = tiny.study(**{**MEDIAN, "stopper": stopper})
        _, outcome, every = walked(study, tmp_path / name)
        ended = [t.state.name for t in every if "duplicate_of" not in t.user_attrs]
        assert "PRUNED" in ended, name
        assert outcome.settings_finished == len(ended) == 8


@pytest.fixture
def slow_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every network, a millisecond for each hundred parameters: clocks are not the same twice.
    """
    monkeypatch.setattr("harness.experiment.latencies", lambda models, inputs, rounds: {
        name: Latency(sum(p.numel() for p in model.parameters()) / 100, 0.0, 0.0)
        for name, model in models.items()})


@pytest.mark.usefixtures("slow_by_size")
def test_the_budget_of_a_study_may_be_the_latency_that_was_measured(tmp_path: Path) -> None:
    machine, outcome, _ = walked(tiny.study(**SLOW), tmp_path)
    best = outcome.champion
    assert best is not None
    ends = [final for _, result in machine.ledger(tiny.study(**SLOW)).results()
            for final in result.finals]
    within = [f.accuracy for f in ends if f.params / outcome.baseline.params <= 0.4]
    assert 0 < len(within) < len(ends)
    assert best.accuracy == max(within)
    assert best.latency_share == pytest.approx(best.params / outcome.baseline.params)
    assert outcome.question == "the most accurate network with at most 40 % of the latency"
    table = networks(outcome)
    place = list(table.columns).index("latency")
    assert table.rows[0][place] == "100.00 %"
    study_run, = machine.runs("study")
    assert study_run.params["budget_latency"] == "0.4"
    assert "budget_flops" not in study_run.params


@pytest.mark.usefixtures("slow_by_size")
def test_a_front_may_be_of_accuracy_and_latency(tmp_path: Path) -> None:
    asked = tiny.study(**{**PARETO, "cost": "latency", "trials": 3})
    machine, outcome, every = walked(asked, tmp_path)
    ends = {n: r.last for n, (_, r) in enumerate(machine.ledger(asked).results())}
    told = [t.values for t in every if "duplicate_of" not in t.user_attrs]
    assert told == [pytest.approx([f.accuracy, f.params / outcome.baseline.params])
                    for f in ends.values()]
    front = [r for r in outcome.rows if r.role in ("champion", "front")]
    for row in front:
        assert not [f for f in ends.values() if f.params < row.params and f.accuracy > row.accuracy]
