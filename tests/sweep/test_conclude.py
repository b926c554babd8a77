"""What a finished study says is what its trials found, counted again by another road."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import Machine
from torch.utils.flop_counter import FlopCounterMode

import harness
from harness.config import RunConfig
from harness.errors import GraphError
from harness.experiment import Experiment, Trial
from harness.sweep.crowning import COMPARED
from harness.sweep.outcome import Outcome
from harness.tracking import MemoryRun
from sweep.conftest import Whole

STEP = {"val_accuracy", "val_accuracy_cut", "val_loss", "percentage", "macs", "flops",
        "flops_reduction", "params", "filters", "size_mb", "latency_ms"}
EPOCH = {"train_loss", "train_accuracy", "val_loss_epoch", "val_accuracy_epoch",
         "val_top5_epoch", "lr"}
FINAL = {f"final_{name}" for name in (
    "flops_factor",
    "val_accuracy", "macs", "flops", "flops_reduction", "params", "filters", "size_mb",
    "latency_ms")}
GOPS = {f"{of}{what}" for of in ("", "unpruned_") for what in (
    "inference_gflops_per_picture", "inference_gflops_per_minibatch",
    "training_gflops_per_picture", "training_gflops_per_minibatch", "memory_mb")}
SHORT = ("filters_per_step", "retrain_epochs", "percentage", "layer_min")


def finals(whole: Whole) -> list[tuple[float, int, int, str]]:
    """(accuracy, MACs, trial, stage) of every network that was fine-tuned."""
    runs = whole.machine.runs("trial")
    return [(stage.accuracy, {s.number: s.macs for s in trial.steps}[number],
             int(run.tags["ordinal"]), stage.key)
            for run, (_, trial) in zip(runs, whole.trials, strict=True)
            for number, stage in trial.finals.items()]


@pytest.mark.rows("R103", "R105")
def test_the_champion_is_the_most_accurate_network_within_the_budget(whole: Whole) -> None:
    limit = 0.3 * whole.outcome.baseline.macs
    within = [f for f in finals(whole) if f[1] <= limit]
    assert within
    assert len(within) < len(finals(whole)), "no network is over the budget: nothing is tested"
    accuracy, macs, ordinal, key = max(within, key=lambda f: (f[0], -f[1], -f[2]))
    champion = whole.outcome.champion
    assert champion is not None
    assert (champion.accuracy, champion.macs, champion.stage) == (accuracy, macs, key)
    assert champion.name == f"trial {ordinal}"


def test_the_champions_file_is_what_the_table_says(whole: Whole) -> None:
    """Loaded on a fresh network: its accuracy by hand, its FLOPs by torch's own counter."""
    champion = whole.outcome.champion
    assert champion is not None
    net = harness.load_pruned(tiny.net(), whole.outcome.checkpoint).eval()
    val = tiny.digits(size=8, val=0.2, test=0.2, seed=0).val
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        right = (net(val.inputs).argmax(1) == val.targets).sum()
    assert counter.get_total_flops() == 2 * champion.macs * len(val)
    assert champion.accuracy == pytest.approx(float(right) / len(val))
    assert sum(p.numel() for p in net.parameters()) == champion.params


def test_the_front_is_what_nothing_beats(whole: Whole) -> None:
    every = finals(whole)
    beaten = {a for a in every for b in every
              if b[0] >= a[0] and b[1] <= a[1] and (b[0] > a[0] or b[1] < a[1])}
    expected = {(f[0], f[1]) for f in every if f not in beaten}
    rows = [r for r in whole.outcome.rows if r.role in ("front", "champion")]
    assert {(r.accuracy, r.macs) for r in rows if (r.accuracy, r.macs) in expected} == expected
    assert {(r.accuracy, r.macs) for r in rows if r.role == "front"} <= expected


def test_controls_end_at_the_champions_flops(whole: Whole) -> None:
    champion = whole.outcome.champion
    assert champion is not None
    rows = [r for r in whole.outcome.rows if r.role == "control"]
    assert [r.name for r in rows] == ["random", "l1"]
    for row, (config, trial) in zip(rows, whole.controls, strict=True):
        assert config.prune.criterion == row.name
        assert row.macs <= champion.macs
        # One channel back would be too much: the dearest channel of this net costs 8192 MACs.
        assert champion.macs - row.macs < 8192
        assert trial.reason == "the MACs are reached"


def test_epochs_are_those_that_were_trained(whole: Whole) -> None:
    trained = sum(epochs for what, epochs in whole.events if what == "train")
    assert whole.outcome.epochs_run == trained - 3  # the baseline's
    naive = sum((len(trial.steps) - 1) * config.retrain.epochs + len(trial.finals)
                for config, trial in whole.trials + whole.controls)
    assert whole.outcome.epochs_naive == naive
    assert whole.outcome.epochs_run < naive, "nothing was shared: nothing is tested"
    assert whole.outcome.saved == pytest.approx(naive / (trained - 3))
    assert whole.outcome.saved_with_baselines == pytest.approx((naive + 3 * 6) / trained)


@pytest.mark.rows("R140")
def test_the_test_split_is_read_once_a_network_after_all_training(whole: Whole) -> None:
    assert [what for what, _ in whole.events].index("test") == len(whole.events) - 2
    assert [experiment.data.test_reads for experiment in whole.experiments] == [2]
    assert {r.role for r in whole.outcome.rows if r.test_accuracy is not None} == {
        "baseline", "champion"}
    runs = whole.machine.tracker.runs.values()
    read = [run for run in runs if run.curve("final_test_accuracy")]
    assert sorted(run.role for run in read) == ["baseline", "trial"]


@pytest.mark.rows("R119")
def test_every_run_has_its_role_its_parent_and_its_end(whole: Whole) -> None:
    machine = whole.machine
    assert {role: len(machine.runs(role)) for role in ("study", "baseline", "trial", "control")} \
        == {"study": 1, "baseline": 1, "trial": 4, "control": 2}
    assert len(machine.tracker.runs) == 8
    study_run = next(id for id, run in machine.tracker.runs.items() if run.role == "study")
    for id, run in machine.tracker.runs.items():
        assert run.status == "FINISHED"
        assert run.study == whole.outcome.study_id
        assert run.tags["fingerprint"] == whole.outcome.study_id.removeprefix("tiny-")
        assert run.parent == (None if id == study_run else study_run)


@pytest.mark.rows("R112", "R119")
def test_searched_settings_are_params_under_short_and_whole_names(whole: Whole) -> None:
    for run, (config, _) in zip(whole.machine.runs("trial"), whole.trials, strict=True):
        assert [float(run.params[name]) for name in SHORT] == [
            config.prune.filters_per_step, config.retrain.epochs, config.prune.percentage,
            config.prune.floors.layer_min]
        assert run.params["prune.percentage"] == str(config.prune.percentage)
        assert run.params["data.name"] == "tiny:digits"
        assert {"config.yaml", "plan.json", "layers.json"} <= run.files.keys()


def walked(run: MemoryRun, kept: set[str]) -> list[int]:
    """The steps of a run; they must be the same for all these metrics, each there once."""
    numbers = [[step for step, _ in run.curve(name)] for name in sorted(kept)]
    assert all(n == numbers[0] for n in numbers)
    return numbers[0]


@pytest.mark.rows("R062", "R088")
def test_metrics_have_their_fixed_names_and_every_step_once(whole: Whole) -> None:
    runs = whole.machine.runs("trial") + whole.machine.runs("control")
    for run, (config, trial) in zip(runs, whole.trials + whole.controls, strict=True):
        names = {point.key for point in run.points} - {"final_test_accuracy", COMPARED}
        assert names == STEP | EPOCH | FINAL | GOPS
        assert walked(run, STEP) == list(range(len(trial.steps)))
        # Retraining at every step, then the final fine-tune.
        epochs = (len(trial.steps) - 1) * config.retrain.epochs + config.finetune.epochs
        assert walked(run, EPOCH) == list(range(epochs))
        assert walked(run, FINAL) == [0]
        assert run.curve("final_val_accuracy") == [(0, trial.final.accuracy)]
        assert run.curve("flops_reduction")[-1][1] == pytest.approx(
            1 - trial.last.macs / whole.outcome.baseline.macs)
    baseline, = whole.machine.runs("baseline")
    assert walked(baseline, EPOCH) == [0, 1, 2]
    assert {point.key for point in baseline.points} == EPOCH | FINAL | {
        "final_test_accuracy", COMPARED}


def test_the_exact_plan_is_kept(whole: Whole) -> None:
    for run, (_, trial) in zip(whole.machine.runs("trial"), whole.trials, strict=True):
        plans = json.loads(run.files["plan.json"])
        assert [plan["kept"] for plan in plans.values()] == [s.plan.as_json() for s in trial.steps]


def test_models_of_the_front_are_kept_and_the_champion_has_the_alias(whole: Whole) -> None:
    tracker, outcome = whole.machine.tracker, whole.outcome
    kept = {model.tags["stage"] for model in tracker.models.values()}
    assert kept == {r.stage for r in outcome.rows if r.role in ("front", "champion")}
    version = tracker.versions["tiny"][int(tracker.aliases["tiny", "champion"]) - 1]
    assert version == outcome.model
    assert outcome.champion is not None
    assert tracker.models[version].tags["stage"] == outcome.champion.stage


def test_the_numbers_of_the_study_stand_in_its_run(whole: Whole) -> None:
    run, = whole.machine.runs("study")
    values = {point.key: point.value for point in run.points}
    assert values["epochs_run"] == whole.outcome.epochs_run
    assert values["epochs_naive"] == whole.outcome.epochs_naive
    assert values["settings_finished"] == 4
    assert len(values) == len(run.points)
    assert run.tags["view"] == whole.outcome.view
    champion, note = whole.outcome.champion, run.tags["mlflow.note.content"]
    assert champion is not None
    assert all(text in note for text in (
        whole.outcome.question, f"{champion.name}, step {champion.step}",
        f"{100 * champion.accuracy:.2f} % on validation", *whole.outcome.verdict))
    assert {"study.yaml", "config.yaml", "result.json"} <= run.files.keys()


def test_the_outcome_is_a_file_that_reads_back(whole: Whole) -> None:
    path = whole.machine.home / "studies" / whole.outcome.study_id / "outcome.json"
    assert Outcome.from_json(json.loads(path.read_text())) == whole.outcome


def test_a_stage_that_was_evicted_is_walked_again_for_the_report(whole: Whole, tmp_path: Path,
                                                                 ) -> None:
    machine = Machine(tmp_path)
    machine.conduct(tiny.study(trials=1, controls=[], budget={"flops": 0.9}))
    stages = list((tmp_path / "stages").glob("*.safetensors"))
    assert stages
    for path in stages:
        path.unlink()
    longer = tiny.study(trials=2, controls=[], budget={"flops": 0.9})
    again, _ = machine.conduct(longer)
    straight, _ = Machine(tmp_path / "other").conduct(longer)
    assert tiny.found(again) == tiny.found(straight)


def test_a_control_that_fails_is_told_and_spoils_nothing(tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Experiment.trial

    def fail(self: Experiment, config: RunConfig, **more: Any) -> Trial:
        if config.prune.criterion == "random":
            raise GraphError("random has no opinion")
        return walk(self, config, **more)

    machine, space = Machine(tmp_path), {**tiny.SPACE, "prune.percentage": [70]}
    study = tiny.study(trials=1, space=space)
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "trial", fail)
        outcome, _ = machine.conduct(study)
    assert [r.name for r in outcome.rows if r.role == "control"] == ["l1"]
    assert "control random failed: random has no opinion" in outcome.notes
    assert [run.status for run in machine.runs("control")] == ["FAILED", "FINISHED"]
    assert machine.runs("study")[0].status == "FINISHED"
    longer, _ = machine.conduct(tiny.study(trials=2, space=space))
    assert [r.name for r in longer.rows if r.role == "control"] == ["random", "l1"]


def test_no_network_within_the_budget_is_an_outcome_without_a_champion(tmp_path: Path) -> None:
    space = {**tiny.SPACE, "prune.percentage": [5]}
    outcome, _ = Machine(tmp_path).conduct(tiny.study(trials=2, space=space))
    assert outcome.champion is None
    assert outcome.weights == ""
    assert not [r for r in outcome.rows if r.role == "control"]


def test_an_outcome_of_an_earlier_version_is_drawn_again(tmp_path: Path) -> None:
    machine, study = Machine(tmp_path), tiny.study(trials=1)
    first, _ = machine.conduct(study)
    ledger = machine.ledger(study)
    ledger.set("outcome", {"study": "tiny", "rows": [], "notes": []})
    again, is_new = machine.conduct(study)
    assert is_new
    assert tiny.found(again) == tiny.found(first)
    assert {run.status for run in machine.tracker.runs.values()} == {"FINISHED"}
