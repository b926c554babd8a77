"""The agent: asks for settings, walks a trial, tells what it found, until the study is done.

Whatever kills it, the next one goes on: a trial that was begun keeps its settings, its Optuna
trial and its MLflow run, and its stages are in the store.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import optuna

from harness import tracking
from harness.config import RunConfig, Study, apply, flat, short, to_yaml
from harness.console import Screen, TrialLine, count, percent
from harness.errors import HarnessError, StoreError, StudyError, TrackingError
from harness.experiment import Experiment, Trial, stages
from harness.journal import Journal, ending
from harness.runtime import facts
from harness.sweep.ledger import Ledger, ordinal_of
from harness.sweep.results import Result, result_of
from harness.sweep.space import Settings, Space
from harness.tracking import Tracker

FAILURES_IN_A_ROW = 3
SIZE = ("prune.floors", "prune.round_to")  # settings that say how small a network can become
CONSTRAINT = "flops_over_budget"  # share of the baseline's FLOPs above the budget; <= 0 is feasible


@dataclass(frozen=True)
class Control:
    """The champion's settings under another criterion. result: None if it failed, for `reason`."""

    name: str
    run_id: str
    result: Result | None
    reason: str = ""


@dataclass
class Agent:
    """One process at work on one study; it owns the study while it runs."""

    study: Study
    study_id: str
    home: Path
    ledger: Ledger
    tracker: Tracker
    screen: Screen

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The study's run in MLflow, from start to end."""
        self.run_id = self._open_study_run()
        self._reap_launchers()
        with ending(self.tracker, self.run_id):
            yield

    def run(self) -> None:
        """Everything up to the last trial."""
        self.experiment = Experiment(self.study.base, stages(self.home), self.screen)
        self._check_budget()
        self._write_baseline()
        self._work()

    @property
    def budget_macs(self) -> float:
        """The budget in MACs: a share of the baseline's."""
        return self.study.config.budget.flops * self.experiment.whole.macs

    # The loop.

    def _work(self) -> None:
        config = self.study.config
        space = Space(config.space, config.sampler.name, config.sampler.seed,
                      config.sampler.n_startup_trials)
        deadline = time.time() + 3600 * config.hours if config.hours else float("inf")
        self.ledger.sweep_up()
        self._show_finished()
        failures = 0
        while True:
            trial = self.ledger.abandoned()
            if trial is None:
                finished, tried = len(self.ledger.results()), len(self.ledger.originals())
                if finished >= config.trials or tried >= space.size:
                    return
                if time.time() > deadline:
                    self.screen.message(f"{config.hours} hours are over: no more trials.")
                    return
                trial = self._ask(space)
            earlier = self.ledger.earlier(trial.params)
            if earlier is not None:
                self.ledger.copy(trial, earlier)
                continue
            failures = 0 if self._attempt(trial) else failures + 1
            if failures >= FAILURES_IN_A_ROW:
                raise StudyError(f"{failures} trials in a row failed; the study stops. The reasons "
                                 "stand above and in MLflow. Mend the cause and run it again.")

    def _ask(self, space: Space) -> optuna.Trial:
        """The next settings, be they new or not."""
        ordinal = len(self.ledger.trials())
        tried = [t.params for t in self.ledger.originals()]
        trial = space.ask(self.ledger.study, self.study_id, ordinal, tried, self.ledger.repeats())
        self.ledger.begin(trial, ordinal)
        return trial

    def _attempt(self, trial: optuna.Trial) -> bool:
        """Walk one trial. False if it failed; what is no fault of the trial's goes up."""
        ordinal, settings = ordinal_of(trial), dict(trial.params)
        if not self.ledger.try_again(trial):
            return self._give_up(trial, "given up after 3 tries that were cut short", settings)
        start = time.perf_counter()
        config = apply(self.study.base, settings)
        self.screen.trial(ordinal, named(settings), config.prune.percentage)
        try:
            run_id = self._open_trial_run(trial, config, settings)
            with ending(self.tracker, run_id):
                done = self._walk(run_id, config, macs=None)
        except (KeyboardInterrupt, StoreError, TrackingError):
            self.ledger.hand_back(trial)
            raise
        except (HarnessError, RuntimeError) as error:  # RuntimeError: torch, out of memory included
            return self._give_up(trial, str(error), settings)
        result = result_of(done, time.perf_counter() - start)
        share = result.last.macs / self.experiment.whole.macs
        self.ledger.finish(trial, result, CONSTRAINT, share - self.study.config.budget.flops)
        self.screen.trial_done(self.line(ordinal, "trial", settings, result))
        self.screen.study(self.study_id, len(self.ledger.results()), self.study.config.trials)
        return True

    def control(self, name: str, settings: Settings, macs: int) -> Control:
        """The same walk with another criterion, down to the same MACs; kept once it is done."""
        done: dict[str, Any] = self.ledger.get("controls", {})
        key = f"{name}/{macs}/{sorted(settings.items())}"
        if key in done:
            return Control(name, done[key]["run_id"], Result.from_json(done[key]["result"]))
        start = time.perf_counter()
        # Options belong to the criterion that they were given for.
        kept = {k: v for k, v in settings.items() if not k.startswith("prune.criterion")}
        config = apply(self.study.base, {**kept, "prune.criterion_options": {},
                                         "prune.criterion": name})
        number = len(self.ledger.trials()) + self.study.config.controls.index(name)
        self.screen.trial(number, {**named(settings), "criterion": name}, 100.0, role="control")
        runs: dict[str, str] = self.ledger.get("control_runs", {})
        run_id = self._open_run(
            runs.get(key), name=f"control {name}", role="control",
            params=self._params(config, settings),
            tags={"criterion": name, "settings": str(named(settings))})
        self.ledger.set("control_runs", {**runs, key: run_id})
        try:
            with ending(self.tracker, run_id):
                trial = self._walk(run_id, config, macs=macs)
        except (StoreError, TrackingError):
            raise
        except (HarnessError, RuntimeError) as error:  # the trials are none the worse for it
            self.screen.trial_done(_failed(number, "control", {"criterion": name}, str(error)))
            return Control(name, run_id, None, str(error))
        result = result_of(trial, time.perf_counter() - start)
        self.ledger.set("controls", {**done, key: {
            "name": name, "run_id": run_id, "result": result.as_json()}})
        self.screen.trial_done(self.line(number, "control", {**settings, "criterion": name},
                                         result))
        return Control(name, run_id, result)

    def _walk(self, run_id: str, config: RunConfig, macs: int | None) -> Trial:
        journal = Journal(self.tracker, run_id, self.experiment.whole)
        budget = int(self.budget_macs) if macs is None else None  # a control is no candidate
        trial = self.experiment.trial(config, macs=macs, budget=budget, on_step=journal.step)
        journal.layers(trial.steps)
        journal.plans(trial.steps)
        journal.ledgers(trial.steps)
        journal.epochs(trial.final)
        journal.final(trial.final, trial.last.cost)
        reused = sum(s.reused for s in trial.stages)
        self.tracker.set_tags(run_id, {
            "stop_reason": trial.reason[:4000], "stages.reused": str(reused),
            "stages.all": str(len(trial.stages)), "final.stage": trial.final.key})
        return trial

    def _give_up(self, trial: optuna.Trial, reason: str, settings: Settings) -> bool:
        run_id = trial.user_attrs.get("run_id")
        if run_id:
            self.tracker.set_tags(run_id, {"reason": reason[:4000]})
            self.tracker.end_run(run_id, "FAILED")
        self.ledger.fail(trial, reason)
        self.screen.trial_done(_failed(ordinal_of(trial), "trial", settings, reason))
        return False

    def _check_budget(self) -> None:
        """Refuse, before anything is trained, a budget under what all floors allow.

        Raises StudyError.
        """
        space, base = self.study.config.space, self.study.base
        ladders = {path: space[path] for path in space if path.startswith(SIZE)}
        rungs = [dict(zip(ladders, values)) for values in product(*ladders.values())]
        least = min(self.experiment.least_macs(apply(base, rung)) for rung in rungs)
        if least > self.budget_macs:
            raise StudyError(
                f"budget.flops: {self.study.config.budget.flops} cannot be met: the floors keep "
                f"{least / self.experiment.whole.macs:.2%} of the FLOPs. Raise budget.flops, or "
                "lower prune.floors.")

    # Runs.

    def _open_study_run(self) -> str:
        config = self.study.config
        run_id = self.ledger.get("run_id")
        if run_id and self.tracker.status(run_id) == "MISSING" and self.ledger.results():
            raise StudyError(
                f"{self.study_id} was begun with another MLflow store, or its run there was "
                "deleted. Set MLFLOW_TRACKING_URI to that store (by default it is mlflow.db in the "
                "folder where it was begun), or begin anew with another --home.")
        run_id = self._open_run(run_id, name=self.study_id, role="study", tags={}, params={
            "budget_flops": config.budget.flops, "sampler": config.sampler.name})
        self.ledger.set("run_id", run_id)
        self.tracker.log_text(run_id, to_yaml(config), "study.yaml")
        self.tracker.log_text(run_id, to_yaml(self.study.base), "config.yaml")
        return run_id

    def _open_run(self, run_id: str | None, *, name: str, role: str, params: Mapping[str, object],
                  tags: Mapping[str, str]) -> str:
        """Make a run of this study, or go on with the one that MLflow has."""
        if run_id and self.tracker.status(run_id) == "MISSING":
            run_id = None
        again = {"reason": ""} if run_id else {}  # it may have failed an earlier time
        return self.tracker.open_run(
            name=name, role=role, study=self.study_id, run_id=run_id, params=params,
            parent=None if role == "study" else self.run_id,
            tags={"fingerprint": self.study_id.rpartition("-")[2],
                  "profile": self.study.profile or "default", **again, **tags})

    def _open_trial_run(self, trial: optuna.Trial, config: RunConfig, settings: Settings) -> str:
        number = ordinal_of(trial)
        run_id = self._open_run(
            trial.user_attrs.get("run_id"), name=f"trial {number}", role="trial",
            tags={"ordinal": str(number)}, params=self._params(config, settings))
        trial.set_user_attr("run_id", run_id)
        self.tracker.log_text(run_id, to_yaml(config), "config.yaml")
        return run_id

    def _params(self, config: RunConfig, settings: Settings) -> dict[str, object]:
        """Every setting that matters under its path, the searched ones under short names too."""
        every = {**flat(config), **named(settings), "criterion": config.prune.criterion}
        return {path: value for path, value in every.items() if path not in config.without_effect}

    def _reap_launchers(self) -> None:
        """End the runs of `mlflow run` processes that were killed: nobody else will."""
        mine = tracking.launcher()
        before: list[str] = self.ledger.get("launchers", [])
        for run_id in before:
            if run_id != mine and self.tracker.status(run_id) == "RUNNING":
                self.tracker.end_run(run_id, "KILLED")
        if mine:
            tracking.link_launcher(self.tracker, mine, self.run_id)
            self.ledger.set("launchers", [*(r for r in before if r != mine), mine])

    def _write_baseline(self) -> None:
        experiment, baseline = self.experiment, self.experiment.baseline
        what = f"accuracy {percent(baseline.accuracy)}, {count(experiment.whole.macs)} MACs"
        self.screen.baseline(what + (" (from the store)" if baseline.reused else ""))
        run_id = self.ledger.get("baseline_run")
        if run_id and self.tracker.status(run_id) == "FINISHED":
            return
        run_id = self._open_run(run_id, name="baseline", role="baseline",
                                params=self._params(self.study.base, {}),
                                tags=facts(experiment.device))
        self.ledger.set("baseline_run", run_id)
        with ending(self.tracker, run_id):
            journal = Journal(self.tracker, run_id, experiment.whole)
            journal.epochs(baseline)
            journal.final(baseline, experiment.whole)
            self.tracker.log_data(run_id, name=experiment.data.name,
                                  digest=experiment.data.fingerprint[:16], context="training")
            self.tracker.log_json(run_id, dict(experiment.frozen), "frozen.json")
            self.tracker.set_tags(self.run_id, facts(experiment.device))

    # The screen.

    def _show_finished(self) -> None:
        for trial, result in self.ledger.results():
            self.screen.trial_done(self.line(ordinal_of(trial), "trial", trial.params, result))

    def line(self, number: int, role: str, settings: Mapping[str, Any],
             result: Result) -> TrialLine:
        """A trial as the screen shows it."""
        return TrialLine(number, role, named(settings), "finished" if result.reached else "stopped",
                         result.last.accuracy, result.last.macs / self.experiment.whole.macs,
                         result.reused, len(result.epochs), result.seconds,
                         None if result.reached else result.reason)


def _failed(number: int, role: str, settings: Mapping[str, Any], reason: str) -> TrialLine:
    return TrialLine(number, role, named(settings), "failed", None, None, 0, 0, 0.0, reason)


def named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under the short names that tables and charts use."""
    return {short(path): value for path, value in settings.items()}
