"""Who is at work on what. A claim is held by one process at a time, and freed when that one dies.

On one machine a claim is a lock on a file, which the kernel frees: there is no lease to outlive and
no false alarm, however long a process is stopped. Where several machines share a storage, a claim
is a lease (leases.py).
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Protocol

from harness.store import cannot_write

POLL_S = 0.2


@dataclass(frozen=True)
class Holder:
    """A process, as its machine knows it.

    since, beat: when it took the claim and when it last renewed it, in seconds since 1970 by its
    own clock.
    """

    host: str
    pid: int
    since: float
    beat: float

    @classmethod
    def here(cls) -> "Holder":
        """This process, as of now."""
        now = time.time()
        return cls(socket.gethostname(), os.getpid(), now, now)

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


class Claim(Protocol):
    """Something that this process holds, until it is released or lost."""

    def is_held(self) -> bool:
        """False once another process may have taken it: what is written now could be twice."""

    def release(self) -> None:
        """Free it; again is harmless."""


class Claims(Protocol):
    """The claims of one study."""

    def take(self, name: str) -> Claim | None:
        """The claim, if it is free."""

    def maybe_free(self, names: Sequence[str]) -> Sequence[str]:
        """Those of the claims that are worth trying to take, by one look at all."""

    def holders(self) -> Mapping[str, Holder]:
        """Claim -> who holds it now."""


@contextmanager
def holding(claims: Claims, name: str) -> Iterator[Claim]:
    """Hold a claim while the block lasts; wait for it first."""
    while (claim := claims.take(name)) is None:
        time.sleep(POLL_S)
    try:
        yield claim
    finally:
        claim.release()


@dataclass
class _FileClaim:
    file: int | None

    def is_held(self) -> bool:
        return self.file is not None

    def release(self) -> None:
        if self.file is not None:
            os.close(self.file)  # and with it goes the lock
            self.file = None


@dataclass(frozen=True)
class FileClaims:
    """Locks on files of a folder that is on this machine.

    Raises OSError if the folder cannot be written, StoreError if the disk is full.
    """

    folder: Path

    def take(self, name: str) -> Claim | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # A bare number: a file object would free the lock as soon as nobody refers to it.
        file = os.open(self.folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        try:
            os.ftruncate(file, 0)
            os.write(file, json.dumps(asdict(Holder.here())).encode())
        except OSError as error:
            os.close(file)
            raise cannot_write(self.folder / f"{name}.lock", error) from error
        return _FileClaim(file)

    def maybe_free(self, names: Sequence[str]) -> Sequence[str]:
        return names  # to try a lock is as quick as to look

    def holders(self) -> Mapping[str, Holder]:
        found = {}
        for path in sorted(self.folder.glob("*.lock")):
            with suppress(ValueError, TypeError), path.open() as file:  # half written: just taken
                if _is_locked(file):  # so it lives, now
                    found[path.stem] = replace(Holder(**json.loads(file.read())), beat=time.time())
        return found


def _is_locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
