"""What the controls say of the champion: pair by pair, in numbers and in one sentence each."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from statistics import mean
from typing import Any

from harness.analysis.paired import Paired, paired, spread
from harness.console import percent
from harness.settings import AGNOSTIC
from harness.sweep.controls import Control
from harness.sweep.results import AGAIN, Final

UNEQUAL = 0.02  # a difference of the FLOPs, as a share of ours, that must be told


@dataclass(frozen=True)
class Versus:
    """One control against the champion's settings.

    accuracies: on validation, one a run, in [0, 1]; share: of the baseline's FLOPs, the mean;
    against, share_against: the same of the champion's settings on the same baselines, pair by pair.
    For `again` itself they are the same.
    """

    name: str
    accuracies: tuple[float, ...]
    share: float
    against: tuple[float, ...]
    share_against: float

    @property
    def mean(self) -> float:
        return mean(self.accuracies)

    @property
    def spread(self) -> float:
        """Standard deviation over the runs; NaN of one."""
        return spread(self.accuracies)

    @property
    def difference(self) -> Paired:
        """The champion's settings - the control."""
        return paired(self.against, self.accuracies)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Versus":
        return cls(facts["name"], tuple(facts["accuracies"]), facts["share"],
                   tuple(facts["against"]), facts["share_against"])


def compared(controls: Sequence[Control], champion: Final, macs: int) -> tuple[Versus, ...]:
    """Every control that ran, `again` first. macs: the baseline's.

    With replicates the champion itself is in no comparison: it was chosen for its accuracy.
    """
    ran = [c for c in controls if c.result]
    ours = {c.replicate: c.result.last for c in ran if c.name == AGAIN and c.result}
    if not any(c.replicate for c in controls):
        ours = {0: champion}
    found = []
    for name in dict.fromkeys(c.name for c in ran):
        pairs = [(c.result.last, ours[c.replicate]) for c in ran
                 if c.name == name and c.result and c.replicate in ours]
        if pairs:
            found.append(Versus(name, tuple(final.accuracy for final, _ in pairs),
                                mean(final.macs for final, _ in pairs) / macs,
                                tuple(own.accuracy for _, own in pairs),
                                mean(own.macs for _, own in pairs) / macs))
    return tuple(found)


def sentence(criterion: str, versus: Versus, measure: str = "top-1 accuracy") -> str:
    """What a person can quote. criterion: the champion's."""
    found, other = versus.difference, versus.name
    if other == AGNOSTIC:
        criterion, other = "pruning for the chosen classes", "pruning for all"
    points = f"{100 * found.mean:+.2f}"
    ours = versus.share_against
    at = f"at {percent(ours)} of the FLOPs"
    if abs(versus.share - ours) > UNEQUAL * ours:
        at += f" ({other} has {percent(versus.share)})"
    if found.pairs == 1:
        return (f"{criterion} against {other} {at}: {points} points of {measure} on validation "
                "in one run each, which may be luck; replicates: 3 would tell")
    how = (f"{found.pairs} pairs, 95 % interval {100 * found.low:+.2f} to {100 * found.high:+.2f}; "
           "validation")
    amount = f"{abs(100 * found.mean):.2f} ± {100 * found.error:.2f} points {at} ({how})"
    if not found.is_certain:
        return (f"no difference shown between {criterion} and {other}: {points} ± "
                f"{100 * found.error:.2f} points {at} ({how})")
    return f"{criterion} {'beats' if found.mean > 0 else 'loses to'} {other} by {amount}"


def metrics(versus: Versus) -> dict[str, float]:
    """The comparison as metrics of the study's run; what one pair cannot tell is left out."""
    found, name = versus.difference, versus.name.replace(":", ".")
    values = {"accuracy": versus.mean, "accuracy_spread": versus.spread}
    if versus.name != AGAIN:
        values |= {"difference": found.mean, "difference_error": found.error,
                   "difference_low": found.low, "difference_high": found.high}
    return {f"{key}_{name}": value for key, value in values.items() if not isnan(value)}
