"""A dry run says what would be done, and neither trains nor writes."""

from pathlib import Path
from typing import Any

import pytest
import tiny

from harness import train as training
from harness.config import RunConfig, Study
from harness.errors import ConfigError
from harness.experiment import Experiment, stages
from harness.sweep.forecast import forecast


def told(asked: RunConfig | Study, home: Path) -> dict[str, str]:
    return {str(row[0]): str(row[1]) for row in forecast(asked, home).rows}


@pytest.mark.rows("R120")
def test_a_dry_run_trains_nothing_and_writes_nothing(tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", None)
    found = told(tiny.run(), tmp_path / "home")
    assert not (tmp_path / "home").exists()
    assert found["baseline"] == "trained for 3 epochs"
    assert "12 (output of the network)" in found["never cut"]


@pytest.mark.rows("R120")
@pytest.mark.parametrize("changes", [
    {}, {"prune.percentage": 25.0}, {"retrain.epochs": 2, "adapt.epochs": 1},
    {"prune.step": {"filters": 0.2}}])
def test_as_many_steps_and_epochs_are_told_as_are_then_run(changes: dict[str, Any],
                                                           tmp_path: Path) -> None:
    config = tiny.run(**{key.replace(".", "__"): value for key, value in changes.items()})
    found = told(config, tmp_path)
    experiment = Experiment(config, stages(tmp_path))
    trial = experiment.trial(config)
    assert found["steps"] == f"at most {len(trial.steps) - 1}"
    epochs = sum(len(stage.epochs) for stage in trial.stages)
    assert found["epochs after the baseline"] == f"at most {epochs}"
    assert told(config, tmp_path)["baseline"] == "is in the store"


def test_of_a_study_it_tells_the_settings_and_the_controls(tmp_path: Path) -> None:
    found = told(tiny.study(trials=5, replicates=2), tmp_path)
    assert found["settings"] == "5 of 24 that there are, by tpe"
    assert found["controls"] == "random, l1; 2 times each"


def test_what_the_run_would_refuse_the_dry_run_refuses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nine"):
        forecast(tiny.run(prune__ignore=["nine"]), tmp_path)
