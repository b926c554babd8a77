"""Ladders and ranges: what a file means by them, which values they hold, and in which order."""

from decimal import Decimal
from random import Random
from typing import Any

import pytest

from harness.dimensions import Ladder, Range, dimension


def every(given: Any) -> list[Any]:
    """All its values, by place."""
    found = dimension(given)
    return [found.at(place) for place in range(int(found.size))]


def range_of(**table: Any) -> Range:
    found = dimension(table)
    assert isinstance(found, Range)
    return found


def test_a_list_is_a_ladder_and_a_table_is_a_range() -> None:
    assert dimension(["l1", None, 2]) == Ladder(("l1", None, 2))
    assert range_of(int=[1, 4]) == Range(1, 4, 1, False)
    assert range_of(float=[1, 4], log=True) == Range(1.0, 4.0, None, True)


@pytest.mark.parametrize(("given", "values"), [
    (["b", None, 0.5], ["b", None, 0.5]),
    ({"int": [-1, 2]}, [-1, 0, 1, 2]),
    ({"int": [16, 40], "step": 8}, [16, 24, 32, 40]),
    ({"int": [1, 3], "log": True}, [1, 2, 3]),
    ({"float": [0.05, 0.25], "step": 0.05}, [0.05, 0.1, 0.15, 0.2, 0.25]),
    ({"float": [1e-4, 3e-4], "step": 1e-4}, [0.0001, 0.0002, 0.0003]),
    ({"float": [0, 1], "step": 1}, [0.0, 1.0])])
def test_the_values_of_a_finite_dimension_are_counted_in_order(given: Any,
                                                               values: list[Any]) -> None:
    assert every(given) == values
    assert list(map(type, every(given))) == list(map(type, values))
    found = dimension(given)
    assert [found.place(value) for value in values] == [*range(len(values))]
    assert all(map(found.holds, values))


def test_a_range_without_steps_has_no_end_of_values() -> None:
    found = range_of(float=[0.1, 0.5])
    assert found.size == float("inf")
    assert found.holds(0.1234567)
    assert found.place(0.2) is None


@pytest.mark.parametrize(("given", "value"), [
    (["a", 1], True), ([True], 1), ([1, 2], "1"), ({"int": [1, 9]}, 0), ({"int": [1, 9]}, 2.5),
    ({"int": [1, 9]}, True), ({"int": [1, 9], "step": 2}, 4), ({"float": [0.1, 0.5]}, 0.50001),
    ({"float": [0.1, 0.5], "step": 0.1}, 0.25), ({"float": [0.1, 0.5]}, "0.2"),
    ({"float": [0.1, 0.5]}, None), ({"float": [0.1, 0.5]}, float("nan"))])
def test_what_is_not_among_its_values_is_not_held(given: Any, value: object) -> None:
    assert not dimension(given).holds(value)
    assert dimension(given).place(value) is None


@pytest.mark.parametrize(("given", "value", "meant"), [
    (["a"], "a", "a"), ({"int": [1, 9]}, 2, 2),
    ({"float": [0.05, 0.5], "step": 0.05}, 0.15000000000000002, 0.15),
    ({"float": [1e-4, 0.1], "log": True}, 0.012979058973837228, 0.0129791),
    ({"float": [0.1, 100]}, 12.345678, 12.3457), ({"float": [-1, 1]}, 0.0, 0.0),
    ({"float": [1000, 1000.5]}, 1000.12345678, 1000.123457),
    ({"float": [0.12345648, 1]}, 0.12345649, 0.12345648)])
def test_what_a_sampler_means_is_settled_as_a_person_would_write_it(given: Any, value: float,
                                                                    meant: float) -> None:
    settled = dimension(given).settled(value)
    assert (settled, type(settled)) == (meant, type(meant))
    assert dimension(given).holds(settled)


@pytest.mark.parametrize(("given", "value", "own"), [
    (["a", 1, 2], 2.0, 2), ([0.5, 1.0], 1, 1.0), ({"int": [1, 9]}, 2.0, 2),
    ({"float": [1, 9]}, 2, 2.0), ({"float": [0.1, 0.5]}, 0.123456789012, 0.123456789012),
    ({"float": [1, 9], "step": 1}, 2, 2.0)])
def test_a_value_that_equals_one_of_its_own_is_written_like_that(given: Any, value: float,
                                                                 own: float) -> None:
    found = dimension(given).own(value)
    assert (found, type(found)) == (own, type(own))


@pytest.mark.parametrize("given", [
    ["a", "b"], {"int": [3, 30], "step": 9}, {"int": [1, 1000], "log": True},
    {"float": [0.5, 2.5], "step": 0.5}, {"float": [1e-5, 1], "log": True}, {"float": [-3, 3]}])
def test_what_is_drawn_is_one_of_its_values(given: Any) -> None:
    drawn = [dimension(given).drawn(Random(seed)) for seed in range(200)]
    assert all(map(dimension(given).holds, drawn))
    assert len(set(drawn)) >= 2


def test_with_log_orders_of_magnitude_are_equally_likely() -> None:
    drawn = [range_of(float=[1e-4, 1], log=True).drawn(Random(seed)) for seed in range(400)]
    assert 60 < sum(number < 1e-3 for number in drawn) < 140
    assert sum(range_of(float=[1e-4, 1]).drawn(Random(seed)) < 1e-3 for seed in range(400)) < 10


@pytest.mark.parametrize("given", [
    {"int": [16, 512], "log": True}, {"float": [0.05, 0.5], "step": 0.05}, {"int": [2, 8]},
    {"int": [2, 8], "step": 2}, {"float": [1.0, 2.0], "step": 1.0}])
def test_a_range_is_written_as_it_was_read(given: dict[str, Any]) -> None:
    assert range_of(**given).as_table() == given


def test_what_has_no_effect_is_not_written() -> None:
    assert range_of(int=[1, 4], log=False, step=1).as_table() == {"int": [1, 4]}
    assert range_of(float=[1, 4], step=None).as_table() == {"float": [1.0, 4.0]}
    assert str(range_of(int=[1, 4], log=True)) == "{int: [1, 4], log: true}"


@pytest.mark.parametrize(("given", "words"), [
    (3, "3 must be a list: .*or a range: {int: "),
    ("abc", "'abc' must be a list"),
    ({}, "two ends under int or float"),
    ({"int": [1, 2], "float": [1, 2]}, "two ends under int or float"),
    ({"low": 1, "high": 2}, "unknown key of a range 'low'.*Known: float, int, log, step; .*'high'"),
    ({"int": [1, 2], "lgo": True}, "'lgo'. Nearest: log"),
    ({"int": [1, 2, 3]}, r"int: \[1, 2, 3\] must be two whole numbers: \[low, high\]"),
    ({"int": 3}, "int: 3 must be two whole numbers"),
    ({"int": "ab"}, "int: 'ab' must be two whole numbers"),
    ({"int": [1.0, 2.0]}, "must be two whole numbers"),
    ({"int": [False, True]}, "must be two whole numbers"),
    ({"int": [0, 2**60]}, "must be two whole numbers"),
    ({"float": [0, float("inf")]}, "must be two finite numbers"),
    ({"float": [0, "x"]}, "must be two finite numbers"),
    ({"int": [4, 1]}, "int: 4 must be below 1"),
    ({"float": [0.5, 0.5]}, r"one value alone is written \[0.5\]"),
    ({"float": [0, 1], "log": True}, "log: 0 must be > 0"),
    ({"float": [0, 1], "log": "yes"}, "log: 'yes' must be true or false"),
    ({"float": [0, 1], "log": True, "step": 0.1}, "log: 0 must be > 0; log takes no step"),
    ({"int": [1, 9], "step": 0}, "step: 0 must be a whole number > 0"),
    ({"int": [1, 9], "step": 0.5}, "step: 0.5 must be a whole number > 0"),
    ({"float": [1, 9], "step": -1}, "step: -1 must be a number > 0"),
    ({"float": [0, 9], "step": 1e-300}, "too fine"),
    ({"int": [16, 510], "step": 8}, "step: 8 does not lead from 16 to 510, but to 504 or 512"),
    ({"float": [0.1, 0.2], "step": 0.3}, "step: 0.3 does not lead from 0.1 to 0.2, but to 0.4")])
def test_a_wrong_dimension_is_told_what_would_be_right(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dimension(given)


def test_places_are_exact_where_binary_fractions_are_not() -> None:
    """A hundred thousand steps of 0.00001: each number is the decimal one."""
    found = range_of(float=[0, 1], step=0.00001)
    assert found.size == 100_001
    for place in range(0, 100_001, 997):
        assert Decimal(str(found.at(place))) == Decimal(place) / 100_000
        assert found.place(found.at(place)) == place
