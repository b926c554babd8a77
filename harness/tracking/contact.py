"""The first contact with a store: alone, impatient, and with what is wrong told at once."""

from __future__ import annotations

import hashlib
import os
import socket
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import TrackingError
from harness.tracking.address import is_database, is_http, shown, sqlite_path
from harness.tracking.failures import told

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run


@contextmanager
def first_contact(uri: str) -> Iterator[MlflowClient]:
    """A client, while no other process of this user meets the same store for the first time.

    The first client of a fresh database makes its tables; two at once leave it broken for ever.
    MLflow asks a store that does not answer for minutes: here it is asked once or twice.
    """
    with told(f"open the store {shown(uri)}"), _alone_with(uri):
        path = sqlite_path(uri)
        if path is not None:
            _check_sqlite(path)
        elif is_database(uri):
            _check_database(uri)
        with _environment(_IMPATIENT):
            from mlflow import MlflowClient

            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            yield client


_IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "8"}


@contextmanager
def _alone_with(uri: str) -> Iterator[None]:
    import fcntl

    digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
    # One lock file a user: another user's file in the shared folder could not be opened.
    path = Path(tempfile.gettempdir()) / f"harness-mlflow-{os.getuid()}-{digest}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _check_sqlite(path: Path) -> None:
    """Fail at once where MLflow would try for two minutes; let readers and writers meet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} may not be written to")
    with closing(sqlite3.connect(path, timeout=20)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        if _is_on_this_machine(path):
            # A third of the time per write, and the pages can be read meanwhile.
            connection.execute("PRAGMA journal_mode=WAL")


def _is_on_this_machine(path: Path) -> bool:
    """Whether the file lies on a local disk: WAL needs memory that all its processes share."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return False
    folders = {line.split()[1].replace("\\040", " "): line.split()[2] for line in mounts}
    mounted = max((f for f in folders if path.is_relative_to(f)), key=len, default="/")
    return folders.get(mounted) in _LOCAL_DISKS


_LOCAL_DISKS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"}


def _check_database(uri: str) -> None:
    """Knock at a database server's door, then log in once."""
    import sqlalchemy

    address = sqlalchemy.make_url(uri)
    ports = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
    port = address.port or ports.get(address.get_backend_name())
    if address.host and port:
        socket.create_connection((address.host, port), timeout=5).close()
    engine = sqlalchemy.create_engine(address)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def is_there(uri: str) -> bool:
    """False for a file that nobody has made yet: a client would make it."""
    path = sqlite_path(uri)
    return path is None or path.exists()


def run_of(client: MlflowClient, run_id: str) -> Run | None:
    """None for a run that was deleted, or never was."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return None if run.info.lifecycle_stage == "deleted" else run


def check_experiment(found: Experiment, uri: str) -> None:
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the experiment '{found.name}' was deleted in MLflow. Restore it: "
            f"mlflow experiments restore --experiment-id {found.experiment_id}, or remove it for "
            f"good: mlflow gc --experiment-ids {found.experiment_id} "
            f"(both with MLFLOW_TRACKING_URI={shown(uri)})."
        )
    if found.artifact_location.startswith("mlflow-artifacts:") and not is_http(uri):
        raise TrackingError(
            f"the experiment '{found.name}' was made through an MLflow server, which alone can "
            "write its files. Set MLFLOW_TRACKING_URI to that server's address (http://...), or "
            f"rename it: mlflow experiments rename --experiment-id {found.experiment_id} "
            f"--new-name NAME (with MLFLOW_TRACKING_URI={shown(uri)})."
        )
