"""What is asked of a network, of one step, and by the rules of the origins."""

import nets
import numpy as np
import pytest
import torch

from engine.by_hand import traced
from harness.engine.tally import Counts
from harness.engine.targets import (
    Budget,
    budget_of,
    check_target,
    keeps_by_count,
    keeps_by_quantile,
    origin_iterations,
    target_of,
)
from harness.errors import ConfigError

WHOLE = Counts(filters=100, channels=120, params=1000, macs=10_000, memory=4000, latency_ms=5.0)


def with_macs(macs: int) -> Counts:
    return Counts(100, 120, 1000, macs, 4000, 5.0)


@pytest.mark.rows("R032")
@pytest.mark.parametrize(("filters", "each", "percentage", "steps"), [
    (4224, 512, 67, 5), (4224, 512, 20, 1), (4224, 32, 70, 92), (4224, 32, 99, 130)])
def test_iterations_of_the_first_seeds(filters: int, each: int, percentage: float,
                                       steps: int) -> None:
    assert origin_iterations(filters, each, percentage) == steps


@pytest.mark.rows("R035")
def test_what_a_step_took_too_much_is_taken_off_the_next() -> None:
    """Steps of 1000 of 10,000 end at 9000, 8000, ..., wherever the one before ended."""
    for budget in (Budget("macs", 0.1), Budget("macs", 1000)):
        assert budget.enough(WHOLE, with_macs(10_000)) == pytest.approx(9000, abs=1e-4)
        assert budget.enough(WHOLE, with_macs(8950)) == pytest.approx(8000, abs=1e-4)
        assert budget.enough(WHOLE, with_macs(8800)) == pytest.approx(8000, abs=1e-4)
        # A whole step was taken too much: it is passed over.
        assert budget.enough(WHOLE, with_macs(7990)) == pytest.approx(7000, abs=1e-4)
        # 50 would be left of this step, less than a tenth: on to the next.
        assert budget.enough(WHOLE, with_macs(8050)) == pytest.approx(7000, abs=1e-4)


@pytest.mark.rows("R035", "R036")
@pytest.mark.parametrize("resource", ["filters", "channels", "params", "macs", "flops", "memory",
                                      "latency"])
def test_a_step_always_takes_something(resource: str) -> None:
    budget = Budget(resource, 0.01)
    now = {"latency": WHOLE.latency_ms, "flops": WHOLE.flops}.get(
        resource, getattr(WHOLE, resource, None))
    assert now is not None
    assert budget.enough(WHOLE, WHOLE) < now


def test_a_target_is_met_when_all_of_it_is() -> None:
    _, _, graph = traced(nets.chain)
    target = target_of(graph, {"filters": 0.5, "params": 0.7})
    cost = graph.cost()
    half, third = cost.filters // 2, int(0.3 * cost.params + 1e-6)
    assert target.met(Counts(half, 1, third, 1, 1))
    assert not target.met(Counts(half + 1, 1, third, 1, 1))
    assert not target.met(Counts(half, 1, third + 1, 1, 1))
    nearest = target.nearest(Counts(cost.filters, 1, cost.params, 1, 1))
    assert nearest == "0.0% of the filters can go, 50.0% asked, 0.0% of the params can go, " \
        "70.0% asked"


def test_what_is_wrong_with_a_target_or_a_step_is_said() -> None:
    with pytest.raises(ConfigError, match="unknown resource 'flop'. Nearest: flops"):
        check_target({"flop": 0.5})
    with pytest.raises(ConfigError, match="macs: 1.5 must be a share above 0 and below 1"):
        check_target({"macs": 1.5})
    with pytest.raises(ConfigError, match="name one of filters"):
        check_target({})
    with pytest.raises(ConfigError, match="name one resource .* not 2"):
        budget_of({"macs": 0.1, "params": 0.1})
    with pytest.raises(ConfigError, match="macs: -1 must be above 0"):
        budget_of({"macs": -1})
    with pytest.raises(ConfigError, match="latency: give a share"):
        budget_of({"latency": 3})
    _, _, graph = traced(nets.chain)
    with pytest.raises(ConfigError, match="latency: needs the tables"):
        target_of(graph, {"latency": 0.5})


@pytest.mark.rows("R040")
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_thresholds_are_quantiles(share: float) -> None:
    scores = torch.rand(37, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = scores.numpy() >= np.quantile(scores.numpy(), share)
    assert keeps_by_quantile(scores, share).tolist() == expected.tolist()


@pytest.mark.rows("R040")
def test_a_quantile_keeps_equals_together_and_a_count_does_not() -> None:
    even = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0])
    assert keeps_by_quantile(even, 0.5).tolist() == [True] * 5
    assert keeps_by_quantile(even, 1.0).tolist() == [False] * 4 + [True]
    assert keeps_by_quantile(even, 0.0).tolist() == [True] * 5
    assert keeps_by_count(even, 0.4).tolist() == [False, False, True, True, True]
    assert keeps_by_count(even, 0.0).tolist() == [True] * 5
    assert keeps_by_count(even, 1.0).tolist() == [False] * 5


@pytest.mark.rows("R039")
@pytest.mark.parametrize(("width", "share", "kept"), [
    (64, 0.1, 57), (128, 0.2, 102), (256, 0.5, 128), (256, 0.6, 102), (512, 0.75, 128),
    (512, 0.8, 102), (512, 0.85, 76), (512, 0.9, 51), (10, 0.9, 1)])
def test_counts_of_the_seeds_plan(width: int, share: float, kept: int) -> None:
    assert int(keeps_by_count(torch.arange(width).double(), share).sum()) == kept
