"""Suggestions depend on the study's name, the seed and what was found; on nothing else."""

from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from harness.sweep.space import DUPLICATES_IN_A_ROW, Space, same

LADDERS: Mapping[str, list[Any]] = {"a": [1, 2, 4, 8], "b": ["x", "y", None], "c": [0.1, True]}


def space(sampler: str = "tpe", seed: int = 0, startup: int = 3) -> Space:
    return Space(LADDERS, sampler, seed, startup)


def study() -> optuna.Study:
    return optuna.create_study(direction="maximize")


def suggestions(space: Space, count: int, *, name: str = "s", dying: bool = False,
                ) -> list[Mapping[str, Any]]:
    """With a value that depends on the settings; dying: every other trial is lost once."""
    book, found = study(), list[Mapping[str, Any]]()
    for ordinal in range(count):
        if dying and ordinal % 2:
            lost = space.ask(book, name, ordinal, [], 0)
            book.tell(lost, state=TrialState.FAIL)
        trial = space.ask(book, name, ordinal, [], 0)
        found.append(trial.params)
        book.tell(trial, trial.params["a"] - len(str(trial.params["b"])))
    return found


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_study_makes_the_same_suggestions(sampler: str) -> None:
    straight = suggestions(space(sampler), 10)
    assert straight == suggestions(space(sampler), 10)
    assert straight != suggestions(space(sampler, seed=1), 10)
    assert straight != suggestions(space(sampler), 10, name="t")
    assert all(p[key] in LADDERS[key] for p in straight for key in LADDERS)
    assert len({same(p) for p in straight}) >= 5, "one suggestion is as the other"


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_suggestion_that_was_lost_is_made_again(sampler: str) -> None:
    assert suggestions(space(sampler), 10) == suggestions(space(sampler), 10, dying=True)


def test_tpe_learns_where_random_does_not() -> None:
    def mean(sampler: str) -> float:
        return sum(float(p["a"]) for p in suggestions(space(sampler), 40)[20:]) / 20

    assert mean("tpe") > mean("random")


def test_its_size_is_how_many_settings_there_are() -> None:
    assert space().size == 4 * 3 * 2


def test_after_several_duplicates_something_new_is_drawn() -> None:
    every = [{"a": a, "b": b, "c": c} for a in LADDERS["a"] for b in LADDERS["b"]
             for c in LADDERS["c"]]
    for left in every[::5]:
        seen = [s for s in every if s != left]
        trial = space().ask(study(), "s", 7, seen, DUPLICATES_IN_A_ROW)
        assert trial.params == left


def test_a_draw_that_was_lost_before_it_was_taken_does_not_come_twice() -> None:
    """A process that died between the two leaves a trial that waits."""
    book, seen = study(), [{"a": 1, "b": "x", "c": 0.1}]
    expected = space().ask(study(), "s", 7, seen, DUPLICATES_IN_A_ROW).params
    book.enqueue_trial(expected)
    trial = space().ask(book, "s", 7, seen, DUPLICATES_IN_A_ROW)
    assert trial.params == expected
    assert not book.get_trials(states=(TrialState.WAITING,))


def test_the_order_of_keys_does_not_matter_when_settings_are_compared() -> None:
    assert same({"a": 1, "b": None}) == same({"b": None, "a": 1})
    assert same({"a": 1}) != same({"a": "1"})
