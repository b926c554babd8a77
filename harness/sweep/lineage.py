"""Where a network comes from, as its file says it: from a trial, a study's outcome, or a run's
tags."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.sweep.outcome import Outcome
from harness.sweep.results import Final
from harness.sweep.runs import named
from harness.tracking import Tracker

# Of an exported file, what is also true of a file that is made of it.
KEPT = ("study", "trial", "control", "role", "step", "run", "stage", "settings", "version",
        "val_accuracy", "test_accuracy")


def of_trial(study_id: str, ordinal: int, run_id: str, settings: Mapping[str, Any], final: Final,
             ) -> dict[str, Any]:
    """What is known of a network when its trial has just ended."""
    return {"study": study_id, "trial": ordinal, "step": final.step, "run": run_id,
            "stage": final.key, "settings": named(settings), "val_accuracy": final.accuracy}


def of_row(outcome: Outcome, role: str) -> dict[str, Any]:
    """What the study says of its champion, or of its baseline."""
    row = outcome.baseline if role == "baseline" else outcome.champion
    assert row is not None  # its file was there
    trial = row.name.removeprefix("trial ")
    return {"role": role, "run": row.run_id, "step": row.step, "stage": row.stage,
            "settings": dict(row.settings), "val_accuracy": row.accuracy,
            "test_accuracy": row.test_accuracy,
            **({"trial": int(trial)} if trial.isdecimal() else {})}


def of_run(tracker: Tracker, run_id: str) -> dict[str, Any]:
    """The run; and of a study's runs the study, with the trial's number or the control's name.

    Tags may be anybody's: one that makes no sense is as one that is not there.
    """
    tags = tracker.tags(run_id)
    role, ordinal = tags.get("role"), tags.get("ordinal", "")
    found: dict[str, Any] = {"run": run_id}
    if role in ("trial", "control", "baseline") and tags.get("study"):
        found["study"] = tags["study"]
    if role == "trial" and ordinal.isascii() and ordinal.isdecimal() and len(ordinal) < 10:
        found["trial"] = int(ordinal)
    if role == "control" and tags.get("criterion"):
        found["control"] = tags["criterion"]
    return found


def way_back(run_id: str | None, home: Path) -> str:
    """What trains a trial's or a run's stages again; to run its finished study again does not."""
    if not run_id:
        return f"Only a new study trains it again (another --home than {home})."
    return (f"`harness run config.yaml --home {home}` trains it again, with the file that `mlflow "
            f"artifacts download -r {run_id} -a config.yaml -d .` fetches.")
