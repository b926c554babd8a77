"""What a run keeps in MLflow of its steps and milestones; read carefully, whoever wrote it."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from harness.errors import TrackingError
from harness.store import is_key
from harness.tracking import Tracker

Entries = dict[str, dict[str, Any]]


def plans(tracker: Tracker, run_id: str) -> Entries:
    """Step -> {kept: group -> original numbers, ...}. Raises TrackingError."""
    found = _entries(tracker, run_id, "plan.json", lambda name, entry: (
        name.isdecimal() and len(name) < 10 and _is_kept(entry.get("kept"))))
    if not found:
        raise TrackingError(f"plan.json of the run {run_id} has no step.")
    return found


def milestones(tracker: Tracker, run_id: str) -> Entries:
    """Name -> {stage: its key in the store, ...}. Raises TrackingError."""
    return _entries(tracker, run_id, "milestones.json",
                    lambda _, entry: is_key(entry.get("stage")))


def _entries(tracker: Tracker, run_id: str, path: str,
             is_good: Callable[[str, Mapping[str, Any]], bool]) -> Entries:
    try:
        found = json.loads(tracker.read_text(run_id, path))
    except (ValueError, RecursionError) as error:
        raise TrackingError(f"{path} of the run {run_id} is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise TrackingError(f"{path} of the run {run_id} must be a table of entries.")
    wrong = [name for name, entry in found.items()
             if not isinstance(entry, dict) or not is_good(name, entry)]
    if wrong:
        raise TrackingError(f"{path} of the run {run_id} is not as harness writes it, in "
                            f"{', '.join(repr(name[:40]) for name in wrong[:3])}.")
    return found


def _is_kept(kept: Any) -> bool:
    return isinstance(kept, dict) and all(
        isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**31 for n in numbers)
        for numbers in kept.values())
