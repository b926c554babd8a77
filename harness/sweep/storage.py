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
from typing import Any

import optuna
from optuna.exceptions import OptunaError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from sqlalchemy import create_engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from harness.errors import StudyError
from harness.store import locked
from harness.sweep.claims import Claims, FileClaims
from harness.sweep.leases import LEASE_S, FolderLeases, LeaseClaims, SqlLeases
from harness.sweep.patience import patient

optuna.logging.set_verbosity(optuna.logging.ERROR)
FAILURES = (SQLAlchemyError, OptunaError)
REFUSALS = (*FAILURES, sqlite3.Error, OSError, ImportError, ValueError, RuntimeError)
SQLITE, JOURNAL = "sqlite:///", "journal:///"


def open_study(name: str, url: str, locks: Path,
               directions: Sequence[StudyDirection] = (StudyDirection.MAXIMIZE,)) -> optuna.Study:
    """The study of this name, made if it is not there. directions: then, of its objectives.

    Raises StudyError if the storage cannot be opened.
    """
    try:
        with locked(locks / "optuna.lock"):  # two first contacts at once can break a fresh store
            return optuna.create_study(study_name=name, storage=_storage(url), load_if_exists=True,
                                       directions=list(directions))
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
        with locked(locks / "optuna.lock"):
            return LeaseClaims(SqlLeases(create_engine(url, **_server(url)), name), lease_s)
    except REFUSALS as error:
        raise _cannot_open(url, error) from error


@contextmanager
def told(url: str) -> Iterator[None]:
    """Turn what the storage raises while a study is at work on it into a StudyError."""
    try:
        yield
    except FAILURES as error:
        raise StudyError(f"the study storage {_shown(url)} failed: {_reason(error)}. Nothing is "
                         "lost: mend it, and run the same command again.") from error


def study_names(url: str, locks: Path) -> list[str]:
    """Names of all studies in a storage; none if there is no storage yet."""
    if url.startswith((SQLITE, JOURNAL)) and not _file(url).exists():
        return []
    try:
        with locked(locks / "optuna.lock"):
            return [s.study_name for s in optuna.get_all_study_summaries(_storage(url))]
    except REFUSALS as error:
        raise _cannot_open(url, error) from error


def default_url(home: Path) -> str:
    return f"{SQLITE}{(home / 'optuna.db').resolve()}"


def _file(url: str) -> Path:
    return Path(url.removeprefix(SQLITE).removeprefix(JOURNAL))


def _storage(url: str) -> BaseStorage:
    if url.startswith(SQLITE):
        return _sqlite(url)
    if url.startswith(JOURNAL):
        _file(url).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(_file(url))))
    storage: BaseStorage = PatientStorage(get_storage(RDBStorage(url, engine_kwargs=_server(url))))
    return storage


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


class _Waiting:
    """Delegates to a storage whose server may be restarted, and waits until it is back."""

    def __init__(self, inner: BaseStorage) -> None:
        self.inner = inner


def _waiting(name: str) -> Callable[..., Any]:
    return lambda self, *given, **more: patient(getattr(self.inner, name))(*given, **more)


# Every public method of a storage, each the same: written out they would be two hundred lines.
PatientStorage = type("PatientStorage", (_Waiting, BaseStorage), {
    name: _waiting(name) for name, method in vars(BaseStorage).items()
    if callable(method) and not name.startswith("_")})


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
