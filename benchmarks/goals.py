"""All goals of docs/performance.md, one after the other: `make bench`, and `make bench-full`.

    python -m benchmarks.goals [BENCH ...] [--size smoke|full] [--list]

Every bench runs in a process of its own; one that fails is a row with its reason, and the others
go on. Prints the table goal | target | reached | how, and writes it to
benchmarks/results/goals_CORES_DATE.md and .json, anew after every bench: one that is cut short
leaves what it has measured. A run of some benches, or of another size, has them in its file's name.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import goals_page, machine
from benchmarks.children import ROOT, Answer, ask_all
from benchmarks.goal import SIZES, Record, not_run

Ask = Callable[..., tuple[list[Answer], str]]


@dataclass(frozen=True)
class Bench:
    """goals: the numbers that it measures. sizes: at which it runs in a run of all."""

    name: str
    goals: tuple[int, ...]
    sizes: tuple[str, ...] = SIZES
    options: tuple[str, ...] = ()
    module: str = ""
    limits_s: dict[str, float] = field(default_factory=dict)

    def command(self, size: str) -> tuple[str, ...]:
        return (f"benchmarks.{self.module or self.name}", *self.options, "--size", size)

    def limit_s(self, size: str) -> float:
        """A bench that hangs must not hold up the others."""
        return self.limits_s.get(size, 7200.0 if size == "full" else 600.0)


BENCHES = (
    Bench("whole_study", (1,), limits_s={"smoke": 1500.0, "full": 4 * 3600.0}),
    Bench("sharing", (2,), module="earlier", options=("sharing",)),
    Bench("merged_ranking", (3,)),
    Bench("surgery", (4,), module="earlier", options=("surgery",)),
    Bench("stores", (5,)),
    Bench("data_path", (6,)),
    Bench("crowded", (7,)),
    Bench("train_step", (8,)),
    Bench("real_latency", (9,)),
    Bench("shrinking", (10,)),
    Bench("quality", (11,)),
    Bench("start_up", (12,)),
    Bench("study_cost", (5, 12)),
    Bench("gpu", (13,)),
    Bench("growth", (15,)),
    Bench("many_trials", (15,)),
    Bench("sensitivity", (0,), module="earlier", options=("sensitivity",), sizes=("full",)),
    Bench("agents", (0,), module="earlier", options=("agents",), sizes=("full",)),
    Bench("two_agents", (0,), module="earlier", options=("two_agents",), sizes=("full",)),
)
WORDS = {
    1: "the whole study against a naive sweep", 2: "prefix sharing", 3: "merged ranking",
    4: "surgery and steps", 5: "bookkeeping", 6: "data path", 7: "busy machine, two agents",
    8: "train step", 9: "real latency", 10: "retrain epochs of small networks",
    11: "quality with controls", 12: "start-up and memory", 13: "on a GPU",
    14: "a trial on several devices", 15: "how cost grows", 0: "beside the goals"}

ELSEWHERE = {14: "it is no figure: tests/test_devices.py shows it with two processes over gloo"}


def main(argv: Sequence[str] | None = None) -> int:
    asked = _arguments(argv)
    if asked.list:
        print("\n".join(f"{bench.name}: goals {', '.join(map(str, bench.goals))}; "
                        f"python -m {' '.join(bench.command('smoke'))}" for bench in BENCHES))
        return 0
    chosen = [b for b in BENCHES if b.name in asked.benches
              or (not asked.benches and asked.size in b.sizes)]
    load, facts = os.getloadavg()[0], machine.facts()
    path = asked.out / f"{page_name(asked.size, asked.benches, facts)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(records: Sequence[Record], seconds: Mapping[str, float]) -> str:
        found = {"facts": facts, "load": load, "size": asked.size, "benches": asked.benches,
                 "seconds": dict(seconds),
                 "records": [asdict(record) for record in
                             (records if asked.benches else complete(records))]}
        text = goals_page.page(found)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        return text

    print(write(*run(chosen, asked.size, keep=write)))
    print(path.with_suffix(".md"))
    return 0


def run(benches: Sequence[Bench], size: str, ask: Ask = ask_all, *,
        keep: Callable[[Sequence[Record], Mapping[str, float]], object] = lambda *_: None,
        ) -> tuple[list[Record], dict[str, float]]:
    """(the records of all, seconds of each bench); one that fails has its reason for a record.

    keep: given both after every bench.
    """
    records: list[Record] = []
    seconds: dict[str, float] = {}
    for bench in benches:
        print(f"{bench.name} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        module, *options = bench.command(size)
        answers, failure = ask(module, *options, "--json", limit_s=bench.limit_s(size))
        found = [Record(**answer) for answer in answers]  # type: ignore[arg-type]
        if failure:
            said = f"python -m {module} failed: {failure}"
            found += [not_run(goal, WORDS[goal], said) for goal in bench.goals]
        for record in found:
            print(f"  {record.line()}", file=sys.stderr, flush=True)
        records += found
        seconds[bench.name] = time.perf_counter() - start
        keep(records, seconds)
    return records, seconds


def page_name(size: str, benches: Sequence[str], facts: Mapping[str, str]) -> str:
    """A run of some benches, or of another size, never takes the place of the whole table."""
    what = "-".join(["goals", *([] if size == "smoke" else [size]), *benches])
    return f"{what}_{facts['machine.cores']}-cores_{facts['date']}"


def complete(records: Sequence[Record]) -> list[Record]:
    """In the order of the goals, with a row for each that nobody has measured here."""
    there = {record.goal for record in records}
    missing = [not_run(goal, words, ELSEWHERE.get(goal, "not measured in this run"))
               for goal, words in WORDS.items() if goal and goal not in there]
    return sorted([*records, *missing], key=lambda record: record.goal or 99)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.goals", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [bench.name for bench in BENCHES]
    parser.add_argument("benches", nargs="*", metavar="BENCH", help=f"of {', '.join(names)}")
    parser.add_argument("--size", choices=SIZES, default="smoke")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--list", action="store_true", help="the benches and their commands")
    asked = parser.parse_args(argv)
    if wrong := [name for name in asked.benches if name not in names]:
        parser.error(f"no such bench: {', '.join(wrong)}. Known: {', '.join(names)}")
    return asked


if __name__ == "__main__":
    sys.exit(main())
