"""Which points nobody beats: accuracy up, MACs down."""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def front(points: Sequence[T], *, accuracy: Callable[[T], float], macs: Callable[[T], float],
          ) -> list[T]:
    """The points that no other equals or beats in both, cheapest first; of equals, the first."""
    best = float("-inf")
    kept = []
    for point in sorted(points, key=lambda p: (macs(p), -accuracy(p))):
        if accuracy(point) > best:
            best = accuracy(point)
            kept.append(point)
    return kept
