"""The count of what trials share, on walks made by hand; and the network that it is counted on."""

from random import Random

import pytest
import torch

from benchmarks.sharing import LADDERS, drawn, saved, spread
from benchmarks.sharing_network import net
from harness.engine.tracing import trace

WALKS = [{"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "d": 4}]


def test_what_walks_have_in_common_is_trained_once() -> None:
    """Apart 3 + 6 + 5, together 1 + 2 + 3 + 4; with two epochs of baseline, 6 and 2 more."""
    assert saved(WALKS) == pytest.approx(14 / 10)
    assert saved(WALKS, baseline=2) == pytest.approx(20 / 12)
    assert saved(WALKS[:1]) == 1


def test_lists_that_hold_everything_save_the_same() -> None:
    assert spread(WALKS, size=3, draws=5) == pytest.approx([1.4] * 3)
    low, middle, high = spread(WALKS, size=2, draws=200)
    assert low == pytest.approx(saved([WALKS[1], WALKS[2]]))  # 11 / 10, and 8 / 7 the next
    assert high == pytest.approx(saved(WALKS[:2]))  # 9 / 6
    assert low < middle < high


def test_settings_are_drawn_without_repeats() -> None:
    listed = drawn(LADDERS, 40, Random(0))
    assert len({tuple(given.items()) for given in listed}) == 40


def test_the_network_is_the_one_of_the_goals() -> None:
    graph = trace(net().eval(), torch.zeros(2, 1, 8, 8))
    convolved = sum(positions * 9 * before * after for positions, before, after in (
        (64, 1, 32), (64, 32, 32), (16, 32, 64), (16, 64, 64), (4, 64, 128), (4, 128, 128),
        (4, 128, 128)))
    assert graph.cost().filters == 576
    assert graph.cost().macs == convolved + 128 * 10
