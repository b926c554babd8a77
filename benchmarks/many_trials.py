"""A study of very many trials: what a trial costs, and how long it takes to join.

`python -m benchmarks.many_trials` writes the rows of a study as many agents would have left them,
in bulk, into Optuna's and MLflow's SQLite files; measures what an agent's calls cost by the number
of trials and runs that are there; and joins a study of 10,000.
"""

import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import scheduler_calls, stub_study
from benchmarks.goal import Record, alone
from benchmarks.growth import listed, slopes_of
from benchmarks.rounds import wall
from harness.console import QuietScreen
from harness.sweep.agent import Agent
from harness.sweep.ledger import Ledger
from harness.sweep.storage import open_claims, open_study
from harness.tracking import MlflowTracker, Point

ROUNDS = 5
MOST = 10_000
SOON_S = 10.0  # what we take "in seconds" to mean
COUNTS = {"tiny": (10, 20, 40, 80), "smoke": (100, 300, 1000, 3000, MOST),
          "full": (100, 300, 1000, 3000, MOST, 30_000)}
PARAMS, TAGS, METRICS = 30, 12, 20  # of a run of the main job, or so


def measure(size: str) -> Iterator[Record]:
    """Calls by trials, writing by runs, and joining a study of 10,000."""
    counts = COUNTS[size]
    with tempfile.TemporaryDirectory() as name:
        yield _calls(counts, Path(name))
        yield _logging(counts, Path(name))
        yield _join(min(MOST, counts[-1]), Path(name))


def _calls(counts: Sequence[int], place: Path) -> Record:
    """An agent's calls to the study's book, by the trials in it."""
    folder = place / "calls"
    folder.mkdir()
    calls = list(scheduler_calls.measure(["sqlite"], counts, [10], folder))
    costs = {part: [getattr(call, part) for call in calls]
             for part in ("first", "ask", "write", "attend")}
    return slopes_of("looking, asking, telling and attending against trials", counts, costs,
                   f"ten agents at work, SQLite, {listed(counts)} trials there; wall time, "
                   f"medians of {scheduler_calls.ROUNDS} rounds, the first look once")


def _logging(counts: Sequence[int], place: Path) -> Record:
    """Opening a run, writing a step into it and ending it, by the runs that are there."""
    costs: dict[str, list[float]] = {"open": [], "write": [], "end": [], "look for": []}
    tracker = _tracker(place / "growing")
    there = 0
    for count in counts:
        _fill_runs(tracker, place / "growing" / "mlflow.db", range(there, count))
        there = count
        rounds: dict[str, list[float]] = {name: [] for name in costs}
        for number in range(ROUNDS + 1):
            runs: list[str] = []
            rounds["look for"].append(wall(lambda: tracker.find_run("s", f"new-{number}")))  # noqa: B023
            rounds["open"].append(wall(lambda: runs.append(tracker.open_run(  # noqa: B023
                name="new", role="trial", study="s", tags={"key": "new"},
                params={f"p{n}": n for n in range(PARAMS)}))))
            points = [Point(f"m{n}", 0.5, 1, 1000) for n in range(METRICS)]
            rounds["write"].append(wall(lambda: tracker.log_points(runs[0], points)))  # noqa: B023
            rounds["end"].append(wall(lambda: tracker.end_run(runs[0], "FINISHED")))  # noqa: B023
        for name, each in rounds.items():
            costs[name].append(median(each[1:]))
    return slopes_of("opening, looking for, writing and ending a run against runs", counts, costs,
                   f"{listed(counts)} runs in MLflow's SQLite, of {PARAMS} parameters and "
                   f"{METRICS} metrics each; wall time, medians of {ROUNDS} rounds")


def _join(count: int, place: Path) -> Record:
    """A process that joins: storages opened, the study's run gone on with, a trial asked for."""
    home = place / "join"
    tracker = _tracker(home)
    _fill_runs(tracker, home / "mlflow.db", range(count))
    url = f"sqlite:///{home / 'study'}"
    scheduler_calls._fill(url, home, count, 0)
    steps: dict[str, list[float]] = {"storages": [], "the study's run": [], "a first trial": []}
    for number in range(ROUNDS + 1):
        found: list[Any] = []
        steps["storages"].append(wall(lambda: found.extend(_opened(url, home))))  # noqa: B023
        ledger, tracker = found
        if not number:
            ledger.set("run_id", tracker.find_run(stub_study.NAME, "study"))
        with stub_study.stubbed():
            agent = _agent(count + ROUNDS + 2, url, home, ledger, tracker)
            entered = agent.opened()
            steps["the study's run"].append(wall(entered.__enter__))
            steps["a first trial"].append(wall(lambda: found.append(agent._next())))  # noqa: B023
            trial, claim = found[-1]
            claim.release()
            agent.ledger.fail(trial, "enough")
            entered.__exit__(None, None, None)
    parts = {name: median(each[1:]) for name, each in steps.items()}
    told = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items())
    return Record(
        15, f"joining a study of {count} trials", "<=", SOON_S, sum(parts.values()), "s",
        f"{told}; rows made in bulk in both SQLite files, {count} trials and as many runs; "
        f"imports and the baseline, which every study has, left out; wall time, medians of "
        f"{ROUNDS} rounds. 'Seconds' is taken as {SOON_S:g}",
        "nearly all of it is Optuna's reading of all trials through its object mapper, once")


def _opened(url: str, home: Path) -> tuple[Ledger, MlflowTracker]:
    ledger = Ledger(open_study(stub_study.NAME, url, home))
    ledger.results()
    return ledger, _tracker(home)


def _agent(trials: int, url: str, home: Path, ledger: Ledger, tracker: MlflowTracker) -> Agent:
    """The product's own, which has not looked at its network yet."""
    claims = open_claims(stub_study.NAME, url, home)
    return Agent(stub_study.study(trials), stub_study.NAME, home, ledger, claims, tracker,
                 QuietScreen())


def _tracker(home: Path) -> MlflowTracker:
    home.mkdir(exist_ok=True)
    return MlflowTracker.open(f"sqlite:///{home / 'mlflow.db'}", stub_study.NAME, home)


def _fill_runs(tracker: MlflowTracker, file: Path, numbers: Sequence[int]) -> None:
    """Finished runs, as a study's trials leave them."""
    ids = {n: f"{n:032x}" for n in numbers}
    with closing(sqlite3.connect(file)) as database, database:
        database.executemany(
            "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, "
            "user_id, status, start_time, end_time, source_version, lifecycle_stage, artifact_uri, "
            "experiment_id) VALUES (?, ?, 'UNKNOWN', '', '', 'a', 'FINISHED', ?, ?, '', "
            "'active', ?, "
            "?)", [(ids[n], f"trial {n}", n, n + 1, f"/nowhere/{ids[n]}", tracker.experiment_id)
                   for n in numbers])
        database.executemany("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", [
            (key, value, ids[n]) for n in numbers for key, value in (
                ("study", stub_study.NAME), ("key", f"trial-{n}" if n else "study"),
                *((f"tag{m}", "x" * 20) for m in range(TAGS - 2)))])
        database.executemany("INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)", [
            (f"p{m}", str(m), ids[n]) for n in numbers for m in range(PARAMS)])
        for table in ("metrics", "latest_metrics"):
            database.executemany(
                f"INSERT INTO {table} (key, value, timestamp, run_uuid, step, is_nan) "
                "VALUES (?, 0.5, 1000, ?, 1, 0)",
                [(f"m{m}", ids[n]) for n in numbers for m in range(METRICS)])


if __name__ == "__main__":
    alone(measure)
