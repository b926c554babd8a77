"""Servers of a study's own, on free loopback ports: PostgreSQL, and MLflow over it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

from tests import postgres

PATIENCE_S = 180.0


@contextmanager
def postgresql() -> Iterator[postgres.Server]:
    """Raises RuntimeError where its programs are missing."""
    if not postgres.is_installed():
        raise RuntimeError("PostgreSQL is not installed here (initdb, pg_ctl): on Debian, "
                           "apt install postgresql")
    server = postgres.Server()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def mlflow(store: str, artifacts: Path) -> Iterator[str]:
    """The address of an MLflow server that keeps its runs in `store`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
               "--backend-store-uri", store, "--artifacts-destination", str(artifacts),
               "--workers", "1"]
    quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (artifacts.parent / "mlflow.log").open("w") as log:
        running = subprocess.Popen(command, cwd=artifacts.parent, stdout=log, stderr=log, env=quiet,
                                   start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/health", running)
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGTERM)
        running.wait()


def _wait_for(page: str, running: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + PATIENCE_S
    while running.poll() is None and time.monotonic() < end:
        with suppress(OSError), urlopen(page, timeout=2) as found:
            if found.status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the MLflow server does not answer at {page}")
