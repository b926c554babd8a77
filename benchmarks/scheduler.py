"""Where the storage becomes the limit: the scheduler's own code with a thousand agents.

`python -m benchmarks.scheduler` measures what an agent's calls cost over each storage, by the
trials that a study has and the agents at work on it; works out how many agents that carries; and
runs a study of 100,000 made-up trials with 1,000 agents to its end. `--small` takes a minute.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import optuna
import torch

from benchmarks import machine, scheduler_page
from benchmarks.scheduler_calls import Calls, measure, samplers
from benchmarks.simulation import simulate

RESULTS = Path(__file__).parent / "results"
TRIALS, AGENTS, LENGTHS_S = (100, 1000, 10_000, 100_000), (10, 100, 1000), (60.0, 600.0)


def carried(held_s: Callable[[float], float], cycle_s: float, most: float) -> float | None:
    """The number of agents at which what only one may hold at a time is held all the time.

    held_s: agents -> seconds a trial; cycle_s: between two trials of an agent. None: `most` agents,
    as many as were measured, are carried.
    """
    if most * held_s(most) <= cycle_s:
        return None
    few, many = 0.0, most
    while many - few > 0.001 * many:
        middle = (few + many) / 2
        few, many = (middle, many) if middle * held_s(middle) <= cycle_s else (few, middle)
    return few


def limits(calls: Sequence[Calls]) -> list[dict[str, Any]]:
    """For every storage and study size: agents that it carries for trials of each length."""
    found = []
    for storage, trials in sorted({(c.storage, c.trials) for c in calls}):
        here = sorted((c for c in calls if (c.storage, c.trials) == (storage, trials)),
                      key=lambda c: c.agents)
        counts = [c.agents for c in here]
        for length_s in LENGTHS_S:
            held = [c.serial_s(length_s) for c in here]
            agents = carried(partial(numpy.interp, xp=counts, fp=held), length_s, counts[-1])
            found.append({"storage": storage, "trials": trials, "length_s": length_s,
                          "agents": agents, "most": counts[-1]})
    return found


def _key(call: dict[str, Any]) -> tuple[str, int, int]:
    return call["storage"], call["trials"], call["agents"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a minute; the page stays as it is")
    parser.add_argument("--trials", type=int, nargs="+", default=None)
    parser.add_argument("--agents", type=int, nargs="+", default=None)
    parser.add_argument("--storages", nargs="+", default=["memory", "sqlite", "journal",
                                                          "postgresql"])
    parser.add_argument("--part", choices=["calls", "samplers", "run", "all"], default="all")
    parser.add_argument("--facts", type=Path, default=RESULTS / "scheduler.json",
                        help="where the figures are kept; parts that are not measured stay")
    asked = parser.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    load = f"{os.getloadavg()[0]:.1f}"  # of others, at the start
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    trials = asked.trials or ((100, 1000) if asked.small else TRIALS)
    agents = asked.agents or ((10,) if asked.small else AGENTS)
    found: dict[str, Any] = ({} if asked.small or not asked.facts.exists()
                             else json.loads(asked.facts.read_text()))
    parts = ("calls", "samplers", "run") if asked.part == "all" else (asked.part,)
    if "calls" in parts:
        calls = {_key(c): Calls(**c) for c in found.get("calls", [])}
        with tempfile.TemporaryDirectory() as folder:
            for one in measure(asked.storages, trials, agents, Path(folder)):
                calls[_key(asdict(one))] = one
                print(one.line(), flush=True)
        every = sorted(calls.values(), key=lambda c: (c.storage, c.trials, c.agents))
        found |= {"calls": [asdict(c) for c in every], "limits": limits(every)}
    if "samplers" in parts:
        found["samplers"] = [{"sampler": s, "trials": n, "seconds": took}
                             for s, n, took in samplers(trials)]
        print(*found["samplers"], sep="\n", flush=True)
    if "run" in parts:
        run = simulate(20, 300, 60.0) if asked.small else simulate(1000, 100_000, 60.0)
        found["run"] = {**asdict(run), "efficiency": run.efficiency}
        print(found["run"], flush=True)
        if run.wrong:
            sys.exit("\n".join(run.wrong[:20]))
    if asked.small:
        return
    here = {"machine": machine.facts(), "load": load}
    found["measured"] = {**found.get("measured", {}), **dict.fromkeys(parts, here)}
    asked.facts.write_text(json.dumps(found, indent=1))
    page = asked.facts.with_suffix(".md")
    page.write_text(scheduler_page.page(found))
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
