"""Time that passes only when somebody sleeps: a thousand processes in one, hours in seconds.

Each process is a greenlet, and one runs at a time, so code that sleeps and polls runs as it is. An
object of `VirtualTime` stands in for the module `time`; `thread` for `threading.Thread`.
"""

import heapq
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet


class _Process(greenlet):
    """One that the clock wakes. The run does not wait for servants to end."""

    is_servant = False


class VirtualTime:
    def __init__(self) -> None:
        self.now = 0.0
        self.is_running = False
        self._order = count()
        self._asleep: list[tuple[float, int, _Process]] = []
        self._living = 0
        self._hub = getcurrent()

    # As the module `time`.

    def sleep(self, seconds: float) -> None:
        me = getcurrent()
        if not isinstance(me, _Process):
            # A thread from before the run, such as one that renews leases: it is none of ours.
            time.sleep(seconds)
            return
        if not self.is_running:  # what a process does while it is ended
            raise GreenletExit
        self._put_to_sleep(me, self.now + seconds)
        self._hub.switch()

    def time(self) -> float:
        return self.now

    monotonic = perf_counter = time

    # Processes.

    def start(self, work: Callable[[], None], *, is_servant: bool = False) -> None:
        """Begin a process now."""
        process = _Process(work)
        process.is_servant = is_servant
        self._living += not is_servant
        self._put_to_sleep(process, self.now)

    def thread(self, target: Callable[[], None], **_: Any) -> "_Thread":
        return _Thread(self, target)

    def run(self) -> None:
        """Until all processes have ended. Raises what the first of them raised that failed."""
        self._hub, self.is_running = getcurrent(), True
        try:
            while self._living:
                self.now, _, process = heapq.heappop(self._asleep)
                process.parent = self._hub  # where it goes on, and fails, when it ends
                process.switch()
                self._living -= process.dead and not process.is_servant
        finally:
            self.is_running = False
            for _, _, process in self._asleep:
                process.throw()

    def _put_to_sleep(self, process: _Process, until: float) -> None:
        heapq.heappush(self._asleep, (until, next(self._order), process))


class _Thread:
    def __init__(self, clock: VirtualTime, work: Callable[[], None]) -> None:
        self._clock, self._work = clock, work

    def start(self) -> None:
        self._clock.start(self._work, is_servant=True)
