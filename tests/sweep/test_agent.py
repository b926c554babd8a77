"""The agent: failures, duplicates, small spaces, budgets that cannot be met."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from optuna.exceptions import UpdateFinishedTrialError
from tiny import Machine
from torch import Tensor, nn

from harness import train as training
from harness.console import QuietScreen
from harness.engine.evidence import Evidence
from harness.engine.graph import Group
from harness.errors import StudyError
from harness.experiment import Experiment, stages
from harness.sweep.conduct import conduct
from harness.sweep.ledger import MOST_TRIES, ordinal_of
from harness.sweep.place import study_id
from harness.sweep.space import Space

NAN = 1e30  # a learning rate after which no loss is finite


@pytest.mark.rows("R106")
def test_a_trial_that_fails_says_why_and_the_study_goes_on(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    study = tiny.study(trials=2, controls=[], space={
        "retrain.lr": [0.1, NAN], "prune.filters_per_step": [9, 13], "prune.percentage": [70]},
        sampler={"name": "random", "seed": 1})
    outcome, _ = machine.conduct(study)
    assert outcome.settings_finished == 2
    failed = [t for t in machine.ledger(study).trials() if t.state.name == "FAIL"
              and "duplicate_of" not in t.user_attrs]
    assert failed, "no trial failed: nothing is tested"
    assert all(t.params["retrain.lr"] == NAN for t in failed)
    assert all(t.user_attrs["reason"].startswith("step 1: the loss is nan after epoch 1")
               for t in failed)
    runs = [run for run in machine.runs("trial") if run.status == "FAILED"]
    assert [run.tags["reason"] for run in runs] == [t.user_attrs["reason"] for t in failed]
    notes = [f"trial {ordinal_of(t)} failed: {t.user_attrs['reason']}" for t in failed]
    assert set(notes) <= set(outcome.notes)
    assert machine.runs("study")[0].status == "FINISHED"


def test_what_a_trial_had_trained_before_it_failed_is_counted(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one fails when it trains for the third time, after two steps of two epochs each."""
    train, begun, lines = training.train, [0], list[Any]()
    monkeypatch.setattr(QuietScreen, "trial_done", lambda self, line: lines.append(line))

    def failing(*given: Any, **more: Any) -> Any:
        begun[0] += 1
        if begun[0] == 4:  # the baseline is the first
            raise ValueError("my own mistake")
        return train(*given, **more)

    monkeypatch.setattr(training, "train", failing)
    machine = Machine(tmp_path)
    study = tiny.study(trials=1, controls=[], space={
        "prune.filters_per_step": [9, 13], "prune.percentage": [70]},
        base=tiny.run(retrain__epochs=2))
    outcome, _ = machine.conduct(study)
    failed, = (line for line in lines if line.state == "failed")
    assert (failed.reused, failed.stages) == (0, 2)
    (_, found), = machine.ledger(study).results()
    assert outcome.epochs_run == outcome.epochs_naive == 4 + sum(found.epochs.values())


@pytest.mark.rows("R015")
def test_a_trial_without_memory_fails_lets_it_go_and_the_agent_lives(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial after it begins without the network and the batches of the one that failed."""
    train, kept, begun = training.train, list[weakref.ref[Tensor]](), [0]

    def out_of_memory(model: nn.Module, *given: Any, **more: Any) -> Any:
        begun[0] += 1
        assert all(reference() is None for reference in kept), "the memory is not let go"
        if begun[0] == 3:  # the baseline and a step went well
            batch = torch.zeros(3)
            kept.extend([weakref.ref(batch), weakref.ref(next(model.parameters()))])
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return train(model, *given, **more)

    monkeypatch.setattr(training, "train", out_of_memory)
    machine, study = Machine(tmp_path), tiny.study(trials=2, controls=[])
    outcome, _ = machine.conduct(study)
    assert outcome.settings_finished == 2
    assert len(kept) == 2
    assert begun[0] > 3
    failed, = (t for t in machine.ledger(study).trials() if t.state.name == "FAIL")
    assert failed.user_attrs["reason"].startswith(
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB (")
    run, = (run for run in machine.runs("trial") if run.status == "FAILED")
    assert run.tags["reason"] == failed.user_attrs["reason"]


@pytest.mark.rows("R106")
@pytest.mark.parametrize("error", [ValueError("my own mistake"), KeyError("labels"), MemoryError(),
                                   RuntimeError("shapes differ")], ids=repr)
def test_whatever_a_persons_network_raises_fails_its_trial_and_the_control_alone(
        error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason has the kind, the words and the place; the run has the traceback."""
    machine = Machine(tmp_path)
    study = tiny.study(trials=2, controls=["random"])
    train, begun = training.train, [0]

    def failing(*given: Any, **more: Any) -> Any:
        begun[0] += 1
        if begun[0] == 3 or machine.runs("control"):
            raise error
        return train(*given, **more)

    monkeypatch.setattr(training, "train", failing)
    outcome, _ = machine.conduct(study)
    assert outcome.settings_finished == 2
    failed, = (t for t in machine.ledger(study).trials() if t.state.name == "FAIL")
    reason = failed.user_attrs["reason"]
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    assert reason.startswith(f"{said} (")
    assert "test_agent.py, line " in reason
    runs = [run for run in machine.runs("trial") + machine.runs("control")
            if run.status == "FAILED"]
    assert [run.role for run in runs] == ["trial", "control"]
    assert all(run.tags["reason"] == reason for run in runs)
    assert all("in failing" in str(run.files["traceback.txt"]) for run in runs)
    assert f"trial {ordinal_of(failed)} failed: {reason}" in outcome.notes
    assert f"control random failed: {reason}" in outcome.notes
    assert machine.runs("study")[0].status == "FINISHED"


def test_a_card_that_failed_ends_the_process_and_its_trial_is_tried_again(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every later call of the card would fail, and trials with it that are none the worse."""
    machine, study = Machine(tmp_path), tiny.study(trials=2, controls=[])
    assert not Experiment(study.base, stages(tmp_path)).baseline.reused

    def broken(*_: Any, **__: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", broken)
        with pytest.raises(torch.AcceleratorError):
            machine.conduct(study)
    trial, = machine.ledger(study).trials()
    assert not trial.state.is_finished()
    assert trial.user_attrs["tries"] == 1
    assert [run.status for run in machine.runs("trial")] == ["FAILED"]
    outcome, _ = machine.conduct(study)
    assert outcome.settings_finished == 2
    assert {run.status for run in machine.runs("trial")} == {"FINISHED"}
    assert not any(run.tags.get("reason") for run in machine.runs("trial"))


def test_three_failures_in_a_row_stop_the_study(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    study = tiny.study(trials=2, controls=[], space={
        "retrain.lr": [NAN], "prune.percentage": [50, 60, 70, 80, 90]})
    with pytest.raises(StudyError, match="3 trials in a row failed.*run it again"):
        machine.conduct(study)
    assert [run.status for run in machine.runs("trial")] == ["FAILED"] * 3
    assert machine.runs("study")[0].status == "FAILED"
    assert "3 trials in a row failed" in machine.runs("study")[0].tags["reason"]
    outcome, _ = machine.conduct(study)  # the two that are left
    assert len(machine.runs("trial")) == 5
    assert (outcome.settings_finished, outcome.champion) == (0, None)
    assert machine.runs("study")[0].tags["reason"] == ""


def test_a_trial_that_died_three_times_is_given_up(tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever kills the process (out of memory, say) must not kill it for ever."""
    class Dead(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Dead

    machine = Machine(tmp_path)
    study = tiny.study(trials=1, controls=[])
    assert not Experiment(study.base, stages(tmp_path)).baseline.reused
    for _ in range(MOST_TRIES):
        with monkeypatch.context() as patch:
            patch.setattr(training, "train", die)
            with pytest.raises(Dead):
                machine.conduct(study)
    outcome, _ = machine.conduct(study)
    assert outcome.settings_finished == 1
    first, second = machine.ledger(study).originals()
    assert first.user_attrs["reason"] == "given up after 3 tries that were cut short"
    assert second.state.name == "COMPLETE"
    assert [run.status for run in machine.runs("trial")][-2:] == ["FAILED", "FINISHED"]


@pytest.mark.rows("R121")
def test_duplicates_take_the_stored_result_and_a_small_space_ends_cleanly(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path)
    study = tiny.study(trials=10, controls=[], sampler={"n_startup_trials": 2},
                       space={"prune.filters_per_step": [9, 13], "prune.percentage": [50, 70]})
    outcome, _ = machine.conduct(study)
    assert outcome.settings_finished == 4
    assert len(machine.runs("trial")) == 4
    every = machine.ledger(study).trials()
    originals = {ordinal_of(t): t for t in every if "duplicate_of" not in t.user_attrs}
    assert len({str(t.params) for t in originals.values()}) == len(originals) == 4
    copies = [t for t in every if "duplicate_of" in t.user_attrs]
    assert copies, "no duplicate was drawn: nothing is tested"
    for copy in copies:
        original = originals[copy.user_attrs["duplicate_of"]]
        assert (copy.params, copy.value, copy.constraints) == (
            original.params, original.value, original.constraints)
    monkeypatch.setattr(training, "train", None)
    assert machine.conduct(study) == (outcome, False)


def test_who_died_before_a_trial_had_settings_changes_no_duplicate(tmp_path: Path) -> None:
    """Trial 0 has none yet, and another agent is at work on it when trial 1 is asked for."""
    ladders = {"prune.filters_per_step": [9], "prune.percentage": [50, 70]}
    study = tiny.study(trials=2, controls=[], space=ladders, sampler={"name": "random"},
                       enqueue=[{"prune.percentage": 50}, {"prune.percentage": 50}])
    machine = Machine(tmp_path)
    begun = machine.ledger(study).begin()
    claim = machine.place.claims(study_id(study)).take(f"trial-{begun.number}")
    assert claim is not None
    leave = conduct(study, machine.place, lambda: machine.tracker, QuietScreen(), most_trials=1)
    assert leave == (None, True)
    claim.release()
    outcome, _ = machine.conduct(study)
    first, second, *_ = machine.ledger(study).trials()
    assert "duplicate_of" not in first.user_attrs
    assert second.user_attrs["duplicate_of"] == 0
    assert outcome.settings_finished == 2


def test_a_trial_that_another_ended_while_its_asker_slept_is_left_to_him(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage refuses its settings: it is said, and the agent goes on with what is left."""
    suggest, said, refused = Space.suggest, list[str](), list[int]()

    def refuse_once(self: Space, study: Any, begun: Any, *more: Any) -> Any:
        if not refused:
            refused.append(begun.number)
            raise UpdateFinishedTrialError
        return suggest(self, study, begun, *more)

    monkeypatch.setattr(Space, "suggest", refuse_once)
    monkeypatch.setattr(QuietScreen, "message", lambda self, text: said.append(text))
    outcome, _ = Machine(tmp_path).conduct(tiny.study(trials=1, controls=[]))
    assert outcome.settings_finished == 1
    assert "trial 0 was taken over by another agent" in said


@pytest.mark.rows("R105")
def test_the_value_is_the_last_steps_and_the_constraint_its_flops_over_the_budget(
        tmp_path: Path) -> None:
    machine, study = Machine(tmp_path), tiny.study(trials=2, controls=[])
    outcome, _ = machine.conduct(study)
    finished = [trial for trial, _ in machine.ledger(study).results()]
    for trial, run in zip(finished, machine.runs("trial"), strict=True):
        assert trial.value == run.curve("final_val_accuracy")[0][1]
        share = run.curve("final_macs")[0][1] / outcome.baseline.macs
        assert list(trial.constraints.values()) == [pytest.approx(share - 0.3)]


RANGES: dict[str, Any] = {
    "prune.filters_per_step": {"int": [6, 14]}, "prune.percentage": {"int": [50, 80], "step": 10},
    "prune.floors.layer_min": {"float": [0.05, 0.35], "step": 0.15},
    "prune.floors.layer_min.3": {"float": [0.1, 0.5]},
    "retrain.lr": {"float": [0.01, 0.2], "log": True}, "prune.criterion": ["l1", "taylor"]}


@pytest.mark.rows("R102")
@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "nsga2"])
def test_a_study_over_ranges_logs_plain_numbers_and_prunes_by_them(tmp_path: Path,
                                                                   sampler: str) -> None:
    """One layer's own floor stands beside that of all; what MLflow shows is what was tried."""
    machine = Machine(tmp_path)
    study = tiny.study(trials=3, controls=[], space=RANGES,
                       sampler={"name": sampler, "n_startup_trials": 1})
    outcome, _ = machine.conduct(study)
    assert outcome.settings_finished == 3
    trials = [trial for trial, _ in machine.ledger(study).results()]
    for trial, run in zip(trials, machine.runs("trial"), strict=True):
        for short, path in (("filters_per_step", "prune.filters_per_step"),
                            ("layer_min", "prune.floors.layer_min"), ("retrain.lr", "retrain.lr"),
                            ("prune.floors.layer_min.3", "prune.floors.layer_min.3")):
            assert float(run.params[short]) == trial.params[path]
            assert len(run.params[short]) <= len("0.0123456")
        assert run.params["prune.floors.layer_min"] == str({
            "": trial.params["prune.floors.layer_min"],
            "3": trial.params["prune.floors.layer_min.3"]})
    assert machine.conduct(study) == (outcome, False)


def test_a_grid_over_ranges_ends_when_all_is_tried(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    study = tiny.study(trials=9, controls=[], sampler={"name": "grid"}, space={
        "prune.filters_per_step": {"int": [9, 13], "step": 4},
        "prune.floors.layer_min": {"float": [0.1, 0.3], "step": 0.2}})
    outcome, _ = machine.conduct(study)
    assert [(t.params["prune.filters_per_step"], t.params["prune.floors.layer_min"])
            for t in machine.ledger(study).trials()] == [(9, 0.1), (9, 0.3), (13, 0.1), (13, 0.3)]
    assert machine.conduct(study) == (outcome, False)


def test_a_budget_under_the_floors_is_refused_before_anything_is_trained(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Floors of a half leave 4, 6 and 8 of 8, 12 and 16 filters; MACs are counted by hand."""
    monkeypatch.setattr(training, "train", None)
    space = {"prune.floors.layer_min": [0.5, 0.75], "prune.percentage": [90]}
    whole = 64 * 9 * (8 + 8 * 12) + 16 * 9 * 12 * 16 + 160
    least = 64 * 9 * (4 + 4 * 6) + 16 * 9 * 6 * 8 + 80
    with pytest.raises(StudyError, match=f"budget.flops: 0.05 cannot be met: the floors keep "
                                         f"{100 * least / whole:.2f}% of the FLOPs"):
        Machine(tmp_path).conduct(tiny.study(space=space, budget={"flops": 0.05}))


def stubborn(group: Group, evidence: Evidence) -> Tensor:
    raise ValueError("I score no channel")


def test_a_persons_own_criterion_may_raise_anything(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    study = tiny.study(trials=1, base=tiny.run(prune__criterion=f"{__name__}:stubborn"))
    with pytest.raises(StudyError, match="3 trials in a row failed"):
        machine.conduct(study)
    assert machine.runs("trial")[0].tags["reason"] == (
        f"criterion {__name__}:stubborn failed: ValueError: I score no channel")


def test_the_screen_is_told_how_many_settings_are_finished(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(QuietScreen, "study",
                        lambda self, name, finished, planned: told.append((finished, planned)))
    machine.conduct(tiny.study(trials=2, controls=[]))
    assert told == [(0, 2), (1, 2), (2, 2)]
