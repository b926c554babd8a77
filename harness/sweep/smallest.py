"""Which settings of a space let a network become smallest: few of them, however large it is.

Floors keep more the higher they are, so the lowest of each is enough; what has no such order is
tried value by value, and a range of it is taken for the best that it could be.
"""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

from harness.config import RunConfig, StudyConfig, apply
from harness.dimensions import Dimension, Ladder, dimension

FLOORS, ROUND_TO, PERCENTAGE = "prune.floors.", "prune.round_to", "prune.percentage"
RELATIVE, RULE = "prune.floors.relative", "prune.floors.group_rule"
WITHOUT_ORDER = (RULE, "prune.floors.counting")


def smallest(base: RunConfig, study: StudyConfig) -> Iterator[RunConfig]:
    """Runs, one of which may keep as little as any of the study may."""
    found = {key: dimension(given) for key, given in study.space.items()}
    has_rule = RULE in found or base.prune.floors.group_rule != "share"
    tried = {key: _tried(key, values) for key, values in found.items()
             if key.startswith(FLOORS) or key == ROUND_TO or (has_rule and key == PERCENTAGE)}
    for values in product(*tried.values()):
        yield apply(base, dict(zip(tried, values)))


def _tried(key: str, values: Dimension) -> Iterable[Any]:
    if key == RELATIVE:
        return [max(values.outermost)]  # 0 is none, and with one nothing is known beforehand
    if key.startswith(FLOORS) and key not in WITHOUT_ORDER:
        return [min(values.outermost)]
    if isinstance(values, Ladder):
        return values.rungs
    if key == ROUND_TO:
        return [1]
    # The rules of floors by percentage rise or fall up to the half and from there on.
    return {*values.outermost, min(max(50.0, values.low), values.high)}
