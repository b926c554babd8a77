"""What machines do to a study besides killing its agents: `mlflow run` dies, disks are full, stages
are damaged, trials kill. Each time it is told, nothing is lost, and the end is the same to the
bit."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from mlflow import MlflowClient
from tiny import Machine, found

from harness.console import QuietScreen
from harness.sweep.outcome import Outcome
from sweep.conftest import Whole
from sweep.desk import ROOT, Desk

# --- mlflow run -----------------------------------------------------------------------------------


def mlflow_run(desk: Desk) -> "subprocess.Popen[str]":
    """`mlflow run . -P study=tiny`, as a person types it."""
    for name in ("MLproject", "bin"):
        place = desk.folder / name
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place, dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / name, place)
    return subprocess.Popen(
        [str(Path(sys.executable).parent / "mlflow"), "run", ".", "-P", "study=tiny"],
        cwd=desk.folder, env=desk.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True)


def launchers(desk: Desk) -> list[str]:
    """How the runs of `mlflow run` ended, the first one first."""
    client = MlflowClient(f"sqlite:///{desk.folder / 'mlflow.db'}")
    return [run.info.status for run in client.search_runs(["0"], order_by=["start_time"])]


def test_a_killed_mlflow_run_leaves_no_run_and_what_it_started_goes_on(desk: Desk, alone: Outcome,
                                                                       ) -> None:
    process = mlflow_run(desk)
    desk.wait_for(desk.agents, process)
    process.kill()  # it alone: the study's own process does not notice
    process.communicate()
    end = time.monotonic() + 240
    while launchers(desk) != ["KILLED"]:
        assert time.monotonic() < end, f"{launchers(desk)}: nobody ends it"
        time.sleep(0.5)
    desk.check(alone)
    again = mlflow_run(desk)
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert "is finished: 6 settings" in said
    assert launchers(desk) == ["KILLED", "FINISHED"]


@pytest.mark.faults
def test_mlflow_run_killed_with_all_that_it_started_is_ended_by_the_next_one(
        desk: Desk, alone: Outcome) -> None:
    process = mlflow_run(desk)
    desk.wait_for(desk.agents, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert launchers(desk) == ["RUNNING"]
    again = mlflow_run(desk)
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert launchers(desk) == ["KILLED", "FINISHED"]
    desk.check(alone)


# --- the disk is full -----------------------------------------------------------------------------


@pytest.mark.parametrize(("store", "limits"), [
    ("optuna.db", (28,)), pytest.param("mlflow.db", (260,), marks=pytest.mark.faults),
    pytest.param("stages", (4, 3), marks=pytest.mark.faults)])
def test_a_full_disk_is_told_and_with_room_the_study_ends_the_same(
        store: str, limits: tuple[int, ...], desk: Desk, alone: Outcome) -> None:
    """In the middle of the study, which makes 30 pages, 320 pages and some 25 files."""
    for limit in limits:
        full = subprocess.run(
            [sys.executable, str(Path(__file__).parent / "full_disk.py"), store, str(limit),
             "study", "tiny"], cwd=desk.folder, env=desk.environment, capture_output=True,
            text=True, timeout=240, check=False)
        said = full.stdout + full.stderr
        assert full.returncode == 1, said
        assert "disk is full" in said
        assert "Nothing is lost" in said or "it goes on where it stopped" in said
        assert "Traceback" not in said
        assert tries(desk) <= 1, "who was cut short by a full disk has not died"
    process = desk.start("study", "tiny")
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    desk.check(alone)


def tries(desk: Desk) -> int:
    ledger = desk.place.ledger(desk.id)
    return max((int(t.user_attrs.get("tries", 0)) for t in ledger.trials()), default=0)


# --- stages are damaged ---------------------------------------------------------------------------


def test_damaged_stages_are_told_and_made_again_the_same(
        whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After half of the study every stage is damaged: cut short, a weight or a fact changed."""
    told: list[str] = []
    monkeypatch.setattr(QuietScreen, "message", lambda self, text: told.append(text))
    machine = Machine(tmp_path)
    machine.conduct(tiny.study(trials=2))
    assert not told
    stages = sorted((tmp_path / "stages").glob("*.safetensors"))
    for number, path in enumerate(stages):
        data = bytearray(path.read_bytes())
        if number % 3 == 0:
            del data[-7:]
        else:
            data[-3 if number % 3 == 1 else data.index(b"facts") + 20] ^= 1
        path.write_bytes(bytes(data))
    outcome, is_new = machine.conduct(whole.study)
    assert is_new
    assert found(outcome) == found(whole.outcome)
    broken = [text for text in told if "is broken" in text]
    assert any(path.name in text for path in stages for text in broken)
    assert all("is not trusted, and is made again" in text for text in broken)
    assert len(broken) >= 3


# --- a trial that kills ---------------------------------------------------------------------------


def test_a_trial_that_kills_every_agent_is_given_up_and_the_others_end(tmp_path: Path) -> None:
    study = tiny.study(trials=3, controls=[], sampler={"name": "grid"}, space={
        "prune.criterion": ["deadly:score", "l1"], "prune.percentage": [70]})
    with Desk(tmp_path, study) as desk:
        process = desk.start("study", "tiny", "--agents", "2")
        said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert said.count("was killed by SIGKILL; starting it again") == 3
    deadly, other = desk.place.ledger(desk.id).trials()
    assert deadly.state.name == "FAIL"
    assert deadly.user_attrs["reason"] == "given up after 3 tries that were cut short"
    assert other.state.name == "COMPLETE"
    client = MlflowClient(f"sqlite:///{desk.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    ends = {run.info.run_name: run.info.status
            for run in client.search_runs([experiment.experiment_id])}
    assert ends == {"trial 0": "FAILED", "trial 1, champion": "FINISHED",
                    "baseline": "FINISHED", desk.id: "FINISHED"}
