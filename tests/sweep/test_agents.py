"""Several agents, each a process of its own, on one study: nothing is done twice, nothing lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from mlflow import MlflowClient

from harness.config import Study
from harness.sweep.outcome import Outcome
from harness.sweep.place import Place, study_id
from harness.sweep.progress import progress

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study() -> Study:
    """What is suggested does not depend on what is finished when it is asked for."""
    return tiny.study(trials=6, sampler={"name": "random", "seed": 11})


@pytest.fixture(scope="module")
def alone(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return tiny.Machine(tmp_path_factory.mktemp("alone")).conduct(study)[0]


class Desk:
    """A folder with the study's files, and commands typed there."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder, self.study = folder, study
        tiny.write(study, folder)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "HARNESS"))}
        self.environment = {**kept, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen([sys.executable, "-m", "harness", *words], cwd=self.folder,
                                env=self.environment, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)

    @property
    def place(self) -> Place:
        return Place.at(self.folder / "runs")

    def agents(self) -> list[int]:
        """Processes that are at work on a trial."""
        holders = self.place.claims(study_id(self.study)).holders()
        return [holder.pid for claim, holder in holders.items() if claim.startswith("trial-")]

    def wait_for(self, what: Callable[[], object], process: "subprocess.Popen[str]") -> None:
        end = time.monotonic() + 240
        while not what():
            assert time.monotonic() < end, "it takes too long"
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)

    def outcome(self) -> Outcome:
        facts = self.place.ledger(study_id(self.study)).get("outcome")
        assert facts is not None
        return Outcome.from_json(facts)

    def check(self, alone: Outcome) -> None:
        """The study is as if one agent had worked undisturbed, and MLflow has each run once."""
        found, wanted = tiny.found(self.outcome()), tiny.found(alone)
        assert found == wanted
        ledger = self.place.ledger(study_id(self.study))
        assert all(t.state.name == "COMPLETE" for t in ledger.trials())
        client = MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("tiny")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        assert {run.info.status for run in runs} == {"FINISHED"}
        names = sorted(run.info.run_name for run in runs)
        trials = [f"trial {t.number}" for t in ledger.settings()]
        assert names == sorted(["baseline", "control l1", "control random", self.outcome().study_id,
                                *trials])
        for run in runs:
            for key in set(run.data.metrics) - {"val_accuracy_of_model", "macs_of_model"}:
                steps = [point.step for point in client.get_metric_history(run.info.run_id, key)]
                assert steps == sorted(set(steps)), f"{run.info.run_name}: {key} has a step twice"


@pytest.fixture
def desk(tmp_path: Path, study: Study) -> Desk:
    return Desk(tmp_path, study)


def test_three_agents_find_what_one_finds_to_the_bit(desk: Desk, alone: Outcome) -> None:
    process = desk.start("study", "tiny", "--agents", "3")
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert all(f"[{number}] " in said for number in range(3))
    assert alone.weights[:16] in said
    desk.check(alone)


def test_a_killed_agent_is_replaced_and_its_trial_goes_on(desk: Desk, alone: Outcome) -> None:
    process = desk.start("study", "tiny", "--agents", "2")
    desk.wait_for(desk.agents, process)
    os.kill(desk.agents()[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert "was killed by SIGKILL; starting it again" in said
    desk.check(alone)


def test_agents_leave_a_killed_supervisor_and_the_study_goes_on(desk: Desk, alone: Outcome) -> None:
    process = desk.start("study", "tiny", "--agents", "2")
    desk.wait_for(desk.agents, process)
    process.kill()
    process.communicate()
    end = time.monotonic() + 60
    while progress(desk.study, desk.place).notes:
        assert time.monotonic() < end, "an agent stays"
        time.sleep(0.1)
    again = desk.start("study", "tiny", "--agents", "2")
    said, _ = again.communicate(timeout=280)
    assert again.returncode == 0, said
    desk.check(alone)


def test_agents_that_join_and_leave_by_themselves_finish_the_study(desk: Desk, alone: Outcome,
                                                                   ) -> None:
    """Two at the same instant on a fresh store; one is terminated, one stopped for a while."""
    one, two = desk.start("agent", "tiny"), desk.start("agent", "tiny")
    desk.wait_for(desk.agents, one)
    one.terminate()
    said, _ = one.communicate(timeout=120)
    assert one.returncode == 143, said
    two.send_signal(signal.SIGSTOP)
    three = desk.start("agent", "tiny")
    time.sleep(5)
    two.send_signal(signal.SIGCONT)
    for process in (two, three):
        said, _ = process.communicate(timeout=280)
        assert process.returncode == 0, said
    desk.check(alone)


def test_an_agent_that_only_dies_is_given_up(desk: Desk) -> None:
    (desk.folder / "runs").mkdir()
    desk.environment["MLFLOW_TRACKING_URI"] = "nonsense://nowhere"
    process = desk.start("study", "tiny", "--agents", "2")
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 1
    assert "3 times in a row: it is not started again" in said
    assert "the agents left before tiny was finished" in said
