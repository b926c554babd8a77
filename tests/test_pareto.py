"""Areas under fronts, against counting by hand and by fine sums."""

import math

import numpy as np
import pytest

from harness.analysis.pareto import curve_area, front, hypervolume


def test_the_hypervolume_is_the_share_of_random_points_that_the_front_beats() -> None:
    points = [(0.1, 0.6), (0.4, 0.8), (0.3, 0.5), (1.0, 0.9)]
    drawn = np.random.default_rng(0).random((200_000, 2))
    beaten = np.zeros(len(drawn), bool)
    for share, accuracy in points:
        beaten |= (drawn[:, 0] >= share) & (drawn[:, 1] <= accuracy)
    assert hypervolume(points) == pytest.approx(beaten.mean(), abs=0.005)
    assert hypervolume(points) == pytest.approx(0.3 * 0.6 + 0.6 * 0.8)


def test_a_dominated_point_changes_no_area() -> None:
    points = [(0.02, 0.5), (0.2, 0.8), (1.0, 0.9)]
    more = [*points, (0.3, 0.7), (0.9, 0.8)]
    assert hypervolume(more) == hypervolume(points)
    assert curve_area(more) == curve_area(points)


def test_the_curves_area_is_the_mean_accuracy_over_the_logarithm_of_flops() -> None:
    points = [(0.02, 0.5), (0.2, 0.8), (1.0, 0.9)]
    logs = np.linspace(-2, 0, 200_001)
    known = np.interp(logs, [math.log10(s) for s, _ in points], [a for _, a in points])
    known[logs < math.log10(0.02)] = 0
    assert curve_area(points) == pytest.approx(known.mean(), abs=1e-4)


def test_a_curve_that_starts_below_one_percent_counts_from_there_on() -> None:
    points = [(0.001, 0.3), (0.1, 0.9)]
    logs = np.linspace(-2, 0, 200_001)
    known = np.interp(logs, [-3, -1], [0.3, 0.9])
    assert curve_area(points) == pytest.approx(known.mean(), abs=1e-4)


def test_a_perfect_network_fills_everything_and_none_fills_nothing() -> None:
    assert hypervolume([(0.0, 1.0)]) == 1.0
    assert curve_area([(0.01, 1.0)]) == pytest.approx(1.0)
    assert hypervolume([]) == curve_area([]) == 0.0
    assert curve_area([(1.0, 0.9)]) == 0.0


def test_the_front_is_the_cheapest_first_and_of_equals_the_first() -> None:
    points = [(3, 0.9, "a"), (1, 0.5, "b"), (1, 0.5, "c"), (2, 0.5, "d"), (2, 0.7, "e")]
    kept = front(points, accuracy=lambda p: p[1], cost=lambda p: p[0])
    assert [name for _, _, name in kept] == ["b", "e", "a"]
