"""The command line: what a person reads, and the exit code, whatever goes wrong."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import tiny
import torch

from harness import __version__, tracking
from harness import cli as command_line
from harness import train as training
from harness.cli import cli, main
from harness.sweep import conclude, supervisor
from harness.sweep.orders import Order, give
from harness.sweep.outcome import Outcome
from harness.sweep.place import Place
from harness.tracking import MemoryTracker, MlflowTracker, Written

STUDY = tiny.study(trials=2, controls=["l1"], profiles={"smoke": {"trials": 1}})
TESTS = Path(tiny.__file__).parent
Harness = Callable[..., tuple[int, str, str]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tiny run and study, in which the person stands."""
    tiny.write(STUDY, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> MemoryTracker:
    """MLflow, in memory."""
    tracker = MemoryTracker()
    monkeypatch.setattr(command_line, "_tracker", lambda *_: tracker)
    return tracker


@pytest.fixture
def harness(place: Path, tracker: MemoryTracker, capsys: pytest.CaptureFixture[str],
            ) -> Iterator[Harness]:
    """Type a command: (exit code, stdout, stderr)."""
    before = signal.getsignal(signal.SIGTERM)
    # What is started in the background of a shell ignores Ctrl-C; at a terminal nothing does.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)

    def typed(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    yield typed
    signal.signal(signal.SIGTERM, before)
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGHUP, hang_up)


def outcome(home: Path) -> Outcome:
    path, = (home / "studies").glob("*/outcome.json")
    return Outcome.from_json(json.loads(path.read_text()))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The study of the files, undisturbed, without a command line."""
    return tiny.Machine(tmp_path_factory.mktemp("straight")).conduct(STUDY)[0]


# --- a study from the first command to the last ---------------------------------------------------


def test_a_study_is_run_shown_again_and_extended(harness: Harness, place: Path, straight: Outcome,
                                                 ) -> None:
    code, out, _ = harness("study", "tiny")
    assert code == 0
    assert tiny.found(outcome(place / "runs")) == tiny.found(straight)
    champion = straight.champion
    assert champion is not None
    assert f"{100 * champion.accuracy:.2f} %" in out
    assert straight.weights[:16] in out
    assert f"{straight.epochs_run} epochs" in out
    assert f"would have run {straight.epochs_naive}" in out
    assert "python -m harness ui" in out
    code, again, err = harness("study", "tiny")
    assert (code, again) == (0, out)
    assert f"{straight.study_id} is finished: 2 settings" in err
    code, longer, err = harness("study", "tiny", "--trials", "3")
    assert code == 0
    assert "3 settings;" in longer
    assert "is finished" not in err


def test_an_empty_parameter_is_one_that_was_not_given(harness: Harness, tracker: MemoryTracker,
                                                      straight: Outcome) -> None:
    """`mlflow run` passes every parameter that it knows."""
    empty = [word for name in ("profile", "trials", "config", "storage", "home", "set")
             for word in (f"--{name}", "")]
    assert harness("study", "tiny", *empty)[0] == 0
    assert {run.study for run in tracker.runs.values()} == {straight.study_id}
    code, out, _ = harness("export", "--study", "tiny", "--format", "", "--out", "", "--home", "")
    assert code == 0
    assert f"runs/exports/{straight.study_id}.pt2" in out


def test_profile_trials_set_home_and_storage_are_heard(harness: Harness, place: Path,
                                                       tracker: MemoryTracker) -> None:
    code, _, _ = harness("study", "tiny", "--profile", "smoke", "--home", "there",
                         "--storage", f"sqlite:///{place}/my.db",
                         "--set", "budget.flops=0.9 baseline.epochs=2", "--set", "seed=3")
    assert code == 0
    found = outcome(place / "there")
    assert (found.settings_finished, found.baseline_epochs) == (1, 2)
    assert found.question == "the most accurate network with at most 90 % of the FLOPs"
    assert (place / "my.db").exists()
    assert not (place / "there" / "optuna.db").exists()
    assert tracker.runs["run-1"].tags["profile"] == "smoke"
    assert "seed: 3" in tracker.runs["run-1"].files["config.yaml"]


def test_the_home_may_stand_in_the_environment(harness: Harness, place: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_HOME", str(place / "elsewhere"))
    assert harness("baseline", "tiny")[0] == 0
    assert list((place / "elsewhere" / "stages").glob("*.safetensors"))
    assert not (place / "runs").exists()


def test_the_other_verbs_answer(harness: Harness, place: Path) -> None:
    """87712 MACs: three convolutions and a linear layer, counted by hand in test_agent."""
    code, out, _ = harness("cost", "tiny")
    assert code == 0
    assert "175 k" in out
    assert "not counted:" in out
    code, out, _ = harness("baseline", "tiny")
    assert code == 0
    assert "just now" in out
    assert "found in the store" in harness("baseline", "tiny")[1]
    code, out, _ = harness("run", "tiny", "--set", "prune.percentage=50")
    assert code == 0
    assert "tiny: the percentage is reached" in out
    assert "test accuracy, read once" in out
    code, out, _ = harness("criteria")
    assert code == 0
    assert {"taylor", "l1", "random"} <= set(out.split())
    code, _, err = harness("check", "studies/tiny.yaml", "configs/tiny.yaml")
    assert (code, err.count(": good")) == (0, 2)


def test_status_says_how_far_a_study_is(harness: Harness) -> None:
    code, _, err = harness("status", "tiny")
    assert code == 1
    assert "has not been started" in err
    harness("study", "tiny", "--trials", "1")
    code, out, _ = harness("status", "tiny")
    assert code == 0
    assert "1 of 2 settings, idle" in out


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "words"), [
    ("study tniy", "unknown study 'tniy'. Nearest: tiny"),
    ("study nowhere/mine.yaml", "unknown study 'nowhere/mine.yaml'"),
    ("run tyni", "unknown configuration 'tyni'. Nearest: tiny"),
    ("study tiny --config tyni", "unknown configuration 'tyni'. Nearest: tiny"),
    ("study tiny --profile smok", "unknown profile 'smok'. Nearest: smoke"),
    ("study tiny --set prune.criterion=talyor", "unknown criterion 'talyor'. Nearest: taylor"),
    ("study tiny --set controls=[l3]", "unknown control 'l3'. Nearest: l"),
    ("run tiny --set data.name=digit", "unknown data set 'digit'. Nearest: digits"),
    ("run tiny --set model.name=vgg61", "unknown model 'vgg61'. Nearest: vgg16"),
    ("run tiny --set model.name=tiny:nett", "there is no 'nett' in it. Nearest: net"),
    ("run tiny --set data.name=tinny:digits", "there is no module 'tinny'"),
    ("run tiny --set prune.percntage=3", "Nearest: prune.percentage"),
    ("study tiny --set budget.flop=0.2", "Nearest: budget.flops"),
    ("run tiny --set prune.percentage=150", "prune.percentage: 150 must be <= 100"),
    ("run tiny --set prune.percentage=0", "prune.percentage: 0 must be > 0"),
    ("study tiny --set space.prune.percentage=[50,101]", "101 must be <= 100"),
    ("study tiny --set budget.flops=0", "budget.flops: 0 must be > 0"),
    ("run tiny --set retrain.lr=-1", "retrain.lr: -1 must be > 0"),
    ("run tiny --set device=cuda:99", "'cuda:99' is not on this machine"),
    ("export --study tniy", "unknown finished study 'tniy'"),
    ("export --study tiny --format onxx", "unknown export format 'onxx'. Nearest: onnx"),
    ("study tiny --storage nonsense", "nonsense cannot be opened"),
    ("study tiny --storage sqlite:////proc/no.db", "cannot be opened"),
])
def test_a_mistake_is_a_sentence_with_the_nearest_name(typed: str, words: str, harness: Harness,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", None)  # it is found before anything is trained
    code, out, err = harness(*shlex.split(typed))
    assert code == 1
    assert words in err.partition("error: ")[2]
    assert out == ""


@pytest.mark.parametrize(("typed", "words"), [
    ("stuby tiny", "No such command 'stuby'"), ("study", "Missing argument 'NAME'"),
    ("study tiny --trails 3", "--trials"), ("study tiny --trials none", "whole number"),
    ("study tiny --trials 0", "at least 1"), ("export", "give one of --study and --network"),
    ("study tiny --lease 0", "'0' must be a number of seconds, at least 1"),
    ("agent tiny --lease -3", "'-3' must be a number of seconds, at least 1"),
    ("status tiny --lease nan", "'nan' must be a number of seconds, at least 1"),
    ("ui --port x", "not a valid integer")])
def test_a_command_that_cannot_be_read_ends_with_2(typed: str, words: str, harness: Harness,
                                                   ) -> None:
    code, _, err = harness(*shlex.split(typed))
    assert code == 2
    assert words in err


def test_a_broken_file_is_told_with_line_and_column(harness: Harness, place: Path) -> None:
    (place / "studies" / "tiny.yaml").write_text("name: tiny\nspace: [1, 2\ntrials: 3\n")
    code, _, err = harness("study", "tiny")
    assert code == 1
    assert "studies/tiny.yaml, line 3, column 7: " in err
    code, _, err = harness("check")
    assert code == 1
    assert "studies/tiny.yaml, line 3" in err


def test_a_budget_under_the_floors_is_refused_at_once(harness: Harness,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", None)
    code, _, err = harness("study", "tiny", "--set", "budget.flops=0.001")
    assert code == 1
    assert "budget.flops: 0.001 cannot be met: the floors keep " in err


def test_a_budget_that_no_trial_met_ends_with_1_also_when_asked_again(harness: Harness) -> None:
    for _ in range(2):
        code, out, err = harness("study", "tiny", "--set", "space.prune.percentage=[5]")
        assert code == 1
        assert "has found no network to choose" in err
        assert "at most 30 % of the FLOPs. Widen what it asks for (budget" in err
        assert "2 settings" in out


@pytest.mark.rows("R051")
def test_a_floor_that_stops_a_run_is_an_answer(harness: Harness) -> None:
    code, out, _ = harness("run", "tiny", "--set", "prune.floors.layer_min=1")
    assert code == 0
    assert "nothing more may be cut: " in out
    assert "layer_min" in out


# --- the machine ----------------------------------------------------------------------------------


def test_a_study_that_is_told_to_stop_has_no_agent_until_it_may_go_on(
        harness: Harness, straight: Outcome) -> None:
    assert harness("study", "tiny", "--trials", "1")[0] == 0
    code, _, err = harness("study", "tiny", "--stop")
    assert (code, err) == (0, f"{straight.study_id}: told to stop\n")
    assert "told to stop" in harness("status", "tiny")[1]
    code, _, err = harness("agent", "tiny")
    assert code == 0
    assert "this agent leaves: the study was told to stop" in err
    assert "1 of 2 settings" in harness("status", "tiny")[1]
    assert harness("study", "tiny", "--resume")[0] == 0
    code, _, err = harness("agent", "tiny")
    assert code == 0
    assert f"{straight.study_id} is finished" in err
    assert tiny.found(outcome(Path("runs"))) == tiny.found(straight)


def test_a_study_that_is_told_to_pause_waits_and_says_so(
        harness: Harness, straight: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    assert harness("study", "tiny", "--trials", "1")[0] == 0
    assert harness("study", "tiny", "--pause")[0] == 0
    found: list[int] = []

    def somebody_resumes(seconds: float) -> None:
        ledger = Place.at(Path("runs")).ledger(straight.study_id)
        found.append(len(ledger.results()))
        if len(found) == 3:
            give(ledger, Order.GO)

    monkeypatch.setattr("harness.sweep.agent.time", Mock(wraps=time, sleep=somebody_resumes))
    code, _, err = harness("agent", "tiny")
    assert code == 0
    assert err.count("paused: ") == 1
    assert found == [1, 1, 1]  # it began nothing
    assert f"{straight.study_id} is finished" in err
    assert tiny.found(outcome(Path("runs"))) == tiny.found(straight)


def test_whoever_starts_a_stopped_study_again_means_it_to_go_on(harness: Harness) -> None:
    assert harness("study", "tiny", "--trials", "1")[0] == 0
    assert harness("study", "tiny", "--stop")[0] == 0
    code, out, _ = harness("study", "tiny")
    assert code == 0
    assert "2 settings;" in out


def test_an_agent_of_a_job_array_leaves_after_its_share(harness: Harness, straight: Outcome,
                                                        tracker: MemoryTracker) -> None:
    code, _, err = harness("agent", "tiny", "--max-trials", "1")
    assert code == 0
    assert "leaves after 1 trials; the study goes on" in err
    study, = (run for run in tracker.runs.values() if run.role == "study")
    assert study.status == "KILLED"
    code, _, err = harness("agent", "tiny", "--max-trials", "1")
    assert code == 0
    assert "is finished" in err
    assert study.status == "FINISHED"
    assert tiny.found(outcome(Path("runs"))) == tiny.found(straight)


def test_a_study_that_was_never_begun_cannot_be_told_anything(harness: Harness) -> None:
    code, _, err = harness("study", "tiny", "--pause")
    assert code == 1
    assert "has not been started" in err


def test_a_broken_database_is_told_and_left_alone(harness: Harness, place: Path) -> None:
    (place / "runs").mkdir()
    (place / "runs" / "optuna.db").write_bytes(b"not a database" * 99)
    for verb in ("study", "status"):
        code, _, err = harness(verb, "tiny")
        assert code == 1
        assert "cannot be opened: file is not a database" in err
    assert (place / "runs" / "optuna.db").read_bytes() == b"not a database" * 99


@pytest.mark.parametrize("verb", ["study", "run", "baseline"])
def test_a_home_that_cannot_be_written_is_told(verb: str, harness: Harness, place: Path) -> None:
    (place / "file").touch()
    code, _, err = harness(verb, "tiny", "--home", "file")
    assert code == 1
    assert "file" in err
    assert "--home" in err


@pytest.mark.parametrize(("uri", "words"), [
    ("http://127.0.0.1:9", "nothing listens there"),
    ("sqlite:////proc/no/mlflow.db", "No such file or directory: '/proc/no'"),
    ("nonsense://x", "no such kind of store")])
def test_an_mlflow_that_cannot_be_reached_is_told(uri: str, words: str, place: Path,
                                                  monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(training, "train", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(SystemExit) as ended:
        main(["study", "tiny"])
    assert ended.value.code == 1
    err = capsys.readouterr().err
    assert "TrackingError: MLflow could not open the store" in err
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize("verb", ["study", "run", "baseline"])
def test_a_persons_own_mistake_is_told_with_its_place(
        verb: str, harness: Harness, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise KeyError("labels")

    monkeypatch.setattr(training, "train", failing)
    code, _, err = harness(verb, "tiny")
    assert code == 1
    where = os.path.relpath(__file__)
    assert f"KeyError: 'labels' ({where}, line {failing.__code__.co_firstlineno + 1})" in err
    assert "Traceback" not in err


def full_disk(after: int) -> Callable[[int], None]:
    """fsync on a disk that is full once it was asked `after` times."""
    asked = [0]

    def fsync(file: int) -> None:
        asked[0] += 1
        if asked[0] > after:
            raise OSError(errno.ENOSPC, "No space left on device")

    return fsync


def test_a_full_disk_is_told_and_nothing_is_lost(harness: Harness, place: Path,
                                                 tracker: MemoryTracker, straight: Outcome,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    for after in (0, 2, 3):  # at the baseline, in the first trial, and again
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full_disk(after))
            code, _, err = harness("study", "tiny")
        assert code == 1
        assert "the disk is full. Nothing is lost" in err
        assert "RUNNING" not in {run.status for run in tracker.runs.values()}
        assert not [p for p in (place / "runs" / "stages").iterdir() if p.name.startswith(".")]
    assert harness("study", "tiny")[0] == 0
    assert tiny.found(outcome(place / "runs")) == tiny.found(straight)
    assert len(tracker.runs) == 5


def test_a_full_disk_at_the_very_end_does_not_leave_half_a_result(
        harness: Harness, place: Path, straight: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told finished, but without the file that `export` reads: that must not be."""
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "outcome.json")

    with monkeypatch.context() as patch:
        patch.setattr(conclude, "write_whole", refuse)
        code, _, err = harness("study", "tiny")
    assert code == 1
    assert "No space left on device: outcome.json" in err
    assert harness("study", "tiny")[0] == 0
    assert tiny.found(outcome(place / "runs")) == tiny.found(straight)


@pytest.mark.parametrize(("number", "code"), [
    (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_ctrl_c_sigterm_and_a_closed_terminal_end_it_cleanly_and_nothing_is_lost(
        number: signal.Signals, code: int, harness: Harness, place: Path, tracker: MemoryTracker,
        straight: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    train, calls = training.train, [0]

    def interrupted(*given: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            signal.raise_signal(number)
        return train(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", interrupted)
        ended, _, err = harness("study", "tiny")
    assert ended == code
    assert "Nothing is lost: run the same command again" in err
    assert "RUNNING" not in {run.status for run in tracker.runs.values()}
    assert harness("study", "tiny")[0] == 0
    assert tiny.found(outcome(place / "runs")) == tiny.found(straight)
    assert {run.status for run in tracker.runs.values()} == {"FINISHED"}


def kill_after(num_stages: int, place: Path) -> None:
    """The study in a process of its own, with a real MLflow; ended by kill -9."""
    with (place / "said.txt").open("ab") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness", "study", "tiny"], cwd=place, stdout=said, stderr=said,
            env=os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"})
    deadline = time.monotonic() + 120
    while len(list((place / "runs" / "stages").glob("*.safetensors"))) < num_stages:
        assert process.poll() is None, (place / "said.txt").read_text()
        assert time.monotonic() < deadline, "it does not begin"
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_kill_9_and_the_same_command_again_end_as_if_nothing_had_happened(
        place: Path, straight: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last time it is this process that goes on."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
    for num_stages in (3, 7):  # in the middle of the first trial, and of the second
        kill_after(num_stages, place)
    tracker = MlflowTracker.open(None, "tiny", place / "runs")
    client, experiments = tracker.client, [tracker.experiment_id]
    assert "RUNNING" in {run.info.status for run in client.search_runs(experiments)}
    with pytest.raises(SystemExit, match="^0$"):
        main(["study", "tiny"])
    assert tiny.found(outcome(place / "runs")) == tiny.found(straight)
    runs = client.search_runs(experiments)
    assert sorted(run.data.tags["role"] for run in runs) == [
        "baseline", "control", "study", "trial", "trial"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        for key in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, key)]
            assert sorted(steps) == list(range(len(steps))), f"{key}: a gap, or a step twice"
    champion = client.get_model_version_by_alias("tiny", "champion")
    assert straight.champion is not None
    settings = client.get_run(str(champion.run_id)).data.params
    assert all(settings[key] == str(value) for key, value in straight.champion.settings.items())


def test_agents_that_leave_a_study_unfinished_are_told(harness: Harness,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "supervise", lambda *_: False)
    code, _, err = harness("study", "tiny", "--agents", "2")
    assert code == 1
    assert "the agents left before tiny was finished" in err


def test_whatever_else_the_system_refuses_is_a_sentence(harness: Harness,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/some/file")

    monkeypatch.setattr(training, "train", refuse)
    code, _, err = harness("baseline", "tiny")
    assert code == 1
    assert "Permission denied: /some/file" in err


# --- help -----------------------------------------------------------------------------------------


def test_help_is_there_at_once() -> None:
    """No torch, MLflow or Optuna: these take seconds to import."""
    asked = ("import sys\nfrom harness.cli import main\n"
             "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
             "print(sorted({'torch', 'mlflow', 'optuna', 'rich'} & set(sys.modules)))")
    found = subprocess.run([sys.executable, "-W", "error", "-c", asked], capture_output=True,
                           text=True, timeout=60, check=True)
    assert "study" in found.stdout
    assert found.stdout.splitlines()[-1] == "[]"


VERBS = sorted(cli.commands)


@pytest.mark.rows("R130")
def test_these_are_the_verbs() -> None:
    assert VERBS == ["agent", "baseline", "channels", "check", "compare", "cost", "criteria",
                     "dashboard", "data", "evaluate", "export", "gradcam", "import-adapt",
                     "predict", "report", "run", "sensitivity", "sparsify", "status", "study", "ui"]


@pytest.mark.rows("R130")
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_that_can_be_read(verb: str, harness: Harness) -> None:
    code, out, _ = harness(verb, "--help")
    assert code == 0
    example = re.search(r"Example: harness (.*?)(?:\n\n|$)", cli.commands[verb].help or "", re.S)
    assert example is not None
    assert "Example: harness" in " ".join(out.split())
    name, *words = shlex.split(example[1])
    assert name == verb
    cli.commands[verb].make_context(verb, words)  # raises UsageError if it cannot


def test_without_a_verb_the_help_is_shown(harness: Harness) -> None:
    code, out, err = harness()
    assert code == 2
    assert "Commands:" in out + err


def test_the_version_is_the_packages(harness: Harness) -> None:
    code, out, _ = harness("--version")
    assert (code, out) == (0, f"harness, version {__version__}\n")


# --- a card ---------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA card here")
def test_the_short_main_job_runs_on_a_card(harness: Harness, place: Path) -> None:
    words = ("--profile", "smoke", "--set", "device=cuda:0")
    assert harness("study", "vgg16_budget", *words)[0] == 0
    assert outcome(place / "runs").settings_finished == 3
    assert harness("export", "--study", "vgg16_budget", "--out", "net.pt2")[0] == 0


# --- networks by name -----------------------------------------------------------------------------


def test_networks_are_compared_from_the_command_line(harness: Harness, place: Path) -> None:
    assert harness("study", "tiny")[0] == 0
    code, out, err = harness("gradcam", "study:tiny:baseline", "study:tiny", "--of", "8",
                             "--out", "seen")
    assert code == 0, err
    assert "champion of tiny" in out
    assert (place / "seen" / "grad_cam_comparison.png").exists()
    code, out, _ = harness("export", "--network", "study:tiny:baseline", "--out", "whole.pt2")
    assert code == 0
    assert "whole.pt2" in out
    code, out, err = harness("export", "--network", "study:tiny", "--fold-batchnorm", "--out",
                             "folded.pt2")
    assert code == 0, err
    assert "3 batch norms are folded into convolutions, 0 are left" in out
    program = torch.export.load("folded.pt2")
    assert not [name for name in program.state_dict if "running" in name]
    assert not [node for node in program.graph.nodes if "batch_norm" in str(node.target)]
    code, _, err = harness("export", "--study", "tiny", "--fold-batchnorm", "--format", "state",
                           "--out", "folded.safetensors")
    assert code == 1
    assert "--fold-batchnorm: a state file is rebuilt on a network with its batch norms" in err
    assert not (place / "folded.safetensors").exists()
    assert harness("gradcam", "tiny")[0] == 1


def test_a_report_is_written_once_a_study_is_finished(harness: Harness, place: Path) -> None:
    code, out, err = harness("report", "tiny")
    assert code == 1
    assert "finished study" in err
    assert harness("study", "tiny")[0] == 0
    code, out, err = harness("report", "tiny", "--home", "runs")
    assert code == 0, err
    assert (place / out.strip()).read_text().startswith("<!DOCTYPE html>")


def test_runs_are_compared_on_a_page(harness: Harness, place: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [Written(n * 8, n, "trial", "s", "FINISHED", {"lr": n}, {"final_val_accuracy": 0.5})
            for n in ("<i>one", "other")]
    monkeypatch.setattr(tracking, "written", lambda *_: runs)
    code, _, err = harness("compare", "a", "b", "--out", "side.html")
    assert code == 0
    assert "wrote side.html" in err
    page = (place / "side.html").read_text()
    assert page.count("50.00 %") == 2
    assert "&lt;i&gt;one" in page
    assert "<i>" not in page


@pytest.mark.rows("R110")
def test_the_channels_that_would_go_are_printed_as_json(harness: Harness) -> None:
    code, out, _ = harness("channels", "tiny", "--percent", "25", "--percent", "50")
    assert code == 0
    found = json.loads(out)
    assert list(found) == ["25", "50"]
    assert found["50"]["prunePerc"] == pytest.approx(50, abs=100 / 36)


@pytest.mark.rows("R090")
def test_of_one_name_for_a_run_and_a_study_the_study_is_judged(harness: Harness, place: Path,
                                                               ) -> None:
    assert harness("study", "tiny")[0] == 0
    code, out, _ = harness("evaluate", "tiny")
    assert code == 0
    assert "trial 0" in out
    assert "control l1" in out
    code, out, _ = harness("evaluate", "configs/tiny.yaml")
    assert code == 0
    assert "trial 0" not in out
    assert (place / "runs" / "evaluations" / "tiny.csv").exists()
