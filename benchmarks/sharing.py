"""Trials that share work, against trials that do not: a fixed list of forty settings on digits.

`python -m benchmarks.sharing` walks the list as one study with one agent, as another with three,
and every setting alone, without a store and with a baseline of its own. Epochs are counted, not
timed, and every setting's weights are compared to the bit. `--draws 1000` tells what other lists
would have shared: all settings of the ladders are walked once, and lists drawn from them counted.
Steps are whole (`prune.iterations`); `--iterations exact` cuts each walk's last one short.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import numpy
import torch

from benchmarks import machine
from harness.checking import known_names
from harness.config import Known, RunConfig, Study, StudyConfig, apply, load_run, to_yaml
from harness.experiment import Experiment, stages
from harness.store import NoStore
from harness.sweep.conclude import checksum
from harness.sweep.ledger import ordinal_of
from harness.sweep.place import Place, study_id
from harness.sweep.results import effort_of

LADDERS: dict[str, list[Any]] = {
    "prune.filters_per_step": [24, 36, 48, 72], "retrain.epochs": [1, 2, 3],
    "prune.floors.layer_min": [0.05, 0.1, 0.2, 0.3],
    "prune.percentage": [20, 30, 40, 50, 60, 70, 80]}
# Ladders, network and twelve epochs of baseline: what the goals were once measured with.
SMALL = {"model.name": "benchmarks.sharing_network:net", "model.width": 1.0, "data.size": 8,
         "baseline.epochs": 12, "finetune.epochs": 0, "pictures": False}
Walk = Mapping[str, int]  # stage key -> epochs


@dataclass(frozen=True)
class Shared:
    """A study that walked the list. weights: setting -> hash of its last network; champion: of
    the best one, '' if there is none."""

    agents: int
    epochs: int
    naive: int
    baseline: int
    saved: float
    saved_with_baselines: float
    made_again: int
    weights: dict[int, str]
    champion: str


def drawn(ladders: Mapping[str, Sequence[Any]], count: int, random: Random,
          ) -> list[dict[str, Any]]:
    """Different settings, drawn evenly."""
    found: list[dict[str, Any]] = []
    while len(found) < count:
        one = {key: random.choice(ladder) for key, ladder in ladders.items()}
        if one not in found:
            found.append(one)
    return found


def study_of(listed: Sequence[dict[str, Any]], iterations: str = "whole") -> Study:
    base = apply(load_run("vgg16_digits", known=Known(**known_names())),
                 {**SMALL, "prune.iterations": iterations})
    config = {"name": "sharing", "config": "sharing", "space": LADDERS, "controls": [],
              "budget": {"flops": 0.9}, "enqueue": list(listed), "trials": len(listed),
              "sampler": {"name": "random"}}
    return Study(StudyConfig.model_validate(config), base, None)


def shared(study: Study, folder: Path, agents: int) -> Shared:
    """Walk the list in a home of its own."""
    for kind, config in (("configs", study.base), ("studies", study.config)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / "sharing.yaml").write_text(to_yaml(config))
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-m", "harness", "study", "sharing", "--agents",
                           str(agents)], cwd=folder, check=False, text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(root)})
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    place = Place.at(folder / "runs")
    ledger = place.ledger(study_id(study))
    results = ledger.results()
    experiment = Experiment(study.base, stages(folder / "runs"))
    effort = effort_of([r for _, r in results], len(experiment.baseline.epochs))
    times = stages(folder / "runs").times_made()
    keys = {key for _, result in results for key in result.epochs}
    weights = {}
    for trial, result in results:
        stage = experiment.stage(result.last.key)
        assert stage is not None, "the store let a stage go"
        weights[ordinal_of(trial)] = checksum(stage)
    return Shared(agents, effort.run, effort.naive, effort.baseline, effort.saved,
                  effort.saved_with_baselines, sum(times[key] - 1 for key in keys), weights,
                  ledger.get("outcome")["weights"])


def alone(base: RunConfig, given: dict[str, Any]) -> tuple[str, int]:
    """(hash of the last network, epochs retrained) of one setting, without a store."""
    config = apply(base, given)
    trial = Experiment(config, NoStore()).trial(config)
    return checksum(trial.final), sum(len(stage.epochs) for stage in trial.stages)


def space() -> list[dict[str, Any]]:
    """Every setting of the ladders."""
    return [dict(zip(LADDERS, values, strict=True)) for values in product(*LADDERS.values())]


def walked(base: RunConfig, listed: Sequence[dict[str, Any]], folder: Path) -> list[Walk]:
    """Every setting of the list, with one store."""
    store, found = stages(folder), []
    for given in listed:
        config = apply(base, given)
        steps = Experiment(config, store).trial(config).steps[1:]
        found.append({step.stage.key: len(step.stage.epochs) for step in steps})
    return found


def counted(walks: Sequence[Walk]) -> tuple[int, int]:
    """Epochs of the walks, each apart and all together."""
    together = {key: epochs for walk in walks for key, epochs in walk.items()}
    return sum(sum(walk.values()) for walk in walks), sum(together.values())


def saved(walks: Sequence[Walk], baseline: int = 0) -> float:
    """How many times fewer epochs together than each apart, a baseline of so many included."""
    apart, together = counted(walks)
    return (len(walks) * baseline + apart) / (baseline + together)


def spread(walks: Sequence[Walk], size: int, draws: int, baseline: int = 0) -> list[float]:
    """What lists of this size would have saved: their 5th, 50th and 95th percentiles."""
    every = [saved(Random(n).sample(walks, size), baseline) for n in range(draws)]
    return [float(found) for found in numpy.percentile(every, (5, 50, 95))]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--iterations", choices=["whole", "exact"], default="whole",
                        help="exact: last steps are cut short to meet the percentage")
    parser.add_argument("--draws", type=int, default=0, help="lists to count besides")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    listed = drawn(LADDERS, asked.trials, Random(0))
    study = study_of(listed, asked.iterations)
    with tempfile.TemporaryDirectory() as place:
        walks = [shared(study, Path(place) / str(n), n) for n in asked.agents]
    found = [alone(study.base, given) for given in listed]
    naive = sum(epochs for _, epochs in found)
    for walk in walks:
        equal = sum(walk.weights[n] == weights for n, (weights, _) in enumerate(found))
        print(f"{walk.agents} agents: {walk.epochs} epochs retrained, {naive} without sharing "
              f"({naive / walk.epochs:.2f}x; {walk.saved_with_baselines:.2f}x with a baseline "
              f"each); {walk.made_again} stages made twice; weights equal to those of the setting "
              f"alone in {equal} of {len(listed)}", flush=True)
    if asked.draws:
        with tempfile.TemporaryDirectory() as folder:
            every = walked(study.base, space(), Path(folder))
        for words, baseline in (("", 0), (", with a baseline each", study.base.baseline.epochs)):
            low, middle, high = spread(every, asked.trials, asked.draws, baseline)
            print(f"{asked.draws} lists of {asked.trials} of {len(every)} settings{words}: median "
                  f"{middle:.2f}x, nine of ten between {low:.2f}x and {high:.2f}x")
    print(machine.line(machine.facts()))
    if asked.out:
        asked.out.write_text(json.dumps({"walks": [vars(w) for w in walks], "naive": naive}))


if __name__ == "__main__":
    main()
