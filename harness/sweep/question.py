"""What a study asks: how a trial is valued, which networks may be chosen, and which is the best."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Protocol

from optuna.study import StudyDirection

from harness.settings import Constraints, StudyConfig
from harness.sweep.results import Final, Result

ACCURACY, FLOPS = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
DIRECTIONS = {"budget": (ACCURACY,), "pareto": (ACCURACY, FLOPS), "binary_search": (ACCURACY,)}


class Cost(Protocol):
    """What a network costs; latency_share: None where it was not measured."""

    @property
    def macs(self) -> int: ...
    @property
    def params(self) -> int: ...
    @property
    def latency_share(self) -> float | None: ...


@dataclass(frozen=True)
class Question:
    """A study's question about a network whose baseline has these MACs, parameters, and accuracy on
    validation, in [0, 1]."""

    config: StudyConfig
    macs: int
    params: int
    accuracy: float

    @property
    def text(self) -> str:
        """The question in words."""
        limits = [f"at most {100 * share:.4g} % of the {what}" for what, share in
                  (("FLOPs", self.flops_limit), ("latency", self.latency_limit),
                   ("parameters", self._constraints.params))
                  if share is not None]
        if self._constraints.accuracy is not None:
            limits.append(f"at least {self._constraints.accuracy:.2%} accuracy")
        within = f" with {' and '.join(limits)}" if limits else ""
        if self.config.kind == "budget":
            return f"the most accurate network{within}"
        points = f"{100 * self.config.tolerance:.4g} point{'s' * (self.config.tolerance != 0.01)}"
        smallest = "fastest" if self.config.cost == "latency" else "smallest"
        return (f"the {smallest} network{within} that is at most {points} less accurate than the "
                "baseline")

    @property
    def flops_limit(self) -> float | None:
        return flops_limit(self.config)

    @property
    def latency_limit(self) -> float | None:
        """Share of the whole network's measured latency that one may have; None if any."""
        config = self.config
        shares = [config.constraints.latency,
                  config.budget.latency if config.kind == "budget" else None]
        return min((share for share in shares if share is not None), default=None)

    @property
    def is_about_latency(self) -> bool:
        return self.config.cost == "latency" or self.latency_limit is not None

    @property
    def most_macs(self) -> float:
        return inf if self.flops_limit is None else self.flops_limit * self.macs

    @property
    def most_params(self) -> float:
        share = self._constraints.params
        return inf if share is None else share * self.params

    @property
    def limits_cost(self) -> bool:
        return min(self.most_macs, self.most_params) < inf or self.latency_limit is not None

    def affords(self, network: Cost) -> bool:
        """Whether a network of this cost may be chosen."""
        limit = self.latency_limit
        return (network.macs <= self.most_macs and network.params <= self.most_params
                and (limit is None or or_whole(network.latency_share) <= limit))

    def price(self, network: Cost) -> float:
        """What it costs by the study's measure, as a share of the whole network's."""
        return (or_whole(network.latency_share) if self.config.cost == "latency"
                else network.macs / self.macs)

    def values(self, final: Final) -> list[float]:
        """What the sampler is told of a trial that ended with this network; see DIRECTIONS."""
        values = [final.accuracy, self.price(final)]
        return values[:len(DIRECTIONS[self.config.kind])]

    def excess(self, final: Final) -> dict[str, float]:
        """Constraint -> how far it is broken, as a share; none is above 0 if all hold."""
        given = self._constraints
        found = {}
        if self.flops_limit is not None:
            found["flops_over_budget"] = final.macs / self.macs - self.flops_limit
        if self.latency_limit is not None:
            found["latency_over_budget"] = or_whole(final.latency_share) - self.latency_limit
        if given.params is not None:
            found["params_over_limit"] = final.params / self.params - given.params
        if given.accuracy is not None:
            found["accuracy_under_limit"] = given.accuracy - final.accuracy
        return found

    def holds(self, final: Final) -> bool:
        """Whether this network may be chosen."""
        least = self._constraints.accuracy
        return self.affords(final) and (least is None or final.accuracy >= least)

    def is_close(self, accuracy: float) -> bool:
        """Whether an accuracy is the baseline's, but for the tolerance."""
        return accuracy >= self.accuracy - self.config.tolerance - 1e-12

    def best(self, results: Iterable[tuple[int, Result]]) -> tuple[int, Final] | None:
        """(trial, network): the champion among all that may be chosen, if there is one.

        Of a budget study the most accurate, of equals the cheaper one; of others the cheapest that
        is close to the baseline.
        """
        found = [(number, final) for number, result in results for final in result.finals
                 if self.holds(final)]
        if self.config.kind != "budget":
            found = [f for f in found if self.is_close(f[1].accuracy)]
        return min(found, default=None, key=lambda f: (
            *rank(self.config.kind, f[1].accuracy, self.price(f[1])), f[0]))

    @property
    def least_accuracy(self) -> float | None:
        """What a network must have to be chosen; None if any will do."""
        close = None if self.config.kind == "budget" else self.accuracy - self.config.tolerance
        limits = [x for x in (close, self._constraints.accuracy) if x is not None]
        return max(limits, default=None)

    @property
    def _constraints(self) -> Constraints:
        return self.config.constraints


def or_whole(latency_share: float | None) -> float:
    """Of the whole network's latency; what was not measured has gained nothing."""
    return 1.0 if latency_share is None else latency_share


def rank(kind: str, accuracy: float, price: float) -> tuple[float, float]:
    """Of two networks that a study of this kind may choose, the one with the lesser rank is better.

    A budget study's: more accurate, of equals the cheaper; another's: the other way round.
    """
    return (-accuracy, price) if kind == "budget" else (price, -accuracy)


def flops_limit(config: StudyConfig) -> float | None:
    """Share of the baseline's FLOPs that a network may have; None if any."""
    shares = [config.constraints.flops, config.budget.flops if config.kind == "budget" else None]
    return min((share for share in shares if share is not None), default=None)
