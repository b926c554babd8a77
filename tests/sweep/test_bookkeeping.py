"""What writing things down costs: seconds counted once, by part, and added up by all agents."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from tiny import Machine

from harness.sweep import bookkeeping
from harness.sweep.bookkeeping import KEY, Book, Stopwatch, metrics
from harness.sweep.claims import FileClaims
from harness.sweep.ledger import Ledger
from harness.sweep.storage import default_url, open_study


class Clock:
    """Seconds pass only when they are spent."""

    def __init__(self) -> None:
        self.now = 100.0

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(bookkeeping, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


def ledger(home: Path) -> Ledger:
    return Ledger(open_study("s", default_url(home), home / "locks"))


def test_a_part_inside_another_is_counted_once(clock: Clock) -> None:
    watch = Stopwatch()
    with watch.on("mlflow"):
        clock.spend(1)
        with watch.on("optuna"):
            clock.spend(10)
            with watch.on("optuna"):
                clock.spend(100)
        clock.spend(1000)
    clock.spend(10000)
    assert watch.read() == {"mlflow": 1001, "optuna": 110, "store": 0, "pictures": 0, "wall": 11111}


def test_a_call_that_fails_is_counted_and_fails(clock: Clock) -> None:
    class Storage:
        size = 3

        def tell(self, seconds: float) -> None:
            clock.spend(seconds)
            raise OSError("away")

    watch = Stopwatch()
    watched = watch.watched("optuna", Storage())
    with pytest.raises(OSError, match="away"):
        watched.tell(7)
    watched.size = watched.size + 1
    assert watched.size == 4
    assert watch.read()["optuna"] == 7
    with watch.on("store"):
        clock.spend(2)
    assert watch.read()["store"] == 2


def test_waiting_for_others_is_no_bookkeeping(clock: Clock, tmp_path: Path) -> None:
    class Store:
        @contextmanager
        def making(self) -> Iterator[None]:
            clock.spend(50)  # until another agent has made it
            yield

    watch = Stopwatch()
    with watch.watched("store", Store()).making():
        clock.spend(500)  # made here
    assert watch.read() == {"mlflow": 0, "optuna": 0, "store": 0, "pictures": 0, "wall": 550}
    claims = watch.watched_claims(FileClaims(tmp_path))
    claim = claims.take("trial-0")
    assert claim is not None
    assert claims.take("trial-0") is None
    assert list(claims.holders()) == ["trial-0"]
    claim.release()
    assert list(claims.holders()) == []


def test_every_agent_adds_its_own_and_what_it_has_added_it_adds_no_more(
        clock: Clock, tmp_path: Path) -> None:
    def agent() -> tuple[Stopwatch, Book]:
        watch = Stopwatch()
        return watch, Book(watch, ledger(tmp_path), FileClaims(tmp_path / "claims"))

    one, ones_book = agent()
    with one.on("mlflow"):
        clock.spend(4)
    two, twos_book = agent()
    with two.on("store"):
        clock.spend(6)
    for book in (ones_book, twos_book, ones_book, ones_book):
        book.note()
    assert ledger(tmp_path).get(KEY) == {
        "mlflow": 4, "optuna": 0, "store": 6, "pictures": 0, "wall": 16}
    clock.spend(4)
    ones_book.note()
    assert metrics(ledger(tmp_path)) == {
        "bookkeeping_mlflow_s": 4, "bookkeeping_optuna_s": 0, "bookkeeping_store_s": 6,
        "bookkeeping_pictures_s": 0,
        "bookkeeping_s": 10, "agents_s": 20, "bookkeeping_share": 0.5}
    clock.spend(300)
    ones_book.note_now_and_then()
    assert metrics(ledger(tmp_path))["agents_s"] == 20
    clock.spend(301)
    ones_book.note_now_and_then()
    assert metrics(ledger(tmp_path))["agents_s"] == 20 + 601


def test_agents_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    def work() -> None:
        book = Book(Fixed(), ledger(tmp_path), FileClaims(tmp_path / "claims"))
        for _ in range(5):
            book.note()
            Fixed.more(book)

    class Fixed(Stopwatch):
        """One second of MLflow more at every look."""

        seconds = 0.0

        def read(self) -> dict[str, float]:
            return {"mlflow": self.seconds, "wall": self.seconds}

        @staticmethod
        def more(book: Book) -> None:
            assert isinstance(book._watch, Fixed)
            book._watch.seconds += 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger(tmp_path).get(KEY)["mlflow"] == 3 * 4


def test_no_agent_no_share(tmp_path: Path) -> None:
    assert set(metrics(ledger(tmp_path)).values()) == {0.0}


def test_a_study_s_book_tells_the_seconds_of_all_its_parts(tmp_path: Path) -> None:
    machine, study = Machine(tmp_path), tiny.study(trials=1, controls=[])
    machine.conduct(study)
    found = metrics(machine.ledger(study))
    for part in ("mlflow", "optuna", "store"):
        assert 0 < found[f"bookkeeping_{part}_s"] < found["bookkeeping_s"]
    assert found["bookkeeping_s"] < found["agents_s"]
