"""A study whose trials are made up: the scheduler's own code, and nothing to train.

The agent's loop, its ledger, claims, orders and space are the product's. A walk is a sleep with a
look at claim and orders between its steps, MLflow takes no time, and a result is made up.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

from harness.checking import known_names
from harness.config import Known, Study, StudyConfig, load_run
from harness.console import QuietScreen
from harness.sweep import agent as agents
from harness.sweep import claims, leases
from harness.sweep.agent import Agent
from harness.sweep.claims import Claim, Claims
from harness.sweep.leases import Lease
from harness.sweep.ledger import Ledger
from harness.sweep.results import Final, Result
from harness.tracking import MemoryTracker

NAME, STEPS, MACS = "stub", 4, 1000
LADDERS: dict[str, list[Any]] = {
    "prune.filters_per_step": list(range(1, 41)), "retrain.epochs": list(range(1, 41)),
    "prune.floors.layer_min": [n / 100 for n in range(1, 41)],
    "prune.percentage": [50 + n for n in range(40)]}


def study(trials: int, sampler: str = "random") -> Study:
    """Four ladders of forty values, 2.56 million settings."""
    base = load_run("vgg16_digits", known=Known(**known_names()))
    return Study(StudyConfig.model_validate({
        "name": NAME, "config": NAME, "space": LADDERS, "controls": [], "budget": {"flops": 0.5},
        "trials": trials, "sampler": {"name": sampler}}), base, None)


def result(number: int) -> Result:
    """As long as one of the default study: five stages."""
    accuracy = Random(number).random()
    final = Final(STEPS, f"{number:032d}", accuracy, MACS // 2, 1000, 100, 80.0)
    return Result((final,), "met", True, STEPS, 0, 1.0,
                  {f"{number}-{step:030d}": 2 for step in range(STEPS + 1)})


def walk_s(number: int, trial_s: float) -> float:
    """Seconds that the trial of this number takes: a fifth more or less."""
    return trial_s * (0.8 + 0.4 * Random(number).random())


class StubAgent(Agent):
    """An agent whose trials are made up."""

    trial_s = 0.0
    walks: Counter[int]  # number -> how often it was walked

    def __post_init__(self) -> None:
        super().__post_init__()
        self.experiment = cast(Any, SimpleNamespace(
            whole=SimpleNamespace(macs=MACS, params=MACS), baseline=SimpleNamespace(accuracy=1.0)))
        self.runs = cast(Any, SimpleNamespace(trial=lambda trial, config: str(trial.number)))

    def walk(self, run_id: str, config: object, claim: Claim, **_: object) -> Any:
        number = int(run_id)
        self.walks[number] += 1
        for _ in range(STEPS if self.trial_s else 0):
            agents.time.sleep(walk_s(number, self.trial_s) / STEPS)
            self._attend(claim)
        return result(number)


class _Quiet(MemoryTracker):
    def end_run(self, run_id: str, status: str) -> None:
        pass


def agent(asked: Study, ledger: Ledger, held: Claims, walks: Counter[int], trial_s: float = 0.0,
          ) -> StubAgent:
    made = StubAgent(asked, NAME, Path(), ledger, held, _Quiet(), QuietScreen())
    made.trial_s, made.walks = trial_s, walks
    return made


@contextmanager
def stubbed(clock: Any = time, thread: Any = threading.Thread) -> Iterator[None]:
    """While it lasts, a made-up trial is its own result, and time and threads are those given."""
    with patch.multiple(agents, time=clock, result_of=lambda done, seconds: done,
                        apply=lambda base, settings: base), \
            patch.object(claims, "time", clock), patch.object(leases, "time", clock), \
            patch.object(leases, "threading", SimpleNamespace(Thread=thread)):
        yield


class MemoryLeases:
    """A table of leases in this process."""

    def __init__(self) -> None:
        self._rows: dict[str, Lease] = {}

    def read(self, name: str | None = None) -> Mapping[str, Lease]:
        if name is not None:
            return {name: self._rows[name]} if name in self._rows else {}
        return dict(self._rows)

    def swap(self, name: str, before: Lease | None, after: Lease | None) -> bool:
        if self._rows.get(name) != before:
            return False
        self._rows.pop(name, None)
        if after is not None:
            self._rows[name] = after
        return True
