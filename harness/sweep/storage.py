"""Open a study's storage, safely and quickly: first contact is locked, SQLite is in WAL mode."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from harness.errors import StudyError
from harness.store import locked

optuna.logging.set_verbosity(optuna.logging.ERROR)
FAILURES = (SQLAlchemyError, OptunaError)
REFUSALS = (*FAILURES, sqlite3.Error, OSError, ImportError, ValueError, RuntimeError)


def open_study(name: str, url: str, locks: Path) -> optuna.Study:
    """The study of this name, made if it is not there.

    Raises StudyError if the storage cannot be opened.
    """
    try:
        with locked(locks / "optuna.lock"):  # two first contacts at once can break a fresh store
            storage = _storage(url)
            return optuna.create_study(study_name=name, storage=storage, load_if_exists=True,
                                       directions=[StudyDirection.MAXIMIZE])
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
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return []
    try:
        with locked(locks / "optuna.lock"):
            return [s.study_name for s in optuna.get_all_study_summaries(_storage(url))]
    except REFUSALS as error:
        raise _cannot_open(url, error) from error


def default_url(home: Path) -> str:
    return f"sqlite:///{(home / 'optuna.db').resolve()}"


def _storage(url: str) -> RDBStorage:
    if not url.startswith("sqlite:///"):
        return RDBStorage(url)
    path = Path(url.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=60)) as database:
        database.execute("PRAGMA journal_mode=WAL")  # a commit costs 3 ms instead of 30
    storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})

    @event.listens_for(storage.engine, "connect")
    def _relax(connection: sqlite3.Connection, _: object) -> None:
        # In WAL mode NORMAL survives a crash of the process; only a power cut may lose the tail.
        connection.execute("PRAGMA synchronous=NORMAL")

    return storage


def _cannot_open(url: str, error: Exception) -> StudyError:
    return StudyError(f"the study storage {_shown(url)} cannot be opened: {_reason(error)}. Name "
                      "another with --storage (sqlite:///FILE or postgresql+psycopg://...), or "
                      "move the broken file away; stages and MLflow runs are kept apart from it.")


def _reason(error: Exception) -> str:
    # The first cause: the driver's words, not the query around them.
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__


def _shown(url: str) -> str:
    """The address without its password."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)
