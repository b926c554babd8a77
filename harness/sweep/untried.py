"""Settings of a space that were not tried yet. Nothing is listed, so a space may be as large as it
likes: settings have numbers, the last key counting fastest, as in nested loops."""

from collections.abc import Mapping, Sequence
from itertools import count
from math import inf
from random import Random
from typing import Any

from harness.dimensions import Dimension, Number

Settings = dict[str, Any]
Dimensions = Mapping[str, Dimension]
MOST_DRAWS = 100  # for something new where settings cannot be counted


def size_of(dimensions: Dimensions) -> Number:
    """How many different settings there are; infinity with a range that has no steps."""
    size: Number = 1
    for found in dimensions.values():
        size *= found.size
    return size


def first(dimensions: Dimensions, seen: Sequence[Settings]) -> Settings | None:
    """In the order of nested loops; None if all were tried. Only of a space that has an end."""
    taken = _numbers(dimensions, seen)
    number = next(n for n in count() if n not in taken)
    return _settings(dimensions, number) if number < size_of(dimensions) else None


def at_random(dimensions: Dimensions, seen: Sequence[Settings], seed: int) -> Settings | None:
    """All equally likely; None if all were tried. Of a space without end none, seldom, too."""
    if size_of(dimensions) == inf:
        return _drawn(dimensions, seen, Random(seed))
    taken = sorted(_numbers(dimensions, seen))
    left = int(size_of(dimensions)) - len(taken)
    if not left:
        return None
    number = Random(seed).randrange(left)
    for other in taken:  # the number-th of those that are left
        if other > number:
            break
        number += 1
    return _settings(dimensions, number)


def _drawn(dimensions: Dimensions, seen: Sequence[Settings], random: Random) -> Settings | None:
    for _ in range(MOST_DRAWS):
        settings = {path: found.drawn(random) for path, found in dimensions.items()}
        if settings not in seen:
            return settings
    return None


def _numbers(dimensions: Dimensions, seen: Sequence[Settings]) -> set[int]:
    """Without settings that are not whole, because their asker died."""
    found = (_number(dimensions, settings) for settings in seen if dimensions.keys() <= {*settings})
    return {number for number in found if number is not None}


def _number(dimensions: Dimensions, settings: Settings) -> int | None:
    number = 0
    for path, found in dimensions.items():
        place = found.place(settings[path])
        if place is None:
            return None
        number = number * int(found.size) + place
    return number


def _settings(dimensions: Dimensions, number: int) -> Settings:
    places = {}
    for path in reversed([*dimensions]):
        number, places[path] = divmod(number, int(dimensions[path].size))
    return {path: found.at(places[path]) for path, found in dimensions.items()}
