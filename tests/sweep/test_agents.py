"""Several agents, each a process of its own, on one study: nothing is done twice, nothing lost."""

import os
import signal
import sys
import time

import pytest

from harness.sweep.ledger import MOST_TRIES
from harness.sweep.outcome import Outcome
from harness.sweep.progress import progress
from harness.sweep.supervisor import PAUSES, supervise
from sweep.desk import Desk


def test_three_agents_find_what_one_finds_to_the_bit(desk: Desk, alone: Outcome) -> None:
    process = desk.start("study", "tiny", "--agents", "3")
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert all(f"[{number}] " in said for number in range(3))
    assert alone.weights[:16] in said
    desk.check(alone)


@pytest.mark.faults
def test_a_killed_agent_is_replaced_and_its_trial_goes_on(desk: Desk, alone: Outcome) -> None:
    process = desk.start("study", "tiny", "--agents", "2")
    desk.wait_for(desk.agents, process)
    os.kill(desk.agents()[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert "was killed by SIGKILL; starting it again" in said
    desk.check(alone)


@pytest.mark.faults
def test_agents_leave_a_killed_supervisor_and_the_study_goes_on(desk: Desk, alone: Outcome) -> None:
    process = desk.start("study", "tiny", "--agents", "2")
    desk.wait_for(desk.agents, process)
    process.kill()
    process.communicate()
    end = time.monotonic() + 60
    while progress(desk.study, desk.place).notes:
        assert time.monotonic() < end, "an agent stays"
        time.sleep(0.1)
    again = desk.start("study", "tiny", "--agents", "2")
    said, _ = again.communicate(timeout=280)
    assert again.returncode == 0, said
    desk.check(alone)


@pytest.mark.faults
def test_agents_that_join_and_leave_by_themselves_finish_the_study(desk: Desk, alone: Outcome,
                                                                   ) -> None:
    """Two at the same instant on a fresh store; one is terminated, one stopped for a while."""
    one, two = desk.start("agent", "tiny"), desk.start("agent", "tiny")
    desk.wait_for(desk.agents, one)
    one.terminate()
    said, _ = one.communicate(timeout=120)
    assert one.returncode == 143, said
    two.send_signal(signal.SIGSTOP)
    three = desk.start("agent", "tiny")
    time.sleep(5)
    two.send_signal(signal.SIGCONT)
    for process in (two, three):
        said, _ = process.communicate(timeout=280)
        assert process.returncode == 0, said
    desk.check(alone)


def test_a_study_of_which_nobody_reads_on_goes_on_to_its_end(desk: Desk, alone: Outcome) -> None:
    """`harness study tiny --agents 2 2>&1 | head -3`"""
    process = desk.start("study", "tiny", "--agents", "2")
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(3)]
    process.stdout.close()
    assert process.wait(240) == 0, said
    desk.check(alone)
    tries = [t.user_attrs.get("tries", 0) for t in desk.place.ledger(desk.id).settings()]
    assert set(tries) == {1}, "an agent died"


def test_an_agent_that_only_dies_is_given_up() -> None:
    """And no sooner than a trial that kills whoever walks it: the others go on."""
    said: list[str] = []
    dies = [sys.executable, "-c", "raise SystemExit(7)"]
    assert not supervise(dies, [{}], said.append, pauses=(0, 0, 0))
    assert said == ["agent 0 ended with 7; starting it again"] * 3 + [
        "agent 0 ended with 7, 4 times in a row: it is not started again"]
    assert len(PAUSES) == MOST_TRIES
