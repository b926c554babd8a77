"""Which settings to try next. Every suggestion is seeded by its place in the study, so a study
that was interrupted goes on as if it had not been."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

Settings = dict[str, Any]
DUPLICATES_IN_A_ROW = 5  # then something new is drawn at random


@dataclass(frozen=True)
class Space:
    """Ladders of values by config path, and how to climb them."""

    ladders: Mapping[str, Sequence[Any]]
    sampler: str
    seed: int
    startup: int

    @property
    def size(self) -> int:
        """How many different settings there are."""
        total = 1
        for ladder in self.ladders.values():
            total *= len(ladder)
        return total

    def ask(self, study: optuna.Study, name: str, ordinal: int,
            seen: Sequence[Settings], repeats: int) -> optuna.Trial:
        """Suggestion number `ordinal` of the study, as the Optuna trial that carries it.

        After several suggestions that were tried before, one that was not is drawn.
        """
        seed = int(hashlib.sha256(f"{name}/{self.seed}/{ordinal}".encode()).hexdigest()[:8], 16)
        study.sampler = _sampler(self.sampler, seed, self.startup)
        # What waits was put there by a process that died before it took it.
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if repeats >= DUPLICATES_IN_A_ROW and not waiting:
            study.enqueue_trial(self._unseen(seen, seed))
        return study.ask({path: CategoricalDistribution(list(ladder))
                          for path, ladder in self.ladders.items()})

    def _unseen(self, seen: Sequence[Settings], seed: int) -> Settings:
        tried = {same(s) for s in seen}
        every = (dict(zip(self.ladders, values)) for values in product(*self.ladders.values()))
        return Random(seed).choice([s for s in every if same(s) not in tried])


def same(settings: Mapping[str, Any]) -> str:
    """Equal for equal settings."""
    return json.dumps(settings, sort_keys=True)


def _sampler(name: str, seed: int, startup: int) -> BaseSampler:
    if name == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=startup)
