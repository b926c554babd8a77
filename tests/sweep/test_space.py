"""Suggestions depend on the study's name, the seed and what was found; on nothing else."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial

from harness.dimensions import dimension
from harness.sweep import space as space_module
from harness.sweep.space import DUPLICATES_IN_A_ROW, Settings, Space, same

LADDERS: Mapping[str, list[Any]] = {"a": [1, 2, 4, 8], "b": ["x", "y", None], "c": [0.1, True]}
STEPPED: Mapping[str, Any] = {
    "a": {"int": [2, 8], "step": 2}, "d": [7], "b": ["x", None],
    "c": {"float": [0.1, 0.3], "step": 0.1}}
MIXED: Mapping[str, Any] = {
    **STEPPED, "e": {"int": [16, 512], "log": True}, "f": {"float": [1e-4, 0.1], "log": True},
    "g": {"float": [0, 1]}}
SAMPLERS = ["tpe", "random", "gp", "nsga2", "grid", "brute"]


def space(sampler: str = "tpe", seed: int = 0, startup: int = 3) -> Space:
    return Space(LADDERS, sampler, seed, startup)


def wide(sampler: str) -> Space:
    """All kinds of dimensions, as far as the sampler takes them."""
    return Space(STEPPED if sampler in ("grid", "brute") else MIXED, sampler, 0, 3)


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


@pytest.mark.rows("R106")
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


class Dead(Exception):
    pass


def die_in(space: Space, book: optuna.Study, number: int, seen: Sequence[Settings], written: int,
           ) -> None:
    """Ask, and die when so many params are written."""
    def write(trial: optuna.Trial, *more: Any) -> None:
        if len(trial.params) == written:
            raise Dead
        suggest_one(trial, *more)

    suggest_one = space_module._suggest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space_module, "_suggest", write)
        with pytest.raises(Dead):
            space.suggest(book, book.get_trials()[number], "s", seen, 0)
    assert len(book.get_trials()[number].params) == written


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_settings_that_an_asker_had_only_begun_to_write_are_completed_as_they_would_have_been(
        sampler: str) -> None:
    """Wherever he died: every trial is written by two who die and one who does not."""
    space, trials = wide(sampler), 5 if sampler == "gp" else 9

    def settings(deaths: Sequence[int]) -> list[Settings]:
        book, found = study(), list[Settings]()
        for _ in range(trials):
            number = book.ask().number
            for written in deaths:
                die_in(space, book, number, found, written)
            trial = space.suggest(book, book.get_trials()[number], "s", found, 0)
            found.append(trial.params)
            book.tell(trial, trial.params["a"] - trial.params["c"])
        assert found == [trial.params for trial in book.get_trials()]
        return found

    assert settings([1, 3]) == settings([])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_suggested_of_ranges_is_in_them_plain_and_the_same_every_time(
        sampler: str) -> None:
    """What one reads in the terminal, six digits, is what is tried."""
    space, trials = wide(sampler), 6 if sampler == "gp" else 12
    found = [suggestions(space, trials) for _ in range(2)]
    assert found[0] == found[1]
    assert len({same(s) for s in found[0]}) > trials / 2, "one suggestion is as the other"
    for settings in found[0]:
        assert list(settings) == list(space.searched)
        for path, value in settings.items():
            assert dimension(space.searched[path]).holds(value), (path, value)
            assert not isinstance(value, float) or float(f"{value:.6g}") == value


def test_settings_that_are_all_there_are_not_computed_again(
        monkeypatch: pytest.MonkeyPatch) -> None:
    book = study()
    found = suggest(space("gp"), book).params
    monkeypatch.setattr(Space, "_sampler", None)
    assert space("gp").suggest(book, book.get_trials()[0], "s", [], 0).params == found


def test_a_grid_goes_through_the_ladders_in_order() -> None:
    every = [{"a": a, "b": b, "c": c} for a in LADDERS["a"] for b in LADDERS["b"]
             for c in LADDERS["c"]]
    assert suggestions(space("grid"), 24) == every


def test_a_grid_of_ranges_goes_through_their_steps() -> None:
    every = [{"a": a, "b": b, "c": c, "d": 7} for a in (2, 4, 6, 8) for b in ("x", None)
             for c in (0.1, 0.2, 0.3)]
    assert suggestions(wide("grid"), 24) == every
    assert Space(STEPPED, "grid", 0, 3).size == 24


def test_brute_force_tries_everything_once() -> None:
    assert len({same(p) for p in suggestions(space("brute"), 24)}) == 24
    assert len({same(p) for p in suggestions(wide("brute"), 24)}) == 24


@pytest.mark.parametrize("sampler", ["grid", "brute", "tpe"])
def test_a_space_of_a_billion_settings_is_not_listed(sampler: str) -> None:
    billion = Space({path: {"int": [1, 1000]} for path in "abc"}, sampler, 0, 3)
    assert billion.size == 10**9
    seen = [{"a": 1, "b": 1, "c": c} for c in range(1, 1001)]
    trial = suggest(billion, study(), "s", seen, DUPLICATES_IN_A_ROW)
    assert trial.params not in seen
    if sampler == "grid":
        assert trial.params == {"a": 1, "b": 2, "c": 1}


def test_brute_force_draws_all_that_is_left_equally_often() -> None:
    """Of six settings three were tried; 300 draws from the others, each expected 100 times."""
    space, every = Space({"a": {"int": [1, 3]}, "b": ["x", "y"]}, "brute", 0, 0), Counter[str]()
    seen = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}, {"a": 3, "b": "x"}]
    for number in range(300):
        every[same(suggest(space, study(), f"s{number}", seen).params)] += 1
    assert set(every) == {same({"a": a, "b": b}) for a, b in ((1, "y"), (2, "x"), (3, "y"))}
    assert min(every.values()) > 70


@pytest.mark.parametrize("sampler", ["grid", "brute"])
def test_where_everything_was_tried_a_duplicate_is_told(sampler: str) -> None:
    space = Space({"a": {"int": [1, 2]}}, sampler, 0, 0)
    assert suggest(space, study(), "s", [{"a": 1}, {"a": 2}]).params["a"] in (1, 2)


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_what_is_enqueued_comes_first_and_what_it_leaves_out_is_suggested(sampler: str) -> None:
    enqueued = [{"a": 8, "b": None, "c": True}, {"b": "y"}]
    found = suggestions(Space(LADDERS, sampler, 0, 3, enqueued), 3)
    assert found[0] == enqueued[0]
    assert found[1]["b"] == "y"
    assert found[1]["a"] in LADDERS["a"]


def test_enqueued_numbers_are_taken_as_they_are_and_written_as_their_own_kind() -> None:
    """Else the one who asks and those who read it would take them for two settings."""
    enqueued = {"a": 8.0, "b": None, "c": 0.3, "d": 7.0, "e": 100.0, "f": 0.0123456789, "g": 1}
    trial = suggest(Space(MIXED, "tpe", 0, 3, [enqueued]), book := study())
    assert trial.params == enqueued
    assert same(trial.params) == same(book.get_trials()[0].params)
    assert [type(trial.params[path]) for path in "adeg"] == [int, int, int, float]


def test_tpe_learns_where_random_does_not() -> None:
    def mean(sampler: str) -> float:
        return sum(float(p["a"]) for p in suggestions(space(sampler), 40)[20:]) / 20

    assert mean("tpe") > mean("random")


@pytest.mark.rows("R105")
@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 60), ("gp", 12), ("nsga2", 200)])
def test_samplers_learn_from_constraints(sampler: str, trials: int) -> None:
    """The higher `a` the better, but only up to a half is feasible. nsga2 learns from trial 50."""
    searched = {"a": {"float": [0, 1]}, "b": ["x", "y"], "c": {"int": [1, 9]}}
    space, book, found = Space(searched, sampler, 0, 5), study(), list[Settings]()
    for _ in range(trials):
        trial = suggest(space, book, seen=found)
        found.append(trial.params)
        trial.set_constraint("too_much", trial.params["a"] - 0.5)
        book.tell(trial, trial.params["a"])
    late = [settings["a"] for settings in found[trials // 2:]]
    near = sum(0.3 <= a <= 0.6 for a in late) / len(late)
    assert near > 0.5, "0.3 if nothing is learned, about 0.1 if the constraint is not seen"


def test_its_size_is_how_many_settings_there_are() -> None:
    assert space().size == 4 * 3 * 2
    assert wide("tpe").size == float("inf")


def test_after_several_duplicates_something_new_is_drawn() -> None:
    every = [{"a": a, "b": b, "c": c} for a in LADDERS["a"] for b in LADDERS["b"]
             for c in LADDERS["c"]]
    for left in every[::5]:
        seen = [s for s in every if s != left]
        trial = suggest(space(), study(), "s", seen, DUPLICATES_IN_A_ROW)
        assert trial.params == left


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "nsga2"])
def test_after_several_duplicates_something_new_is_drawn_from_ranges_too(sampler: str) -> None:
    """Of {1, 2} x [0, 1] nearly everything is new; the same for everyone who asks."""
    space = Space({"a": {"int": [1, 2]}, "b": {"float": [0, 1]}}, sampler, 0, 0)
    seen = [dict(suggest(space, study()).params)]
    drawn = [suggest(space, study(), "s", seen, DUPLICATES_IN_A_ROW).params for _ in range(2)]
    assert drawn[0] == drawn[1] != seen[0]


def test_the_order_of_keys_does_not_matter_when_settings_are_compared() -> None:
    assert same({"a": 1, "b": None}) == same({"b": None, "a": 1})
    assert same({"a": 1}) != same({"a": "1"})
