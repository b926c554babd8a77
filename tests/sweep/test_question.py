"""What a study asks for: worked out by hand for a baseline of 1000 MACs, 100 parameters, 90 %."""

from typing import Any

import pytest

from harness.settings import StudyConfig
from harness.sweep.question import Question
from harness.sweep.results import Final, Result


def question(kind: str = "budget", **changes: Any) -> Question:
    space = {} if kind == "binary_search" else {"space": {"retrain.epochs": [1]}}
    config = StudyConfig.model_validate({"config": "tiny", "kind": kind, **space, **changes})
    return Question(config, macs=1000, params=100, accuracy=0.9)


def final(accuracy: float, macs: int, params: int = 10) -> Final:
    return Final(3, "k", accuracy, macs, params, 5, 50.0)


def result(*finals: Final) -> Result:
    return Result(finals, "the percentage is reached", True, 3, 1, 2.5, {})


def test_the_champion_of_a_budget_is_the_most_accurate_within_it() -> None:
    results = [(0, result(final(0.9, 101), final(0.7, 60))), (1, result(final(0.8, 100)))]
    assert question().best(results) == (1, final(0.8, 100))
    assert question(budget={"flops": 0.0995}).best(results) == (0, final(0.7, 60))
    assert question(budget={"flops": 0.059}).best(results) is None
    assert question().best([]) is None


def test_of_equals_the_cheaper_then_the_earlier_is_the_best() -> None:
    results = [(n, result(final(0.8, macs))) for n, macs in enumerate([90, 50, 50])]
    assert question().best(results) == (1, final(0.8, 50))


@pytest.mark.parametrize("kind", ["pareto", "binary_search"])
def test_without_a_budget_the_champion_is_the_cheapest_that_is_close_to_the_baseline(
        kind: str) -> None:
    results = [(0, result(final(0.95, 800))), (1, result(final(0.88, 300))),
               (2, result(final(0.879, 100)))]
    assert question(kind, tolerance=0.02).best(results) == (1, final(0.88, 300))
    assert question(kind, tolerance=0.03).best(results) == (2, final(0.879, 100))
    assert question(kind, tolerance=0.0).best(results) == (0, final(0.95, 800))
    assert question(kind, tolerance=0.0).best(results[1:]) is None


@pytest.mark.parametrize(("constraints", "expected"), [
    ({}, 0), ({"params": 0.5}, 1), ({"params": 0.5, "flops": 0.04}, 2), ({"accuracy": 0.75}, 0),
    ({"accuracy": 0.75, "params": 0.5}, 1), ({"accuracy": 0.95}, None)])
def test_a_network_that_breaks_a_constraint_is_not_chosen(
        constraints: dict[str, float], expected: int | None) -> None:
    results = [(0, result(final(0.85, 90, 60))), (1, result(final(0.8, 80, 50))),
               (2, result(final(0.7, 40, 20)))]
    best = question(constraints=constraints).best(results)
    assert (best[0] if best else None) == expected


def test_a_sampler_is_told_how_far_a_constraint_is_broken() -> None:
    asked = question(constraints={"params": 0.5, "accuracy": 0.75})
    over = asked.excess(final(0.5, 300, 60))
    assert over == pytest.approx({"flops_over_budget": 0.2, "params_over_limit": 0.1,
                                  "accuracy_under_limit": 0.25})
    within = asked.excess(final(0.8, 100, 50))
    assert all(amount <= 0 for amount in within.values())
    assert question("pareto").excess(final(0.5, 300)) == {}


def test_a_sampler_is_told_accuracy_and_of_a_front_the_flops_too() -> None:
    assert question().values(final(0.5, 300)) == [0.5]
    assert question("pareto").values(final(0.5, 300)) == [0.5, 0.3]


def test_the_tighter_of_budget_and_constraint_holds() -> None:
    assert question(budget={"flops": 0.2}, constraints={"flops": 0.1}).flops_limit == 0.1
    assert question(budget={"flops": 0.2}, constraints={"flops": 0.3}).flops_limit == 0.2
    assert question("pareto").flops_limit is None


def test_a_question_is_told_in_words() -> None:
    assert question().text == "the most accurate network with at most 10 % of the FLOPs"
    assert question("pareto", constraints={"params": 0.5}, tolerance=0.005).text == (
        "the smallest network with at most 50 % of the parameters that is at most 0.5 points less "
        "accurate than the baseline")


def timed(accuracy: float, macs: int, share: float | None) -> Final:
    return Final(3, "k", accuracy, macs, 10, 5, 50.0, latency_share=share)


def test_a_budget_on_latency_takes_the_place_of_that_on_flops() -> None:
    asked = question(budget={"latency": 0.5})
    results = [(0, result(timed(0.9, 900, 0.6))), (1, result(timed(0.8, 800, 0.5))),
               (2, result(timed(0.7, 20, 0.1)))]
    assert asked.best(results) == (1, timed(0.8, 800, 0.5))
    assert asked.text == "the most accurate network with at most 50 % of the latency"
    assert asked.excess(timed(0.9, 900, 0.6)) == pytest.approx({"latency_over_budget": 0.1})
    both = question(budget={"latency": 0.5, "flops": 0.1})
    assert both.best(results) == (2, timed(0.7, 20, 0.1))
    assert question(constraints={"latency": 0.3}, budget={"flops": 1}).best(results) == (
        2, timed(0.7, 20, 0.1))
    with pytest.raises(ValueError, match="name the FLOPs or the latency"):
        question(budget={"flops": None})


def test_by_latency_the_cheaper_network_is_the_faster_one() -> None:
    slow, fast = timed(0.9, 300, 0.8), timed(0.9, 700, 0.4)
    by_flops, by_time = question("pareto"), question("pareto", cost="latency")
    results = [(0, result(slow)), (1, result(fast))]
    assert by_flops.best(results) == (0, slow)
    assert by_time.best(results) == (1, fast)
    assert by_flops.values(fast) == [0.9, 0.7]
    assert by_time.values(fast) == [0.9, 0.4]
    # What was not measured counts as slow as the whole network, and is in no budget of latency.
    assert by_time.values(timed(0.9, 700, None)) == [0.9, 1.0]
    assert not question(budget={"latency": 0.9}).holds(timed(0.9, 700, None))
    assert "the fastest network" in by_time.text
