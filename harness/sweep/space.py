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
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

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

    def suggest(self, study: optuna.Study, begun: FrozenTrial, name: str, seen: Sequence[Settings],
                repeats: int) -> optuna.Trial:
        """Give a trial of the study its settings; those that it has already stay.

        After several suggestions that were tried before, one that was not is drawn. name: of the
        study; seen: what was tried before; repeats: suggestions right before that were no news.
        """
        text = f"{name}/{self.seed}/{begun.number}"
        seed = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
        study.sampler = (_Given(self._unseen(seen, seed)) if repeats >= DUPLICATES_IN_A_ROW
                         else _sampler(self.sampler, seed, self.startup))
        trial = optuna.Trial(study, begun._trial_id)
        for path, ladder in self.ladders.items():
            trial.suggest_categorical(path, list(ladder))
        return trial

    def _unseen(self, seen: Sequence[Settings], seed: int) -> Settings:
        tried = {same(s) for s in seen}
        every = (dict(zip(self.ladders, values)) for values in product(*self.ladders.values()))
        return Random(seed).choice([s for s in every if same(s) not in tried])


class _Given(BaseSampler):
    """Suggests settings that are known."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial,
                                    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial,
                        search_space: dict[str, BaseDistribution]) -> Settings:
        return {}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        return self._settings[param_name]


def same(settings: Mapping[str, Any]) -> str:
    """Equal for equal settings."""
    return json.dumps(settings, sort_keys=True)


def _sampler(name: str, seed: int, startup: int) -> BaseSampler:
    if name == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=startup)
