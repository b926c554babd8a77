"""The run that `mlflow run` makes of its own: whose it is, how it leads to the study's, its end.

`mlflow run` ends its run itself, unless it is killed; then whoever finds the run does. Who is alive
is known by the processes that the run was marked with: on their own machine, and on no other.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import TrackingError
from harness.tracking.address import resolve_uri
from harness.tracking.contact import first_contact, run_of
from harness.tracking.links import run_path
from harness.tracking.tracker import MISSING, Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

LAUNCHER = {"role": "launcher"}
HOST, PROCESSES = "launcher.host", "launcher.processes"


@cache
def launcher() -> str | None:
    """The id of the run that `mlflow run` made for this process, if it did.

    The first call takes it out of the environment: a program of ours that is started later, or
    a user's own module that calls MLflow, would write into that run.
    """
    return os.environ.pop("MLFLOW_RUN_ID", None) or None


@contextmanager
def launched(run_id: str) -> Iterator[None]:
    """For as long as this process does what `mlflow run` has started it for.

    First its run is marked with the two processes. Should `mlflow run` have been killed by the
    end, its run is KILLED; if it lives, it is to find its run RUNNING, and ends it as we end.
    """
    parent = os.getppid()
    marks = {**LAUNCHER, HOST: socket.gethostname(),
             PROCESSES: " ".join(map(_named, (parent, os.getpid())))}

    def mark(client: MlflowClient) -> None:
        for key, value in marks.items():
            client.set_tag(run_id, key, value)

    def leave(client: MlflowClient) -> None:
        run, is_orphan = run_of(client, run_id), os.getppid() != parent or _is_init(parent)
        if run is not None and is_orphan and run.info.status == "RUNNING":
            client.set_terminated(run_id, "KILLED")
        elif run is not None and not is_orphan and run.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")

    _meet(mark)
    end_lost_launchers()
    try:
        yield
    finally:
        _meet(leave)


def end_lost_launchers() -> None:
    """End the runs of `mlflow run` on this machine that were killed with all that they started."""
    wanted = ("attributes.status = 'RUNNING' and tags.role = 'launcher' "
              f"and tags.`{HOST}` = '{socket.gethostname()}'")

    def end(client: MlflowClient) -> None:
        every = [found.experiment_id for found in client.search_experiments()]
        for run in client.search_runs(every, wanted):
            if not _is_alive(run.data.tags):
                client.set_terminated(run.info.run_id, "KILLED")

    _meet(end)


def _meet(act: Callable[[MlflowClient], None]) -> None:
    """With the store that `mlflow run` uses; if it is away, the work is none the worse for it."""
    with suppress(TrackingError), first_contact(resolve_uri(None)) as client:
        act(client)


def _is_init(pid: int) -> bool:
    """Whether a process is the one that takes in orphans: our own parent had died before."""
    words = Path("/proc/1/cmdline")
    return pid == 1 and not (words.exists() and b"python" in words.read_bytes())


def _is_alive(tags: Mapping[str, str]) -> bool:
    return any(_named(int(name.partition(":")[0])) == name for name in tags[PROCESSES].split())


def _named(pid: int) -> str:
    """A process by its number and, as numbers come again, by when it began; '-' of none."""
    try:
        # Behind the program's name, which may hold blanks and brackets: the third field and on.
        state, *others = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return f"{pid}:-"
    return f"{pid}:-" if state == "Z" else f"{pid}:{others[18]}"


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
        {**LAUNCHER, "study_run": study_run_id, "mlflow.note.content": note},
    )
