"""Which settings to try next. Every suggestion is seeded by its place in the study, so a study
that was interrupted goes on as if it had not been."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from random import Random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial

Settings = dict[str, Any]
DUPLICATES_IN_A_ROW = 5  # then something new is drawn at random


@dataclass(frozen=True)
class Space:
    """Ladders of values by config path, and how to climb them.

    enqueued: settings of the first suggestions; what one leaves out is suggested.
    """

    ladders: Mapping[str, Sequence[Any]]
    sampler: str
    seed: int
    startup: int
    enqueued: Sequence[Settings] = ()

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
        study.sampler = self._sampler(begun.number, seed, seen, repeats)
        trial = optuna.Trial(study, begun._trial_id)
        for path, ladder in self.ladders.items():
            if path in begun.params and path not in trial.relative_params:
                # Drawn by one who died: drawn again, so that the next are as his would have been.
                study.sampler.sample_independent(study, begun, path, begun.distributions[path])
            trial.suggest_categorical(path, list(ladder))
        return trial

    def _sampler(self, number: int, seed: int, seen: Sequence[Settings], repeats: int,
                 ) -> BaseSampler:
        if number < len(self.enqueued):
            usual = _SAMPLERS.get(self.sampler, _SAMPLERS["random"])(seed, self.startup)
            return _Given(self.enqueued[number], usual)
        if repeats >= DUPLICATES_IN_A_ROW:
            return _Given(Random(seed).choice(list(self._unseen(seen))), RandomSampler())
        if self.sampler in ("grid", "brute"):
            unseen = self._unseen(seen)  # of a large space a grid lists no more than it needs
            left = list(islice(unseen, 1) if self.sampler == "grid" else unseen) or list(seen)
            return _Given(left[0] if self.sampler == "grid" else Random(seed).choice(left),
                          RandomSampler())
        return _SAMPLERS[self.sampler](seed, self.startup)

    def _unseen(self, seen: Sequence[Settings]) -> Iterator[Settings]:
        """All settings that were not tried, in the order of the ladders."""
        tried = {same(s) for s in seen}
        every = (dict(zip(self.ladders, values)) for values in product(*self.ladders.values()))
        return (s for s in every if same(s) not in tried)


class _Given(BaseSampler):
    """Suggests settings that are known, and by another sampler what they leave out."""

    def __init__(self, settings: Settings, usual: BaseSampler) -> None:
        self._settings, self._usual = settings, usual

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial,
                                    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial,
                        search_space: dict[str, BaseDistribution]) -> Settings:
        return {}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        if param_name in self._settings:
            return self._settings[param_name]
        return self._usual.sample_independent(study, trial, param_name, param_distribution)


def same(settings: Mapping[str, Any]) -> str:
    """Equal for equal settings."""
    return json.dumps(settings, sort_keys=True)


_SAMPLERS: Mapping[str, Callable[[int, int], BaseSampler]] = {
    "tpe": lambda seed, startup: TPESampler(seed=seed, n_startup_trials=startup),
    "random": lambda seed, startup: RandomSampler(seed=seed),
    "gp": lambda seed, startup: GPSampler(seed=seed, n_startup_trials=startup),
    "nsga2": lambda seed, startup: NSGAIISampler(seed=seed)}
