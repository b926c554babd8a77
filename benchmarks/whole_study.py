"""The main job against a naive sweep of the same trials: the clock, epochs, and training MACs.

`python -m benchmarks.whole_study` runs the study as it comes, every run from nothing, and
`benchmarks.naive_sweep` with the settings that the study has tried, its controls included, in
turns; each is a process of its own. `--size full` is the default study, one pair; else its smoke
profile, five pairs.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.children import ROOT
from benchmarks.goal import Record, alone
from harness import trace
from harness.checking import known_names
from harness.config import Known, RunConfig, Study, load_study
from harness.engine.work import gradients, work
from harness.loading import load_data, network
from harness.sweep.controls import controls_of
from harness.sweep.ledger import Ledger
from harness.sweep.place import Place, study_id
from harness.sweep.results import Result, effort_of
from harness.sweep.runs import named

NAME = "vgg16_budget"
TRIALS = ["trials=1", "baseline.epochs=1", "pictures=false", "controls=[]"]  # of the size 'tiny'


@dataclass(frozen=True)
class Side:
    """One sweep. seconds: of its process, by the clock; epochs and flops: of all training."""

    seconds: float
    epochs: int
    flops: int


@dataclass(frozen=True)
class Ours(Side):
    """trials: (settings, criterion) of all that it walked."""

    trials: Sequence[tuple[Mapping[str, Any], str]]


def measure(size: str) -> Iterator[Record]:
    """The whole study beside the naive sweep."""
    profile = None if size == "full" else "smoke"
    pairs = 5 if size == "smoke" else 1
    study = load_study(NAME, profile=profile, overrides=TRIALS if size == "tiny" else [],
                       known=Known(**known_names()))
    ours, naive = [_ours(study, size)], []
    naive.append(_naive(study, ours[0].trials))
    for number in range(1, pairs):
        for side in ("naive", "ours")[::1 if number % 2 else -1]:
            if side == "ours":
                ours.append(_ours(study, size))
            else:
                naive.append(_naive(study, ours[0].trials))
    yield from records(ours, naive, "the default study" if profile is None else
                       "the study's smoke profile", is_whole=profile is None)


def records(ours: Sequence[Ours], naive: Sequence[Side], form: str, *, is_whole: bool,
            ) -> Iterator[Record]:
    """The rows, from runs in pairs."""
    a, b = median(side.seconds for side in ours), median(side.seconds for side in naive)
    controls = len(ours[0].trials) - sum(c == "taylor" for _, c in ours[0].trials)
    how = (f"{form}: {len(ours[0].trials)} trials, {controls} of them controls; naive: a baseline "
           "each, a Taylor pass before every cut, filters removed one by one, log_metric, default "
           "stores, DataLoader, one fine-tune a trial where the study makes up to two; both one "
           "thread")
    wall = Record(
        1, "wall time, naive sweep / ours", ">=", 6.0, b / a, "x",
        f"{b:.0f} s against {a:.0f} s; ours with its pictures, models and report; whole processes, "
        f"{'one pair' if len(ours) == 1 else f'in turns, medians of {len(ours)} pairs'}; {how}",
        "what is trained sets the bound: see the ratio of training MACs below")
    yield wall if is_whole else wall.told_only(
        "trials of seconds, in which starting up and drawing count for most: the goal is of the "
        "default study, make bench-full")
    yield Record(1, "epochs, naive sweep / ours", "", 0.0, naive[0].epochs / ours[0].epochs, "x",
                 f"{naive[0].epochs} against {ours[0].epochs}, baselines included, counted; {form}")
    yield Record(1, "training MACs, naive sweep / ours", "", 0.0, naive[0].flops / ours[0].flops,
                 "x", f"{naive[0].flops / 2e12:.2f} against {ours[0].flops / 2e12:.2f} T; forward "
                 "and backward of all epochs, baselines included, without ranking passes and "
                 f"evaluation, counted; {form}")


def _ours(study: Study, size: str) -> Ours:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "runs"
        seconds = _clocked(
            ["harness", "study", NAME, "--home", str(home),
             *(["--profile", study.profile] if study.profile else []),
             *(["--set", " ".join(TRIALS)] if size == "tiny" else [])],
            {"MLFLOW_TRACKING_URI": f"sqlite:///{name}/mlflow.db"})
        ledger = Place.at(home).ledger(study_id(study))
        return _read(study, ledger, seconds)


def _read(study: Study, ledger: Ledger, seconds: float) -> Ours:
    walked = [(dict(trial.params), "taylor", result) for trial, result in ledger.results()]
    controls = sorted((c for c in controls_of(ledger) if c.result), key=lambda c: c.name)
    if controls:
        rows = ledger.study.user_attrs["outcome"]["rows"]
        best = next(row["settings"] for row in rows if row["role"] == "champion")
        settings = next(tried for tried, _, _ in walked if best in (tried, named(tried)))
        walked += [(settings, c.name, c.result) for c in controls if c.result]
    results = [result for _, _, result in walked]
    epochs = study.base.baseline.epochs
    return Ours(seconds, effort_of(results, epochs).run + epochs,
                flops_of(results) + epochs * _epoch_flops(study.base),
                [(settings, criterion) for settings, criterion, _ in walked])


def _epoch_flops(config: RunConfig) -> int:
    """Of one epoch of the whole network."""
    data = load_data(config)
    model, example = network(config, data), data.val.inputs[:2]
    return len(data.train) * work(trace(model, example), gradients(model, example)).training_flops


def flops_of(results: Iterable[Result]) -> int:
    """Training FLOPs of all distinct stages; what a trial tells is summed up along its way."""
    stages: dict[str, int] = {}
    for result in results:
        before, steps = 0, {}
        for point in result.curve:
            total = point.training_flops or 0
            stages[point.stage] = total - before
            before = steps[point.step] = total
        for final in result.finals:
            stages.setdefault(final.key, (final.training_flops or 0) - steps[final.step])
    return sum(stages.values())


def _naive(study: Study, trials: Sequence[tuple[Mapping[str, Any], str]]) -> Side:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "asked.json").write_text(json.dumps(
            {"run": study.base.model_dump(), "trials": list(trials)}))
        seconds = _clocked(["benchmarks.naive_sweep", name], {})
        found = json.loads((folder / "found.json").read_text())
    return Side(seconds - found["counting_s"], found["epochs"], found["flops"])


def _clocked(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Seconds of `python -m command`. Raises RuntimeError if it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", **environment})
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return time.perf_counter() - start


if __name__ == "__main__":
    alone(measure)
