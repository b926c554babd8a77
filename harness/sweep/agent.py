"""The agent: asks for settings, walks a trial, tells what it found, until the study is done.

Any number of agents work on a study. What one is at work on it claims; whatever kills it, the next
one goes on: a trial that was begun keeps its settings, its Optuna trial and its MLflow run, and its
stages are in the store.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial

from harness.config import RunConfig, Study, apply, control_of
from harness.console import Screen, TrialLine, count, percent
from harness.errors import (
    ClaimLost,
    HandedBack,
    HarnessError,
    StoreError,
    StudyError,
    TrackingError,
)
from harness.experiment import Experiment, Trial, stages
from harness.journal import Journal, ending
from harness.sweep.bookkeeping import Book, Stopwatch
from harness.sweep.claims import Claim, Claims, FileClaims, holding
from harness.sweep.ledger import Ledger, ordinal_of
from harness.sweep.orders import Order, order_of
from harness.sweep.results import Result, result_of
from harness.sweep.runs import Runs, named
from harness.sweep.space import Settings, Space
from harness.tracking import Tracker

FAILURES_IN_A_ROW = 3
IDLE_S, LONGEST_IDLE_S = 0.5, 5.0  # a thousand idle agents must not keep a storage busy
SIZE = ("prune.floors", "prune.round_to")  # settings that say how small a network can become
CONSTRAINT = "flops_over_budget"  # share of the baseline's FLOPs above the budget; <= 0 is feasible
NO_FAULT = (KeyboardInterrupt, StoreError, TrackingError, HandedBack)  # of the trial that is cut


@dataclass(frozen=True)
class Control:
    """The champion's settings under another criterion. result: None if it failed, for `reason`."""

    name: str
    run_id: str
    result: Result | None
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "run_id": self.run_id, "reason": self.reason,
                "result": self.result.as_json() if self.result else None}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Control":
        result = Result.from_json(facts["result"]) if facts["result"] else None
        return cls(**{**facts, "result": result})


@dataclass
class Agent:
    """One process at work on one study. most_trials: after so many it leaves."""

    study: Study
    study_id: str
    home: Path
    ledger: Ledger
    claims: Claims
    tracker: Tracker
    screen: Screen
    most_trials: int | None = None
    name: str = field(default_factory=lambda: f"agent-{uuid4().hex[:8]}")
    watch: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self) -> None:
        # Where machines share a home, a file's lock would be held by a machine that sleeps.
        self._locks_files = isinstance(self.claims, FileClaims)
        self.ledger = self.watch.watched("optuna", self.ledger)
        self.claims = self.watch.watched_claims(self.claims)
        self.tracker = self.watch.watched("mlflow", self.tracker)
        self.book = Book(self.watch, self.ledger, self.claims)
        self.runs = Runs(self.study, self.study_id, self.ledger, self.claims, self.tracker)
        config = self.study.config
        self._space = self.watch.watched("optuna", Space(
            config.space, config.sampler.name, config.sampler.seed,
            config.sampler.n_startup_trials, config.enqueue))
        self._deadline = time.time() + 3600 * config.hours if config.hours else float("inf")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """At work: the study's run in MLflow is RUNNING."""
        with self.runs.opened(self.name) as self.run_id:
            try:
                yield
            except HandedBack:  # whoever fails leaves his book as it is: its storage may be away
                self.book.note()
                raise
            self.book.note()

    def run(self) -> bool:
        """Everything up to the last trial. False if trials are left, for this agent's time is up.

        Raises HandedBack if the study is told to stop.
        """
        hold = None if self._locks_files else lambda key: holding(self.claims, f"stage-{key}")
        store = self.watch.watched("store", stages(self.home, hold))
        self.experiment = Experiment(self.study.base, store, self.screen)
        self._check_budget()
        self._say_baseline()
        self.runs.baseline(self.experiment)
        self._show_finished()
        return self._work()

    @property
    def budget_macs(self) -> float:
        """The budget in MACs: a share of the baseline's."""
        return self.study.config.budget.flops * self.experiment.whole.macs

    # The loop.

    def _work(self) -> bool:
        tried, failures, idle_s = 0, 0, IDLE_S
        while tried != self.most_trials:
            self.obey()
            taken = self._next()
            if taken is None:
                if not self.ledger.unfinished():
                    if self._lacks_trials():
                        hours = self.study.config.hours
                        self.screen.message(f"{hours} hours are over: no more trials.")
                    return True
                time.sleep(idle_s)  # others are at work: should one die, its trial is taken over
                idle_s = min(1.2 * idle_s, LONGEST_IDLE_S)
                continue
            (trial, claim), idle_s = taken, IDLE_S
            try:
                worked = self._attempt(trial, claim)
            except (ClaimLost, UpdateFinishedTrialError):
                self._say_taken_over(trial)
                worked = None
            finally:
                claim.release()
            self.book.note_now_and_then()
            if worked is None:
                continue
            tried, failures = tried + 1, 0 if worked else failures + 1
            if failures >= FAILURES_IN_A_ROW:
                raise StudyError(f"{failures} trials in a row failed; the study stops. The reasons "
                                 "stand above and in MLflow. Mend the cause and run it again.")
        return not self._lacks_trials() and not self.ledger.unfinished()

    def _next(self) -> tuple[FrozenTrial | optuna.Trial, Claim] | None:
        """A trial that nobody is at work on, or a new one, with settings; None if others have all
        that is left."""
        left = {f"trial-{ordinal_of(trial)}": trial for trial in self.ledger.unfinished()}
        for name in self.claims.maybe_free(list(left)):
            trial, claim = left[name], self.claims.take(name)
            if claim is None:
                continue
            if not self.ledger.is_finished(trial):
                return trial, claim
            claim.release()  # it ended between the reading and the taking
        if not self._is_more_wanted():
            return None
        with holding(self.claims, "ask"):
            if not self._is_more_wanted():
                return None
            begun = self.ledger.begin()
            new = self.claims.take(f"trial-{ordinal_of(begun)}")
            if new is None:
                return None
            try:
                return self._suggest(begun), new  # nobody else asks now: two would be told the same
            except UpdateFinishedTrialError:  # this process slept over its lease meanwhile
                new.release()
                self._say_taken_over(begun)
                return None

    def _say_taken_over(self, trial: FrozenTrial | optuna.Trial) -> None:
        self.screen.message(f"trial {ordinal_of(trial)} was taken over by another agent")

    def _is_more_wanted(self) -> bool:
        return self._lacks_trials() and time.time() <= self._deadline

    def _lacks_trials(self) -> bool:
        """Whether the study will lack some, should all that are at work end well."""
        now = self.ledger.tally()
        return (now.found + now.at_work < self.study.config.trials
                and now.ended + now.at_work < self._space.size)

    def _suggest(self, begun: FrozenTrial) -> optuna.Trial:
        """Its settings, be they new or not.

        First those of trials before it whose asker died: what is a duplicate, and of which, must
        not depend on who goes on with what first.
        """
        for trial in self.ledger.without_settings(len(self._space.ladders), ordinal_of(begun)):
            self._settings_of(trial)
            self.ledger.drawn()
        return self._settings_of(begun)

    def _settings_of(self, begun: FrozenTrial) -> optuna.Trial:
        seen, repeats = self.ledger.before(ordinal_of(begun))
        return self._space.suggest(self.ledger.study, begun, self.study_id, seen, repeats)

    def obey(self) -> None:
        """Do as the study was told: wait while it is paused, leave if it is to stop."""
        while (order := order_of(self.ledger)) is Order.PAUSE:
            time.sleep(IDLE_S)
        if order is Order.STOP:
            raise HandedBack("the study was told to stop; go on with harness study --resume")

    def _attend(self, claim: Claim) -> None:
        """Between two steps of a walk: is it still ours, and is the study to go on?"""
        if not claim.is_held():
            raise ClaimLost("another agent has taken this trial over")
        if order_of(self.ledger) is not Order.GO:
            raise HandedBack("the study was told to pause or to stop")

    def _attempt(self, begun: FrozenTrial | optuna.Trial, claim: Claim) -> bool | None:
        """Walk one trial. False if it failed, None if it was a duplicate or went back; what is no
        fault of the trial's goes up."""
        trial = self._suggest(begun) if isinstance(begun, FrozenTrial) else begun
        earlier = self.ledger.earlier(trial)
        if earlier is not None:
            self.ledger.copy(trial, earlier)
            return None
        ordinal, settings = ordinal_of(trial), dict(trial.params)
        if not self.ledger.try_again(trial):
            return self._give_up(trial, "given up after 3 tries that were cut short")
        start = time.perf_counter()
        try:
            config = apply(self.study.base, settings)
            self.screen.trial(ordinal, named(settings), config.prune.percentage)
            run_id = self.runs.trial(trial, config)
            with ending(self.tracker, run_id):
                done = self._walk(run_id, config, claim)
        except ClaimLost:
            raise
        except HandedBack:
            self.ledger.hand_back(trial)
            return None
        except NO_FAULT:
            self.ledger.hand_back(trial)
            raise
        except (HarnessError, RuntimeError) as error:  # RuntimeError: torch, out of memory included
            return self._give_up(trial, str(error))
        result = result_of(done, time.perf_counter() - start)
        share = result.last.macs / self.experiment.whole.macs
        self.ledger.finish(trial, result, CONSTRAINT, share - self.study.config.budget.flops)
        self.screen.trial_done(self.line(ordinal, "trial", settings, result))
        self.screen.study(self.study_id, self.ledger.tally().found, self.study.config.trials)
        return True

    def _walk(self, run_id: str, config: RunConfig, claim: Claim, macs: int | None = None) -> Trial:
        journal = self.watch.watched(  # with the pictures that it draws
            "mlflow", Journal(self.tracker, run_id, self.experiment.whole))
        budget = int(self.budget_macs) if macs is None else None  # a control is no candidate

        def on_step(step: Any) -> None:
            self._attend(claim)
            journal.step(step)

        trial = self.experiment.trial(config, macs=macs, budget=budget, on_step=on_step)
        self._attend(claim)
        self.runs.walked(run_id, journal, trial)
        return trial

    def _give_up(self, trial: optuna.Trial, reason: str) -> bool:
        self.runs.failed(trial, reason)
        self.ledger.fail(trial, reason)
        self.screen.trial_done(_failed(ordinal_of(trial), "trial", trial.params, reason))
        return False

    # Controls.

    def controls(self, settings: Settings, macs: int) -> list[Control]:
        """The study's controls of these settings; those that other agents walk are waited for."""
        names = self.study.config.controls
        while True:
            self.obey()
            done = {name: self._control(name, settings, macs) for name in names}
            if all(done.values()):
                return [control for control in done.values() if control]
            time.sleep(IDLE_S)

    def _control(self, name: str, settings: Settings, macs: int) -> Control | None:
        """Found done, or walked; None if another agent is at work on it."""
        text = f"{name}/{macs}/{sorted(settings.items())}"
        key = f"control-{name}-{sha256(text.encode()).hexdigest()[:16]}"
        known = self.ledger.get(key)
        if known is None:
            claim = self.claims.take(key)
            if claim is None:
                return None
            try:
                known = self.ledger.get(key) or self._walk_control(key, name, settings, macs, claim)
            except HandedBack:
                return None
            finally:
                claim.release()
        return Control.from_json(known)

    def _walk_control(self, key: str, name: str, settings: Settings, macs: int, claim: Claim,
                      ) -> dict[str, Any]:
        """The same walk with another criterion, down to the same MACs."""
        start = time.perf_counter()
        config = control_of(self.study.base, name, settings)
        number = len(self.ledger.trials()) + self.study.config.controls.index(name)
        self.screen.trial(number, {**named(settings), "criterion": name}, 100.0, role="control")
        run_id = self.runs.control(key, name, config, settings)
        try:
            with ending(self.tracker, run_id):
                trial = self._walk(run_id, config, claim, macs)
        except NO_FAULT:
            raise
        except (HarnessError, RuntimeError) as error:  # the trials are none the worse for it
            self.screen.trial_done(_failed(number, "control", {"criterion": name}, str(error)))
            return Control(name, run_id, None, str(error)).as_json()
        result = result_of(trial, time.perf_counter() - start)
        control = Control(name, run_id, result).as_json()
        self.ledger.set(key, control)
        self.screen.trial_done(self.line(number, "control", {**settings, "criterion": name},
                                         result))
        return control

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

    # The screen.

    def _say_baseline(self) -> None:
        experiment, baseline = self.experiment, self.experiment.baseline
        what = f"accuracy {percent(baseline.accuracy)}, {count(experiment.whole.macs)} MACs"
        self.screen.baseline(what + (" (from the store)" if baseline.reused else ""))

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
