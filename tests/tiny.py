"""A network and a data set so small that a whole study takes seconds, named `tiny:net` and
`tiny:digits` as a person names their own; and the study itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.config import RunConfig, Study, StudyConfig, apply, to_yaml
from harness.console import QuietScreen
from harness.data import Data, from_tensors
from harness.sweep.conduct import conduct
from harness.sweep.ledger import Ledger, ordinal_of
from harness.sweep.outcome import Outcome
from harness.sweep.place import Place, study_id
from harness.tracking import MemoryRun, MemoryTracker


def digits(*, size: int, val: float, test: float, seed: int, each: int = 30) -> Data:
    """The first `each` of every digit, 8 x 8 as they come; `size` must be 8."""
    from sklearn.datasets import load_digits

    assert size == 8
    found = load_digits()
    targets = torch.as_tensor(found.target).long()
    rows = torch.cat([(targets == label).nonzero().flatten()[:each] for label in range(10)])
    inputs = torch.as_tensor(found.images, dtype=torch.float32).unsqueeze(1)[rows]
    return from_tensors("tiny", inputs, targets[rows], labels=[str(n) for n in range(10)],
                        val=val, test=test, seed=seed)


def net(num_classes: int = 10, in_channels: int = 1, width: float = 1.0) -> nn.Sequential:
    """Three convolutions with batch norm: 8, 12 and 16 filters at width 1."""
    first, second, third = (round(filters * width) for filters in (8, 12, 16))
    return nn.Sequential(
        nn.Conv2d(in_channels, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU(),
        nn.Conv2d(first, second, 3, padding=1, bias=False), nn.BatchNorm2d(second), nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(second, third, 3, padding=1, bias=False), nn.BatchNorm2d(third), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(third, num_classes))


def run(**changes: Any) -> RunConfig:
    """The run that `study` varies; changes by dotted path, a dot written as two underscores."""
    epoch = {"epochs": 1, "lr": 0.1, "batch_size": 32}
    base = RunConfig.model_validate({
        "name": "tiny", "device": "cpu", "data": {"name": "tiny:digits", "size": 8},
        "model": {"name": "tiny:net"}, "baseline": {**epoch, "epochs": 3}, "retrain": epoch,
        "finetune": epoch, "prune": {"filters_per_step": 9, "percentage": 60, "certify": False}})
    return apply(base, {path.replace("__", "."): value for path, value in changes.items()})


SPACE: Mapping[str, list[Any]] = {
    "prune.filters_per_step": [9, 13], "retrain.epochs": [1, 2],
    "prune.percentage": [30, 50, 70], "prune.floors.layer_min": [0.1, 0.3]}


def study(trials: int = 4, *, base: RunConfig | None = None, **changes: Any) -> Study:
    """24 settings, two controls, a budget of 30 %; changes are of the study's own fields.

    As it is, the first three suggestions are random, hence the same for ever: one ends over the
    budget, one within it, and these two share a step.
    """
    config = {"name": "tiny", "config": "tiny", "budget": {"flops": 0.3}, "space": dict(SPACE),
              "sampler": {"n_startup_trials": 3, "seed": 11}, "controls": ["random", "l1"],
              "trials": trials}
    return Study(StudyConfig.model_validate({**config, **changes}), base or run(), None)


def write(study: Study, folder: Path) -> Path:
    """The study and its run as the files that a person would write."""
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "studies").mkdir(exist_ok=True)
    (folder / "configs" / "tiny.yaml").write_text(to_yaml(study.base))
    path = folder / "studies" / "tiny.yaml"
    path.write_text(to_yaml(study.config))
    return path


@dataclass
class Machine:
    """A home, and an MLflow that lives in memory: both outlive the sessions that use them."""

    home: Path
    tracker: MemoryTracker = field(default_factory=MemoryTracker)

    @property
    def place(self) -> Place:
        return Place.at(self.home)

    def conduct(self, study: Study) -> tuple[Outcome, bool]:
        outcome, is_new = conduct(study, self.place, lambda: self.tracker, QuietScreen())
        assert outcome is not None
        return outcome, is_new

    def ledger(self, study: Study) -> Ledger:
        return self.place.ledger(study_id(study))

    def runs(self, role: str) -> list[MemoryRun]:
        return [run for run in self.tracker.runs.values() if run.role == role]


def trials(ledger: Ledger) -> list[tuple[int, Mapping[str, Any], str, float | None]]:
    """(ordinal, settings, state, value) of every trial that had been begun."""
    return [(ordinal_of(t), t.params, t.state.name, t.value) for t in ledger.trials()]


def found(outcome: Outcome) -> list[object]:
    """All of an outcome that must not depend on when, where and how often it was begun."""
    rows = [(r.role, r.name, dict(r.settings), r.step, r.stage, r.accuracy, r.test_accuracy,
             r.macs, r.params, r.filters) for r in outcome.rows]
    return [rows, outcome.weights, outcome.settings_finished, outcome.epochs_run,
            outcome.epochs_naive, outcome.notes]
