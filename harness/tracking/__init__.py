"""Write what a study does into MLflow; or into memory, for a test.

The only room that knows MLflow.
"""

from harness.tracking.address import resolve_uri
from harness.tracking.earlier import Written, written
from harness.tracking.launching import end_lost_launchers, launched, launcher, link_launcher
from harness.tracking.links import run_path, view_link, view_path
from harness.tracking.memory import MemoryModel, MemoryRun, MemoryTracker
from harness.tracking.mlflow_tracker import MlflowTracker
from harness.tracking.models import save_model
from harness.tracking.server import Server, serve
from harness.tracking.tracker import MISSING, Ending, Point, Registered, Tracker, Version
from harness.tracking.values import finite_or_nan, infinite_marks, shortened, table_text

__all__ = [
    "MISSING",
    "Ending",
    "MemoryModel",
    "MemoryRun",
    "MemoryTracker",
    "MlflowTracker",
    "Point",
    "Registered",
    "Server",
    "Tracker",
    "Version",
    "Written",
    "end_lost_launchers",
    "finite_or_nan",
    "infinite_marks",
    "launched",
    "launcher",
    "link_launcher",
    "resolve_uri",
    "run_path",
    "save_model",
    "serve",
    "shortened",
    "table_text",
    "view_link",
    "view_path",
    "written",
]
