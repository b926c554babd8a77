"""No run of a study stays RUNNING when nobody is at work on it, whoever was killed or slept."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny import Machine

from harness.console import QuietScreen
from harness.sweep.place import study_id
from harness.sweep.runs import Runs


def test_a_run_whose_agent_was_killed_is_ended_and_one_at_work_is_left(tmp_path: Path) -> None:
    """A control of a champion that is none any more, say: nobody will go on with it."""
    machine, study = Machine(tmp_path), tiny.study(trials=1, controls=[])
    name = study_id(study)
    lost, held = (machine.tracker.open_run(name=key, role="control", study=name, tags={"key": key})
                  for key in ("control-lost", "control-held"))
    claim = machine.place.claims(name).take("control-held")
    machine.conduct(study)
    assert machine.tracker.status(lost) == "KILLED"
    assert machine.tracker.status(held) == "RUNNING"
    assert claim is not None
    claim.release()
    machine.conduct(tiny.study(trials=2, controls=[]))
    assert machine.tracker.status(held) == "KILLED"


def test_a_run_left_running_after_its_trial_had_ended_ends_as_the_trial_did(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.conduct(tiny.study(trials=1, controls=[]))
    machine.runs("trial")[0].status = "RUNNING"
    machine.conduct(tiny.study(trials=2, controls=[]))
    assert [run.status for run in machine.runs("trial")] == ["FINISHED"] * 2


def test_who_slept_over_his_lease_leaves_the_run_as_the_other_ended_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """He sleeps when he is about to open the run, and opens what has ended meanwhile."""
    machine, study = Machine(tmp_path), tiny.study(trials=1, controls=[])
    told: list[str] = []
    monkeypatch.setattr(QuietScreen, "message", lambda self, text: told.append(text))
    opened, slept = Runs.trial, list[str]()

    def sleepy(self: Runs, trial: Any, config: Any) -> str:
        run_id = opened(self, trial, config)
        if not slept:
            slept.append(run_id)
            machine.ledger(study).fail(trial, "the other's reason")
            machine.tracker.end_run(run_id, "FAILED")
            return opened(self, trial, config)
        return run_id

    monkeypatch.setattr(Runs, "trial", sleepy)
    outcome, _ = machine.conduct(study)
    assert told == ["trial 0 was taken over by another agent"]
    assert [run.status for run in machine.runs("trial")] == ["FAILED", "FINISHED"]
    assert machine.ledger(study).trials()[0].user_attrs["reason"] == "the other's reason"
    assert outcome.settings_finished == 1
