"""A thousand agents in one process: the scheduler's own code in virtual time."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from benchmarks import stub_study
from benchmarks.virtual_time import VirtualTime
from harness.sweep.claims import holding
from harness.sweep.leases import LeaseClaims
from harness.sweep.ledger import Ledger

optuna.logging.set_verbosity(optuna.logging.ERROR)
RESOLUTION_S = 0.001  # a shorter wait is left to whoever comes next: it adds up
Cost = Callable[[str, float], float]  # (call, seconds that the last such call took) -> seconds


@dataclass(frozen=True)
class Outcome:
    """What came of a simulated study. Seconds are virtual, but for `real_s`."""

    agents: int
    trials: int
    duplicates: int
    seconds: float
    working_s: float  # of all agents together, in trials
    storage_s: float  # that the storage was busy
    calls: int
    real_s: float
    wrong: tuple[str, ...]  # what is not as it must be; nothing

    @property
    def efficiency(self) -> float:
        """Share of the agents' time that went into trials."""
        return self.working_s / (self.agents * self.seconds)


def as_measured(_: str, seconds: float) -> float:
    """A call costs what the last such call took in this process."""
    return seconds


def simulate(agents: int, trials: int, trial_s: float, cost: Cost = as_measured) -> Outcome:
    """Run a study to its end over a storage in memory that serves one call at a time."""
    clock, asked, start = VirtualTime(), stub_study.study(trials), time.perf_counter()
    storage = SlowStorage(InMemoryStorage(), clock, cost)
    book = Ledger(_study(storage))
    rows, walks = stub_study.MemoryLeases(), Counter[int]()

    def work() -> None:
        claims = LeaseClaims(rows)
        ledger: Any = _SharedLedger(book, _study(storage))
        agent = stub_study.agent(asked, ledger, claims, walks, trial_s)
        with holding(claims, agent.name):
            agent._work()

    with stub_study.stubbed(clock, clock.thread):
        for _ in range(agents):
            clock.start(work)
        clock.run()
    found = book.trials()
    duplicates = {t.number for t in found if "duplicate_of" in t.user_attrs}
    working_s = sum(stub_study.walk_s(number, trial_s) * times for number, times in walks.items())
    return Outcome(agents, trials, len(duplicates), clock.now, working_s, storage.busy_s,
                   storage.calls, time.perf_counter() - start,
                   tuple(_wrong(found, duplicates, walks, storage.told, trials)))


def _wrong(found: list[Any], duplicates: set[int], walks: Counter[int], told: Counter[int],
           trials: int) -> list[str]:
    """Every trial is complete, was walked once (a duplicate never), and was told once."""
    wrong = [f"trial {t.number} is {t.state.name}" for t in found
             if t.state != TrialState.COMPLETE]
    wrong += [f"trial {t.number} was walked {walks[t.number]} times" for t in found
              if walks[t.number] != (t.number not in duplicates)]
    wrong += [f"trial {t.number} was told {told[t._trial_id]} times" for t in found
              if told[t._trial_id] != 1]
    settings = {tuple(t.params.items()) for t in found}
    if not len(settings) == len(found) - len(duplicates) == trials:
        wrong.append(f"{len(settings)} settings in {len(found) - len(duplicates)} trials, "
                     f"not {trials}")
    return wrong


def _study(storage: BaseStorage) -> optuna.Study:
    return optuna.create_study(study_name=stub_study.NAME, storage=storage, load_if_exists=True,
                               directions=[StudyDirection.MAXIMIZE])


class _SharedLedger:
    """One book for all, which each would keep for itself; a study of one's own, for its sampler."""

    def __init__(self, book: Ledger, study: optuna.Study) -> None:
        self._book, self.study = book, study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._book, name)


class _Slow:
    """Delegates to a storage; each call waits until those before it are served, then its cost."""

    def __init__(self, inner: BaseStorage, clock: VirtualTime, cost: Cost) -> None:
        self.inner, self.clock, self.cost = inner, clock, cost
        self.free_at = self.busy_s = 0.0
        self.calls = 0
        self.took: dict[str, float] = {}
        self.told: Counter[int] = Counter()

    def call(self, name: str, *given: Any, **more: Any) -> Any:
        if self.clock.is_running:
            cost_s = self.cost(name, self.took.get(name, 0.0))
            self.calls, self.busy_s = self.calls + 1, self.busy_s + cost_s
            self.free_at = max(self.free_at, self.clock.now) + cost_s
            if self.free_at - self.clock.now > RESOLUTION_S:
                self.clock.sleep(self.free_at - self.clock.now)
        start = time.thread_time()  # of the processor: who else is at work here adds nothing
        answer = getattr(self.inner, name)(*given, **more)
        self.took[name] = time.thread_time() - start
        if name == "set_trial_state_values" and answer:
            self.told[given[0]] += 1
        return answer


def _slow(name: str) -> Callable[..., Any]:
    return lambda self, *given, **more: self.call(name, *given, **more)


SlowStorage: Any = type("SlowStorage", (_Slow, BaseStorage), {
    name: _slow(name) for name, method in vars(BaseStorage).items()
    if callable(method) and not name.startswith("_")})
