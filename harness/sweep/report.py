"""The report of a finished study: one HTML file, from what the study left behind."""

from collections.abc import Callable
from pathlib import Path

from harness.errors import StudyError, TrackingError
from harness.store import write_whole
from harness.sweep.champion import outcome_of, outcomes
from harness.sweep.ledger import Ledger
from harness.sweep.outcome import Outcome
from harness.sweep.pictures import FOLDER
from harness.sweep.place import Place
from harness.sweep.report_page import Left, report_page
from harness.sweep.storage import told
from harness.tracking import Tracker

REPORT = "report.html"
STUDY_FILE, RUN_FILE = "study.yaml", "config.yaml"  # as they were run: profile, overrides and all


def keep(outcome: Outcome, ledger: Ledger, home: Path, tracker: Tracker) -> Path:
    """Write the report into the home, and among the artifacts of the study's run."""
    path = write(outcome, ledger, home)
    tracker.log_text(str(ledger.get("run_id")), path.read_text(encoding="utf-8"), REPORT)
    return path


def write(outcome: Outcome, ledger: Ledger | None, home: Path) -> Path:
    """Write it into the study's folder. ledger: without it the page has no table of trials."""
    folder = home / "studies" / outcome.study_id
    files = {file.name: file.read_bytes() for file in sorted((folder / FOLDER).glob("*"))
             if file.suffix in (".png", ".csv")}
    study, run = (_text(folder / name) for name in (STUDY_FILE, RUN_FILE))
    trials, results = (ledger.originals(), ledger.results()) if ledger else ([], [])
    left = Left(outcome, trials, results, study, run, files)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / REPORT, report_page(left).encode())
    return folder / REPORT


def report_study(name: str, place: Place, tracker_of: Callable[[str], Tracker | None],
                 ) -> tuple[Path, list[str]]:
    """Write the report of the study of this id, or of the latest one of this name.

    tracker_of: run's id -> where that run is, or None; nothing is made to look for it.
    Returns (path, what could not be done, in sentences). Raises StudyError for a study that is not
    finished.
    """
    outcome = _finished(name, place)
    if outcome.study_id not in place.names():
        path = write(outcome, None, place.home)
        return path, [f"the trials of {outcome.study_id} are not in {place.url}: the page is "
                      "without their table, and was not put into MLflow. Another place: --storage"]
    with told(place.url):
        ledger = place.ledger(outcome.study_id)
        path = write(outcome, ledger, place.home)
        run_id = str(ledger.get("run_id"))
    try:
        tracker = tracker_of(run_id)
        if tracker is None:
            return path, [f"MLflow does not have the run of {outcome.study_id}: the page was not "
                          "put there. Set MLFLOW_TRACKING_URI to the store of the study."]
        tracker.log_text(run_id, path.read_text(encoding="utf-8"), REPORT)
    except TrackingError as error:
        return path, [f"the page was not put into MLflow: {error}"]
    return path, []


def _finished(name: str, place: Place) -> Outcome:
    if not any(name in (known.study, known.study_id) for known in outcomes(place.home)):
        begun = [other for other in place.names() if name in (other, other.rpartition("-")[0])]
        for study_id in begun[-1:]:
            count = len(place.ledger(study_id).results())
            raise StudyError(
                f"{study_id} is not finished: {count} of its settings have a result. Go on with "
                f"it: python -m harness study {study_id.rpartition('-')[0]} --home {place.home} "
                "(and the --profile, --config, --storage and --set that it was started with)")
    return outcome_of(name, place.home)


def _text(file: Path) -> str:
    """'' where an earlier version ended the study, which did not keep this file."""
    return file.read_text(encoding="utf-8") if file.exists() else ""
