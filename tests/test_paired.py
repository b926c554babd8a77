"""Paired differences, against scipy's own test and tables."""

import math
from random import Random

import pytest
from scipy import stats

from harness.analysis.paired import paired, spread


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    random = Random(0)
    ours = [random.gauss(0.9, 0.01) for _ in range(6)]
    theirs = [one - random.gauss(0.01, 0.005) for one in ours]
    found = paired(ours, theirs)
    known = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert found.is_certain == (stats.ttest_rel(ours, theirs).pvalue < 0.05)


def test_three_pairs_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt 3, t of two degrees 4.3027."""
    found = paired([2, 4, 6], [1, 2, 3])
    assert (found.mean, found.error) == pytest.approx((2, 1 / math.sqrt(3)))
    assert found.high - found.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert not found.is_certain


def test_one_pair_has_no_spread() -> None:
    found = paired([0.9], [0.8])
    assert found.mean == pytest.approx(0.1)
    assert all(map(math.isnan, (found.error, found.low, found.high, spread([0.9]))))
    assert not found.is_certain


def test_pairs_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired([1, 2], [1])
    with pytest.raises(ValueError, match="no pair"):
        paired([], [])
