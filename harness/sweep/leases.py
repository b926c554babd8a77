"""Claims where several machines share a storage: leases in a table that all of them reach.

The holder renews its lease; who has seen a lease unchanged for longer than it lasts may take it
over. Staleness is judged by the observer's own clock alone, so clocks need not agree. A holder that
was stopped for longer than its lease finds, before it writes, that it has lost it.
"""

import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import sqlalchemy as sql
from optuna.storages.journal import JournalFileSymlinkLock
from sqlalchemy.exc import IntegrityError

from harness.store import write_whole
from harness.sweep.claims import Claim, Holder

LEASE_S = 60.0


@dataclass(frozen=True)
class Lease:
    """A row of the table. owner: '' where nobody holds it; count: of the changes so far."""

    owner: str
    count: int
    holder: Holder

    def renewed(self) -> "Lease":
        return replace(self, count=self.count + 1, holder=replace(self.holder, beat=time.time()))

    def freed(self) -> "Lease":
        return replace(self, count=self.count + 1, owner="")


class LeaseTable(Protocol):
    """Where the leases of a study are written."""

    def read(self) -> Mapping[str, Lease]: ...

    def swap(self, name: str, before: Lease | None, after: Lease) -> bool:
        """Write `after` if the row still is `before` (None: there is none); in one piece."""


@dataclass(eq=False)
class _LeaseClaim:
    name: str
    lease: Lease
    claims: "LeaseClaims"
    verified: float  # when it was last known to be held, by the monotonic clock
    is_lost: bool = False

    def is_held(self) -> bool:
        if not self.is_lost and time.monotonic() - self.verified > self.claims.lease_s / 2:
            self.claims.renew(self)
        return not self.is_lost

    def release(self) -> None:
        self.claims.give_up(self)


@dataclass
class LeaseClaims:
    """Leases in a table, renewed from a thread of their own while they are held.

    lease_s: seconds without a renewal after which a claim may be taken over.
    """

    table: LeaseTable
    lease_s: float = LEASE_S
    _me: str = field(default_factory=lambda: uuid4().hex)
    _held: dict[str, _LeaseClaim] = field(default_factory=dict)
    _seen: dict[str, tuple[Lease, float]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _thread: threading.Thread | None = None

    def take(self, name: str) -> Claim | None:
        with self._lock:
            before = self.table.read().get(name)
            if name in self._held or (before and before.owner
                                      and not self._is_stale(name, before)):
                return None
            now = time.monotonic()
            lease = Lease(self._me, before.count + 1 if before else 0, Holder.here())
            if not self.table.swap(name, before, lease):
                return None
            self._held[name] = _LeaseClaim(name, lease, self, now)
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew_all, daemon=True, name="leases")
                self._thread.start()
            return self._held[name]

    def holders(self) -> Mapping[str, Holder]:
        return {name: lease.holder for name, lease in self.table.read().items() if lease.owner}

    def renew(self, claim: _LeaseClaim) -> None:
        """Show that this process lives; or learn that another has taken the claim over."""
        with self._lock:
            now, after = time.monotonic(), claim.lease.renewed()
            # Written, too, if only the answer of the storage was lost on its way.
            if (self.table.swap(claim.name, claim.lease, after)
                    or self.table.read().get(claim.name) == after):
                claim.lease, claim.verified = after, now
            else:
                claim.is_lost = True
                self._held.pop(claim.name, None)

    def give_up(self, claim: _LeaseClaim) -> None:
        """Free a claim; one that was lost is another's by now."""
        with self._lock:
            if self._held.pop(claim.name, None) is claim:
                with suppress(Exception):  # the storage is away: the lease ends by itself
                    self.table.swap(claim.name, claim.lease, claim.lease.freed())
            claim.is_lost = True

    def _is_stale(self, name: str, lease: Lease) -> bool:
        """Whether this process itself has seen the lease unchanged for longer than it lasts."""
        now = time.monotonic()
        seen, since = self._seen.get(name, (None, now))
        if seen != lease:
            self._seen[name] = (lease, now)
            return False
        return now - since > self.lease_s

    def _renew_all(self) -> None:
        while True:
            time.sleep(self.lease_s / 4)
            with self._lock:
                held = list(self._held.values())
            for claim in held:
                with suppress(Exception):  # the storage is away: the next beat may reach it
                    self.renew(claim)


@dataclass
class SqlLeases:
    """A table of its own beside Optuna's in one database.

    Raises SQLAlchemyError if the database is away.
    """

    engine: sql.Engine
    study: str

    def __post_init__(self) -> None:
        self._table = sql.Table(
            "harness_leases", sql.MetaData(),
            sql.Column("study", sql.String(255), primary_key=True),
            sql.Column("name", sql.String(255), primary_key=True),
            sql.Column("owner", sql.String(32), nullable=False),
            sql.Column("changes", sql.BigInteger, nullable=False),
            sql.Column("holder", sql.Text, nullable=False))
        self._table.create(self.engine, checkfirst=True)

    def read(self) -> Mapping[str, Lease]:
        table = self._table
        with self.engine.connect() as connection:
            rows = connection.execute(sql.select(table).where(table.c.study == self.study)).all()
        return {row.name: Lease(row.owner, row.changes, Holder(**json.loads(row.holder)))
                for row in rows}

    def swap(self, name: str, before: Lease | None, after: Lease) -> bool:
        table = self._table
        values = {"owner": after.owner, "changes": after.count,
                  "holder": json.dumps(asdict(after.holder))}
        with self.engine.begin() as connection:
            if before is None:
                try:
                    connection.execute(table.insert().values(study=self.study, name=name, **values))
                except IntegrityError:
                    connection.rollback()
                    return False
                return True
            changed = connection.execute(table.update().values(**values).where(
                table.c.study == self.study, table.c.name == name, table.c.owner == before.owner,
                table.c.changes == before.count))
            return changed.rowcount == 1


@dataclass
class FolderLeases:
    """A file in a folder that several machines share (NFS), under a lock that works there."""

    file: Path

    def __post_init__(self) -> None:
        # The lock looks at the file's time, so it has to be there.
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), self.file.open("x") as file:
            file.write("{}")

    def read(self) -> Mapping[str, Lease]:
        rows = json.loads(self.file.read_text() or "{}")  # empty: being made by another process
        return {name: Lease(row["owner"], row["count"], Holder(**row["holder"]))
                for name, row in rows.items()}

    def swap(self, name: str, before: Lease | None, after: Lease) -> bool:
        lock = JournalFileSymlinkLock(str(self.file))
        if not lock.acquire():
            return False
        try:
            rows = dict(self.read())
            if rows.get(name) != before:
                return False
            rows[name] = after
            write_whole(self.file, json.dumps({n: asdict(row) for n, row in rows.items()}).encode())
            return True
        finally:
            lock.release()
