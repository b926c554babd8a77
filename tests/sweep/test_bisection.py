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


@pytest.mark.parametrize("grid", [(5, 95, 5, 50), (10, 90, 10, 60), (2.4, 96, 2.4, 48),
                                  (0.7, 98.7, 0.7, 49), (20, 80, 20, 80)])
@pytest.mark.parametrize("limit", [*range(0, 100, 5), 57])
def test_no_way_tries_a_percentage_twice_or_one_that_is_not_on_its_grid(
        grid: tuple[float, float, float, float], limit: float) -> None:
    """After 50, 75, 65, 60 and 55 the origin would try 60 again, and learn nothing."""
    low, high, step, start = grid
    for way in ("exact", "origin"):
        search = Search.model_validate({"low": low, "high": high, "step": step, "start": start,
                                        "path": way})
        tried = path(search, lambda percentage: percentage <= limit)
        assert len(tried) == len(set(tried))
        assert set(tried) <= set(percentages(search))


def test_a_grid_beside_the_multiples_is_not_for_the_origins_way() -> None:
    grid = {"low": 7, "high": 97, "start": 52}
    Search.model_validate(grid)
    with pytest.raises(ValueError, match=r"low \(7\) must be a multiple of step \(5\)"):
        Search.model_validate({**grid, "path": "origin"})


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
