"""What a study knows of itself, kept in Optuna: which trials there are, how they ended, what they
found. Read by every process at work on the study; a trial is written by the one that holds its
claim."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from harness.sweep.results import Result
from harness.sweep.space import Settings, same

MOST_TRIES = 3


class Ledger:
    """A study's book, over an Optuna study."""

    def __init__(self, study: optuna.Study) -> None:
        self.study = study

    # The study's own facts.

    def get(self, key: str, default: Any = None) -> Any:
        return self.study.user_attrs.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self.study.set_user_attr(key, value)

    # Trials. The ordinal counts suggestions, from 0; retries keep theirs.

    def trials(self) -> list[FrozenTrial]:
        """All trials, in order."""
        return sorted(self.study.get_trials(deepcopy=False), key=ordinal_of)

    def begin(self) -> FrozenTrial:
        """A new trial, without settings yet. Whoever takes its claim goes on with it."""
        self.study.sampler = RandomSampler()  # one that learns would compute here for nothing
        number = self.study.ask().number
        return self.trials()[number]

    def unfinished(self) -> list[FrozenTrial]:
        """Trials that are at work, or were when their process died; their settings and run stay.

        A duplicate of one that is still at work waits for it, and is not among them.
        """
        every = self.trials()
        return [t for t in every if not t.state.is_finished()
                and not ("duplicate_of" in t.user_attrs
                         and not every[t.user_attrs["duplicate_of"]].state.is_finished())]

    def is_finished(self, trial: FrozenTrial) -> bool:
        """Now; `trial` itself is as it was when it was read."""
        return self.trials()[ordinal_of(trial)].state.is_finished()

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

    def fail(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr("reason", reason)
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
            if self.trials()[ordinal_of(trial)].state != state:
                raise

    def earlier(self, trial: optuna.Trial) -> FrozenTrial | None:
        """The trial before this one that has exactly its settings, if there is one."""
        wanted = same(trial.params)
        return next((t for t in self.settings() if ordinal_of(t) < ordinal_of(trial)
                     and same(t.params) == wanted), None)

    def settings(self) -> list[FrozenTrial]:
        """Trials that are no duplicates, at work or ended."""
        return [t for t in self.trials() if "duplicate_of" not in t.user_attrs]

    def originals(self) -> list[FrozenTrial]:
        """Trials that ended and are no duplicates."""
        return [t for t in self.settings() if t.state.is_finished()]

    def results(self) -> list[tuple[FrozenTrial, Result]]:
        """Finished settings with what they found, in order."""
        return [(t, Result.from_json(t.user_attrs["result"])) for t in self.originals()
                if t.state != TrialState.FAIL]

    def before(self, ordinal: int) -> tuple[list[Settings], int]:
        """(settings of the trials before this one, duplicates right before it)."""
        earlier = self.trials()[:ordinal]
        repeats = 0
        for trial in reversed(earlier):
            if "duplicate_of" not in trial.user_attrs:
                break
            repeats += 1
        return [t.params for t in earlier if "duplicate_of" not in t.user_attrs], repeats


def ordinal_of(trial: optuna.Trial | FrozenTrial) -> int:
    return trial.number
