"""Binary search on the percentage."""

from collections.abc import Callable

import pytest

from harness.settings import Search
from harness.sweep.bisection import next_percentage, percentages


def path(search: Search, holds: Callable[[float], bool]) -> list[float]:
    """The probes, in order."""
    tried: list[float] = []
    held: list[bool] = []
    while (probe := next_percentage(search, held)) is not None:
        tried.append(probe)
        held.append(holds(probe))
        assert len(tried) < 100
    return tried


@pytest.mark.rows("R108")
def test_the_origins_way_is_that_of_seed_004() -> None:
    origin = Search(path="origin")
    assert path(origin, lambda percentage: True) == [50, 75, 85, 90, 95]
    assert path(origin, lambda percentage: False) == [50, 30, 20, 15, 10]


@pytest.mark.rows("R108")
@pytest.mark.parametrize("limit", range(0, 100, 5))
def test_the_largest_that_holds_is_found_wherever_it_is(limit: int) -> None:
    """On a grid of 19 in at most 5 probes, as halving needs."""
    tried = path(Search(), lambda percentage: percentage <= limit)
    assert max((p for p in tried if p <= limit), default=0) == min(limit, 95)
    assert len(tried) == len(set(tried)) <= 5


@pytest.mark.parametrize("limit", range(10, 100, 5))
def test_the_origins_way_finds_it_too_but_for_the_lowest(limit: int) -> None:
    tried = path(Search(path="origin"), lambda percentage: percentage <= limit)
    assert max(p for p in tried if p <= limit) == min(limit, 95)


@pytest.mark.rows("R108")
@pytest.mark.parametrize("way", ["exact", "origin"])
def test_the_first_that_holds_may_be_enough(way: str) -> None:
    search = Search.model_validate({"path": way, "first": True})
    tried = path(search, lambda percentage: percentage <= 30)
    assert tried[-1] <= 30
    assert all(p > 30 for p in tried[:-1])


@pytest.mark.parametrize("step", [0.1, 0.7, 2.4])
def test_a_fine_grid_is_searched_to_its_end(step: float) -> None:
    high = 1 + 40 * step
    search = Search(low=1.0, high=high, step=step, start=1 + 20 * step)
    grid = percentages(search)
    assert len(grid) == 41
    tried = path(search, lambda percentage: percentage <= grid[33] + step / 2)
    assert max(p for p in tried if p <= grid[33] + step / 2) == grid[33]
