"""Open a study's storage, safely and quickly.

sqlite:///FILE is for the processes of one machine; postgresql+psycopg://... for those of many, and
waits while the server is away; journal:///FILE for a folder that several machines share. First
contact with a fresh store is locked.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import OptunaError, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from harness.errors import StoreError, StudyError
from harness.store import locked
from harness.sweep.claims import Claims, FileClaims
from harness.sweep.leases import LEASE_S, FolderLeases, LeaseClaims, SqlLeases
from harness.sweep.patience import OPENING_S, patient

optuna.logging.set_verbosity(optuna.logging.ERROR)
FAILURES = (SQLAlchemyError, OptunaError)
REFUSALS = (*FAILURES, StoreError, sqlite3.Error, OSError, ImportError, ValueError, RuntimeError)
SQLITE, JOURNAL = "sqlite:///", "journal:///"
FIRST_CONTACT = 0x6861726E  # "harn": the number of a lock in PostgreSQL
T = TypeVar("T")


def open_study(name: str, url: str, locks: Path,
               directions: Sequence[StudyDirection] = (StudyDirection.MAXIMIZE,)) -> optuna.Study:
    """The study of this name, made if it is not there. directions: then, of its objectives.

    Raises StudyError if the storage cannot be opened.
    """
    try:
        return _reached(url, locks, lambda: optuna.create_study(
            study_name=name, storage=_storage(url), load_if_exists=True,
            directions=list(directions)))
    except REFUSALS as error:
        raise _cannot_open(url, error) from error


def open_claims(name: str, url: str, locks: Path, lease_s: float = LEASE_S) -> Claims:
    """Who is at work on what in a study: file locks on one machine, leases on several.

    Raises StudyError if the storage cannot be opened.
    """
    if url.startswith(SQLITE):
        return FileClaims(locks / name)
    try:
        if url.startswith(JOURNAL):
            return LeaseClaims(FolderLeases(_file(url).with_suffix(f".{name}.leases")), lease_s)
        engine = create_engine(url, **_server(url))
        return _reached(url, locks, lambda: LeaseClaims(SqlLeases(engine, name), lease_s))
    except REFUSALS as error:
        raise _cannot_open(url, error) from error


@contextmanager
def told(url: str) -> Iterator[None]:
    """Turn what the storage or Optuna raises while a study is at work on it into a StoreError."""
    try:
        yield
    except FAILURES as error:
        raise _failed(url, error) from error


def study_names(url: str, locks: Path) -> list[str]:
    """Names of all studies in a storage; none if there is no storage yet."""
    if url.startswith((SQLITE, JOURNAL)) and not _file(url).exists():
        return []
    try:
        return _reached(url, locks, lambda: [
            s.study_name for s in optuna.get_all_study_summaries(_storage(url))])
    except REFUSALS as error:
        raise _cannot_open(url, error) from error


def open_storage(url: str, locks: Path) -> BaseStorage:
    """The storage itself, for whoever shows it. Raises StudyError if it cannot be opened."""
    try:
        return _reached(url, locks, lambda: _storage(url))
    except REFUSALS as error:
        raise _cannot_open(url, error) from error


def _reached(url: str, locks: Path, call: Callable[[], T]) -> T:
    """What a call finds in a storage, alone there: two first contacts at once can break a fresh
    one. A server that is being restarted is waited for."""

    def alone() -> T:
        with locked(locks / "optuna.lock"), _alone_on_server(url):
            return call()

    is_file = url.startswith((SQLITE, JOURNAL))
    return alone() if is_file else patient(alone, OPENING_S)()


@contextmanager
def _alone_on_server(url: str) -> Iterator[None]:
    """Agents of other machines see other lock files: PostgreSQL itself locks them out."""
    if not url.startswith("postgresql"):
        yield
        return
    engine = create_engine(url, isolation_level="AUTOCOMMIT", **_server(url))
    with engine.connect() as connection:  # the lock goes with it
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": FIRST_CONTACT})
        yield


def default_url(home: Path) -> str:
    return f"{SQLITE}{(home / 'optuna.db').resolve()}"


def _file(url: str) -> Path:
    return Path(url.removeprefix(SQLITE).removeprefix(JOURNAL))


def _storage(url: str) -> BaseStorage:
    if url.startswith(SQLITE):
        storage = get_storage(_sqlite(url))
    elif url.startswith(JOURNAL):
        _file(url).parent.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(_file(url))))
    else:
        storage = PatientStorage(get_storage(RDBStorage(url, engine_kwargs=_server(url))))
    told: BaseStorage = ToldStorage(storage, url)
    return told


def _server(url: str) -> dict[str, Any]:
    """A connection a call: an agent at work on a trial holds none, so a thousand fit one server."""
    arguments: dict[str, Any] = {"poolclass": NullPool}
    if url.startswith("postgresql"):  # else a process that is stopped inside a call stops them all
        timeout = "-c idle_in_transaction_session_timeout=20000"
        arguments["connect_args"] = {"options": timeout}
    return arguments


def _sqlite(url: str) -> RDBStorage:
    path = _file(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=60)) as database:
        database.execute("PRAGMA journal_mode=WAL")  # a commit costs 3 ms instead of 30
    storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})

    @event.listens_for(storage.engine, "connect")
    def _relax(connection: sqlite3.Connection, _: object) -> None:
        # In WAL mode NORMAL survives a crash of the process; only a power cut may lose the tail.
        connection.execute("PRAGMA synchronous=NORMAL")

    return storage


def _storage_that(how: Callable[..., Any], *fields: str) -> Any:
    """A kind of storage that hands every call on to `inner` in its own way."""

    def method(name: str) -> Callable[..., Any]:
        return lambda self, *given, **more: how(self, getattr(self.inner, name), *given, **more)

    def opened(self: Any, *given: Any) -> None:
        vars(self).update(zip(("inner", *fields), given, strict=True))

    # Every public method of a storage, each the same: written out they would be two hundred lines.
    return type("HandingOn", (BaseStorage,), {"__init__": opened, **{
        name: method(name) for name, public in vars(BaseStorage).items()
        if callable(public) and not name.startswith("_")}})


def _wait(_: Any, call: Callable[..., Any], *given: Any, **more: Any) -> Any:
    return patient(call)(*given, **more)


def _tell(storage: Any, call: Callable[..., Any], *given: Any, **more: Any) -> Any:
    try:
        return call(*given, **more)
    except (SQLAlchemyError, StorageInternalError, OSError) as error:
        raise _failed(storage.url, error) from error


# One whose server may be restarted, and is waited for; and one that says what has failed, as a
# fault that is not the trial's: it is handed back.
PatientStorage = _storage_that(_wait)
ToldStorage = _storage_that(_tell, "url")


def _failed(url: str, error: Exception) -> StoreError:
    return StoreError(f"the study storage {_shown(url)} failed: {_reason(error)}. Nothing is lost: "
                      "mend it, and run the same command again.")


def _cannot_open(url: str, error: Exception) -> StudyError:
    return StudyError(f"the study storage {_shown(url)} cannot be opened: {_reason(error)}. Name "
                      "another with --storage (sqlite:///FILE, journal:///FILE or "
                      "postgresql+psycopg://...), or move the broken file away; stages and MLflow "
                      "runs are kept apart from it.")


def _reason(error: Exception) -> str:
    # The first cause: the driver's words, not the query around them.
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__


def _shown(url: str) -> str:
    """The address without its password."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)
