"""What a run writes down, and how it ends."""

import json
from pathlib import Path

import pytest
import tiny
from torch import nn

from harness.analysis.removal import removed
from harness.engine.cost import Cost, LayerCost
from harness.errors import HarnessError, StoreError, TrackingError, TrainingError
from harness.experiment import Experiment, Trial
from harness.journal import Journal, ending
from harness.store import FolderStore, NoStore
from harness.tracking import MemoryRun, MemoryTracker


def open_run(tracker: MemoryTracker) -> str:
    return tracker.open_run(name="r", role="run", study="s")


def told(experiment: Experiment, trial: Trial, tracker: MemoryTracker, run_id: str) -> None:
    journal = Journal(tracker, run_id, experiment.whole)
    for step in trial.steps:
        journal.step(step)
    journal.layers(trial.steps)
    journal.removals(trial.steps)
    journal.plans(trial.steps)
    journal.ledgers(trial.steps)
    journal.epochs(trial.final)
    journal.final(trial.final, trial.last.cost)
    journal.gops(experiment.gops(trial.final), trial.final)


def walked(experiment: Experiment) -> tuple[Trial, MemoryTracker, MemoryRun]:
    trial, tracker = experiment.trial(experiment.config), MemoryTracker()
    run_id = open_run(tracker)
    told(experiment, trial, tracker, run_id)
    return trial, tracker, tracker.runs[run_id]


def test_told_again_by_another_process_nothing_changes(tmp_path: Path) -> None:
    """Stages come from the store then, which must not show in any point."""
    first = Experiment(tiny.run(), FolderStore(tmp_path))
    trial, tracker, run = walked(first)
    before = dict(run.points), dict(run.files), len(run.images)
    again = Experiment(tiny.run(), FolderStore(tmp_path))
    told(again, again.trial(again.config), tracker, "run-1")
    assert (dict(run.points), dict(run.files), len(run.images)) == before
    made = {step.number: step.stage.facts["made_ms"] for step in trial.steps}
    assert all(p.timestamp_ms == made[p.step] for p in run.points if p.key == "val_accuracy")


def test_a_stage_that_is_made_again_leaves_the_points_that_were_written_first(tmp_path: Path,
                                                                              ) -> None:
    """It was lost from the store: the same network, but made at another time."""
    _, tracker, run = walked(Experiment(tiny.run(), FolderStore(tmp_path / "one")))
    before = dict(run.points)
    again = Experiment(tiny.run(), FolderStore(tmp_path / "two"))
    other = again.trial(again.config)
    for stage in (*(step.stage for step in other.steps), other.final):
        stage.facts["made_ms"] += 5000  # type: ignore[index]
    told(again, other, tracker, "run-1")
    assert dict(run.points) == before


def test_what_may_change_is_written_anew(tmp_path: Path) -> None:
    tracker = MemoryTracker()
    journal = Journal(tracker, open_run(tracker), Experiment(tiny.run(), NoStore()).whole)
    journal.latest({"champion_val_accuracy": 0.5}, 1000)
    journal.latest({"champion_val_accuracy": 0.6}, 2000)
    points = [(p.timestamp_ms, p.value) for p in tracker.runs["run-1"].points]
    assert points == [(1000, 0.5), (2000, 0.6)]


def test_epochs_are_numbered_on_through_steps_and_fine_tune() -> None:
    experiment = Experiment(tiny.run(retrain__epochs=2, finetune__epochs=3), NoStore())
    trial, _, run = walked(experiment)
    rows = [row for step in trial.steps[1:] for row in step.stage.epochs] + trial.final.epochs
    assert len(rows) == 3 * 2 + 3
    assert run.curve("train_loss") == [(n, row.train_loss) for n, row in enumerate(rows)]
    assert run.curve("lr") == [(n, row.lr) for n, row in enumerate(rows)]
    assert run.curve("val_loss_epoch") == [(n, row.val_loss) for n, row in enumerate(rows)]


def test_without_a_fine_tune_no_epoch_is_told_twice() -> None:
    _, _, run = walked(Experiment(tiny.run(finetune__epochs=0), NoStore()))
    assert [step for step, _ in run.curve("train_loss")] == [0, 1, 2]


def test_a_trial_that_cuts_nothing_does_not_tell_the_baselines_epochs() -> None:
    experiment = Experiment(tiny.run(prune__floors__layer_min=1.0, finetune__epochs=0), NoStore())
    trial, _, run = walked(experiment)
    assert [step.number for step in trial.steps] == [0]
    assert run.curve("train_loss") == []
    assert run.curve("val_accuracy") == [(0, experiment.baseline.accuracy)]


def test_the_certificate_of_every_cut_is_written_down() -> None:
    trial, _, run = walked(Experiment(tiny.run(prune__certify=True), NoStore()))
    plans = json.loads(run.files["plan.json"])
    assert plans["0"]["certificate"] is None
    for step in trial.steps[1:]:
        certificate = plans[str(step.number)]["certificate"]
        assert certificate["difference"] <= certificate["tolerance"]


@pytest.mark.rows("R118", "R139")
def test_the_ledger_of_every_step_is_written_down() -> None:
    """36 filters, 9 a step, to 60 %: asked and reached add up, and groups tell what they keep."""
    trial, _, run = walked(Experiment(tiny.run(), NoStore()))
    told = json.loads(run.files["ledger.json"])
    assert list(told) == ["1", "2", "3"]
    for step in trial.steps[1:]:
        line = told[str(step.number)]
        assert line["reached"]["filters"] == pytest.approx(1 - step.filters / 36)
        assert sum(g["had"] - g["kept"] for g in line["groups"]) == sum(step.removed.values())
    assert [round(told[n]["asked"]["filters"], 6) for n in told] == [0.25, 0.5, 0.6]


@pytest.mark.rows("R076")
def test_shares_are_of_the_whole_network() -> None:
    trial, _, run = walked(Experiment(tiny.run(), NoStore()))
    assert run.curve("flops_reduction")[0] == (0, 0.0)
    assert run.curve("flops_reduction")[-1][1] == 1 - trial.last.macs / trial.steps[0].macs
    assert run.curve("flops")[-1][1] == 2 * trial.last.macs
    assert [round(p, 6) for _, p in run.curve("percentage")] == [
        0, 25, 50, round(100 * 22 / 36, 6)]


class Reached(MemoryTracker):
    """A tracker whose server is gone."""

    def end_run(self, run_id: str, status: object) -> None:
        raise TrackingError("the server does not answer")


@pytest.mark.parametrize(("error", "status"), [
    (KeyboardInterrupt(), "KILLED"), (StoreError("the disk is full"), "KILLED"),
    (TrackingError("no server"), "KILLED"), (TrainingError("the loss is nan"), "FAILED"),
    (MemoryError(), "FAILED")], ids=lambda value: type(value).__name__)
def test_a_run_ends_as_what_became_of_it(error: BaseException, status: str) -> None:
    """What is not ours says where it was raised, and leaves its traceback."""
    tracker = MemoryTracker()
    run_id = open_run(tracker)
    with pytest.raises(type(error)), ending(tracker, run_id):
        raise error
    run = tracker.runs[run_id]
    assert run.status == status
    reasons = {TrainingError: "the loss is nan", MemoryError: "MemoryError (tests/test_journal.py"}
    assert run.tags.get("reason", "").startswith(reasons.get(type(error), ""))
    assert ("reason" in run.tags) == (type(error) in reasons)
    assert ("traceback.txt" in run.files) == isinstance(error, MemoryError)
    with ending(tracker, run_id):
        assert tracker.status(run_id) == "FAILED" or status == "KILLED"
    assert run.status == "FINISHED"


def test_a_tracker_that_is_gone_does_not_hide_what_was_raised_first() -> None:
    tracker = Reached()
    with pytest.raises(HarnessError, match="the loss is nan"):
        with ending(tracker, open_run(tracker)):
            raise TrainingError("the loss is nan")


@pytest.mark.rows("R114")
def test_what_went_of_every_layer_and_block_is_written_down_at_every_step() -> None:
    """Counted on the live networks; seed 001 draws these as bars."""
    experiment = Experiment(tiny.run(), NoStore())
    trial, _, run = walked(experiment)
    layers, found = (json.loads(run.files[f"{name}.json"]) for name in ("layers", "removed"))
    kept = {(row[0], row[1]): row[2:] for row in layers["data"]}
    told = {tuple(row[:3]): row[3:] for row in found["data"]}
    whole = experiment.model(experiment.baseline)
    for step in trial.steps:
        model = experiment.model(step.stage)
        for name, module in model.named_modules():
            had = sum(p.numel() for p in whole.get_submodule(name).parameters())
            if not had:
                continue
            left = sum(p.numel() for p in module.parameters())
            kind = "layer" if name else "block"
            assert told[step.number, kind, name] == [
                had, had - left, pytest.approx(100 * (1 - left / had))]
            if isinstance(module, nn.Conv2d):
                assert kept[step.number, name][:2] == [module.out_channels, left]
    assert told[3, "block", ""][1] == sum(told[3, "layer", n][1] for n in "013478") + told[
        3, "layer", "12"][1] > 0


@pytest.mark.rows("R114")
def test_blocks_are_nodes_of_the_tree_and_no_prefixes_of_letters() -> None:
    """By hand: 'up1' holds the first two layers, 'up10' the third."""
    def cost(*params: int) -> Cost:
        names = ("up1.a.conv", "up1.b", "up10.conv", "empty")
        return Cost(0, sum(params), 0, 0, tuple(
            LayerCost(name, 1, count, 0) for name, count in zip(names, params)))

    found = {(row.kind, row.name): row[2:] for row in removed(cost(100, 60, 40, 0),
                                                              cost(50, 60, 10, 0))}
    assert found == {
        ("layer", "up1.a.conv"): (100, 50, 50.0), ("layer", "up1.b"): (60, 0, 0.0),
        ("layer", "up10.conv"): (40, 30, 75.0), ("block", ""): (200, 80, 40.0),
        ("block", "up1"): (160, 50, 31.25), ("block", "up1.a"): (100, 50, 50.0),
        ("block", "up10"): (40, 30, 75.0)}
