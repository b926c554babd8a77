"""The benches with tables of their own, as records: each asked for its counts and ratios.

`python -m benchmarks.earlier sharing|surgery|sensitivity|agents|two_agents` runs one of
`benchmarks.sharing`, `bench_engine`, `sensitivity`, `agents` and `two_agents`, which also run alone
and tell more.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch

from benchmarks import bench_engine, engine_page, sharing, steps
from benchmarks.children import ROOT, ask
from benchmarks.goal import Measure, Record, alone, not_run

LEVELS = (20, 30, 40, 50, 60, 70, 80)
FEW = {"tiny": ("mobilenet_v3_large",), "smoke": ("vgg16", "resnet50", "mobilenet_v3_large")}
LIMIT_S = 1800.0


def shared(size: str) -> Iterator[Record]:
    """Epochs that sharing saves, and whether the weights are the same without it."""
    torch.set_num_threads(1)
    number, sample = {"tiny": (3, 1), "smoke": (40, 3), "full": (40, 40)}[size]
    agents = 1 if size == "tiny" else 2  # epochs are counted: a second agent only ends sooner
    listed = sharing.drawn(sharing.LADDERS, number, Random(0))
    study = sharing.study_of(listed)
    with tempfile.TemporaryDirectory() as place:
        walk = sharing.shared(study, Path(place) / "walk", agents)
        curve = sharing.walked(study.base, levels()[:number], Path(place) / "curve")
    apart, together = sharing.counted(curve)
    how = (f"epochs counted, not timed: a fixed list of {number} settings, whole steps, "
           f"{'one agent' if agents == 1 else 'two agents'}, {walk.naive} against {walk.epochs}")
    records = [
        Record(2, "epochs without sharing / with it", ">=", 2.5, walk.naive / walk.epochs, "x",
               how),
        Record(2, "the same, with a baseline for every trial", ">=", 4.0,
               walk.saved_with_baselines, "x", how),
        Record(2, f"{len(levels()[:number])} levels of the curve, epochs apart / "
                  "together", ">=", 4.0,
               apart / together, "x",
               f"epochs counted: one setting at {', '.join(map(str, LEVELS))} %, {apart} against "
               f"{together}")]
    for record in records:
        yield record.told_only("a few settings share little") if size == "tiny" else record
    some = Random(1).sample(range(number), sample)
    equal = sum(walk.weights[n] == sharing.alone(study.base, listed[n])[0] for n in some)
    yield Record(2, "settings whose weights are the same to the bit without sharing", ">=", 100.0,
                 100 * equal / sample, "%",
                 f"{equal} of {sample} settings, walked alone without a store, with a baseline "
                 "of their own; hashes of the last network's weights")


def levels() -> list[dict[str, Any]]:
    """One setting that stops at seven percentages."""
    one = {"prune.filters_per_step": 48, "retrain.epochs": 2, "prune.floors.layer_min": 0.05}
    return [{**one, "prune.percentage": percent} for percent in LEVELS]


def surgery(size: str) -> Iterator[Record]:
    """A single pass beside one filter at a time; whole steps beside Torch-Pruning's."""
    rounds = 1 if size == "tiny" else 5
    options = ["--rounds", str(rounds), "--threads", "1"]
    if size != "tiny":
        found: Any = ask("benchmarks.bench_engine", "cifar", "--child", "surgery", *options,
                         limit_s=LIMIT_S)
        words = f"{bench_engine.FILTERS} filters of VGG-16 one by one / in a single pass"
        yield _surgery(words, found, rounds)
    if not steps.peer_version():
        yield not_run(4, "a pruning step beside Torch-Pruning's", "it is not installed: pip "
                                                                  "install "
                      "-e '.[bench]'")
        return
    for name in FEW.get(size, bench_engine.MODELS):
        yield _step(name, rounds, options)


def _surgery(words: str, found: Any, rounds: int) -> Record:
    if "failure" in found:
        return not_run(4, words, str(found["failure"]))
    ways = {name: median(each) for name, each in found["ways"].items()}
    once = ways["single pass"]
    told = ", ".join(f"{name} {seconds / once:.1f}x" for name, seconds in ways.items()
                     if name != "single pass")
    return Record(
        4, words, ">=", 80.0, ways["layers rebuilt, one by one"] / once, "x",
        f"VGG-16 for CIFAR, layers rebuilt for every filter as it was first done, against our "
        f"one cut of {1e3 * once:.0f} ms; {told}; all compute the same afterwards (1e-5); in "
        f"turns, wall time, one thread, medians of {rounds} rounds")


def _step(name: str, rounds: int, options: Sequence[str]) -> Record:
    """Torch-Pruning's step, its counting left out, by ours, counting included."""
    words = f"a pruning step of {name}, Torch-Pruning / ours"
    probe = ask("benchmarks.bench_engine", name, "--child", "probe", *options,
                limit_s=bench_engine.PEER_LIMIT_S)
    if "failure" in probe:
        return not_run(4, words, f"Torch-Pruning on it: {probe['failure']}")
    row: Any = {"step": ask("benchmarks.bench_engine", name, "--child", "step", *options,
                            limit_s=LIMIT_S)}
    if "failure" in row["step"]:
        return not_run(4, words, str(row["step"]["failure"]))
    ratios = engine_page.ratios(row)
    assert ratios is not None
    counted, bare = ratios
    return Record(
        4, words, ">=", 1.0, counted, "x",
        f"half of the filters by L1: score, select, cut, exact counts, the graph at hand; its "
        f"counting left out {bare:.1f}x; in turns, wall time, one thread, medians of {rounds} "
        "rounds")


def sensitivity(size: str) -> Iterator[Record]:
    """Masks beside copies that are cut."""
    asked = ["vgg16_digits", "--set", "model.width=0.125" if size == "tiny" else "model.width=0.25"]
    asked += ["--ratios", "0.5" if size == "tiny" else "0.1,0.3,0.5,0.7,0.9"]
    seconds: Any = ask("benchmarks.sensitivity", *asked, limit_s=LIMIT_S)
    words = "sensitivity of all layers: copies, cut and masked / our masks"
    if "failure" in seconds:
        yield not_run(0, words, str(seconds["failure"]))
        return
    ours = seconds["structured: masks"] + seconds["unstructured: masks"]
    naive = (seconds["structured: copy, harness.prune"]
             + seconds["unstructured: copy, torch.nn.utils.prune"])
    yield Record(0, words, "", 0.0, naive / ours, "x",
                 f"python -m benchmarks.sensitivity {' '.join(asked)}: all points once each way, "
                 f"{ours:.0f} s and {naive:.0f} s of process CPU time")


def agents(size: str) -> Iterator[Record]:
    """The same study with one, two and three agents."""
    told = _said("benchmarks.agents", *([] if size == "full" else ["--profile", "smoke"]))
    equal, every = map(int, re.findall(r"weights equal in (\d+) of (\d+)", told)[0])
    yield Record(0, "settings with the same weights whatever the number of agents", ">=", 100.0,
                 100 * equal / every, "%", f"{equal} of {every} settings with 1, 2 and 3 agents, "
                                           "hashes")


def two_agents(size: str) -> Iterator[Record]:
    """Two agents on PostgreSQL and an MLflow server, against one on SQLite."""
    told = _said("benchmarks.two_agents")
    same, every = map(int, re.findall(r"end of (\d+) of (\d+) settings", told)[0])
    yield Record(0, "settings with the same stages on PostgreSQL with two agents", ">=", 100.0,
                 100 * same / every, "%", f"{same} of {every}, beside one agent on SQLite")


def _said(module: str, *options: str) -> str:
    done = subprocess.run([sys.executable, "-m", module, *options], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return done.stdout


BENCHES: dict[str, Measure] = {"sharing": shared, "surgery": surgery, "sensitivity": sensitivity,
                               "agents": agents, "two_agents": two_agents}

if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in BENCHES:
        sys.exit(f"say which: {', '.join(BENCHES)}")
    alone(BENCHES[sys.argv[1]], sys.argv[2:])
