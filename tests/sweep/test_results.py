"""Facts of trials, and what is chosen and counted from them: literals worked out by hand."""

from harness.sweep.results import Effort, Final, Result, best_within, effort_of


def final(accuracy: float, macs: int, key: str = "k") -> Final:
    return Final(3, key, accuracy, macs, 10, 5, 50.0)


def result(*finals: Final, epochs: dict[str, int] | None = None) -> Result:
    return Result(finals, "the percentage is reached", True, 3, 1, 2.5, epochs or {})


def test_a_result_survives_json() -> None:
    before = result(final(0.5, 10), final(0.25, 5), epochs={"k": 2})
    assert Result.from_json(before.as_json()) == before
    assert before.last == final(0.25, 5)


def test_the_best_is_the_most_accurate_within_the_budget() -> None:
    results = [(0, result(final(0.9, 101), final(0.7, 60))), (1, result(final(0.8, 100)))]
    assert best_within(results, 100) == (1, final(0.8, 100))
    assert best_within(results, 99.5) == (0, final(0.7, 60))
    assert best_within(results, 59) is None
    assert best_within([], 100) is None


def test_of_equals_the_cheaper_then_the_earlier_is_the_best() -> None:
    results = [(n, result(final(0.8, macs))) for n, macs in enumerate([90, 50, 50])]
    assert best_within(results, 100) == (1, final(0.8, 50))


def test_shared_stages_are_run_once_and_naive_once_a_trial() -> None:
    effort = effort_of([result(epochs={"a": 2, "b": 3}), result(epochs={"a": 2, "c": 4})], 10)
    assert effort == Effort(run=9, naive=11, baseline=10, trials=2)
    assert effort.saved == 11 / 9
    assert effort.saved_with_baselines == 31 / 19


def test_a_sweep_without_epochs_saves_nothing() -> None:
    effort = effort_of([], 0)
    assert (effort.saved, effort.saved_with_baselines) == (0.0, 0.0)
