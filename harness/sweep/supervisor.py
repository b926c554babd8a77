"""Several agents on one machine: started, shown, and started again when they die.

It holds nothing that an agent needs: whoever kills it loses nothing, and its agents, which watch
it, hand back what they have and leave.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

SUPERVISOR = "HARNESS_SUPERVISOR"  # in an agent's environment: the process that started it
# Seconds before an agent that has died quickly is started again; after one death more it is given
# up. A trial that kills whoever walks it is given up before that, after three.
PAUSES = (0.0, 5.0, 15.0)
QUICK_S = 60.0  # an agent that dies sooner has done nothing
LEAVE_S = 120.0  # for an agent that was asked to leave
POLL_S = 0.2


@dataclass
class _Slot:
    """A place for one agent, and how often in a row it has died quickly."""

    number: int
    environment: Mapping[str, str]
    process: subprocess.Popen[str] | None = None
    started: float = 0.0
    failures: int = 0
    begins: float | None = None  # when it is to be started again
    readers: list[threading.Thread] = field(default_factory=list)


def supervise(command: Sequence[str], environments: Sequence[Mapping[str, str]],
              say: Callable[[str], None], pauses: Sequence[float] = PAUSES) -> bool:
    """Run one agent in each environment until all have left. False if one was given up.

    command: starts an agent; environments: what each has beside ours. What the agents
    say is said with their numbers before it. Interrupted, it asks them to leave, and waits.
    """
    slots = [_Slot(number, {**os.environ, **own, SUPERVISOR: str(os.getpid())})
             for number, own in enumerate(environments)]
    try:
        for slot in slots:
            _start(slot, command, say)
        while any(slot.process or slot.begins is not None for slot in slots):
            for slot in slots:
                _look_after(slot, command, say, pauses)
            time.sleep(POLL_S)
    finally:
        _dismiss(slots)
    return all(slot.failures <= len(pauses) for slot in slots)


def _start(slot: _Slot, command: Sequence[str], say: Callable[[str], None]) -> None:
    # A session of its own: Ctrl-C reaches us alone, and each agent is asked to leave once.
    slot.process = subprocess.Popen(
        command, env=dict(slot.environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True)
    slot.started = time.monotonic()
    reader = threading.Thread(target=_read, args=(slot.process, slot.number, say), daemon=True)
    reader.start()
    slot.readers.append(reader)


def _read(process: subprocess.Popen[str], number: int, say: Callable[[str], None]) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            say(f"[{number}] {line.rstrip()}")


def _look_after(slot: _Slot, command: Sequence[str], say: Callable[[str], None],
                pauses: Sequence[float]) -> None:
    """Start an agent again that died; not one that has left, or that only dies."""
    now = time.monotonic()
    if slot.begins is not None and now >= slot.begins:
        slot.begins = None
        _start(slot, command, say)
    code = slot.process.poll() if slot.process else None
    if code is None:
        return
    slot.process = None
    if code == 0:
        return
    slot.failures = slot.failures + 1 if now - slot.started < QUICK_S else 1
    died = f"agent {slot.number} {_ended(code)}"
    if slot.failures > len(pauses):
        say(f"{died}, {slot.failures} times in a row: it is not started again")
        return
    say(f"{died}; starting it again")
    slot.begins = now + pauses[slot.failures - 1]


def _ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def _dismiss(slots: Sequence[_Slot]) -> None:
    """Ask those still at work to leave: they hand back what they have."""
    left = [slot.process for slot in slots if slot.process]
    for process in left:
        with suppress(ProcessLookupError):
            process.terminate()
    end = time.monotonic() + LEAVE_S
    for process in left:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
    for slot in slots:
        for reader in slot.readers:
            reader.join(5)


def leave_with_supervisor() -> None:
    """In an agent: end as if terminated once the supervisor is gone."""
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is None:
        return

    def watch() -> None:
        while os.getppid() == int(supervisor):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="supervisor").start()


def environments(count: int, cards: Sequence[str]) -> list[dict[str, str]]:
    """One agent a card, in turn; without cards all share the processor."""
    if not cards:
        return [{} for _ in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": cards[number % len(cards)]} for number in range(count)]
