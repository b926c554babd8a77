"""What a trial found, as plain facts that Optuna keeps beside it: enough to report without
walking again, and to find every network in the stage store."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from math import isnan, nan
from typing import Any

from harness.experiment import Trial
from harness.trajectories import Stage, Step

AGAIN = "again"  # the control that is the champion's settings, run once more on a new baseline


@dataclass(frozen=True)
class Final:
    """One network after the final fine-tune. step: the pruning step behind it.

    training_flops: of all that its trial trained to have it, see `CurvePoint`. latency_share: of
    the whole network's, measured in turns.
    """

    step: int
    key: str
    accuracy: float
    macs: int
    params: int
    filters: int
    percentage: float
    latency_ms: float | None = None
    training_flops: int | None = None
    latency_share: float | None = None


@dataclass(frozen=True)
class CurvePoint:
    """One pruning step of a trial, retrained but not fine-tuned. accuracy: on validation.

    training_flops: of all that its trial had trained by then; None of a trial that is at work, and
    of those of earlier versions.
    """

    step: int
    accuracy: float
    macs: int
    params: int
    filters: int = 0
    accuracy_cut: float | None = None
    latency_ms: float | None = None
    training_flops: int | None = None
    stage: str = ""
    latency_share: float | None = None


@dataclass(frozen=True)
class Result:
    """One finished trial. epochs: stage key -> epochs that training it took; curve: its steps.

    stopped: somebody ended it before its time, and it was not fine-tuned.
    """

    finals: tuple[Final, ...]
    reason: str
    reached: bool
    steps: int
    reused: int
    seconds: float
    epochs: Mapping[str, int]
    curve: tuple[CurvePoint, ...] = ()
    stopped: bool = False

    @property
    def last(self) -> Final:
        return self.finals[-1]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Result":
        return cls(**{**facts, "finals": tuple(Final(**f) for f in facts["finals"]),
                      "curve": tuple(CurvePoint(**p) for p in facts.get("curve", ()))})


def result_of(trial: Trial, seconds: float) -> Result:
    """The facts of a trial that has ended."""
    steps = {s.number: s for s in trial.steps}
    curve = _curve(trial)
    spent = {point.step: point.training_flops or 0 for point in curve}
    finals = tuple(_final(steps[n].percentage, n, stage, steps[n].cost, spent[n] + (
        trial.spent.get(stage.key, 0) if stage.key != steps[n].stage.key else 0))
                   for n, stage in sorted(trial.finals.items()))
    stages = {s.key: s for s in trial.stages}
    return Result(finals, trial.reason, trial.reached, len(trial.steps) - 1,
                  sum(s.reused for s in stages.values()), seconds,
                  {key: len(s.epochs) for key, s in stages.items()},
                  curve, trial.stopped)


def point_of(step: Step, training_flops: int | None = None) -> CurvePoint:
    """A step as a point of its trial's curve."""
    return CurvePoint(step.number, step.accuracy, step.macs, step.params, step.filters,
                      step.accuracy_cut, measured(step.stage, "latency_ms"), training_flops,
                      step.stage.key, measured(step.stage, "latency_share"))


def _curve(trial: Trial) -> tuple[CurvePoint, ...]:
    trained = accumulate(trial.spent.get(s.stage.key, 0) for s in trial.steps)
    return tuple(point_of(step, flops) for step, flops in zip(trial.steps, trained, strict=True))


def _final(percentage: float, step: int, stage: Stage, cost: Any, training_flops: int) -> Final:
    return Final(step, stage.key, stage.accuracy, cost.macs, cost.params, cost.filters, percentage,
                 measured(stage, "latency_ms"), training_flops, measured(stage, "latency_share"))


def measured(stage: Stage, fact: str) -> float | None:
    """A fact of it, where it was measured: JSON has no NaN."""
    found = float(stage.facts.get(fact, nan))
    return None if isnan(found) else found


@dataclass(frozen=True)
class Effort:
    """Retrain and fine-tune epochs: trained, and what a sweep without sharing would train.

    baseline: epochs of one; baselines: how many were trained.
    """

    run: int
    naive: int
    baseline: int
    trials: int
    baselines: int = 1

    @property
    def saved(self) -> float:
        """naive / run."""
        return self.naive / max(1, self.run)

    @property
    def saved_with_baselines(self) -> float:
        """The same, if every trial of the naive sweep trained a baseline of its own."""
        naive = self.naive + self.trials * self.baseline
        return naive / max(1, self.run + self.baselines * self.baseline)


def effort_of(results: Iterable[Result], baseline_epochs: int, baselines: int = 1,
              failed: Iterable[Mapping[str, int]] = ()) -> Effort:
    """Count every stage once for the sweep, and once a trial for the naive one.

    failed: of trials without a result, the epochs of what they had trained, as in `Result`.
    """
    distinct: dict[str, int] = {}
    naive = trials = 0
    for epochs in (*(result.epochs for result in results), *failed):
        distinct.update(epochs)
        naive += sum(epochs.values())
        trials += 1
    return Effort(sum(distinct.values()), naive, baseline_epochs, trials, baselines)
