"""MLflow's pages on this machine, started and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from harness.errors import TrackingError
from harness.tracking.address import artifact_place, is_http, resolve_uri, shown
from harness.tracking.contact import first_contact
from harness.tracking.failures import first_line

if TYPE_CHECKING:
    pass


@dataclass
class Server:
    """MLflow's pages on this machine; a context that ends them, and all they started."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait(self) -> None:
        """Return when a person presses Ctrl-C or ends this process; the server is ended then.

        Raises: TrackingError if the server ended by itself.
        """

        def asked_to_end(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        # A signal that is ignored stays so: nohup, or a shell's background.
        listened = [
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN
        ]
        before = {number: signal.signal(number, asked_to_end) for number in listened}
        try:
            code = self.process.wait()
            raise TrackingError(f"MLflow's server ended ({code}). {_last_words(self.log)}")
        except KeyboardInterrupt:
            pass
        finally:
            self.stop()
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """End the server and its workers; they are one process group of their own."""
        for number, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(patience_s)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def serve(uri: str | None, home: Path, port: int, *, patience_s: float = 90.0) -> Server:
    """Start MLflow's pages on 127.0.0.1 and return when they answer: one worker, no job runners.

    Raises: TrackingError if the port is taken, the store cannot be opened, the store is a server
        that has pages of its own, or nothing answers in `patience_s` seconds.
    """
    where = resolve_uri(uri)
    if is_http(where):
        raise TrackingError(f"{shown(where)} is an MLflow server with pages of its own: open it.")
    _check_port_is_free(port)
    with first_contact(where):
        pass
    home.mkdir(parents=True, exist_ok=True)
    log = home / "mlflow_server.log"
    # The store's address may hold a password: in the environment, not in the list of processes.
    settings = {
        "MLFLOW_BACKEND_STORE_URI": where,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(artifact_place(where, home)),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    inherited = {key: value for key, value in os.environ.items() if key != "MLFLOW_RUN_ID"}
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=inherited | settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_until_it_answers(server, patience_s)
    except BaseException:
        server.stop()
        raise
    return server


def _check_port_is_free(port: int) -> None:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise TrackingError(
                f"the pages cannot use port {port} ({first_line(error)}). If they run already, "
                f"open http://127.0.0.1:{port}; otherwise choose another: --port {port + 1}."
            ) from error


def _wait_until_it_answers(server: Server, patience_s: float) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise TrackingError(f"MLflow's server did not start. {_last_words(server.log)}")
        try:
            with direct.open(f"{server.url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise TrackingError(
        f"MLflow's server does not answer after {patience_s:.0f} s. {_last_words(server.log)}"
    )


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"Its last words: {lines[-1] if lines else 'none'} (all of them: {log})."
