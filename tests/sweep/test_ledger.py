"""The study's book: what is in it, who is in the way, and a storage that cannot be opened."""

from collections.abc import Iterable
from pathlib import Path
from random import Random

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import OperationalError

from harness.errors import StoreError, StudyError
from harness.sweep.ledger import Ledger, ordinal_of
from harness.sweep.results import Final, Result
from harness.sweep.space import Space
from harness.sweep.storage import default_url, open_study, study_names, told

FOUND = Result((Final(1, "k", 0.75, 10, 5, 2, 50.0),), "met", True, 1, 0, 1.0, {"k": 1})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return again(tmp_path)


def again(home: Path) -> Ledger:
    """As another process sees it."""
    return Ledger(open_study("s", default_url(home), home / "locks"))


def begin(ledger: Ledger, value: int) -> optuna.Trial:
    return settle(ledger, ledger.begin(), value)


def settle(ledger: Ledger, begun: FrozenTrial, value: int) -> optuna.Trial:
    space = Space({"a": [1, 2, 3]}, "random", 0, 0, [{"a": value}] * 9)
    return space.suggest(ledger.study, begun, "s", [], 0)


def test_what_is_written_another_process_reads(ledger: Ledger, tmp_path: Path) -> None:
    trial = begin(ledger, 1)
    assert ledger.try_again(trial)
    ledger.finish(trial, FOUND, [FOUND.last.accuracy], {"flops": -0.25})
    ledger.set("fact", {"of": ["the", "study"]})
    other = again(tmp_path)
    (found, result), = other.results()
    assert (ordinal_of(found), found.value, found.constraints) == (0, 0.75, {"flops": -0.25})
    assert result == FOUND
    assert other.get("fact") == {"of": ["the", "study"]}
    assert other.get("nothing", 3) == 3
    assert other.earlier(begin(other, 2)) is None
    same = other.earlier(begin(other, 1))
    assert same is not None
    assert ordinal_of(same) == 0


def test_an_abandoned_trial_keeps_its_settings_and_its_number(ledger: Ledger, tmp_path: Path,
                                                              ) -> None:
    ledger.finish(begin(ledger, 1), FOUND, [FOUND.last.accuracy], {"flops": 0.0})
    begin(ledger, 2).set_user_attr("run_id", "r")
    other = again(tmp_path)
    found, = other.unfinished()
    assert (ordinal_of(found), found.params, found.user_attrs["run_id"]) == (1, {"a": 2}, "r")
    assert not ledger.is_finished(found)
    other.finish(settle(other, found, 3), FOUND, [FOUND.last.accuracy], {"flops": 0.0})
    assert ledger.is_finished(found)
    assert other.unfinished() == []
    assert [t.params for t, _ in other.results()] == [{"a": 1}, {"a": 2}]


def test_what_died_before_it_had_settings_gets_them_from_who_takes_it(ledger: Ledger,
                                                                      tmp_path: Path) -> None:
    ledger.begin()
    other = again(tmp_path)
    found, = other.unfinished()
    assert found.params == {}
    assert settle(other, found, 2).params == {"a": 2}


def test_telling_a_trial_twice_is_telling_it_once(ledger: Ledger) -> None:
    """The storage wrote it, and its answer was lost on its way."""
    trial = begin(ledger, 1)
    ledger.finish(trial, FOUND, [FOUND.last.accuracy], {"flops": 0.0})
    ledger._tell(trial, TrialState.COMPLETE, [0.75])
    (found, _), = ledger.results()
    assert found.value == 0.75
    with pytest.raises((UpdateFinishedTrialError, ValueError)):
        ledger._tell(trial, TrialState.FAIL, None)


def test_tries_are_counted_but_not_those_that_were_handed_back(ledger: Ledger) -> None:
    trial = begin(ledger, 1)
    for _ in range(9):
        assert ledger.try_again(trial)
        ledger.hand_back(trial)
    assert [ledger.try_again(trial) for _ in range(4)] == [True, True, True, False]


def test_a_duplicate_ends_as_the_first_did_and_is_no_setting(ledger: Ledger) -> None:
    ledger.finish(begin(ledger, 1), FOUND, [FOUND.last.accuracy], {"flops": 0.5})
    failed = begin(ledger, 2)
    ledger.fail(failed, "no reason")
    for value, state in ((1, TrialState.COMPLETE), (2, TrialState.FAIL)):
        copy = begin(ledger, value)
        earlier = ledger.earlier(copy)
        assert earlier is not None
        ledger.copy(copy, earlier)
        last = ledger.trials()[-1]
        assert (last.state, last.value, last.constraints) == (
            state, earlier.value, earlier.constraints)
    assert [ordinal_of(t) for t in ledger.originals()] == [0, 1]
    seen, repeats = ledger.before(4)
    assert (list(seen), repeats) == ([{"a": 1}, {"a": 2}], 2)
    begin(ledger, 3)
    seen, repeats = ledger.before(5)
    assert (list(seen), len(seen), repeats) == ([{"a": 1}, {"a": 2}, {"a": 3}], 3, 0)


def test_a_duplicate_of_a_trial_at_work_waits_for_it(ledger: Ledger) -> None:
    first, copy = begin(ledger, 1), begin(ledger, 1)
    earlier = ledger.earlier(copy)
    assert earlier is not None
    ledger.copy(copy, earlier)
    assert [ordinal_of(t) for t in ledger.unfinished()] == [0]
    assert [ordinal_of(t) for t in ledger.settings()] == [0]
    ledger.finish(first, FOUND, [FOUND.last.accuracy], {"flops": 0.5})
    waiting, = ledger.unfinished()
    assert ordinal_of(waiting) == 1
    again = ledger.earlier(settle(ledger, waiting, 1))
    assert again is not None
    ledger.copy(copy, again)
    assert (ledger.trials()[1].state, ledger.trials()[1].value) == (TrialState.COMPLETE, 0.75)


def test_an_old_book_and_a_fresh_one_tell_the_same_whatever_others_write(
        ledger: Ledger, tmp_path: Path) -> None:
    """Trials end out of order, by another process, and this one looks at any moment or never."""
    random, other, idle = Random(3), again(tmp_path), again(tmp_path)
    going: list[optuna.Trial] = []
    for step in range(60):
        if not going or random.random() < 0.5:
            going.append(begin(other, random.choice([1, 2, 3])))
            earlier = other.earlier(going[-1])
            if earlier is not None and random.random() < 0.5:
                other.copy(going[-1], earlier)
                if earlier.state.is_finished():
                    going.pop()
        else:
            trial = going.pop(random.randrange(len(going)))
            if "duplicate_of" in trial.user_attrs or random.random() < 0.3:
                other.fail(trial, "why not")
            else:
                other.finish(trial, FOUND, [FOUND.last.accuracy], {"flops": 0.0})
        if random.random() < 0.5 or step > 55:
            books = [ledger, again(tmp_path), *([idle] if step > 55 else [])]
            probe = FrozenTrial(10 ** 6, TrialState.RUNNING, None, None, None, {"a": 1}, {}, {}, {},
                                {}, 0)
            told = [(b.tally(), numbers(b.unfinished()), numbers(b.originals()),
                     numbers(t for t, _ in b.results()), [r for _, r in b.results()],
                     b.earlier(probe).number,  # type: ignore[arg-type, union-attr]
                     numbers(b.without_settings(1, 100))) for b in books]
            assert all(t == told[0] for t in told)
            every = ledger.trials()
            ended = [t for t in every if t.state.is_finished() and "duplicate_of" not in
                     t.user_attrs]
            assert told[0][2] == numbers(ended)
            assert told[0][3] == numbers(t for t in ended if t.state == TrialState.COMPLETE)
            assert told[0][0].at_work == len([t for t in every if "duplicate_of" not in
                                              t.user_attrs]) - len(ended)
            assert told[0][5] == min(t.number for t in every if t.params == {"a": 1} and
                                     "duplicate_of" not in t.user_attrs)
    assert ledger.tally().found > 5


def numbers(trials: Iterable[FrozenTrial]) -> list[int]:
    return [ordinal_of(t) for t in trials]


def test_a_trial_that_has_ended_is_looked_at_once(ledger: Ledger,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (1, 2, 3):
        ledger.finish(begin(ledger, value), FOUND, [FOUND.last.accuracy], {"flops": 0.0})
    assert len(ledger.results()) == 3
    monkeypatch.setattr(Result, "from_json", None)
    assert len(ledger.results()) == ledger.tally().found == 3
    monkeypatch.undo()
    ledger.finish(begin(ledger, 1), FOUND, [FOUND.last.accuracy], {"flops": 0.0})
    assert ledger.tally().found == 4


# --- the storage ----------------------------------------------------------------------------------


def test_no_storage_yet_is_no_study(tmp_path: Path) -> None:
    assert study_names(default_url(tmp_path), tmp_path / "locks") == []
    assert not (tmp_path / "optuna.db").exists()
    again(tmp_path)
    assert study_names(default_url(tmp_path), tmp_path / "locks") == ["s"]


@pytest.mark.parametrize("url", [
    "nonsense", "sqlite:////proc/no/optuna.db", "oracle9://host/db",
    "postgresql+psycopg://me:secret@127.0.0.1:9/db"])
def test_a_storage_that_cannot_be_opened_is_a_sentence_without_the_password(
        url: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot be opened: .*--storage") as told:
        open_study("s", url, tmp_path / "locks")
    assert "secret" not in str(told.value)
    assert "Traceback" not in str(told.value)


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"x" * 99])
def test_a_broken_file_is_said_to_be_broken_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    path.write_bytes(content)
    for attempt in (open_study, lambda _, *more: study_names(*more)):
        with pytest.raises(StudyError, match="cannot be opened: .*move the broken file away"):
            attempt("s", default_url(tmp_path), tmp_path / "locks")
    assert path.read_bytes() == content


def test_a_storage_that_fails_at_work_says_that_nothing_is_lost() -> None:
    with pytest.raises(StoreError, match="sqlite:///x failed: disk I/O error. Nothing is lost"):
        with told("sqlite:///x"):
            raise OperationalError("INSERT", {}, OSError("disk I/O error")) from OSError(
                "disk I/O error")
