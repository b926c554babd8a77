"""One trajectory by itself, tracked like a trial."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from harness import train as training
from harness.console import QuietScreen
from harness.errors import TrainingError
from harness.sweep.single import Single, run_one
from harness.tracking import MemoryRun, MemoryTracker


def run(home: Path, tracker: MemoryTracker, **changes: object) -> tuple[Single, MemoryRun]:
    single = run_one(tiny.run(**changes), home, lambda: tracker, QuietScreen())
    return single, list(tracker.runs.values())[-1]


@pytest.mark.rows("R064", "R118", "R131")
def test_a_run_is_its_steps_then_its_fine_tune(tmp_path: Path) -> None:
    """36 filters, 9 a step, 60 %: 36, 27, 18 and 14 are left."""
    tracker = MemoryTracker()
    single, tracked = run(tmp_path, tracker)
    assert [row[-2] for row in single.rows] == ["36", "27", "18", "14", "14"]
    assert [row[0] for row in single.rows] == ["0", "1", "2", "3", "final"]
    assert [step for step, _ in tracked.curve("val_accuracy")] == [0, 1, 2, 3]
    assert [step for step, _ in tracked.curve("train_loss")] == [0, 1, 2, 3]
    assert tracked.params["filters_per_step"] == "9"
    assert (tracked.role, tracked.status) == ("run", "FINISHED")
    assert len(tracked.curve("final_test_accuracy")) == 1
    assert [model.name for model in tracker.models.values()] == ["pruned"]
    assert single.reason == tracked.tags["stop_reason"] == "the percentage is reached"
    assert single.ledger is not None
    assert single.ledger.reached["filters"] == pytest.approx(1 - 14 / 36)
    assert "ledger.json" in tracked.files


def test_without_a_fine_tune_the_last_step_is_the_end(tmp_path: Path) -> None:
    single, tracked = run(tmp_path, MemoryTracker(), finetune__epochs=0)
    assert single.rows[-1][3] == single.rows[-2][3]
    assert [step for step, _ in tracked.curve("train_loss")] == [0, 1, 2], "the epochs of 3 steps"


@pytest.mark.rows("R121")
def test_run_again_it_finds_everything_and_says_the_same(tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = run(tmp_path, MemoryTracker())
    monkeypatch.setattr(training, "train", None)
    again, _ = run(tmp_path, MemoryTracker())
    assert [row[:-1] for row in again.rows] == [row[:-1] for row in first.rows]
    assert {row[-1] for row in again.rows} == {"yes"}


def test_what_stops_it_stands_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = MemoryTracker()
    with pytest.raises(TrainingError, match="the loss is nan"):
        run(tmp_path, tracker, retrain__lr=1e30)
    failed = list(tracker.runs.values())[-1]
    assert failed.status == "FAILED"
    assert "the loss is nan" in failed.tags["reason"]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tracker)
    assert list(tracker.runs.values())[-1].status == "KILLED"


@pytest.mark.rows("R051")
def test_floors_that_stop_it_are_named(tmp_path: Path) -> None:
    single, tracked = run(tmp_path, MemoryTracker(), prune__percentage=95,
                          prune__floors__layer_min=0.5)
    assert single.reason.startswith("nothing more may be cut: ")
    assert "layer_min" in single.reason
    assert single.rows[-1][-2] == "18"
    assert tracked.status == "FINISHED"


@pytest.mark.rows("R070", "R083")
def test_a_network_from_a_file_is_pruned_without_any_training(tmp_path: Path) -> None:
    """Its weights are those of the file that are left; what is told is counted by hand."""
    torch.manual_seed(5)
    given = tiny.net()
    torch.save(given.state_dict(), tmp_path / "net.pt")
    tracker = MemoryTracker()
    _, tracked = run(tmp_path, tracker, model__weights=str(tmp_path / "net.pt"),
                     baseline__epochs=0, retrain__epochs=0, finetune__epochs=0,
                     prune__percentage=50, prune__filters_per_step=36, prune__criterion="l1")
    (model,) = tracker.models.values()
    pruned, whole = model.module.state_dict(), given.state_dict()
    kept = json.loads(tracked.files["plan.json"])["1"]["kept"]
    assert torch.equal(pruned["3.weight"], whole["3.weight"][kept["3"]][:, kept["0"]])
    assert torch.equal(pruned["12.weight"], whole["12.weight"][:, kept["7"]])
    assert [value for _, value in tracked.curve("percentage")] == [0, 50]
    assert tracked.curve("train_loss") == []
    for (_, told), network in zip(tracked.curve("size_mb"), (given, model.module), strict=True):
        sizes = [t.numel() * t.element_size() for t in network.state_dict().values()]
        assert told == pytest.approx(sum(sizes) / 1e6)
    test = tiny.digits(size=8, val=0.2, test=0.2, seed=0).read_test()
    with torch.no_grad():
        right = model.module.eval()(test.inputs).argmax(1) == test.targets
    assert tracked.curve("final_test_accuracy") == [(0, pytest.approx(float(right.float().mean())))]


@pytest.mark.rows("R121")
def test_what_failed_is_marked_and_can_be_run_again(tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, train = MemoryTracker(), training.train

    def fail(*_: object, **__: object) -> None:
        raise TrainingError("the loss is nan")

    monkeypatch.setattr(training, "train", fail)
    with pytest.raises(TrainingError):
        run(tmp_path, tracker)
    monkeypatch.setattr(training, "train", train)
    run(tmp_path, tracker)
    assert [r.status for r in tracker.runs.values()] == ["FAILED", "FINISHED"]
    assert len({r.study for r in tracker.runs.values()}) == 1


@pytest.mark.rows("R091")
def test_what_is_told_of_the_test_split_is_of_the_epoch_that_validation_liked_best(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four epochs the second is made the one that is liked; its weights are judged by hand."""
    train, judged = training.train, list[tuple[float, dict[str, Tensor]]]()
    test = tiny.digits(size=8, val=0.2, test=0.2, seed=0).read_test()

    def watched(model: nn.Module, *given: Any, validate: Any, **more: Any) -> Any:
        def validated(network: nn.Module) -> Any:
            score = validate(network)
            with torch.no_grad():
                right = network.eval()(test.inputs).argmax(1) == test.targets
            judged.append((float(right.float().mean()), copy.deepcopy(network.state_dict())))
            return replace(score, loss=[3.0, 1.0, 4.0, 2.0][len(judged) - 1])

        judged.clear()
        return train(model, *given, validate=validated, **more)

    monkeypatch.setattr(training, "train", watched)
    tracker = MemoryTracker()
    _, tracked = run(tmp_path, tracker, finetune__keep="best", finetune__epochs=4)
    (model,) = tracker.models.values()
    held = model.module.state_dict()
    assert [all(weights[name].equal(held[name]) for name in held) for _, weights in judged] == [
        False, True, False, False]
    assert tracked.curve("final_test_accuracy") == [(0, pytest.approx(judged[1][0]))]
