"""A study on PostgreSQL, as agents of several machines share it: leases, outages, takeovers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from urllib.request import urlopen

import postgres
import pytest
import sqlalchemy as sql
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError, PendingRollbackError, ProgrammingError
from sqlalchemy.pool import NullPool

from harness.config import Study
from harness.sweep.outcome import Outcome
from harness.sweep.place import study_id
from harness.sweep.progress import progress
from harness.sweep.storage import PatientStorage, open_study
from sweep.desk import Desk

pytestmark = pytest.mark.postgres
NUMBERS = count()


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    if not postgres.is_installed():
        assert "HARNESS_NEEDS_POSTGRES" not in os.environ, "PostgreSQL is said to be here"
        pytest.skip("PostgreSQL is not installed here")
    found = postgres.Server()
    yield found
    found.stop()


@pytest.fixture
def shared(tmp_path: Path, study: Study, server: postgres.Server) -> Iterator[Desk]:
    """A lease that outlasts what a busy machine does to the thread that renews it."""
    with Desk(tmp_path, study, server.url(f"study{next(NUMBERS)}"), lease_s=10) as found:
        yield found


def finish(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    return said


def test_two_agents_that_start_at_once_on_a_fresh_database(shared: Desk, alone: Outcome) -> None:
    """As on two machines: each has a home of its own, with its own stages and lock files."""
    other = str(shared.folder / "other")
    one, two = shared.start("agent", "tiny"), shared.start("agent", "tiny", "--home", other)
    for process in (one, two):
        assert f"{study_id(shared.study)} is finished" in finish(process)
    shared.check(alone)


def test_an_agent_that_is_killed_loses_its_lease_and_nothing_else(shared: Desk, alone: Outcome,
                                                                  ) -> None:
    one = shared.start("agent", "tiny")
    shared.wait_for(shared.agents, one)
    shown = progress(shared.study, shared.place)
    assert "last heartbeat" in shown.notes[0]
    one.kill()
    one.communicate()
    finish(shared.start("study", "tiny"))
    shared.check(alone)
    assert max(t.user_attrs["tries"] for t in
               shared.place.ledger(study_id(shared.study)).settings()) == 2


def test_an_agent_that_sleeps_over_its_lease_leaves_its_trial_to_who_took_it(
        shared: Desk, alone: Outcome) -> None:
    one = shared.start("agent", "tiny")
    shared.wait_for(shared.agents, one)
    one.send_signal(signal.SIGSTOP)
    two = shared.start("agent", "tiny")
    other = finish(two)
    assert "is finished" in other
    one.send_signal(signal.SIGCONT)
    said = finish(one)
    assert "was taken over by another agent" in said, f"{said}\nThe other: {other}"
    shared.check(alone)


def test_the_database_is_restarted_in_the_middle(shared: Desk, alone: Outcome,
                                                 server: postgres.Server) -> None:
    """And away when the study begins."""
    server.down()
    process = shared.start("study", "tiny", "--agents", "2")
    time.sleep(8)  # by then it has knocked
    server.up()
    restarts = 0
    while process.poll() is None:
        if shared.agents():
            server.restart()
            restarts += 1
        time.sleep(1.5)
    said = finish(process)
    assert restarts >= 2
    assert "starting it again" not in said, said
    shared.check(alone)


def test_what_is_no_outage_is_not_waited_for(server: postgres.Server, tmp_path: Path) -> None:
    storage = open_study("x", server.url("patience"), tmp_path)._storage.inner
    assert isinstance(storage, PatientStorage)
    calls = []

    class Inner:
        def get_all_studies(self) -> None:
            calls.append(1)
            if len(calls) < 4:
                raise OperationalError("select", {}, Exception("the server is away"))
            if len(calls) == 4:
                raise StorageInternalError from PendingRollbackError("the session was cut")
            raise StorageInternalError from ProgrammingError("select", {}, Exception("no table"))

    storage.inner = Inner()  # type: ignore[attr-defined]
    with pytest.raises(StorageInternalError):
        storage.get_all_studies()
    assert len(calls) == 5


def test_a_session_that_is_cut_before_any_statement_is_begun_again(
        server: postgres.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PostgreSQL cuts that of an agent which is stopped in the middle of a transaction."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.05)))
    url = server.url("cut")
    study = open_study("x", url, tmp_path)
    admin = sql.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    left = [0]

    @sql.event.listens_for(study._storage.inner.inner._backend.engine, "before_cursor_execute")
    def cut(connection: sql.Connection, *_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            pid = connection.connection.driver_connection.info.backend_pid
            with admin.connect() as other:
                other.execute(sql.text(f"SELECT pg_terminate_backend({pid}, 5000)"))

    for statements in count(1):
        left[0] = statements
        trial = study.ask()
        trial.suggest_categorical("a", [1, 2])
        trial.set_user_attr("statements", statements)
        study.tell(trial, 0.5)
        if left[0] > 0:
            break  # there were not so many: each has been the last of a session
    found = open_study("x", url, tmp_path).get_trials()
    assert [t.user_attrs["statements"] for t in found] == list(range(1, statements + 1))
    assert {t.state.name for t in found} == {"COMPLETE"}
    assert statements > 10


def test_mlflow_s_server_on_postgresql_goes_away_and_comes_back(
        desk: Desk, alone: Outcome, server: postgres.Server) -> None:
    """What is to be written meanwhile waits; the study does not fail. AWAY_S=60: for a minute."""
    store = server.url(f"mlflow{next(NUMBERS)}")
    port = postgres.free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
               "--workers", "1", "--backend-store-uri", store, "--artifacts-destination",
               str(desk.folder / "artifacts")]
    quiet = {**desk.environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    desk.environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"

    def start() -> "subprocess.Popen[str]":
        with (desk.folder / "server.log").open("a") as log:
            return subprocess.Popen(command, cwd=desk.folder, env=quiet, stdout=log, stderr=log,
                                    start_new_session=True, text=True)

    def stop(running: "subprocess.Popen[str]") -> None:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()

    def answers() -> bool:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as found:
            return bool(found.status == 200)
        return False

    running = start()
    desk.wait_for(answers, running)
    process = desk.start("study", "tiny")
    try:
        desk.wait_for(desk.agents, process)
        stop(running)
        time.sleep(float(os.environ.get("AWAY_S", "5")))
        running = start()
        finish(process)
        desk.check(alone)
    finally:
        stop(running)
