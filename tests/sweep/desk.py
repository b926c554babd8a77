"""A folder with a study's files, commands typed there as processes, and what must come of them."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Self

import tiny
from mlflow import MlflowClient

from harness.config import Study
from harness.sweep.outcome import Outcome
from harness.sweep.place import Place, study_id

ROOT = Path(__file__).parents[2]


class Desk:
    """A folder with the study's files, and commands typed there; as a context, none outlives it."""

    def __init__(self, folder: Path, study: Study, storage: str | None = None,
                 lease_s: float = 60) -> None:
        self.folder, self.study = folder, study
        self.place = Place.at(folder / "runs", storage, lease_s)
        self._where = ("--storage", self.place.url, "--lease", str(lease_s)) if storage else ()
        tiny.write(study, folder)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "HARNESS"))}
        self.environment = {**kept, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.kill()  # harmless if it has ended; agents follow their supervisor
            process.wait()
            if process.stdout:
                process.stdout.close()

    def start(self, *words: str, quiet: bool = False) -> "subprocess.Popen[str]":
        self._started.append(subprocess.Popen(
            [sys.executable, "-m", "harness", *words, *self._where], cwd=self.folder,
            env=self.environment, stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True))
        return self._started[-1]

    @property
    def id(self) -> str:
        return study_id(self.study)

    def agents(self) -> list[int]:
        """Processes that are at work on a trial."""
        holders = self.place.claims(self.id).holders()
        return [holder.pid for claim, holder in holders.items() if claim.startswith("trial-")]

    def wait_for(self, what: Callable[[], object], process: "subprocess.Popen[str]") -> None:
        end = time.monotonic() + 240
        while not what():
            assert time.monotonic() < end, "it takes too long"
            if process.poll() is not None:
                raise AssertionError(f"it ended with {process.returncode}: "
                                     f"{process.communicate()[0]}")
            time.sleep(0.05)

    def outcome(self) -> Outcome:
        facts = self.place.ledger(self.id).get("outcome")
        assert facts is not None
        return Outcome.from_json(facts)

    def check(self, alone: Outcome) -> Counter[str]:
        """The study is as if one agent had worked undisturbed, and MLflow has each run once.

        Returns what was counted: trials, runs and curves, each by how it is.
        """
        assert tiny.found(self.outcome()) == tiny.found(alone)
        ledger = self.place.ledger(self.id)
        assert all(t.state.name == "COMPLETE" for t in ledger.trials())
        client = MlflowClient(self.environment.get(
            "MLFLOW_TRACKING_URI", f"sqlite:///{self.folder / 'mlflow.db'}"))
        experiment = client.get_experiment_by_name("tiny")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        assert {run.info.status for run in runs} == {"FINISHED"}
        names = sorted(run.info.run_name for run in runs)
        best = self.outcome().champion
        trials = [f"trial {t.number}" for t in ledger.settings()]
        trials = [f"{name}, champion" if best and name == best.name else name for name in trials]
        assert names == sorted(["baseline", "control l1", "control random", self.outcome().study_id,
                                *trials])
        curves = 0
        for run in runs:
            for key in (k for k in run.data.metrics if not k.endswith("_of_model")):
                points = client.get_metric_history(run.info.run_id, key)
                # MLflow has them by time, and a stage that was made again is younger.
                steps = sorted(point.step for point in points)
                assert steps == list(range(len(steps))), (
                    f"{run.info.run_name}: {key} has a gap, or a step twice: {steps}")
                curves += 1
        return Counter({"trials COMPLETE": len(ledger.trials()), "runs FINISHED": len(runs),
                        "curves without gap or step twice": curves,
                        "champions bitwise that of the undisturbed study": 1})
