"""Whatever interrupts a study, the same command again ends as if nothing had happened."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import tiny
from tiny import Machine, found, trials

from harness import train as training
from harness.config import Study
from harness.console import QuietScreen
from harness.data import Data, Split
from harness.errors import StudyError, TrackingError
from harness.experiment import Experiment, stages
from harness.store import FolderStore
from harness.sweep import agent as agents
from harness.sweep import conduct as conducting
from harness.sweep.claims import holding
from harness.sweep.conduct import conduct
from harness.sweep.ledger import Ledger
from harness.sweep.outcome import Outcome
from harness.sweep.place import Place, study_id
from harness.sweep.progress import progress
from harness.sweep.question import Question
from harness.sweep.results import Final, Result
from harness.tracking import MemoryRun, MemoryTracker
from sweep.conftest import Whole

# Measured anew where a stage is made anew, and how often that was.
TIMED = {"latency_ms", "final_latency_ms", "stages_made_again", "agents_s", "bookkeeping_s",
         "bookkeeping_share", "bookkeeping_mlflow_s", "bookkeeping_optuna_s", "bookkeeping_store_s",
         "bookkeeping_pictures_s"}


def curves(run: MemoryRun) -> dict[str, list[tuple[int, float]]]:
    return {key: run.curve(key) for key in {point.key for point in run.points} - TIMED}


def untimed(text: str) -> str:
    """A note without the row of its table that was measured with a clock."""
    return "\n".join(line for line in text.splitlines() if "time of one picture" not in line)


def written(machine: Machine) -> list[tuple[object, ...]]:
    """All that MLflow has of a study and does not depend on the clock, run by run."""
    timed = ("stages.reused", "reason")
    runs = [(run.role, run.name, run.status, run.params, curves(run),
             {key: untimed(text) for key, text in run.tags.items() if key not in timed},
             sorted(run.files), sorted(run.images)) for run in machine.tracker.runs.values()]
    return sorted(runs, key=lambda facts: facts[:2])


def assert_same(machine: Machine, whole: Whole) -> None:
    """The same trials, the same outcome, the same runs as the study that nothing disturbed."""
    outcome, is_new = machine.conduct(whole.study)
    assert not is_new
    assert found(outcome) == found(whole.outcome)
    ledger = machine.ledger(whole.study)
    assert trials(ledger) == trials(whole.machine.ledger(whole.study))
    assert all(trial.state.is_finished() for trial in ledger.study.trials)
    for run in machine.tracker.runs.values():
        for key in {point.key for point in run.points}:  # what a clock has measured, too
            steps = [step for step, _ in run.curve(key)]
            assert steps == sorted(set(steps)), f"{run.name}: {key} has a step twice"
    assert written(machine) == written(whole.machine)


def shorter(study: Study, trials: int) -> Study:
    """The same study, asked for fewer trials."""
    return replace(study, config=study.config.model_copy(update={"trials": trials}))


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("nothing may be opened or trained")


@pytest.mark.rows("R121")
def test_a_finished_study_is_shown_at_once(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "Experiment", refuse)
    monkeypatch.setattr(training, "train", refuse)
    outcome, is_new = whole.machine.conduct(whole.study)
    assert (outcome, is_new) == (whole.outcome, False)


def test_fewer_trials_than_it_has_are_finished_too(whole: Whole) -> None:
    assert whole.machine.conduct(shorter(whole.study, 1))[1] is False


def test_more_trials_in_another_home_end_as_if_asked_for_at_once(whole: Whole,
                                                                 tmp_path: Path) -> None:
    """To the bit: the suggestions, the networks, the champion."""
    machine = Machine(tmp_path)
    short, _ = machine.conduct(shorter(whole.study, 2))
    assert short.settings_finished == 2
    longer, is_new = machine.conduct(whole.study)
    assert is_new
    assert found(longer) == found(whole.outcome)
    assert trials(machine.ledger(whole.study)) == trials(whole.machine.ledger(whole.study))
    assert len(machine.runs("study")) == len(machine.runs("baseline")) == 1
    assert [run.tags["champion"] for run in machine.runs("trial") if "champion" in run.tags].count(
        "yes") == 1
    assert all(run.status == "FINISHED" for run in machine.tracker.runs.values())


def interrupting(every: int, error: BaseException) -> Callable[..., Any]:
    """Training that is cut short before every so many stages, the first time each is made."""
    train, begun = training.train, set[int]()

    def interrupted(*given: Any, seed: int, **more: Any) -> Any:
        if seed not in begun:
            begun.add(seed)
            if len(begun) % every == 0:
                raise error
        return train(*given, seed=seed, **more)

    return interrupted


@pytest.mark.parametrize(("every", "error"), [
    (1, KeyboardInterrupt()), (3, TrackingError("the server does not answer"))],
    ids=["ctrl-c", "mlflow gone"])
def test_what_cuts_a_stage_short_changes_nothing(every: int, error: BaseException, whole: Whole,
                                                 tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    machine, times = Machine(tmp_path), 0
    monkeypatch.setattr(training, "train", interrupting(every, error))
    is_finished = False
    while not is_finished:
        try:
            machine.conduct(whole.study)
            is_finished = True
        except (KeyboardInterrupt, TrackingError):
            times += 1
            states = {run.status for run in machine.tracker.runs.values()}
            assert "RUNNING" not in states
            assert machine.runs("study")[0].status == "KILLED"
    assert times >= 12 // every
    assert_same(machine, whole)


class Dead(BaseException):
    """The process is gone: nothing that it still tries has any effect."""


class Life:
    """Ends before its `moments`-th write; every write after that fails too."""

    def __init__(self, moments: int) -> None:
        self.left = moments

    def write(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Dead

    def guard(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*given: Any, **more: Any) -> Any:
            self.write()
            return method(*given, **more)

        return guarded


READS = ("status", "steps", "find_run", "running")


class Mortal:
    """A tracker whose writes may be the process's last."""

    def __init__(self, tracker: MemoryTracker, life: Life) -> None:
        self._tracker, self._life = tracker, life

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._tracker, name)
        return self._life.guard(found) if callable(found) and name not in READS else found


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> list[Life]:
    """The life of the process at work, the last of the list: every write asks it."""
    lives: list[Life] = []
    owners: list[tuple[type, tuple[str, ...]]] = [
        (FolderStore, ("put",)), (optuna.Trial, ("set_user_attr",)),
        (Ledger, ("begin", "set", "try_again", "hand_back", "finish", "fail", "copy"))]
    for owner, names in owners:
        for name in names:
            method = getattr(owner, name)

            def guarded(*given: Any, _method: Callable[..., Any] = method) -> Any:
                if lives:  # opening the experiment keeps its graph before any life begins
                    lives[-1].write()
                return _method(*given)

            monkeypatch.setattr(owner, name, guarded)
    return lives


@pytest.mark.rows("R106", "R120")
def test_death_at_any_moment_changes_nothing(whole: Whole, tmp_path: Path, moments: list[Life],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Every life is one write longer than the one before, and begins where that one ended."""
    monkeypatch.setattr("harness.sweep.ledger.MOST_TRIES", 1000)
    experiment = Experiment(whole.study.base, stages(tmp_path))  # opening it takes time, no write
    monkeypatch.setattr(agents, "Experiment", lambda *_: experiment)
    machine, deaths = Machine(tmp_path), 0
    memory, is_finished = machine.tracker, False
    while not is_finished:
        moments.append(Life(deaths))
        machine.tracker = Mortal(memory, moments[-1])  # type: ignore[assignment]
        try:
            machine.conduct(whole.study)
            is_finished = True
        except Dead:
            deaths += 1
    machine.tracker = memory
    moments.append(Life(10**9))
    assert deaths >= 20
    assert_same(machine, whole)


def die_in(monkeypatch: pytest.MonkeyPatch, machine: Machine, study: Study, name: str,
           is_last: Callable[..., bool]) -> None:
    """Conduct it, and die in the first call of this method of the tracker that is the last."""
    method = getattr(MemoryTracker, name)

    def deadly(self: MemoryTracker, *given: Any) -> Any:
        if is_last(self, *given):
            raise Dead
        return method(self, *given)

    with monkeypatch.context() as mortal:
        mortal.setattr(MemoryTracker, name, deadly)
        with pytest.raises(Dead):
            machine.conduct(study)


@pytest.mark.rows("R120")
def test_a_study_that_had_its_answer_when_it_died_has_its_run_ended_by_the_same_command(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very last write of all is the end of the study's run."""
    machine, study = Machine(tmp_path), tiny.study(trials=1, controls=[])
    die_in(monkeypatch, machine, study, "end_run",
           lambda tracker, run_id, _: tracker.runs[run_id].role == "study")
    assert machine.runs("study")[0].status == "RUNNING"
    outcome, _ = machine.conduct(study)
    assert outcome.settings_finished == 1
    assert [run.status for run in machine.tracker.runs.values()] == ["FINISHED"] * 3
    assert machine.conduct(study) == (outcome, False)


@pytest.mark.rows("R120")
def test_a_study_concluded_again_after_a_death_has_each_of_its_numbers_once(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of bookkeeping are others for whoever concludes it a second time."""
    machine, study = Machine(tmp_path), tiny.study(trials=1, controls=[])
    die_in(monkeypatch, machine, study, "set_tags", lambda tracker, _, tags: "verdict" in tags)
    outcome, _ = machine.conduct(study)
    (run,) = machine.runs("study")
    told = {key: run.curve(key) for key in {point.key for point in run.points}}
    assert "bookkeeping_share" in told
    assert {key: curve for key, curve in told.items() if len(curve) != 1} == {}
    assert told["bookkeeping_s"] == [(0, outcome.bookkeeping["bookkeeping_s"])]


def test_another_answer_of_a_study_is_younger_though_no_trial_is(tmp_path: Path) -> None:
    """Replicates that are asked for later: MLflow shows the numbers of the latest moment."""
    machine = Machine(tmp_path)
    machine.conduct(tiny.study(trials=1, controls=[]))
    outcome, _ = machine.conduct(tiny.study(trials=1, controls=[], replicates=2))
    (run,) = machine.runs("study")
    points = sorted((p.timestamp_ms, p.value) for p in run.points if p.key == "epochs_run")
    assert len({moment for moment, _ in points}) == 2
    assert points[-1][1] == outcome.epochs_run > points[0][1]


def test_when_more_trials_find_another_champion_all_that_is_shown_is_the_new_ones(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is chosen last, though it is the first here. The test split is read once for each."""
    machine, read, reads = Machine(tmp_path), Data.read_test, list[str]()

    def noted(self: Data) -> Split:
        reads.append(self.name)
        return read(self)

    monkeypatch.setattr(Data, "read_test", noted)

    def last_of(_: Question, results: Iterable[tuple[int, Result]]) -> tuple[int, Final]:
        number, result = [*results][-1]
        return number, result.last

    monkeypatch.setattr(Question, "best", last_of)

    def asked_for(trials: int) -> Outcome:
        space = {"prune.filters_per_step": [9], "prune.percentage": [30, 70]}
        return machine.conduct(tiny.study(trials=trials, controls=[], space=space,
                                          sampler={"seed": 3}))[0]

    first, second = (asked_for(trials).champion for trials in (1, 2))
    assert first is not None
    assert second is not None
    assert second.share < first.share, "nothing is tested: MLflow shows the larger of two equals"
    runs = machine.tracker.runs
    assert runs[first.run_id].tags["champion"] == "no"
    assert runs[second.run_id].tags["champion"] == "yes"
    points = [p for p in machine.runs("study")[0].points if p.key == "champion_flops_share"]
    assert max(points, key=lambda p: (p.step, p.timestamp_ms, p.value)).value == second.share
    assert len(machine.tracker.versions["tiny"]) == 2
    is_better = (second.accuracy, -second.macs) > (first.accuracy, -first.macs)
    assert machine.tracker.aliases["tiny", "champion"] == ("2" if is_better else "1")
    assert len(reads) == 3


def test_status_says_who_is_at_work(whole: Whole) -> None:
    name, place = study_id(whole.study), whole.machine.place
    assert progress(whole.study, place).title == f"{name}: 4 of 4 settings, idle"
    with holding(place.claims(name), "agent-1"):
        shown = progress(whole.study, place)
        assert shown.title.endswith("1 at work")
        assert len([note for note in shown.notes if "last heartbeat" in note]) == 1
        assert f":{os.getpid()}: between trials; at work since " in shown.notes[0]


def test_status_lists_every_trial(whole: Whole) -> None:
    state = progress(whole.study, whole.machine.place)
    assert [row[0] for row in state.rows] == [str(n) for n, *_ in trials(
        whole.machine.ledger(whole.study))]
    naive = sum((len(t.steps) - 1) * c.retrain.epochs + len(t.finals) for c, t in whole.trials)
    assert any(f" {naive} without sharing" in note for note in state.notes)
    assert state.notes[-1].startswith("bookkeeping: ")
    assert state.columns[2:6] == ("filters_per_step", "layer_min", "percentage", "retrain_epochs")


def test_status_of_a_study_that_was_never_begun_says_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="has not been started in .*harness study tiny"):
        progress(tiny.study(), Place.at(tmp_path))


def test_a_changed_study_is_a_new_one_and_says_what_differs(tmp_path: Path) -> None:
    machine, said = Machine(tmp_path), list[str]()
    first, _ = machine.conduct(tiny.study(trials=1))

    class Screen(QuietScreen):
        def message(self, text: str) -> None:
            said.append(text)

    changed = tiny.study(trials=1, budget={"flops": 0.5}, base=tiny.run(retrain__lr=0.2))
    second, _ = conduct(changed, machine.place, lambda: machine.tracker, Screen())
    assert second is not None
    assert second.study_id != first.study_id
    assert said == [f"new study {second.study_id}: differs from {first.study_id} in "
                    "budget.flops, config.retrain.lr"]


def test_a_profile_that_changes_only_the_length_goes_on_with_the_same_study(
        whole: Whole, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    short = tiny.study(trials=1, controls=[])
    machine.conduct(Study(short.config, short.base, "short"))
    outcome, is_new = machine.conduct(tiny.study(trials=2, controls=[]))
    assert is_new
    assert outcome.settings_finished == 2
    assert len(machine.runs("study")) == 1


def test_another_mlflow_store_is_refused_once_trials_are_in_the_first(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.conduct(tiny.study(trials=1, controls=[]))
    moved = Machine(tmp_path)
    with pytest.raises(StudyError, match="another MLflow store.*MLFLOW_TRACKING_URI"):
        moved.conduct(tiny.study(trials=2, controls=[]))
    assert machine.conduct(tiny.study(trials=2, controls=[]))[1], "with the first store it goes on"


def test_the_result_of_fewer_trials_is_not_taken_for_that_of_the_whole_space(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extended to the last setting there is, and interrupted before the new end was written."""
    space = {"prune.filters_per_step": [9, 13], "prune.percentage": [70]}
    machine = Machine(tmp_path)
    machine.conduct(tiny.study(trials=1, controls=[], space=space))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conducting, "conclude", interrupt)
        with pytest.raises(KeyboardInterrupt):
            machine.conduct(tiny.study(trials=9, controls=[], space=space))
    outcome, is_new = machine.conduct(tiny.study(trials=9, controls=[], space=space))
    assert (is_new, outcome.settings_finished) == (True, 2)
    assert not machine.conduct(tiny.study(trials=9, controls=[], space=space))[1]


def test_when_time_is_up_no_trial_is_begun_and_the_study_can_go_on(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    outcome, _ = machine.conduct(tiny.study(trials=2, hours=1e-9, controls=[]))
    assert outcome.settings_finished == 0
    outcome, is_new = machine.conduct(tiny.study(trials=2, controls=[]))
    assert (is_new, outcome.settings_finished) == (True, 2)
