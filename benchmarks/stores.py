"""What writing down costs, beside the ways that MLflow and Optuna come with.

`python -m benchmarks.stores` writes what one pruning step of the main job learns through our
tracker, one batch a step, and metric by metric through MLflow's client into its default SQLite
file; and tells trials to Optuna through the storage that studies use, and through its default one.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import optuna
from mlflow import MlflowClient

from benchmarks.goal import Record, alone
from benchmarks.rounds import interleaved, medians, wall
from harness.sweep.storage import open_study
from harness.tracking import MlflowTracker, Point

POINTS = 17  # of a step with one epoch: eleven of the step, six of the epoch
REPORTS = 10  # intermediate values of a trial


def measure(size: str) -> Iterator[Record]:
    """Metrics and trials, ours beside the defaults."""
    rounds = 1 if size == "tiny" else 7
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        found = medians(interleaved(_metrics(place), rounds))
        yield Record(
            5, "a metric, beside MLflow's log_metric on its default SQLite", ">=", 20.0,
            found["default"] / found["ours"], "x cheaper",
            f"{POINTS} metrics of one pruning step; {1e3 * found['ours'] / POINTS:.2f} ms and "
            f"{1e3 * found['default'] / POINTS:.1f} ms each; in turns on the same disk, wall time, "
            f"medians of {rounds} rounds",
            "where the disk flushes quickly, MLflow's batch costs about one log_metric before "
            "anything is in it, and a step has no more to write at once")
        found = medians(interleaved(_trials(place), rounds))
        yield Record(
            5, "a trial in Optuna, beside its default SQLite", ">=", 5.0,
            found["default"] / found["ours"], "x cheaper",
            f"ask, 4 parameters, {REPORTS} reports, tell; {1e3 * found['ours']:.0f} ms and "
            f"{1e3 * found['default']:.0f} ms; in turns on the same disk, wall time, medians of "
            f"{rounds} rounds",
            "where the disk flushes quickly, the default's flushes cost less")


def _metrics(place: Path) -> dict[str, Callable[[], float]]:
    """A step's metrics into a run that goes on."""
    steps = count()
    tracker = MlflowTracker.open(f"sqlite:///{place / 'ours.db'}", "ours", place)
    ours = tracker.open_run(name="a", role="trial", study="a")
    client = MlflowClient(f"sqlite:///{place / 'default.db'}")
    default = client.create_run(client.create_experiment("default")).info.run_id

    def batch() -> None:
        step, now = next(steps), int(1000 * time.time())
        tracker.log_points(ours, [Point(f"m{n}", 0.5, step, now) for n in range(POINTS)])

    def each() -> None:
        step = next(steps)
        for n in range(POINTS):
            client.log_metric(default, f"m{n}", 0.5, step=step)

    return {"ours": lambda: wall(batch), "default": lambda: wall(each)}


def _trials(place: Path) -> dict[str, Callable[[], float]]:
    studies = {
        "ours": open_study("ours", f"sqlite:///{place / 'studies.db'}", place),
        "default": optuna.create_study(storage=f"sqlite:///{place / 'optuna.db'}",
                                       direction="maximize")}
    for study in studies.values():
        study.sampler = optuna.samplers.RandomSampler(seed=0)

    def trial(study: optuna.Study) -> None:
        asked = study.ask()
        for name in ("filters", "epochs", "layer_min", "percentage"):
            asked.suggest_categorical(name, [1, 2, 3])
        for step in range(REPORTS):
            asked.report(0.5, step)
        study.tell(asked, 0.5)

    return {name: lambda study=study: wall(lambda: trial(study))
            for name, study in studies.items()}


if __name__ == "__main__":
    alone(measure)
