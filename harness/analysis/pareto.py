"""Which points nobody beats (accuracy up, cost down), and how good they are as a whole."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import log10
from typing import TypeVar

T = TypeVar("T")
LEAST_SHARE = 0.01  # where a curve's area begins


def front(points: Sequence[T], *, accuracy: Callable[[T], float], cost: Callable[[T], float],
          ) -> list[T]:
    """The points that no other equals or beats in both, cheapest first; of equals, the first."""
    best = float("-inf")
    kept = []
    for point in sorted(points, key=lambda p: (cost(p), -accuracy(p))):
        if accuracy(point) > best:
            best = accuracy(point)
            kept.append(point)
    return kept


def hypervolume(points: Iterable[tuple[float, float]]) -> float:
    """Of (share of the FLOPs, accuracy), against the worst there is: all FLOPs, accuracy 0.

    In [0, 1]; the area that the front dominates (Zitzler and Thiele 1999).
    """
    beaten, last, best = 0.0, 0.0, 0.0
    for share, accuracy in [*_front(points), (1.0, 0.0)]:
        share = min(share, 1.0)
        beaten += (share - last) * best
        last, best = share, max(best, accuracy)
    return beaten


def curve_area(points: Iterable[tuple[float, float]]) -> float:
    """Mean accuracy over FLOPs from 1 % to all, on a logarithmic axis: a curve as one number.

    points: (share of the FLOPs, accuracy). Between the points of the front the accuracy is
    interpolated; where no network is as small, it counts as 0. In [0, 1].
    """
    curve = [(log10(share), accuracy) for share, accuracy in _front(points) if share > 0]
    if not curve:
        return 0.0
    start = log10(LEAST_SHARE)
    curve = [*curve, (max(0.0, curve[-1][0]), curve[-1][1])]
    area = sum(_slice(one, other, start) for one, other in pairwise(curve))
    return area / -start


def _slice(one: tuple[float, float], other: tuple[float, float], start: float) -> float:
    """Area under the line between two points, right of `start`."""
    (left, low), (right, high) = one, other
    if right <= start or right == left:
        return 0.0
    if left < start:
        low += (high - low) * (start - left) / (right - left)
        left = start
    return (right - left) * (low + high) / 2


def _front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    return front(list(points), accuracy=lambda p: p[1], cost=lambda p: p[0])
