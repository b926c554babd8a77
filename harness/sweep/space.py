"""Which settings to try next. Every suggestion is seeded by its place in the study, so a study
that was interrupted goes on as if it had not been."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial

from harness.config import LISTING, StudyConfig
from harness.dimensions import Dimension, Ladder, Number, dimension
from harness.sweep import untried
from harness.sweep.bisection import percentages
from harness.sweep.untried import Settings as Settings

DUPLICATES_IN_A_ROW = 5  # then something new is drawn at random


@dataclass(frozen=True)
class Space:
    """What is searched by config path, each a list or a table as in a study's file; and how.

    enqueued: settings of the first suggestions; what one leaves out is suggested.
    """

    searched: Mapping[str, Any]
    sampler: str
    seed: int
    startup: int
    enqueued: Sequence[Settings] = ()

    @classmethod
    def of(cls, study: StudyConfig) -> "Space":
        sampler, searched = study.sampler, study.space
        if study.kind == "binary_search":
            searched = {"prune.percentage": percentages(study.search)}
        return cls(searched, sampler.name, sampler.seed, sampler.n_startup_trials, study.enqueue)

    @cached_property
    def dimensions(self) -> Mapping[str, Dimension]:
        return {path: dimension(given) for path, given in self.searched.items()}

    @property
    def size(self) -> Number:
        """How many different settings there are; infinity with a range that has no steps."""
        return untried.size_of(self.dimensions)

    def suggest(self, study: optuna.Study, begun: FrozenTrial, name: str, seen: Sequence[Settings],
                repeats: int) -> optuna.Trial:
        """Give a trial of the study its settings; those that it has already stay.

        After several suggestions that were tried before, one that was not is drawn. name: of the
        study; seen: what was tried before; repeats: suggestions right before that were no news.
        """
        study.sampler = RandomSampler()  # one that learns would compute here for nothing
        trial = optuna.Trial(study, begun._trial_id)
        if trial.params.keys() >= self.dimensions.keys():
            return trial
        text = f"{name}/{self.seed}/{begun.number}"
        seed = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
        study.sampler = self._sampler(begun.number, seed, seen, repeats)
        trial, written = optuna.Trial(study, begun._trial_id), trial.distributions
        for path, found in self.dimensions.items():
            known = written.get(path)
            if known and not known.single() and path not in trial.relative_params:
                # Drawn by one who died: drawn again, so that the next are as his would have been.
                study.sampler.sample_independent(study, begun, path, known)
            _suggest(trial, path, _distribution(found))
        return trial

    def _sampler(self, number: int, seed: int, seen: Sequence[Settings], repeats: int,
                 ) -> BaseSampler:
        if number < len(self.enqueued):
            given = {path: self.dimensions[path].own(value)
                     for path, value in self.enqueued[number].items()}
            return _Given(given, self._usual(self.sampler, seed))
        if self.sampler in LISTING or repeats >= DUPLICATES_IN_A_ROW:
            return _Given(self._untried(seed, seen) or {}, self._usual("random", seed))
        return self._usual(self.sampler, seed)

    def _usual(self, name: str, seed: int) -> BaseSampler:
        sampler = _SAMPLERS.get(name, _SAMPLERS["random"])(seed, self.startup)
        return _Settled(sampler, self.dimensions)

    def _untried(self, seed: int, seen: Sequence[Settings]) -> Settings | None:
        if self.sampler == "grid":
            return untried.first(self.dimensions, seen)
        return untried.at_random(self.dimensions, seen, seed)


class _Settled(BaseSampler):
    """What a sampler suggests, as a person would write it: 0.15, not 0.15000000000000002."""

    def __init__(self, sampler: BaseSampler, dimensions: untried.Dimensions) -> None:
        self._sampler, self._dimensions = sampler, dimensions

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial,
                                    ) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial,
                        search_space: dict[str, BaseDistribution]) -> Settings:
        found = self._sampler.sample_relative(_others(study, trial), trial, search_space)
        return {path: self._dimensions[path].settled(value) for path, value in found.items()}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        return self._dimensions[param_name].settled(self._sampler.sample_independent(
            study, trial, param_name, param_distribution))


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


class _Others:
    """The study without one trial: GPSampler would learn from what one who died wrote there.

    Not a copy: what Hyperband shows to samplers cannot be copied.
    """

    def __init__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._study, self._number = study, trial.number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, *given: Any, **more: Any) -> list[FrozenTrial]:
        return [t for t in self._study.get_trials(*given, **more) if t.number != self._number]

    def _get_trials(self, *given: Any, **more: Any) -> list[FrozenTrial]:
        return [t for t in self._study._get_trials(*given, **more) if t.number != self._number]


def _others(study: optuna.Study, trial: FrozenTrial) -> optuna.Study:
    return cast(optuna.Study, _Others(study, trial))


def _distribution(found: Dimension) -> BaseDistribution:
    """What Optuna calls it; a ladder is a choice there, whose order samplers do not know."""
    if isinstance(found, Ladder):
        return CategoricalDistribution(found.rungs)
    if found.is_whole:
        return IntDistribution(int(found.low), int(found.high), found.log, int(found.step or 1))
    return FloatDistribution(found.low, found.high, found.log, found.step)


def _suggest(trial: optuna.Trial, path: str, asked: BaseDistribution) -> None:
    match asked:
        case IntDistribution():
            trial.suggest_int(path, asked.low, asked.high, step=asked.step, log=asked.log)
        case FloatDistribution():
            trial.suggest_float(path, asked.low, asked.high, step=asked.step, log=asked.log)
        case CategoricalDistribution():
            trial.suggest_categorical(path, asked.choices)


def same(settings: Mapping[str, Any]) -> str:
    """Equal for equal settings."""
    return json.dumps(settings, sort_keys=True)


_SAMPLERS: Mapping[str, Callable[[int, int], BaseSampler]] = {
    "tpe": lambda seed, startup: TPESampler(seed=seed, n_startup_trials=startup),
    "random": lambda seed, startup: RandomSampler(seed=seed),
    "gp": lambda seed, startup: GPSampler(seed=seed, n_startup_trials=startup),
    "nsga2": lambda seed, startup: NSGAIISampler(seed=seed)}
