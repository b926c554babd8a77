"""The agent: asks for settings, walks a trial, tells what it found, until the study is done.

Any number of agents work on a study. What one is at work on it claims; whatever kills it, the next
one goes on: a trial that was begun keeps its settings, its Optuna trial and its MLflow run, and its
stages are in the store.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import NopPruner
from optuna.trial import FrozenTrial

from harness.config import RunConfig, Study, apply
from harness.console import Screen, TrialLine, count, percent
from harness.errors import (
    ClaimLost,
    HandedBack,
    StoreError,
    StudyError,
    TrackingError,
    described,
)
from harness.experiment import Experiment, Trial, stages
from harness.journal import Journal, ending
from harness.runtime import memory_let_go
from harness.sweep.bisection import next_percentage
from harness.sweep.bookkeeping import Book, Stopwatch
from harness.sweep.claims import Claim, Claims, FileClaims, holding
from harness.sweep.ledger import Ledger, ordinal_of
from harness.sweep.orders import Order, order_of
from harness.sweep.question import Question, flops_limit
from harness.sweep.results import CurvePoint, Result, point_of, result_of
from harness.sweep.runs import Runs, named
from harness.sweep.smallest import smallest
from harness.sweep.space import Settings, Space
from harness.sweep.stopping import Stop, pruner_of, stop_of
from harness.sweep.storage import FAILURES
from harness.tracking import Tracker
from harness.trajectories import Step

FAILURES_IN_A_ROW = 3
IDLE_S, LONGEST_IDLE_S = 0.5, 5.0  # a thousand idle agents must not keep a storage busy
PERCENTAGE = "prune.percentage"
NO_FAULT = (KeyboardInterrupt, StoreError, TrackingError, HandedBack)  # of the trial that is cut
# The machine's, the storage's, the card's, which is of no more use to this process: it ends, and
# the try counts, for the trial may be what brings it about.
NOT_ITS_OWN = (OSError, *FAILURES, torch.AcceleratorError)


class _Trained(NamedTuple):
    """What is counted of a stage; the stage itself would be kept in memory."""

    epochs: int
    is_reused: bool


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
        self._trained: dict[str, _Trained] = {}  # of the trial at work, what it has come to
        self.book = Book(self.watch, self.ledger, self.claims)
        self.runs = Runs(self.study, self.study_id, self.ledger, self.claims, self.tracker)
        config = self.study.config
        self._space = self.watch.watched("optuna", Space.of(config))
        self.ledger.study.pruner = pruner_of(config) or NopPruner()
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
        self.experiment = self.experiment_of(self.study.base)
        self._check_budget()
        self._say_baseline()
        self.runs.baseline(self.experiment)
        self._show_finished()
        return self._work()

    def experiment_of(self, base: RunConfig) -> Experiment:
        """What runs of this configuration share, with stages that no two agents make at once."""
        # Where machines share a home, a file's lock would be held by a machine that sleeps.
        hold = None if self._locks_files else lambda key: holding(self.claims, f"stage-{key}")
        store = self.watch.watched("store", stages(self.home, hold, self.screen.message))
        return Experiment(base, store, self.screen)

    @cached_property
    def question(self) -> Question:
        """What the study asks, of its baseline."""
        whole = self.experiment.whole
        return Question(self.study.config, whole.macs, whole.params,
                        self.experiment.baseline.accuracy)

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
                self._leave_to_another(trial)
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
        with holding(self.claims, "ask") as asking:
            if not self._is_more_wanted() or not asking.is_held():
                return None
            begun = self.ledger.begin()
            new = self.claims.take(f"trial-{ordinal_of(begun)}")
            if new is None:
                return None
            try:
                # While nobody else asks: two at once would be told the same.
                return self._suggest(begun), new
            except UpdateFinishedTrialError:  # stopped here for longer than the lease
                self._leave_to_another(begun)
                new.release()
                return None

    def _is_more_wanted(self) -> bool:
        return self._lacks_trials() and time.time() <= self._deadline

    def _lacks_trials(self) -> bool:
        """Whether the study will lack some, should all that are at work end well."""
        now = self.ledger.tally()
        return now.found + now.at_work < self.study.config.trials and not self.is_exhausted

    @property
    def is_exhausted(self) -> bool:
        """Whether there are no other settings to try, as far as it can be told now."""
        now = self.ledger.tally()
        if self.study.config.kind == "binary_search":
            return now.at_work > 0 or self._probe(now.ended) is None
        return now.ended + now.at_work >= self._space.size

    def _suggest(self, begun: FrozenTrial) -> optuna.Trial:
        """Its settings, be they new or not.

        First those of trials before it whose asker died: what is a duplicate, and of which, must
        not depend on who goes on with what first.
        """
        for trial in self.ledger.without_settings(len(self._space.dimensions), ordinal_of(begun)):
            self._settings_of(trial)
            self.ledger.drawn()
        return self._settings_of(begun)

    def _settings_of(self, begun: FrozenTrial) -> optuna.Trial:
        number = ordinal_of(begun)
        seen, repeats = self.ledger.before(number)
        space = self._space
        if self.study.config.kind == "binary_search":
            probe = begun.params.get(PERCENTAGE) or self._probe(number)
            space = replace(Space.of(self.study.config),
                            enqueued=[*([{}] * number), {PERCENTAGE: probe}])
        return space.suggest(self.ledger.study, begun, self.study_id, seen, repeats)

    def _probe(self, number: int) -> float | None:
        """The percentage that a binary search tries after its first so many trials."""
        found = {ordinal_of(trial): result for trial, result in self.ledger.results()}
        return next_percentage(self.study.config.search, [
            n in found and found[n].reached and self.question.is_close(found[n].last.accuracy)
            for n in range(number)])

    def obey(self) -> None:
        """Do as the study was told: wait while it is paused, leave if it is to stop."""
        if (order := order_of(self.ledger)) is Order.PAUSE:
            self.screen.message("paused: nothing more is begun until harness study --resume")
        while order is Order.PAUSE:
            time.sleep(IDLE_S)
            order = order_of(self.ledger)
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
        self._trained = {}
        if not self.ledger.try_again(trial):
            return self._give_up(trial, "given up after 3 tries that were cut short")
        start = time.perf_counter()
        try:
            config = apply(self.study.base, settings)
            self.screen.trial(ordinal, named(settings), config.prune.percentage)
            run_id = self.runs.trial(trial, config)
            with ending(self.tracker, run_id):
                done = self.walk(run_id, config, claim, stop=self._stop_of(trial))
        except (ClaimLost, UpdateFinishedTrialError):  # the latter is a RuntimeError, too
            raise
        except HandedBack:
            self.ledger.hand_back(trial)
            return None
        except NO_FAULT:
            self.ledger.hand_back(trial)
            raise
        except NOT_ITS_OWN:
            raise
        except Exception as error:  # torch's, out of memory included; a person's own code's, any
            return self._give_up(trial, described(error))
        result = result_of(done, time.perf_counter() - start)
        self.ledger.finish(trial, result, self.question.values(result.last),
                           self.question.excess(result.last))
        self.screen.trial_done(self.line(ordinal, "trial", settings, result))
        self.screen.study(self.study_id, self.ledger.tally().found, self.study.config.trials)
        return True

    def _leave_to_another(self, trial: FrozenTrial | optuna.Trial) -> None:
        """This process was stopped for longer than its lease, and another has the trial."""
        self.screen.message(f"trial {ordinal_of(trial)} was taken over by another agent")
        self.runs.settle(self.ledger.again(trial))

    def _stop_of(self, trial: optuna.Trial) -> Stop:
        def others() -> list[CurvePoint]:
            return [p for _, result in self.ledger.results() for p in result.curve if p.step]

        told = self.ledger.again(trial).intermediate_values
        return stop_of(self.question, trial, told, others)

    def walk(self, run_id: str, config: RunConfig, claim: Claim, *, macs: int | None = None,
             experiment: Experiment | None = None, stop: Stop = lambda point: "") -> Trial:
        """Walk and write down every step, for as long as the claim is held.

        macs: of a control, which stops there and is no candidate. experiment: another than the
        study's own. stop: may end the walk at any step.
        """
        experiment = experiment or self.experiment
        journal = self.watch.watched(  # with the pictures that it draws
            "mlflow", Journal(self.tracker, run_id, experiment.whole))

        def on_step(step: Step) -> str:
            if step.number or step.stage.facts.get("is_prepared"):  # else it is the baseline
                self._trained[step.stage.key] = _Trained(len(step.stage.epochs), step.stage.reused)
            self._attend(claim)
            journal.step(step)
            return stop(point_of(step))

        is_candidate = self._is_candidate if macs is None else None
        with memory_let_go():
            trial = experiment.trial(config, macs=macs, is_candidate=is_candidate, on_step=on_step)
        self._attend(claim)
        journal.gops(experiment.gops(trial.final), trial.final)
        last = result_of(trial, 0.0).last
        self.runs.walked(run_id, journal, trial, experiment,
                         self.question.excess(last) if macs is None else None)
        return trial

    def _is_candidate(self, step: Step) -> bool:
        question = self.question
        return question.limits_cost and question.affords(point_of(step))

    def rewalked(self, settings: Settings) -> Trial:
        """A trial that ended, walked again from what the store has of it."""
        config = apply(self.study.base, settings)
        return self.experiment.trial(config, is_candidate=self._is_candidate)

    def _give_up(self, trial: optuna.Trial, reason: str) -> bool:
        trained = self._trained
        self.runs.failed(trial, reason)
        self.ledger.fail(trial, reason, {key: each.epochs for key, each in trained.items()})
        self.screen.trial_done(replace(
            failed_line(ordinal_of(trial), "trial", trial.params, reason), stages=len(trained),
            reused=sum(each.is_reused for each in trained.values())))
        return False

    def _check_budget(self) -> None:
        """Refuse, before anything is trained, a budget under what all floors allow.

        Raises StudyError.
        """
        least = min(map(self.experiment.least_macs, smallest(self.study.base, self.study.config)))
        share, limit = least / self.experiment.whole.macs, flops_limit(self.study.config)
        if limit is not None and share > limit:
            key = "budget.flops" if self.study.config.kind == "budget" else "constraints.flops"
            raise StudyError(f"{key}: {limit} cannot be met: the floors keep {share:.2%} of the "
                             f"FLOPs. Raise {key}, or lower prune.floors.")

    # The screen.

    def _say_baseline(self) -> None:
        experiment, baseline = self.experiment, self.experiment.baseline
        what = (f"{experiment.data.measure} {percent(baseline.accuracy)}, "
                f"{count(experiment.whole.macs)} MACs")
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


def failed_line(number: int, role: str, settings: Mapping[str, Any], reason: str) -> TrialLine:
    return TrialLine(number, role, named(settings), "failed", None, None, 0, 0, 0.0, reason)
