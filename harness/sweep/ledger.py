"""What a study knows of itself, kept in Optuna: which trials there are, how they ended, what they
found. Owned by one process at a time (a file lock that the kernel frees when the process dies)."""

import time
from collections.abc import Mapping
from typing import Any

import optuna
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
        """All trials that have an ordinal, in order."""
        own = [t for t in self.study.get_trials(deepcopy=False) if "ordinal" in t.user_attrs]
        return sorted(own, key=lambda t: int(t.user_attrs["ordinal"]))

    def sweep_up(self) -> None:
        """End what died while it was being asked for: it had no ordinal, so it never was."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state == TrialState.RUNNING and "ordinal" not in trial.user_attrs:
                self.study.tell(trial.number, state=TrialState.FAIL)

    def begin(self, trial: optuna.Trial, ordinal: int) -> None:
        trial.set_user_attr("ordinal", ordinal)

    def abandoned(self) -> optuna.Trial | None:
        """The trial that another process began and did not end; its settings and run stay."""
        for found in self.trials():
            if found.state == TrialState.RUNNING:
                return optuna.Trial(self.study, found._trial_id)
        return None

    def try_again(self, trial: optuna.Trial) -> bool:
        """Count a try; False if there have been too many."""
        tries = int(trial.user_attrs.get("tries", 0)) + 1
        trial.set_user_attr("tries", tries)
        return tries <= MOST_TRIES

    def hand_back(self, trial: optuna.Trial) -> None:
        """A try that was cut short from outside does not count."""
        trial.set_user_attr("tries", int(trial.user_attrs["tries"]) - 1)

    def finish(self, trial: optuna.Trial, result: Result, budget: str, excess: float) -> None:
        """Complete: value is the last step's accuracy, constraint its FLOPs over the budget."""
        trial.set_user_attr("result", result.as_json())
        trial.set_constraint(budget, excess)
        self.study.tell(trial, result.last.accuracy)

    def fail(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr("reason", reason)
        trial.set_user_attr("ended", time.time())
        self.study.tell(trial, state=TrialState.FAIL)

    def copy(self, trial: optuna.Trial, of: FrozenTrial) -> None:
        """An exact duplicate takes the stored result; it is no setting of its own."""
        trial.set_user_attr("duplicate_of", int(of.user_attrs["ordinal"]))
        if of.state == TrialState.COMPLETE:
            for name, excess in of.constraints.items():
                trial.set_constraint(name, excess)
            self.study.tell(trial, of.value)
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def earlier(self, settings: Settings) -> FrozenTrial | None:
        """The trial that had exactly these settings, if there was one."""
        wanted = same(settings)
        return next((t for t in self.originals() if same(t.params) == wanted), None)

    def originals(self) -> list[FrozenTrial]:
        """Trials that ended and are no duplicates."""
        return [t for t in self.trials()
                if t.state.is_finished() and "duplicate_of" not in t.user_attrs]

    def results(self) -> list[tuple[FrozenTrial, Result]]:
        """Finished settings with what they found, in order."""
        return [(t, Result.from_json(t.user_attrs["result"])) for t in self.originals()
                if t.state == TrialState.COMPLETE]

    def repeats(self) -> int:
        """Duplicates since the last new setting."""
        count = 0
        for trial in reversed(self.trials()):
            if "duplicate_of" not in trial.user_attrs:
                break
            count += 1
        return count


def ordinal_of(trial: optuna.Trial | FrozenTrial) -> int:
    attrs: Mapping[str, Any] = trial.user_attrs
    return int(attrs["ordinal"])
