"""Time that passes only when somebody sleeps: a thousand processes in one, hours in seconds.

Each process is a thread, and one runs at a time, so code that sleeps and polls runs as it is. An
object of `VirtualTime` stands in for the module `time`; `thread` for `threading.Thread`.
"""

import heapq
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any


class _End(BaseException):
    """The run is over: what still sleeps ends."""


class VirtualTime:
    def __init__(self) -> None:
        self.now = 0.0
        self.is_running = False
        self._threads: set[int] = set()  # those of the processes
        self._order = count()
        self._asleep: list[tuple[float, int, _Process]] = []
        self._living = 0
        self._is_over = False
        self._over = _closed()
        self._failures: list[BaseException] = []

    # As the module `time`.

    def sleep(self, seconds: float) -> None:
        if threading.get_ident() not in self._threads:
            # A thread from before the run, such as one that renews leases: it is none of ours.
            time.sleep(seconds)
            return
        process = self._current
        self._put_to_sleep(process, self.now + seconds)
        self._wake_next(process)
        if self._is_over:
            raise _End

    def time(self) -> float:
        return self.now

    monotonic = perf_counter = time

    # Processes.

    def start(self, work: Callable[[], None], *, is_servant: bool = False) -> None:
        """Begin a process now. The run does not wait for servants to end."""
        self._living += not is_servant
        self._put_to_sleep(_Process(self, work, is_servant), self.now)

    def thread(self, target: Callable[[], None], **_: Any) -> "_Thread":
        return _Thread(self, target)

    def run(self) -> None:
        """Until all processes have ended. Raises what the first of them raised that failed."""
        self.is_running = True
        self._wake_next()
        self._over.acquire()
        self._is_over, self.is_running = True, False
        for _, _, process in self._asleep:
            process.turn.release()
            self._over.acquire()
        if self._failures:
            raise self._failures[0]

    def ended(self, process: "_Process", failure: BaseException | None) -> None:
        if failure is not None:
            self._failures.append(failure)
        self._living -= not process.is_servant
        if self._failures or not self._living or self._is_over:
            self._over.release()
        else:
            self._wake_next()

    def _put_to_sleep(self, process: "_Process", until: float) -> None:
        heapq.heappush(self._asleep, (until, next(self._order), process))

    def _wake_next(self, me: "_Process | None" = None) -> None:
        """Let the next process go on; return when it is `me` again."""
        self.now, _, self._current = heapq.heappop(self._asleep)
        if self._current is not me:
            self._current.turn.release()
            if me is not None:
                me.turn.acquire()


def _closed() -> threading.Lock:
    """A gate: to acquire it is to wait until somebody releases it."""
    lock = threading.Lock()
    lock.acquire()
    return lock


class _Process:
    def __init__(self, clock: VirtualTime, work: Callable[[], None], is_servant: bool) -> None:
        self._clock, self._work, self.is_servant = clock, work, is_servant
        self.turn = _closed()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        self._clock._threads.add(threading.get_ident())
        self.turn.acquire()
        failure = None
        try:
            if not self._clock._is_over:
                self._work()
        except _End:
            pass
        except BaseException as error:
            failure = error
        self._clock.ended(self, failure)


class _Thread:
    def __init__(self, clock: VirtualTime, work: Callable[[], None]) -> None:
        self._clock, self._work = clock, work

    def start(self) -> None:
        self._clock.start(self._work, is_servant=True)
