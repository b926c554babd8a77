"""Facts of trials, and what is chosen and counted from them: literals worked out by hand."""

import json
from dataclasses import replace

from harness.sweep.results import CurvePoint, Effort, Final, Result, effort_of


def final(accuracy: float, macs: int, key: str = "k") -> Final:
    return Final(3, key, accuracy, macs, 10, 5, 50.0)


def result(*finals: Final, epochs: dict[str, int] | None = None) -> Result:
    return Result(finals, "the percentage is reached", True, 3, 1, 2.5, epochs or {})


def test_a_result_survives_json() -> None:
    before = replace(result(final(0.5, 10), final(0.25, 5), epochs={"k": 2}), stopped=True,
                     curve=(CurvePoint(0, 0.9, 20, 7), CurvePoint(1, 0.5, 10, 3)))
    assert Result.from_json(json.loads(json.dumps(before.as_json()))) == before
    assert before.last == final(0.25, 5)


def test_shared_stages_are_run_once_and_naive_once_a_trial() -> None:
    effort = effort_of([result(epochs={"a": 2, "b": 3}), result(epochs={"a": 2, "c": 4})], 10)
    assert effort == Effort(run=9, naive=11, baseline=10, trials=2)
    assert effort.saved == 11 / 9
    assert effort.saved_with_baselines == 31 / 19


def test_what_failed_trials_had_trained_is_run_and_naive_too() -> None:
    """One result of 5 epochs; one failed after 2 shared and 3 of its own, one before any."""
    effort = effort_of([result(epochs={"a": 2, "b": 3})], 10, failed=[{"a": 2, "c": 3}, {}])
    assert effort == Effort(run=8, naive=10, baseline=10, trials=3)


def test_a_sweep_without_epochs_saves_nothing() -> None:
    effort = effort_of([], 0)
    assert (effort.saved, effort.saved_with_baselines) == (0.0, 0.0)


def test_a_sweep_that_repeats_its_comparison_trains_a_baseline_a_time() -> None:
    """8 epochs of trials, 3 baselines of 10; a naive sweep: as many, and a baseline each trial."""
    effort = effort_of([result(epochs={"a": 8})] * 2, 10, baselines=3)
    assert effort.saved_with_baselines == (16 + 2 * 10) / (8 + 3 * 10)
