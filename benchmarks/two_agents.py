"""Two agents on PostgreSQL and an MLflow server, against one agent on SQLite.

`python -m benchmarks.two_agents` starts a PostgreSQL of its own and an MLflow server over it, lets
two `harness agent` join the main study in its short form at the same instant, as two machines
would, and walks the same settings once more alone. A grid is walked in order, so both try the same.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from benchmarks import machine, servers
from harness.checking import known_names
from harness.config import Known, Study, load_study
from harness.experiment import stages
from harness.sweep.outcome import Outcome
from harness.sweep.place import Place, study_id

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = "sampler.name=grid"


@dataclass(frozen=True)
class Walked:
    """A finished study. made_again: stages that were made more than once."""

    outcome: Outcome
    complete: int
    trials: int
    made_again: int
    runs: Mapping[str, int]
    weights: Mapping[str, str]

    def line(self) -> str:
        return (f"{self.complete} of {self.trials} trials complete; MLflow runs by status: "
                f"{dict(self.runs)}; stages made twice: {self.made_again}; champion "
                f"{self.outcome.champion.name if self.outcome.champion else 'none'}, weights "
                f"{self.outcome.weights[:16]}")


def walk(study: Study, words: Sequence[str], agents: int, folder: Path, storage: str | None,
         tracking: str) -> Walked:
    """Start so many processes of one command at once and wait for them. Raises RuntimeError."""
    home = folder / "runs"
    command = [sys.executable, "-m", "harness", *words, "--home", str(home),
               *(("--storage", storage) if storage else ())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": tracking}
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                 for _ in range(agents)]
    said = [process.communicate()[0] for process in processes]
    for process, text in zip(processes, said):
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{text}")
    ledger = Place.at(home, storage).ledger(study_id(study))
    results, times = ledger.results(), stages(home).times_made()
    keys = {key for _, result in results for key in result.epochs}
    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name(study.config.name)
    assert experiment is not None
    statuses = Counter(run.info.status for run in client.search_runs([experiment.experiment_id]))
    every = ledger.settings()
    return Walked(Outcome.from_json(ledger.get("outcome")),
                  sum(t.state.name == "COMPLETE" for t in every), len(every),
                  sum(times[key] - 1 for key in keys if times[key] > 1), statuses,
                  {str(trial.params): result.last.key for trial, result in results})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--profile", default="smoke")
    asked = parser.parse_args(argv)
    common = ["vgg16_budget", "--profile", asked.profile, "--set", SETTINGS]
    study = load_study("vgg16_budget", profile=asked.profile, overrides=[SETTINGS],
                       known=Known(**known_names()))
    with tempfile.TemporaryDirectory() as name, servers.postgresql() as server:
        place = Path(name)
        for folder in ("many", "alone"):
            (place / folder).mkdir()
        with servers.mlflow(server.url("mlflow"), place / "many" / "artifacts") as tracking:
            many = walk(study, ["agent", *common], asked.agents, place / "many",
                        server.url("studies"), tracking)
        print(f"{asked.agents} agents, PostgreSQL, MLflow server: {many.line()}", flush=True)
        alone = walk(study, ["study", *common], 1, place / "alone", None,
                     f"sqlite:///{place / 'alone' / 'mlflow.db'}")
        print(f"1 agent, SQLite: {alone.line()}")
    same = many.outcome.weights == alone.outcome.weights
    print(f"champion's weights equal: {'yes' if same else 'NO'}; the same stages at the end of "
          f"{len(many.weights.items() & alone.weights.items())} of {len(alone.weights)} settings")
    print(machine.line(machine.facts()))
    is_good = (same and many.complete == many.trials and not many.made_again
               and set(many.runs) == {"FINISHED"} and many.weights == alone.weights)
    if not is_good:
        sys.exit("not as it must be")


if __name__ == "__main__":
    main()
