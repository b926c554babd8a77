"""Open a study's storage, safely and quickly: first contact is locked, SQLite is in WAL mode."""

import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from harness.errors import StudyError
from harness.store import locked

optuna.logging.set_verbosity(optuna.logging.ERROR)
REFUSALS = (SQLAlchemyError, sqlite3.Error, OSError, ImportError, ValueError, RuntimeError)


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
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return StudyError(f"the study storage {url} cannot be opened: {reason}. Name another with "
                      "--storage (sqlite:///FILE or postgresql+psycopg://...), or move the broken "
                      "file away; stages and MLflow runs are kept apart from it.")
