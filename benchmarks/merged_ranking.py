"""Ranking that rides on the last retrain epoch, against a separate Taylor pass.

`python -m benchmarks.merged_ranking` takes the main job's network, trained and cut once, and tells
what gathering adds to an epoch, how alike the two rankings are, and what an iteration (score,
select, cut, certify, retrain one epoch, evaluate) costs with each.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

import torch
from scipy.stats import spearmanr

from benchmarks import main_job
from benchmarks.goal import Record, alone
from benchmarks.rounds import cpu, interleaved, medians
from harness import train as training
from harness.config import RunConfig, apply
from harness.data import Split
from harness.engine.evidence import Watch
from harness.experiment import Experiment
from harness.store import NoStore
from harness.trajectories import Lab, Stage, Step, walk
from harness.translation import recipe_of, settings_of

CLOCK = "process CPU time, one thread"


@dataclass
class Cut:
    """The main job's network, trained, cut once and retrained one epoch."""

    experiment: Experiment
    lab: Lab
    stage: Stage


def measure(size: str) -> Iterator[Record]:
    """Merged ranking against a separate pass."""
    rounds = 1 if size == "tiny" else 5 if size == "smoke" else 9
    seeds = 5 if size == "full" else 1
    cuts = [_cut(main_job.config(size, {"seed": seed})) for seed in range(seeds)]
    found = medians(interleaved(_epochs(cuts[0]), rounds))
    yield Record(
        3, "gathering adds to the epoch it rides on", "<=", 10.0,
        100 * (found["merged"] / found["plain"] - 1), "%",
        f"training the cut VGG-16 on half of the digits, with the hooks and without, in turns; "
        f"{CLOCK}, medians of {rounds} rounds",
        "hooks read every activation once more, and wait for memory that others on the machine use")
    yield Record(
        3, "merged ranking beside the separate pass (Spearman)", ">=", 0.85,
        fmean(_likeness(cut) for cut in cuts), "",
        f"within each layer, mean over layers, {'five seeds' if seeds > 1 else 'one seed'}; the "
        "merged one saw the network change during the epoch, the pass saw it at the end",
        "the epoch changes the network that is ranked: learning rate 0.05, one cycle")
    found = medians(interleaved(_iterations(cuts[0]), rounds))
    yield Record(
        3, "iteration with a separate pass / merged", ">=", 1.5, found["pass"] / found["merged"],
        "x",
        f"score, select, cut, certify, evaluate, retrain one epoch, in turns; {CLOCK}, medians of "
        f"{rounds} rounds",
        "our own pass takes no gradients of weights, so it costs less than the epoch that it is "
        "compared with")


def _cut(config: RunConfig) -> Cut:
    experiment = Experiment(config, NoStore())
    lab = experiment.lab(config)
    steps = islice(walk(lab, experiment.baseline, settings_of(config)), 2)
    *_, last = steps
    assert isinstance(last, Step)
    return Cut(experiment, lab, last.stage)


def _epochs(cut: Cut) -> dict[str, Callable[[], float]]:
    """An epoch of retraining, each time of the same weights; half of the pictures tell as much."""
    recipe = recipe_of(cut.experiment.config, "retrain")
    train = cut.experiment.data.train
    half = Split(train.inputs[::2], train.targets[::2])

    def epoch(is_merged: bool) -> float:
        model = cut.lab.model(cut.stage)

        def observe() -> AbstractContextManager[object]:
            return Watch(model, cut.lab.graph) if is_merged else nullcontext()

        return cpu(lambda: training.train(
            model, half, recipe, seed=0, observe=observe,
            validate=lambda _: training.Score(0.0, 0.0)))

    return {"plain": lambda: epoch(False), "merged": lambda: epoch(True)}


def _likeness(cut: Cut) -> float:
    """Spearman's rank correlation within a layer, mean over layers."""
    merged, separate = (
        cut.lab.scores(cut.stage, settings_of(apply(cut.experiment.config,
                                                    {"prune.ranking": ranking})))
        for ranking in ("merged", "pass"))
    each = [float(spearmanr(merged[group], separate[group]).statistic) for group in merged
            if len(torch.unique(merged[group])) > 1 < len(torch.unique(separate[group]))]
    return fmean(each)


def _iterations(cut: Cut) -> dict[str, Callable[[], float]]:
    def iteration(ranking: str) -> float:
        settings = settings_of(apply(cut.experiment.config, {"prune.ranking": ranking}))
        steps = walk(cut.lab, cut.stage, settings)
        next(steps)  # where it starts
        return cpu(lambda: next(steps))

    return {name: lambda name=name: iteration(name) for name in ("merged", "pass")}


if __name__ == "__main__":
    alone(measure)
