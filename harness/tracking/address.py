"""Where an MLflow store is, and where its artifacts lie."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from harness.tracking.failures import import_mlflow

if TYPE_CHECKING:
    pass


def resolve_uri(uri: str | None) -> str:
    """The store's address: as given, else MLFLOW_TRACKING_URI, else MLflow's default; absolute."""
    import_mlflow()
    import mlflow

    where = uri or mlflow.get_tracking_uri()
    path = sqlite_path(where)
    if path is None:
        return where
    _, question, options = where.partition("?")
    return f"sqlite:///{path}{question}{options}"


def sqlite_path(uri: str) -> Path | None:
    if not uri.startswith("sqlite:///"):
        return None
    name = uri.removeprefix("sqlite:///").partition("?")[0]
    if not name or name == ":memory:":
        return None
    # MLflow writes its default as an address, a space as %20, but opens it as it is written.
    plain = Path(unquote(name)).absolute()
    return plain if plain.parent.is_dir() else Path(name).absolute()


def is_http(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")


def is_database(uri: str) -> bool:
    return urlsplit(uri).scheme.partition("+")[0] in ("postgresql", "mysql", "mssql")


def artifact_place(uri: str, home: Path) -> Path | None:
    """The folder of the artifacts; none where a server keeps them."""
    if path := sqlite_path(uri):
        return path.parent / "mlruns"
    return home.absolute() / "mlruns" if is_database(uri) else None


def folder_name(experiment: str) -> str:
    if re.fullmatch(r"[A-Za-z][\w.-]*", experiment, re.ASCII):
        return experiment
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", experiment)
    return f"x-{plain}-{hashlib.sha256(experiment.encode()).hexdigest()[:6]}"


def shown(uri: str) -> str:
    """The address without its password."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", uri)
