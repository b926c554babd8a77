"""A PostgreSQL server of the tests' own: on a free loopback port, in a temporary folder."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

UNPRIVILEGED = "nobody"  # initdb refuses root


def program(name: str) -> str | None:
    """Where a server program is: on the path, or where Debian and Red Hat put it."""
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
              *sorted(Path("/usr").glob("pgsql-*/bin"), reverse=True)]
    return shutil.which(name) or next(
        (str(place / name) for place in places if (place / name).exists()), None)


def is_installed() -> bool:
    """`python tests/postgres.py` tells it: exit code 0 if so."""
    return all(program(name) for name in ("initdb", "pg_ctl", "createdb"))


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """Started when made; `restart` interrupts every session, `stop` leaves nothing behind."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="harness-postgres-"))
        if os.getuid() == 0:
            user = pwd.getpwnam(UNPRIVILEGED)
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        self.port = free_port()
        self._run("initdb", "--username=tester", "--auth=trust", "--no-sync", "--locale=C",
                  "--encoding=UTF8", "-D", str(self.folder / "data"))
        self.up()

    def url(self, database: str) -> str:
        """Of a fresh database, made here."""
        self._run("createdb", "--host=127.0.0.1", f"--port={self.port}", "--username=tester",
                  database)
        return f"postgresql+psycopg://tester@127.0.0.1:{self.port}/{database}"

    def restart(self) -> None:
        self.down()
        self.up()

    def stop(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():  # else a test has left it down
            self.down()
        shutil.rmtree(self.folder)

    def down(self) -> None:
        """As when the machine crashes: every session is cut."""
        self._run("pg_ctl", "stop", "-D", str(self.folder / "data"), "-m", "immediate")

    def up(self) -> None:
        self._run("pg_ctl", "start", "-w", "-D", str(self.folder / "data"), "-l",
                  str(self.folder / "log"), "-o",
                  f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off "
                  f"-c unix_socket_directories={self.folder}")

    def _run(self, name: str, *words: str) -> None:
        found = program(name)
        assert found is not None, f"{name} is not installed"
        user = {"user": UNPRIVILEGED, "group": pwd.getpwnam(UNPRIVILEGED).pw_gid,
                "extra_groups": []} if os.getuid() == 0 else {}
        # Files, not pipes: the server would keep a pipe open for as long as it lives.
        with (tempfile.TemporaryFile() as said):
            done = subprocess.run([found, *words], cwd=self.folder, stdin=subprocess.DEVNULL,
                                  stdout=said, stderr=said, check=False, timeout=120,
                                  **user)  # type: ignore[call-overload]
            said.seek(0)
            assert done.returncode == 0, f"{name}: {said.read().decode()}"


if __name__ == "__main__":
    sys.exit(not is_installed())
