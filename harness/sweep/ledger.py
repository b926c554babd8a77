"""What a study knows of itself, kept in Optuna: which trials there are, how they ended, what they
found. Read by every process at work on the study; a trial is written by the one that holds its
claim."""

import time
from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from harness.sweep.results import Result
from harness.sweep.space import Settings, same

MOST_TRIES = 3
GOING = (TrialState.RUNNING, TrialState.WAITING)


@dataclass(frozen=True)
class Tally:
    """How many settings (duplicates are none): at work, ended, and of these with a result."""

    at_work: int
    ended: int
    found: int


class Ledger:
    """A study's book, over an Optuna study.

    A trial that has ended never changes, so each is looked at once: a look costs what is new and
    what is at work, and the copy of a list.
    """

    def __init__(self, study: optuna.Study) -> None:
        self.study = study
        self._every: list[FrozenTrial] = []  # as of the last look
        self._going: list[int] = []  # of these, those that had not ended then
        self._originals: list[FrozenTrial] = []  # and those that had, duplicates left out
        self._results: list[tuple[FrozenTrial, Result]] = []
        self._first: dict[str, int] = {}  # settings -> number of the original that has them

    # The study's own facts.

    def get(self, key: str, default: Any = None) -> Any:
        return self.study.user_attrs.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self.study.set_user_attr(key, value)

    # Trials. The ordinal counts suggestions, from 0; retries keep theirs.

    def trials(self) -> list[FrozenTrial]:
        """All trials, in order."""
        return self.study.get_trials(deepcopy=False)

    def _look(self) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """(all trials, those that have not ended); what ended since the last look is noted."""
        every, going = self.trials(), []
        for number in chain(self._going, range(len(self._every), len(every))):
            if every[number].state in GOING:
                going.append(number)
            else:
                self._note(every[number])
        self._every, self._going = every, going
        return every, [every[number] for number in going]

    def _note(self, trial: FrozenTrial) -> None:
        """Take in a trial that has ended."""
        if _is_duplicate(trial):
            return
        insort(self._originals, trial, key=ordinal_of)
        settings = same(trial.params)
        self._first[settings] = min(ordinal_of(trial), self._first.get(settings, ordinal_of(trial)))
        if trial.state != TrialState.FAIL:
            result = Result.from_json(trial.user_attrs["result"])
            insort(self._results, (trial, result), key=lambda found: ordinal_of(found[0]))

    def begin(self) -> FrozenTrial:
        """A new trial, without settings yet. Whoever takes its claim goes on with it."""
        # Not study.ask: it reads all trials, to find one that waits to be asked for; none does.
        self.study = copy(self.study)  # which forgets the trials that samplers have read
        storage = self.study._storage
        return storage.get_trial(storage.create_new_trial(self.study._study_id))

    def again(self, trial: FrozenTrial | optuna.Trial) -> FrozenTrial:
        """The same trial as it is now; `trial` itself is as it was when it was read."""
        return self.study._storage.get_trial(trial._trial_id)

    def unfinished(self) -> list[FrozenTrial]:
        """Trials that are at work, or were when their process died; their settings and run stay.

        A duplicate of one that is still at work waits for it, and is not among them.
        """
        every, going = self._look()
        return [t for t in going if not (
            _is_duplicate(t) and not every[t.user_attrs["duplicate_of"]].state.is_finished())]

    def without_settings(self, count: int, until: int) -> list[FrozenTrial]:
        """Trials before number `until` whose asker died before he had drawn all `count` of them.

        As of the last look, if that knew them all: each look costs as much as agents are at work.
        """
        self._look_as_far_as(until)
        return [self._every[n] for n in self._going
                if n < until and len(self._every[n].params) < count]

    def drawn(self) -> None:
        """Settings have been drawn for a trial that had none: what was seen of it is no more so."""
        self._look()

    def _look_as_far_as(self, until: int) -> None:
        if len(self._every) < until:
            self._look()

    def is_finished(self, trial: FrozenTrial) -> bool:
        """Now; `trial` itself is as it was when it was read."""
        return self.again(trial).state.is_finished()

    def note_run(self, trial: optuna.Trial, run_id: str) -> None:
        """The trial's run in MLflow, which it keeps over all tries."""
        trial.set_user_attr("run_id", run_id)

    def try_again(self, trial: optuna.Trial) -> bool:
        """Count a try; False if there have been too many."""
        tries = int(trial.user_attrs.get("tries", 0)) + 1
        trial.set_user_attr("tries", tries)
        return tries <= MOST_TRIES

    def hand_back(self, trial: optuna.Trial) -> None:
        """A try that was cut short from outside does not count."""
        trial.set_user_attr("tries", int(trial.user_attrs["tries"]) - 1)

    def finish(self, trial: optuna.Trial, result: Result, values: Sequence[float],
               excess: Mapping[str, float]) -> None:
        """Ended: values are what the sampler is told; excess: constraint -> how far it is broken.

        A trial that one of Optuna's stoppers ended is told as such, with its curve for a value.
        """
        trial.set_user_attr("result", result.as_json())
        self._constrain(trial, excess)
        if result.stopped and len(values) == 1:
            self._tell(trial, TrialState.PRUNED, None)
        else:
            self._tell(trial, TrialState.COMPLETE, values)

    def fail(self, trial: optuna.Trial, reason: str, epochs: Mapping[str, int] | None = None,
             ) -> None:
        """Ended without a result. epochs: stage key -> epochs, of what it had trained."""
        trial.set_user_attr("reason", reason)
        trial.set_user_attr("epochs", dict(epochs or {}))
        trial.set_user_attr("ended", time.time())
        self._tell(trial, TrialState.FAIL, None)

    def copy(self, trial: optuna.Trial, of: FrozenTrial) -> None:
        """An exact duplicate takes the stored result; it is no setting of its own.

        While the other is still at work the duplicate waits, and belongs to nobody.
        """
        trial.set_user_attr("duplicate_of", ordinal_of(of))
        if not of.state.is_finished():
            return
        if of.state != TrialState.FAIL:
            self._constrain(trial, of.constraints)
        if of.state == TrialState.PRUNED:
            told = self.trials()[ordinal_of(trial)].intermediate_values
            for rung in of.intermediate_values.keys() - told.keys():
                trial.report(of.intermediate_values[rung], rung)
        self._tell(trial, of.state, of.values if of.state == TrialState.COMPLETE else None)

    @staticmethod
    def _constrain(trial: optuna.Trial, excess: Mapping[str, float]) -> None:
        for name, amount in excess.items():
            trial.set_constraint(name, amount)

    def _tell(self, trial: optuna.Trial, state: TrialState, values: Sequence[float] | None,
              ) -> None:
        try:
            self.study.tell(trial, values, state=state)
        except (UpdateFinishedTrialError, ValueError):
            # Told before, but the answer of the storage was lost on its way.
            if self.study._storage.get_trial(trial._trial_id).state != state:
                raise

    def earlier(self, trial: optuna.Trial) -> FrozenTrial | None:
        """The trial before this one that has exactly its settings, if there is one."""
        params = trial.params  # a copy each time that it is read
        wanted = same(params)
        every, going = self._look()
        numbers = [ordinal_of(t) for t in _originals_of(going)
                   if t.params == params and same(t.params) == wanted]
        numbers += [self._first[wanted]] if wanted in self._first else []
        first = min(numbers, default=ordinal_of(trial))
        return every[first] if first < ordinal_of(trial) else None

    def settings(self) -> list[FrozenTrial]:
        """Trials that are no duplicates, at work or ended."""
        return _originals_of(self._look()[0])

    def originals(self) -> list[FrozenTrial]:
        """Trials that ended and are no duplicates."""
        self._look()
        return list(self._originals)

    def results(self) -> list[tuple[FrozenTrial, Result]]:
        """Finished settings with what they found, in order."""
        self._look()
        return list(self._results)

    def failed(self) -> list[Mapping[str, int]]:
        """Of every trial that failed, the epochs of what it had trained, as far as is known."""
        return [t.user_attrs.get("epochs", {}) for t in self.originals()
                if t.state == TrialState.FAIL]

    def tally(self) -> Tally:
        """The same, counted."""
        _, going = self._look()
        return Tally(len(_originals_of(going)), len(self._originals), len(self._results))

    def before(self, ordinal: int) -> tuple[Sequence[Settings], int]:
        """(settings of the trials before this one, duplicates right before it).

        As of the last look, if that knew them all: they have their settings before it is begun.
        """
        self._look_as_far_as(ordinal)
        earlier = self._every[:ordinal]
        repeats = 0
        for trial in reversed(earlier):
            if not _is_duplicate(trial):
                break
            repeats += 1
        return _Later(earlier), repeats


class _Later(Sequence[Settings]):
    """Settings of those trials that are no duplicates; listed once somebody looks: few do."""

    def __init__(self, trials: Iterable[FrozenTrial]) -> None:
        self._trials = trials

    @cached_property
    def _settings(self) -> list[Settings]:
        return [t.params for t in _originals_of(self._trials)]

    def __getitem__(self, place: Any) -> Any:
        return self._settings[place]

    def __len__(self) -> int:
        return len(self._settings)


def _is_duplicate(trial: FrozenTrial) -> bool:
    return "duplicate_of" in trial.user_attrs


def _originals_of(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    return [t for t in trials if not _is_duplicate(t)]


def ordinal_of(trial: optuna.Trial | FrozenTrial) -> int:
    return trial.number
