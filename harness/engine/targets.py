"""How much shall go: the target, the budget of one step, and rules that repeat the origins'.

Resources: 'filters' are convolution outputs, 'channels' those of all layers that can be cut,
'params' and 'macs' counted ('flops' is the same share), 'memory' the bytes of parameters and
buffers, 'latency' the milliseconds that the layers' tables add up to (see latency.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

from harness.engine.floors import is_number
from harness.engine.graph import Graph
from harness.engine.tally import Counts, LayerTime, counts_of
from harness.errors import ConfigError, unknown

RESOURCES = ("filters", "channels", "params", "macs", "flops", "memory", "latency")
SLACK = 1e-9  # a share such as 0.7 must not ask for one more because it is 0.7000000000000001


@dataclass(frozen=True)
class Target:
    """Shares to remove, and what may be left at most of each resource; all must be met."""

    shares: Mapping[str, float]
    whole: Counts

    def met(self, counts: Counts) -> bool:
        """Of nothing no share can go."""
        return all(left_of(self.whole, r) > 0 and left_of(counts, r) <= self.limit(r)
                   for r in self.shares)

    def limit(self, resource: str) -> float:
        return left_of(self.whole, resource) * (1 - self.shares[resource] + SLACK)

    def nearest(self, counts: Counts) -> str:
        """Sentence for counts that do not meet it: what can go beside what was asked."""
        gone = {r: 1 - left_of(counts, r) / total if (total := left_of(self.whole, r)) else 0.0
                for r in self.shares}
        return ", ".join(f"{gone[r]:.1%} of the {r} can go, {share:.1%} asked"
                         for r, share in self.shares.items())


@dataclass(frozen=True)
class Budget:
    """What one step takes of a resource: amount, below 1 a share of the whole network's.

    What a step took too much, because a channel is no smaller, is taken off the next one: the
    steps add up. A step of which less than a tenth would be left is passed over.
    """

    resource: str
    amount: float

    def enough(self, whole: Counts, now: Counts) -> float:
        """How much may be left after the step that begins now: less than there is now."""
        total = left_of(whole, self.resource)
        each = self.amount * total if self.amount < 1 else self.amount
        done = floor((total - left_of(now, self.resource)) / each + 0.1) if each else 0
        return total - (done + 1) * each + SLACK * total


def check_target(shares: Mapping[str, float]) -> None:
    """Raises ConfigError for a resource that there is not, or a share outside (0, 1)."""
    if not isinstance(shares, Mapping):
        raise ConfigError(f"target: {shares!r} must be a table: {{'filters': 0.5}}.")
    wrong = [unknown("resource", name, RESOURCES) for name in shares if name not in RESOURCES]
    wrong += [f"{name}: {share!r} must be a share above 0 and below 1"
              for name, share in shares.items() if not (is_number(share) and 0 < share < 1)]
    if wrong or not shares:
        raise ConfigError("target: " + ("; ".join(wrong) or f"name one of {', '.join(RESOURCES)}."))


def budget_of(step: Mapping[str, float]) -> Budget:
    """{resource: amount} with one entry. Raises ConfigError."""
    wrong = [unknown("resource", name, RESOURCES) for name in step if name not in RESOURCES]
    wrong += [f"{name}: {amount} must be above 0" for name, amount in step.items() if amount <= 0]
    if len(step) != 1:
        wrong.append(f"name one resource of {', '.join(RESOURCES)}, not {len(step)}")
    if step.get("latency", 0) >= 1:
        wrong.append("latency: give a share below 1")
    if wrong:
        raise ConfigError("step: " + "; ".join(wrong) + ".")
    return Budget(*next(iter(step.items())))


def target_of(graph: Graph, shares: Mapping[str, float],
              times: Mapping[str, LayerTime] | None = None) -> Target:
    """A target on this network. Raises ConfigError; latency asks for tables."""
    if "latency" in shares and times is None:
        raise ConfigError("latency: needs the tables of the layers' latencies: "
                          "latency=harness.latency_tables(model, example, graph).")
    return Target(shares, whole_counts(graph, times))


def whole_counts(graph: Graph, times: Mapping[str, LayerTime] | None = None) -> Counts:
    """Counts of the whole network."""
    return counts_of(graph, graph.whole(), times)


def gone_of(whole: Counts, counts: Counts) -> dict[str, float]:
    """Share of every resource that is gone; of latency only where it was counted."""
    known = [r for r in RESOURCES if r != "latency" or counts.latency_ms is not None]
    return {r: 1 - left_of(counts, r) / total if (total := left_of(whole, r)) else 0.0
            for r in known}


def left_of(counts: Counts, resource: str) -> float:
    """What is left of a resource, in its own unit."""
    if resource == "latency":
        if counts.latency_ms is None:
            raise ConfigError("latency: needs the tables of the layers' latencies.")
        return counts.latency_ms
    return int(getattr(counts, resource))


def origin_iterations(num_filters: int, per_step: int, percentage: float) -> int:
    """Steps of the first seeds' loop, which truncates twice, and so removes less than it is asked.

    Of 4224 filters, 512 a step and 67 % give 5 steps: 60.6 %. (jacobgil/pytorch-pruning,
    finetune.py; there 2/3 instead of the percentage.)
    """
    return int(int(num_filters / per_step) * percentage * 0.01)


def keeps_by_quantile(scores: Tensor, share: float) -> Tensor:
    """(C,) whether each stays: those at or above the share's quantile, interpolated.

    Of equal scores all stay or all go, and the highest stays even if the share is 1.
    """
    return scores >= torch.quantile(scores.double(), share)


def keeps_by_count(scores: Tensor, share: float) -> Tensor:
    """(C,) whether each stays: the int(n (1 - share)) highest; of equals the lower index goes.

    A share of 1 keeps none: whoever cuts by it has to see that a layer is not emptied.
    """
    number = len(scores) - int(len(scores) * (1 - share) + SLACK)
    keeps = torch.ones(len(scores), dtype=torch.bool)
    keeps[scores.argsort(stable=True)[:number]] = False
    return keeps
