"""What MLflow and its stores say, told as a TrackingError with a remedy."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.errors import HarnessError, TrackingError

if TYPE_CHECKING:
    pass


def import_mlflow() -> None:
    """Import MLflow with all that it would say to a person's terminal off."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow  # noqa: F401
    # What matters is raised, and told once as a TrackingError.
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.CRITICAL)


_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
}


@contextmanager
def told(attempt: str) -> Iterator[None]:
    """Turn whatever MLflow, its store or torch.export raises into a TrackingError with a remedy."""
    import_mlflow()
    try:
        # Warnings of MLflow's own making; nothing that a person could mend.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except HarnessError:
        raise
    except Exception as error:
        raise _failure(attempt, error) from error


def _failure(attempt: str, error: Exception) -> TrackingError:
    said = f"{type(error).__name__}: {error}"
    for words, cause, remedy in _KNOWN:
        if words in said:
            return TrackingError(
                f"MLflow could not {attempt}: {cause or first_line(error)}. {remedy}."
            )
    return TrackingError(f"MLflow could not {attempt}: {first_line(error).rstrip('.')}.")


def first_line(error: Exception) -> str:
    # SQLAlchemy puts the driver's class before the driver's words, and the query after them.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\([\w.]+\) ", "", lines[0])[:300]


_ELSEWHERE = "name another store in MLFLOW_TRACKING_URI"


_START = "Start the server, or mend MLFLOW_TRACKING_URI"


# What MLflow and its stores say, the cause in our words (empty: theirs are good), what helps.
_KNOWN = (
    (
        "_alembic_tmp_",
        "two programs made it at the same moment and left it half made",
        "Move its file away, or empty the database, and run again",
    ),
    (
        "out-of-date database schema",
        "another version of MLflow made it",
        "Make a copy of it, then run: mlflow db upgrade ADDRESS",
    ),
    (
        "Can't locate revision",
        "a newer MLflow made it",
        "Install that: pip install --upgrade mlflow",
    ),
    ("not a database", "", f"Move the file away, or {_ELSEWHERE}"),
    ("malformed", "", "The file is damaged. Put back a copy, or move it away and run again"),
    ("is locked", "", "Another program has held it for 20 s. End that one, then run again"),
    ("disk is full", "the disk is full", "Make room and run again: it goes on where it stopped"),
    ("No space left", "the disk is full", "Make room and run again: it goes on where it stopped"),
    ("readonly database", "", f"Make it writable, or {_ELSEWHERE}"),
    ("unable to open database", "", f"Make folder and file readable and writable, or {_ELSEWHERE}"),
    ("PermissionError", "", f"Make it writable, or {_ELSEWHERE}"),
    ("NotADirectoryError", "", f"If it is the store, {_ELSEWHERE}"),
    ("FileExistsError", "", f"If it is the store, {_ELSEWHERE}"),
    (
        "maintenance mode",
        "MLflow keeps no store in a folder any more",
        "Name a file: MLFLOW_TRACKING_URI=sqlite:///mlflow.db",
    ),
    ("No module named 'psycopg2'", "", "Install its driver: pip install psycopg2-binary"),
    (
        "unsupported URI",
        "no such kind of store",
        "Name it as sqlite:///FILE, postgresql://... or http://... in MLFLOW_TRACKING_URI",
    ),
    ("ConnectionRefused", "nothing listens there", _START),
    ("Connection refused", "nothing listens there", _START),
    ("NameResolutionError", "there is no host of that name", _START),
    ("gaierror", "there is no host of that name", _START),
    ("ReadTimeoutError", "the server does not answer", _START),
    ("timed out", "the server does not answer", _START),
    ("Max retries exceeded", "the server does not answer", _START),
    ("valid JSON format", "a server answers there, but it is not MLflow's", _START),
    ("error code 404", "a server answers there, but it is not MLflow's", _START),
    (
        "error code 401",
        "the server wants to know who asks",
        "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    ),
    ("authentication failed", "", "Mend user and password in MLFLOW_TRACKING_URI"),
)
