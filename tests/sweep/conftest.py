"""One whole tiny study that nothing disturbed, walked once and looked at by many tests."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import Machine

from harness import train as training
from harness.config import RunConfig, Study
from harness.data import Data
from harness.experiment import Experiment, Trial
from harness.sweep.outcome import Outcome
from sweep.desk import Desk


@dataclass
class Whole:
    """A finished study; what happened in which order; its trials and its controls as walked."""

    study: Study
    machine: Machine
    events: list[tuple[str, int]] = field(default_factory=list)
    trials: list[tuple[RunConfig, Trial]] = field(default_factory=list)
    controls: list[tuple[RunConfig, Trial]] = field(default_factory=list)
    experiments: list[Experiment] = field(default_factory=list)
    outcome: Outcome = field(init=False)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    torch.set_num_threads(1)
    study = tiny.study(trials=4, base=tiny.run(pictures=True))
    found = Whole(study, Machine(tmp_path_factory.mktemp("whole")))
    walk, train, read, begin = (Experiment.trial, training.train, Data.read_test,
                                Experiment.__init__)

    def noted_walk(self: Experiment, config: RunConfig, **more: Any) -> Trial:
        trial = walk(self, config, **more)
        (found.trials if more.get("macs") is None else found.controls).append((config, trial))
        return trial

    def noted_train(model: Any, examples: Any, recipe: training.Recipe, **more: Any) -> Any:
        found.events.append(("train", recipe.epochs))
        return train(model, examples, recipe, **more)

    def noted_read(self: Data) -> Any:
        found.events.append(("test", 0))
        return read(self)

    def noted_begin(self: Experiment, *given: Any) -> None:
        found.experiments.append(self)
        begin(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experiment, "trial", noted_walk)
        patch.setattr(Experiment, "__init__", noted_begin)
        patch.setattr(training, "train", noted_train)
        patch.setattr(Data, "read_test", noted_read)
        found.outcome, is_new = found.machine.conduct(study)
    assert is_new
    return found


@pytest.fixture(scope="session")
def study() -> Study:
    """What is suggested does not depend on what is finished when it is asked for."""
    return tiny.study(trials=6, sampler={"name": "random", "seed": 11})


@pytest.fixture(scope="session")
def alone(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What one agent finds that nothing disturbs."""
    return tiny.Machine(tmp_path_factory.mktemp("alone")).conduct(study)[0]


@pytest.fixture
def desk(tmp_path: Path, study: Study) -> Iterator[Desk]:
    with Desk(tmp_path, study) as found:
        yield found
