"""Claims where several machines share a storage: leases in a table that all of them reach.

The holder renews its lease; who has seen a lease unchanged for as long as it lasts removes it, and
the claim is free. That is judged by the observer's own clock alone, so clocks need not agree, and
by several looks, so a storage that was away costs nobody a claim. A holder that was stopped for
longer than its lease finds, before it writes, that it has lost it.
"""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol
from uuid import uuid4

import sqlalchemy as sql
from optuna.storages.journal import JournalFileSymlinkLock
from sqlalchemy.exc import IntegrityError

from harness.store import write_whole
from harness.sweep.claims import Claim, Holder
from harness.sweep.patience import patient

LEASE_S = 60.0


@dataclass(frozen=True)
class Lease:
    """A row of the table. token: of one taking of the claim; count: of its renewals; these two
    say which lease it is."""

    token: str
    count: int
    holder: Holder = field(compare=False)

    def renewed(self) -> "Lease":
        return replace(self, count=self.count + 1, holder=replace(self.holder, beat=time.time()))


class LeaseTable(Protocol):
    """Where the leases of a study are written, while they are held."""

    def read(self, name: str | None = None) -> Mapping[str, Lease]:
        """All rows by their names; or that of one name, if it is there."""

    def swap(self, name: str, before: Lease | None, after: Lease | None) -> bool:
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


class _Watch(NamedTuple):
    """A lease as it was at the last look, and for how long it has been so. Every look makes one of
    every lease, which a frozen dataclass would make slow."""

    lease: Lease
    looked: float
    unchanged_s: float


@dataclass
class LeaseClaims:
    """Leases in a table, renewed from a thread of their own while they are held.

    lease_s: seconds without a renewal after which a claim may be taken over.
    """

    table: LeaseTable
    lease_s: float = LEASE_S
    _held: dict[str, _LeaseClaim] = field(default_factory=dict)
    _watches: dict[str, _Watch] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _thread: threading.Thread | None = None

    def take(self, name: str) -> Claim | None:
        with self._lock:
            if name in self._held or self._is_alive(name):
                return None
            now, lease = time.monotonic(), Lease(uuid4().hex, 0, Holder.here())
            if not self._swap(name, None, lease):
                return None
            self._held[name] = _LeaseClaim(name, lease, self, now)
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew_all, daemon=True, name="leases")
                self._thread.start()
            return self._held[name]

    def maybe_free(self, names: Sequence[str]) -> Sequence[str]:
        with self._lock:
            alive = self._alive()
            return [name for name in names if name not in self._held and name not in alive]

    def holders(self) -> Mapping[str, Holder]:
        with self._lock:
            return {name: lease.holder for name, lease in self._alive().items()}

    def renew(self, claim: _LeaseClaim) -> None:
        """Show that this process lives; or learn that another has taken the claim over."""
        with self._lock:
            if self._held.get(claim.name) is not claim:
                return  # released meanwhile, and perhaps taken again
            now, after = time.monotonic(), claim.lease.renewed()
            if self._swap(claim.name, claim.lease, after):
                claim.lease, claim.verified = after, now
            else:
                claim.is_lost = True
                del self._held[claim.name]

    def give_up(self, claim: _LeaseClaim) -> None:
        """Free a claim; one that was lost is another's by now."""
        with self._lock:
            if self._held.get(claim.name) is claim:
                del self._held[claim.name]
                with suppress(Exception):  # the storage is away: the lease ends by itself
                    self.table.swap(claim.name, claim.lease, None)
            claim.is_lost = True

    def _swap(self, name: str, before: Lease | None, after: Lease) -> bool:
        """Written, too, if only the answer of the storage was lost on its way."""
        return self.table.swap(name, before, after) or self.table.read(name).get(name) == after

    def _alive(self) -> Mapping[str, Lease]:
        """The leases, without those that this process has seen end."""
        rows, now = self.table.read(), time.monotonic()
        self._watches = {name: self._watch(name, lease, now) for name, lease in rows.items()}
        return {name: lease for name, lease in rows.items() if not self._is_removed(name)}

    def _is_alive(self, name: str) -> bool:
        lease = self.table.read(name).get(name)
        if lease is None:
            self._watches.pop(name, None)
            return False
        self._watches[name] = self._watch(name, lease, time.monotonic())
        return not self._is_removed(name)

    def _is_removed(self, name: str) -> bool:
        """Remove a lease that this process has seen end, unless it is its own."""
        watch = self._watches[name]
        return (watch.unchanged_s >= self.lease_s and name not in self._held
                and self.table.swap(name, watch.lease, None))

    def _watch(self, name: str, lease: Lease, now: float) -> _Watch:
        """How long this process itself has seen a lease unchanged.

        Half a lease at most for the time between two looks: if it is longer, the storage may have
        been away, and the holder is to have the time to renew the lease when it is back.
        """
        before = self._watches.get(name)
        if before is None or (before.lease is not lease and before.lease != lease):
            return _Watch(lease, now, 0.0)
        unchanged_s = before.unchanged_s + min(now - before.looked, self.lease_s / 2)
        return _Watch(lease, now, unchanged_s)

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
    """A table of its own beside Optuna's in one database, which is waited for while it is away."""

    engine: sql.Engine
    study: str

    def __post_init__(self) -> None:
        self._table = sql.Table(
            "harness_leases", sql.MetaData(),
            sql.Column("study", sql.String(255), primary_key=True),
            sql.Column("name", sql.String(255), primary_key=True),
            sql.Column("token", sql.String(32), nullable=False),
            sql.Column("renewals", sql.BigInteger, nullable=False),
            sql.Column("holder", sql.Text, nullable=False))
        self._table.create(self.engine, checkfirst=True)

    @patient
    def read(self, name: str | None = None) -> Mapping[str, Lease]:
        table = self._table
        wanted = sql.select(table).where(table.c.study == self.study)
        if name is not None:
            wanted = wanted.where(table.c.name == name)
        with self.engine.connect() as connection:
            rows = connection.execute(wanted).all()
        return {row.name: Lease(row.token, row.renewals, Holder(**json.loads(row.holder)))
                for row in rows}

    @patient
    def swap(self, name: str, before: Lease | None, after: Lease | None) -> bool:
        try:
            with self.engine.begin() as connection:
                return connection.execute(self._change(name, before, after)).rowcount == 1
        except IntegrityError:  # another has inserted it
            return False

    def _change(self, name: str, before: Lease | None, after: Lease | None) -> sql.Executable:
        table = self._table
        values = {"token": after.token, "renewals": after.count,
                  "holder": json.dumps(asdict(after.holder))} if after else {}
        if before is None:
            return table.insert().values(study=self.study, name=name, **values)
        is_before = ((table.c.study == self.study) & (table.c.name == name)
                     & (table.c.token == before.token) & (table.c.renewals == before.count))
        return (table.update().where(is_before).values(**values) if after
                else table.delete().where(is_before))


@dataclass
class FolderLeases:
    """A file in a folder that several machines share (NFS), under a lock that works there."""

    file: Path

    def __post_init__(self) -> None:
        # The lock looks at the file's time, so it has to be there.
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), self.file.open("x") as file:
            file.write("{}")

    def read(self, name: str | None = None) -> Mapping[str, Lease]:
        rows = json.loads(self.file.read_text() or "{}")  # empty: being made by another process
        return {key: Lease(row["token"], row["count"], Holder(**row["holder"]))
                for key, row in rows.items() if name in (None, key)}

    def swap(self, name: str, before: Lease | None, after: Lease | None) -> bool:
        lock = JournalFileSymlinkLock(str(self.file))
        if not lock.acquire():
            return False
        try:
            rows = dict(self.read())
            if rows.get(name) != before:
                return False
            rows.pop(name, None)
            if after is not None:
                rows[name] = after
            write_whole(self.file, json.dumps({n: asdict(row) for n, row in rows.items()}).encode())
            return True
        finally:
            lock.release()
