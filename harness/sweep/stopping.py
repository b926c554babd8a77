"""Who stops a trajectory that gets nowhere, from its curve of accuracy against FLOPs removed.

Trials prune at different paces, so their curves are compared where the same share of the FLOPs is
gone (rungs, evenly apart; between two steps the accuracy is interpolated), never at the same number
of steps. What is stopped is not fine-tuned, and counts as a setting that was tried.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
)

from harness.settings import Stopper as Asked
from harness.settings import StudyConfig
from harness.sweep.question import Question
from harness.sweep.results import CurvePoint

Stop = Callable[[CurvePoint], str]  # why a walk is to end at this point; '' if it is to go on
SLACK = 1e-9  # a share that was reached may have been computed a little lower


@dataclass
class OnCurve:
    """Reports a trial's curve to Optuna at every rung, and asks its stopper.

    What was asked stays with the trial: one that is walked again is not judged again.
    """

    trial: optuna.Trial
    asked: Asked
    macs: int
    told: set[int] = field(default_factory=set)
    _before: tuple[float, float] | None = None

    def __call__(self, point: CurvePoint) -> str:
        gone = 1 - point.macs / self.macs
        new = self._rungs(gone, point.accuracy)
        self._before = gone, point.accuracy
        if not new or not self._is_stopped_at(new):
            return ""
        return (f"stopped by {self.asked.name}: too little accuracy where "
                f"{max(new) * self.asked.every:.0%} of the FLOPs are gone")

    def _is_stopped_at(self, new: Mapping[int, float]) -> bool:
        for rung, accuracy in new.items():
            if rung not in self.told:
                self.trial.report(accuracy, rung)
                self.told.add(rung)
        judged: Mapping[str, bool] = self.trial.user_attrs.get("judged", {})
        last = str(max(new))
        if last not in judged:
            judged = {**judged, last: bool(self.trial.should_prune())}  # else numpy's
            self.trial.set_user_attr("judged", judged)
        return judged[last]

    def _rungs(self, gone: float, accuracy: float) -> dict[int, float]:
        """Rung -> accuracy, for those that lie between the point before and this one."""
        if self._before is None:
            return {}
        first, last = (int(share / self.asked.every + SLACK) for share in (self._before[0], gone))
        share, known = self._before
        slope = (accuracy - known) / (gone - share) if gone > share else 0.0
        return {rung: known + slope * (rung * self.asked.every - share)
                for rung in range(first + 1, last + 1)}


@dataclass
class Dominated:
    """Ends a walk that the curves of finished trials beat at two steps in a row."""

    others: Iterable[CurvePoint]
    asked: Asked
    question: Question
    _times: int = 0

    def __call__(self, point: CurvePoint) -> str:
        if 1 - point.macs / self.question.macs < self.asked.warmup:
            return ""
        price = self.question.price
        is_beaten = any(price(other) <= price(point)
                        and other.accuracy >= point.accuracy + self.asked.margin - SLACK
                        for other in self.others)
        self._times = self._times + 1 if is_beaten else 0
        if self._times < 2:
            return ""
        cost = {"flops": "FLOPs", "latency": "latency"}[self.question.config.cost]
        return (f"dominated: at two steps in a row another trial has at least "
                f"{100 * self.asked.margin:g} points more accuracy with no more {cost}")


def pruner_of(config: StudyConfig) -> BasePruner | None:
    """Optuna's stopper of a study; None if it asks for none of them."""
    asked = config.stopper
    make = _PRUNERS.get(asked.name)
    return make(asked, int(asked.warmup / asked.every + SLACK)) if make else None


def stop_of(question: Question, trial: optuna.Trial, told: Iterable[int],
            others: Callable[[], Iterable[CurvePoint]]) -> Stop:
    """What stops this trial. told: its rungs that Optuna knows; others: curves that ended."""
    config = question.config
    name = config.stopper.name
    if config.kind == "pareto" and name != "none":
        return Dominated(list(others()), config.stopper, question)
    if name in _PRUNERS:
        return OnCurve(trial, config.stopper, question.macs, set(told))
    return lambda point: ""


# Each is given what was asked for, and the rung from which on trials may be stopped.
_PRUNERS: Mapping[str, Callable[[Asked, int], BasePruner]] = {
    "median": lambda asked, warmup: MedianPruner(asked.startup, n_warmup_steps=warmup),
    "percentile": lambda asked, warmup: PercentilePruner(
        asked.percentile, asked.startup, n_warmup_steps=warmup),
    "threshold": lambda asked, warmup: ThresholdPruner(
        lower=asked.accuracy, n_warmup_steps=warmup),
    "halving": lambda asked, warmup: SuccessiveHalvingPruner(
        min_resource=max(1, warmup), reduction_factor=asked.factor),
    "hyperband": lambda asked, warmup: HyperbandPruner(
        min_resource=max(1, warmup), max_resource=max(2, warmup, round(1 / asked.every)),
        reduction_factor=asked.factor)}
