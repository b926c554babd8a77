"""The run that `mlflow run` makes of its own, and how it leads to the study's."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from harness.errors import TrackingError
from harness.tracking.address import resolve_uri
from harness.tracking.failures import told
from harness.tracking.links import run_path
from harness.tracking.tracker import MISSING, Tracker

if TYPE_CHECKING:
    pass


@cache
def launcher() -> str | None:
    """The id of the run that `mlflow run` made for this process, if it did.

    The first call takes it out of the environment: a program of ours that is started later, or
    a user's own module that calls MLflow, would write into that run.
    """
    return os.environ.pop("MLFLOW_RUN_ID", None) or None


def end_orphaned_launcher(run_id: str) -> None:
    """End the run of an `mlflow run` that was killed: what it started does it, when that leaves."""
    with suppress(TrackingError), told("end the run of mlflow run"):
        from mlflow import MlflowClient

        client = MlflowClient(resolve_uri(None))
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, "KILLED")


def link_launcher(
    tracker: Tracker, launcher_run_id: str, study_run_id: str, *, view: str | None = None
) -> None:
    """Lead a person from the run of `mlflow run` to the study's run and to its saved view.

    Args:
        view: the path that `save_view` returned. A launcher of another store is left alone.
    """
    if tracker.status(launcher_run_id) == MISSING:
        return
    path = run_path(tracker.experiment_id, study_run_id)
    note = f"This run only started the study. What it found is in [the study's run]({path})"
    note += f"; [the trials side by side]({view})." if view else "."
    tracker.set_tags(
        launcher_run_id,
        {"role": "launcher", "study_run": study_run_id, "mlflow.note.content": note},
    )
