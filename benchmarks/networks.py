"""Prune every classification and segmentation network of torchvision by half, and check each.

    python -m benchmarks.networks [MODEL ...] [--resume] [--jobs 1] [--table-only]

One process a network; its answer is one line of `benchmarks/results/networks.jsonl`, the newest
counting; the table of all answers is written to `docs/networks.md`. Ends with 1 if a check failed.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import machine, networks_page, zoo
from benchmarks.children import ROOT, Answer, answer, ask, first_line
from benchmarks.network_checks import SCOPES, cut_and_check, resource_of
from harness import trace

ANSWERS = ROOT / "benchmarks" / "results" / "networks.jsonl"
PAGE = ROOT / "docs" / "networks.md"


def main(argv: list[str] | None = None) -> int:
    asked = _arguments(argv)
    if asked.child:
        answer(measured(asked.models[0], asked.size, asked.threads))
        return 0
    zoo.refuse_unknown(asked.models)
    names = asked.models or list(zoo.ALL)
    done = _answers(asked.answers)
    if asked.resume:
        names = [n for n in names if n not in done or done[n]["failures"]]
    if asked.table_only:
        names = []
    for found in _ask_all(names, asked):
        with asked.answers.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        done[str(found["model"])] = found
        print(networks_page.line(found), flush=True)
    rows = [done[name] for name in zoo.ALL if name in done]
    asked.page.write_text(networks_page.page(rows, zoo.ALL), encoding="utf-8")
    print(f"{networks_page.summary(rows, zoo.ALL)} {asked.page}")
    return int(any(row["failures"] for row in rows))


def measured(name: str, size: int | None, threads: int | None) -> Answer:
    """Trace, prune (global, local) and check one network, in this process."""
    warnings.simplefilter("ignore")
    if threads:
        torch.set_num_threads(threads)
    side = size or zoo.side(name)
    found: Answer = {"model": name, "size": side, "facts": machine.facts(), "cuts": []}
    start = time.perf_counter()
    try:
        found |= _traced(name, side)
        cuts = [_cut(name, side, scope, str(found["resource"])) for scope in SCOPES]
        found["cuts"] = cuts
        failures = [f"{cut['scope']}: {text}" for cut in cuts for text in cut["failures"]]
    except Exception as error:  # building or tracing raises whatever comes
        failures = [f"trace: {first_line(error)}"]
    return found | {"failures": failures, "seconds": time.perf_counter() - start}


def _traced(name: str, side: int) -> Answer:
    model, example = zoo.prepared(name, side)
    with machine.Peak() as peak:
        start = time.perf_counter()
        graph = trace(model, example)
        seconds = time.perf_counter() - start
    cost = graph.cost()
    return {"trace_s": seconds, "trace_mb": peak.mb, "groups": len(graph.groups),
            "channels": graph.channels, "filters": cost.filters, "params": cost.params,
            "macs": cost.macs, "resource": resource_of(graph), "notes": list(graph.notes),
            "uncounted": dict(graph.uncounted)}


def _cut(name: str, side: int, scope: str, resource: str) -> dict[str, list[str]]:
    model, example = zoo.prepared(name, side)
    return asdict(cut_and_check(model, example, scope=scope, resource=resource))


def _ask_all(names: list[str], asked: argparse.Namespace) -> Iterator[Answer]:
    """The answers of one child process a network, as they come."""
    options = [*(["--size", str(asked.size)] if asked.size else []),
               *(["--threads", str(asked.threads)] if asked.threads else [])]
    with ThreadPoolExecutor(asked.jobs) as pool:
        waiting = {pool.submit(ask, "benchmarks.networks", name, "--child", *options,
                               limit_s=asked.limit_s): name for name in names}
        for future in as_completed(waiting):
            found = future.result()
            if "failure" in found:  # the process died
                found = {"model": waiting[future], "facts": machine.facts(), "cuts": [],
                         "failures": [str(found["failure"])]}
            yield found


def _answers(path: Path) -> dict[str, Answer]:
    """Model -> its newest answer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {found["model"]: found for found in map(json.loads, lines)}


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all of them")
    parser.add_argument("--resume", action="store_true",
                        help="leave out what has been answered without a failure")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--size", type=int, help="side of the pictures (default: the network's)")
    parser.add_argument("--threads", type=int, help="threads of torch in each process")
    parser.add_argument("--limit-s", type=float, default=1800, help="seconds for a network")
    parser.add_argument("--table-only", action="store_true", help="from the answers there are")
    parser.add_argument("--answers", type=Path, default=ANSWERS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
