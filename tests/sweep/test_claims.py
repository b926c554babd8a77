"""One process at a time holds a claim; death frees it; a holder that lost it is told."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path
from threading import Barrier

import pytest
import sqlalchemy as sql

from harness.sweep.claims import Claims, FileClaims, Holder, holding
from harness.sweep.leases import FolderLeases, Lease, LeaseClaims, LeaseTable, SqlLeases

LEASE_S = 0.4
Table = Callable[[], LeaseTable]


@pytest.fixture(params=["sql", "folder"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Table]:
    """What one machine after another opens to reach the same leases."""
    if request.param == "folder":
        yield lambda: FolderLeases(tmp_path / "leases.json")
        return
    engine = sql.create_engine(f"sqlite:///{tmp_path / 'leases.db'}",
                               connect_args={"timeout": 30})
    yield lambda: SqlLeases(engine, "tiny")
    engine.dispose()


@pytest.fixture(params=["files", "leases"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Claims]:
    """The claims of one study as one process after another opens them."""
    if request.param == "files":
        return lambda: FileClaims(tmp_path / "claims")
    return lambda: LeaseClaims(FolderLeases(tmp_path / "leases.json"), LEASE_S)


def test_a_claim_is_one_process_s_until_it_is_released(opened: Callable[[], Claims]) -> None:
    one, two = opened(), opened()
    claim = one.take("trial-0")
    assert claim is not None
    assert claim.is_held()
    assert two.take("trial-0") is None
    assert one.take("trial-0") is None
    assert two.take("trial-1") is not None
    claim.release()
    assert two.take("trial-0") is not None


def test_the_holders_are_named_with_machine_process_and_time(opened: Callable[[], Claims]) -> None:
    claims = opened()
    before = time.time()
    claim = claims.take("trial-7")
    assert claim is not None
    holder = opened().holders()["trial-7"]
    assert (holder.pid, holder.host) == (os.getpid(), os.uname().nodename)
    assert before <= holder.since <= holder.beat <= time.time()
    claim.release()
    assert dict(opened().holders()) == {}


def test_of_many_at_once_one_gets_it(opened: Callable[[], Claims]) -> None:
    at_once = Barrier(8)

    def try_it(_: int) -> bool:
        mine = opened()
        at_once.wait()
        return mine.take("baseline") is not None

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(try_it, range(8))) == 1


def test_who_waits_for_a_claim_gets_it_in_turn(opened: Callable[[], Claims]) -> None:
    """Eight that add to one number, each reading it first: nothing is lost."""
    total = [0]

    def add(_: int) -> None:
        with holding(opened(), "ask"):
            read = total[0]
            time.sleep(0.01)
            total[0] = read + 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert total == [8]


def _hold(folder: str, taken: Event) -> None:
    claim = FileClaims(Path(folder)).take("trial-0")
    assert claim is not None
    taken.set()
    time.sleep(60)


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    process, taken = _started(tmp_path)
    claims = FileClaims(tmp_path)
    assert taken.wait(30)
    assert claims.take("trial-0") is None
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert claims.take("trial-0") is not None


def test_the_lock_of_a_stopped_process_stays_its_own(tmp_path: Path) -> None:
    """However long it is stopped: there is no false alarm."""
    process, taken = _started(tmp_path)
    assert taken.wait(30)
    os.kill(process.pid or 0, signal.SIGSTOP)
    assert FileClaims(tmp_path).take("trial-0") is None
    assert FileClaims(tmp_path).holders()["trial-0"].pid == process.pid
    process.kill()
    process.join()


def _started(folder: Path) -> tuple[multiprocessing.context.SpawnProcess, Event]:
    context = multiprocessing.get_context("spawn")
    taken = context.Event()
    process = context.Process(target=_hold, args=(str(folder), taken), daemon=True)
    process.start()
    return process, taken


# --- leases ---------------------------------------------------------------------------------------


def held_by_the_dead(table: Table, name: str = "trial-0") -> None:
    """A lease that nobody renews."""
    assert table().swap(name, None, Lease("dead", 3, Holder("gone", 1, 5.0, 6.0)))


def test_a_lease_that_is_renewed_outlives_its_length(table: Table) -> None:
    mine, other = LeaseClaims(table(), LEASE_S), LeaseClaims(table(), LEASE_S)
    claim = mine.take("trial-0")
    assert claim is not None
    end = time.monotonic() + 4 * LEASE_S
    while time.monotonic() < end:
        assert other.take("trial-0") is None
        time.sleep(LEASE_S / 10)
    assert claim.is_held()
    assert other.holders()["trial-0"].beat > other.holders()["trial-0"].since


def test_a_lease_that_nobody_renews_goes_to_who_has_watched_it(table: Table) -> None:
    held_by_the_dead(table)
    other = LeaseClaims(table(), LEASE_S)
    watch_until_stale(other)
    assert LeaseClaims(table(), LEASE_S).take("trial-0") is None, "it has not watched"
    assert other.take("trial-0") is not None


def watch_until_stale(other: LeaseClaims) -> None:
    """Three looks, half a lease between them: the next take is the third."""
    for _ in range(2):
        assert other.take("trial-0") is None
        time.sleep(0.6 * LEASE_S)


def test_a_lease_that_ended_is_gone_for_who_watched_it(table: Table) -> None:
    """So that the last to leave does not believe that a killed agent is still at work."""
    held_by_the_dead(table, "agent-1")
    other = LeaseClaims(table(), LEASE_S)
    for _ in range(3):
        last = dict(other.holders())
        time.sleep(0.6 * LEASE_S)
    assert last == {}
    assert dict(table().read()) == {}


def test_a_storage_that_was_away_for_longer_than_a_lease_costs_nobody_a_claim(table: Table) -> None:
    """Nobody could renew meanwhile, and whoever is the first to look when it is back must wait."""
    mine, other = LeaseClaims(table(), LEASE_S), LeaseClaims(table(), LEASE_S)
    mine._renew_all = lambda: None  # type: ignore[method-assign]  # it cannot reach the storage
    claim = mine.take("trial-0")
    assert claim is not None
    assert other.take("trial-0") is None
    time.sleep(3 * LEASE_S)  # away
    assert other.take("trial-0") is None
    assert claim.is_held()
    assert other.take("trial-0") is None


def test_clocks_need_not_agree(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder whose clock is a day behind keeps what it renews."""
    monkeypatch.setattr(time, "time", lambda: 5.0)
    mine, other = LeaseClaims(table(), LEASE_S), LeaseClaims(table(), LEASE_S)
    assert mine.take("trial-0") is not None
    monkeypatch.undo()
    for _ in range(5):
        assert other.take("trial-0") is None
        time.sleep(LEASE_S / 2)


def test_a_holder_that_slept_over_its_lease_is_told_and_frees_nothing(table: Table) -> None:
    slept, other = LeaseClaims(table(), LEASE_S), LeaseClaims(table(), LEASE_S)
    slept._renew_all = lambda: None  # type: ignore[method-assign]  # as a stopped process does
    claim = slept.take("trial-0")
    assert claim is not None
    watch_until_stale(other)
    taken = other.take("trial-0")
    assert taken is not None
    assert not claim.is_held()
    claim.release()
    assert taken.is_held()
    assert LeaseClaims(table(), LEASE_S).take("trial-0") is None


def test_a_storage_that_is_away_for_a_while_costs_no_claim(
        table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    leases = table()
    mine = LeaseClaims(leases, LEASE_S)
    claim = mine.take("trial-0")
    swap = leases.swap

    def away(*_: object) -> bool:
        raise ConnectionError

    monkeypatch.setattr(leases, "swap", away)
    time.sleep(0.6 * LEASE_S)
    monkeypatch.setattr(leases, "swap", swap)
    assert claim is not None
    assert claim.is_held()


def test_a_renewal_whose_answer_was_lost_is_a_renewal(table: Table) -> None:
    leases = table()
    mine = LeaseClaims(leases, lease_s=60)
    claim = mine.take("trial-0")
    assert claim is not None
    swap = leases.swap

    def deaf(name: str, before: Lease | None, after: Lease | None) -> bool:
        swap(name, before, after)
        return False

    leases.swap = deaf  # type: ignore[method-assign]
    mine.renew(claim)  # type: ignore[arg-type]
    assert claim.is_held()
    assert leases.read()["trial-0"].count == 1


def test_one_look_tells_which_leases_are_worth_trying(table: Table) -> None:
    dead, mine, other = (LeaseClaims(table(), LEASE_S) for _ in range(3))
    names = ["trial-0", "trial-1", "trial-2", "trial-3"]
    assert all(claims.take(name) for claims, name in zip((dead, mine, other), names))
    dead._held.clear()  # so nobody renews it
    assert mine.maybe_free(names) == ["trial-3"]
    assert other.maybe_free(["trial-1"]) == []
    for _ in range(2):
        time.sleep(0.6 * LEASE_S)
        looked = mine.maybe_free(names)
    assert looked == ["trial-0", "trial-3"]
    assert mine.take("trial-0") is not None
    assert other.maybe_free(names) == ["trial-3"]


def test_leases_that_ended_are_remembered_by_nobody(table: Table) -> None:
    mine, other = LeaseClaims(table()), LeaseClaims(table())
    for number in range(5):
        claim = other.take(f"trial-{number}")
        assert claim is not None
        assert mine.maybe_free([f"trial-{number}"]) == []
        claim.release()
    assert mine.maybe_free(["trial-9"]) == ["trial-9"]
    assert mine._watches == {}


def test_a_row_is_read_by_its_name(table: Table) -> None:
    leases, rows = table(), {n: Lease(n, 0, Holder("x", 1, 1.0, 1.0)) for n in ("a", "b")}
    for name, row in rows.items():
        assert leases.swap(name, None, row)
    assert (leases.read("b"), leases.read("c"), leases.read()) == ({"b": rows["b"]}, {}, rows)
def test_a_claim_taken_again_is_not_lost_to_a_late_renewal_of_the_first(table: Table) -> None:
    """As the thread that renews may come to it after it was released."""
    mine = LeaseClaims(table(), lease_s=60)
    first = mine.take("ask")
    assert first is not None
    first.release()
    second = mine.take("ask")
    mine.renew(first)  # type: ignore[arg-type]
    first.release()
    assert second is not None
    assert second.is_held()
    second.release()
    assert dict(table().read()) == {}, "it was not known to be held, so it was not freed"


def test_a_swap_that_comes_too_late_changes_nothing(table: Table) -> None:
    one, two = table(), table()
    first = Lease("a", 0, Holder("x", 1, 1.0, 1.0))
    assert one.swap("c", None, first)
    assert not two.swap("c", None, Lease("b", 0, Holder("y", 2, 2.0, 2.0)))
    assert two.swap("c", first, Lease("b", 1, Holder("y", 2, 2.0, 2.0)))
    assert not one.swap("c", first, Lease("a", 1, first.holder))
    assert {name: (row.token, row.count) for name, row in one.read().items()} == {"c": ("b", 1)}
    assert not one.swap("c", first, None)
    assert two.swap("c", one.read()["c"], None)
    assert dict(one.read()) == {}


def test_a_claim_whose_answer_was_lost_is_held(table: Table) -> None:
    leases = table()
    swap = leases.swap
    leases.swap = lambda *given: swap(*given) and False  # type: ignore[method-assign]
    claim = LeaseClaims(leases).take("trial-0")
    assert claim is not None
    assert claim.is_held()


def test_leases_of_two_studies_are_apart(tmp_path: Path) -> None:
    engine = sql.create_engine(f"sqlite:///{tmp_path / 'leases.db'}")
    one, two = LeaseClaims(SqlLeases(engine, "one")), LeaseClaims(SqlLeases(engine, "two"))
    assert one.take("trial-0") is not None
    assert two.take("trial-0") is not None
    engine.dispose()


def test_a_folder_s_leases_are_a_file_that_a_person_can_read(tmp_path: Path) -> None:
    path = tmp_path / "leases.json"
    assert LeaseClaims(FolderLeases(path)).take("trial-0") is not None
    assert json.loads(path.read_text())["trial-0"]["holder"]["pid"] == os.getpid()
