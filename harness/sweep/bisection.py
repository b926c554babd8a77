"""Binary search on the percentage: the largest at which the accuracy holds.

Every probe follows from those before it. `exact` halves what is left of low, low + step, ..., high;
`origin` goes the way of ADaPT's Binary_Search, which rounds up to multiples of the step, and so
never tries `low`; it ends when a probe would be one that was tried.
"""

from collections.abc import Sequence
from math import ceil

from harness.settings import Search

SLACK = 1e-9  # a quotient that should be whole may be a little above it


def next_percentage(search: Search, held: Sequence[bool]) -> float | None:
    """What to try after probes that held the accuracy or did not; None if the search is over."""
    if search.first and any(held):
        return None
    return _origin(search, held) if search.path == "origin" else _exact(search, held)


def percentages(search: Search) -> list[float]:
    """Every percentage that a search may try."""
    count = round((search.high - search.low) / search.step) + 1
    every = [round(search.low + number * search.step, 9) for number in range(count)]
    return [int(value) if value.is_integer() else value for value in every]


def _exact(search: Search, held: Sequence[bool]) -> float | None:
    every = percentages(search)
    below, above = -1, len(every)  # every place between them is open
    place = round((search.start - search.low) / search.step)
    for has_held in held:
        below, above = (place, above) if has_held else (below, place)
        if above - below == 1:
            return None
        place = (below + above) // 2
    return every[place]


def _origin(search: Search, held: Sequence[bool]) -> float | None:
    lower, upper, probe = search.low, search.high, search.start
    tried = {probe}
    for has_held in held:
        lower, upper = (probe, upper) if has_held else (lower, probe)
        other = upper if has_held else lower
        probe = round(search.step * ceil((other + probe) / 2 / search.step - SLACK), 9)
        if probe in tried:
            return None
        tried.add(probe)
    return probe
