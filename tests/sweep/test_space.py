"""Suggestions depend on the study's name, the seed and what was found; on nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial

from harness.sweep.space import DUPLICATES_IN_A_ROW, Settings, Space, same

LADDERS: Mapping[str, list[Any]] = {"a": [1, 2, 4, 8], "b": ["x", "y", None], "c": [0.1, True]}


def space(sampler: str = "tpe", seed: int = 0, startup: int = 3) -> Space:
    return Space(LADDERS, sampler, seed, startup)


def study() -> optuna.Study:
    return optuna.create_study(direction="maximize")


def suggest(space: Space, book: optuna.Study, name: str = "s", seen: Sequence[Settings] = (),
            repeats: int = 0) -> optuna.Trial:
    """The book's next."""
    return space.suggest(book, begun(book), name, seen, repeats)


def begun(book: optuna.Study) -> FrozenTrial:
    number = book.ask().number
    return book.get_trials()[number]


def suggestions(space: Space, count: int, *, name: str = "s", dying: bool = False,
                ) -> list[Mapping[str, Any]]:
    """With a value that depends on the settings; dying: every other asker dies, another goes on."""
    book, found = study(), list[Settings]()
    for _ in range(count):
        trial = suggest(space, book, name, found)
        if dying and trial.number % 2:
            trial = space.suggest(book, book.get_trials()[trial.number], name, found, 0)
        found.append(trial.params)
        book.tell(trial, trial.params["a"] - len(str(trial.params["b"])))
    return list(found)


@pytest.mark.parametrize("sampler", ["tpe", "random", "brute", "nsga2", "gp"])
def test_the_same_study_makes_the_same_suggestions(sampler: str) -> None:
    straight = suggestions(space(sampler), 10)
    assert straight == suggestions(space(sampler), 10)
    assert straight != suggestions(space(sampler, seed=1), 10)
    assert straight != suggestions(space(sampler), 10, name="t")
    assert all(p[key] in LADDERS[key] for p in straight for key in LADDERS)
    assert len({same(p) for p in straight}) >= 5, "one suggestion is as the other"


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "brute"])
def test_a_suggestion_whose_asker_died_stays(sampler: str) -> None:
    assert suggestions(space(sampler), 10) == suggestions(space(sampler), 10, dying=True)


def test_settings_that_an_asker_had_only_begun_to_write_are_completed_as_they_would_have_been(
        ) -> None:
    whole = suggest(space("random"), study()).params
    book = study()
    asked = begun(book)
    dead = Space({"a": LADDERS["a"]}, "random", 0, 3).suggest(book, asked, "s", [], 0)
    assert dead.params == {"a": whole["a"]}
    assert space("random").suggest(book, book.get_trials()[0], "s", [], 0).params == whole


def test_a_grid_goes_through_the_ladders_in_order() -> None:
    every = [{"a": a, "b": b, "c": c} for a in LADDERS["a"] for b in LADDERS["b"]
             for c in LADDERS["c"]]
    assert suggestions(space("grid"), 24) == every


def test_brute_force_tries_everything_once() -> None:
    assert len({same(p) for p in suggestions(space("brute"), 24)}) == 24


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_what_is_enqueued_comes_first_and_what_it_leaves_out_is_suggested(sampler: str) -> None:
    enqueued = [{"a": 8, "b": None, "c": True}, {"b": "y"}]
    found = suggestions(Space(LADDERS, sampler, 0, 3, enqueued), 3)
    assert found[0] == enqueued[0]
    assert found[1]["b"] == "y"
    assert found[1]["a"] in LADDERS["a"]


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
        trial = suggest(space(), study(), "s", seen, DUPLICATES_IN_A_ROW)
        assert trial.params == left


def test_the_order_of_keys_does_not_matter_when_settings_are_compared() -> None:
    assert same({"a": 1, "b": None}) == same({"b": None, "a": 1})
    assert same({"a": 1}) != same({"a": "1"})
