"""The simulation of the scheduler: virtual time, and what limits a made-up study."""

import threading
from typing import Any

import pytest
from optuna.trial import TrialState

from benchmarks.scheduler import carried, limits
from benchmarks.scheduler_calls import Calls
from benchmarks.simulation import simulate
from benchmarks.virtual_time import VirtualTime


def test_time_passes_for_all_who_sleep_and_for_none_who_work() -> None:
    clock, seen = VirtualTime(), []

    def walker(name: str, pace: float, times: int) -> None:
        for _ in range(times):
            clock.sleep(pace)
            seen.append((clock.now, name))

    clock.start(lambda: walker("slow", 2.5, 2))
    clock.start(lambda: walker("quick", 1.0, 4))
    clock.start(lambda: walker("servant", 1.5, 99), is_servant=True)
    clock.run()
    assert [s for s in seen if s[1] != "servant"] == [
        (1.0, "quick"), (2.0, "quick"), (2.5, "slow"), (3.0, "quick"), (4.0, "quick"),
        (5.0, "slow")]
    assert [now for now, name in seen if name == "servant"] == [1.5, 3.0, 4.5]


def test_what_one_process_raises_ends_the_run() -> None:
    clock = VirtualTime()

    def fail() -> None:
        clock.sleep(3)
        raise ValueError("enough")

    clock.start(lambda: clock.sleep(100))
    clock.start(fail)
    with pytest.raises(ValueError, match="enough"):
        clock.run()
    assert clock.now == 3


def test_every_trial_is_done_once_and_a_free_storage_holds_nobody_up() -> None:
    found = simulate(agents=8, trials=60, trial_s=300, cost=lambda call, took: 0.0)
    assert found.wrong == ()
    assert found.storage_s == 0
    least = 60 * 300 * 0.8 / 8
    assert least < found.seconds < 2 * least
    assert found.efficiency > 0.85


def test_a_slow_storage_is_the_limit_however_many_agents_there_are() -> None:
    """A fifth of a second a call: one agent hardly notices; sixteen wait for one another."""
    def slow(call: str, took: float) -> float:
        return 0.2

    few, many, more = (simulate(agents, 32, 60, slow) for agents in (1, 16, 32))
    assert all(found.wrong == () for found in (few, many, more))
    assert few.efficiency > 0.8
    assert many.efficiency < 0.5
    assert many.storage_s > 0.7 * many.seconds
    assert more.seconds > 0.7 * many.seconds  # twice as many agents are hardly any quicker


def test_a_trial_that_is_told_twice_or_not_at_all_is_noticed(
        monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.sweep.ledger import Ledger

    tell = Ledger._tell

    def forget(self: Ledger, trial: Any, state: TrialState, values: Any) -> None:
        tell(self, trial, *((TrialState.FAIL, None) if trial.number == 3 else (state, values)))

    monkeypatch.setattr(Ledger, "_tell", forget)
    found = simulate(agents=2, trials=6, trial_s=60, cost=lambda call, took: 0.0)
    assert found.wrong == ("trial 3 is FAIL", "7 settings in 7 trials, not 6")


def test_a_thread_from_before_the_run_takes_no_part_in_it() -> None:
    """Such as one that renews leases, left over in this process: it would wait for ever."""
    clock, seen = VirtualTime(), []
    has_begun = threading.Event()

    def foreign() -> None:
        has_begun.wait()
        clock.sleep(0.01)
        seen.append("foreign")

    other = threading.Thread(target=foreign, daemon=True)
    other.start()

    def own() -> None:
        has_begun.set()
        other.join(10)
        clock.sleep(5)
        seen.append("own")

    clock.start(own)
    clock.run()
    assert (seen, clock.now) == (["foreign", "own"], 5.0)


def test_agents_that_a_storage_carries_are_counted_from_what_only_one_may_hold() -> None:
    """Held for a tenth of a second a trial, whoever many there are: 600 agents with a minute each;
    held for a thousandth an agent: as many as make 60,000 by their square."""
    assert carried(lambda agents: 0.1, 60.0, 1000) == pytest.approx(600, rel=0.01)
    assert carried(lambda agents: 0.001 * agents, 60.0, 1000) == pytest.approx(245, rel=0.01)
    assert carried(lambda agents: 0.05, 60.0, 1000) is None


def test_limits_are_of_a_storage_and_a_size() -> None:
    def calls(storage: str, agents: int, held: float) -> Calls:
        return Calls(storage, 100, agents, first=9, ask=0.3, held=held, write=0.2, poll=9,
                     attend=0.025, beat=0.05)

    found = {(f["storage"], f["length_s"]): f["agents"] for f in limits([
        calls("postgresql", 10, 0.1), calls("postgresql", 110, 1.1), calls("journal", 10, 0.1),
        calls("journal", 1000, 0.1)])}
    assert found["postgresql", 60.0] == pytest.approx(6000 ** 0.5, rel=0.01)  # 0.01 an agent
    assert found["postgresql", 600.0] is None
    # 0.3 + 0.2, four looks, and two leases four times a minute: a second a trial
    assert found["journal", 60.0] == pytest.approx(60, rel=0.01)
    assert found["journal", 600.0] == pytest.approx(600 / 4.6, rel=0.01)
