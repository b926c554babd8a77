"""Sides that are compared take turns, so that a busy machine hurts all alike; medians are told.

And how a cost grows: the slope of a straight line through the logarithms.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

Way = Callable[[], float]  # does its work once, and gives what that cost


def cpu(work: Callable[[], object]) -> float:
    """Seconds of this process's processors: what others do beside it hardly counts."""
    start = time.process_time()
    work()
    return time.process_time() - start


def wall(work: Callable[[], object]) -> float:
    """Seconds of the clock: for what waits, for the disk or for other processes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(ways: Mapping[str, Way], rounds: int, *, warm: int = 1) -> dict[str, list[float]]:
    """Way -> its cost in each round; the order turns round with every round.

    warm: rounds before them that do not count.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-warm, rounds):
        for name in ways if turn % 2 == 0 else reversed(ways):
            cost = ways[name]()
            if turn >= 0:
                found[name].append(cost)
    return found


def medians(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: median(costs) for name, costs in found.items()}


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Exponent b of cost = a x size^b, by least squares through the logarithms.

    Raises ValueError for fewer than four sizes, for equal ones, and for what is not above 0.
    """
    if len(sizes) != len(costs) or len(set(sizes)) < 4:
        raise ValueError(f"a slope needs four different sizes and a cost for each: {list(sizes)}, "
                         f"{list(costs)}")
    if min(*sizes, *costs) <= 0:
        raise ValueError(f"no logarithm of 0 and below: {list(sizes)}, {list(costs)}")
    x, y = [math.log(s) for s in sizes], [math.log(c) for c in costs]
    middle_x, middle_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    return (math.fsum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
            / math.fsum((a - middle_x) ** 2 for a in x))
