"""What is left of the accuracy, beside controls of equal MACs, over replicates.

`python -m benchmarks.quality --size full` prunes the main job's network ten and fifty times smaller
in MACs on five baselines of their own, by the settings below, which were written down before any of
it was run: by the criterion, at random, and the same widths from scratch for as many epochs.
Accuracies are of the test split, which is read at the end alone. Other sizes show that it runs.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from benchmarks import main_job
from benchmarks.goal import Record, alone
from harness.analysis.paired import paired, spread
from harness.config import RunConfig, control_of
from harness.experiment import Experiment, Trial
from harness.store import FolderStore

FEWER = (10, 50)
CONTROLS = ("random", "scratch")
BEHIND, LEAST = 0.6, 98.0  # percentage points; percent
SETTINGS = {"prune.percentage": 100, "prune.filters_per_step": 264, "prune.floors.layer_min": 0.125,
            "retrain.epochs": 2, "finetune.epochs": 12, "finetune.lr": 0.1}
SHORT = {"prune.filters_per_step": 132, "retrain.epochs": 1, "finetune.epochs": 1,
         "finetune.lr": 0.05, "prune.certify": False, "model.width": 0.125, "baseline.epochs": 1}


@dataclass
class Accuracies:
    """Percent, a replicate each; fewer: how many times fewer MACs were left, at the least."""

    dense: list[float] = field(default_factory=list)
    pruned: list[float] = field(default_factory=list)
    controls: dict[str, list[float]] = field(default_factory=dict)
    fewer: list[float] = field(default_factory=list)


def measure(size: str) -> Iterator[Record]:
    """Accuracy at ten and at fifty times fewer MACs, with controls."""
    replicates = 5 if size == "full" else 1
    config = main_job.config("tiny" if size != "full" else size,
                             SETTINGS | ({} if size == "full" else SHORT))
    found = {times: Accuracies() for times in FEWER}
    with tempfile.TemporaryDirectory() as name:
        for number in range(1, replicates + 1):
            run = config.model_copy(update={"replicate": number})
            experiment = Experiment(run, FolderStore(Path(name)))
            for times in FEWER:
                add(found[times], experiment, run, times)
    for record in records(found):
        yield record if size == "full" else record.told_only(
            "one replicate of a small network, trained for an epoch: it shows that it runs")


def add(found: Accuracies, experiment: Experiment, config: RunConfig, times: int) -> None:
    """One replicate: the pruned network and its controls at no more than its MACs."""
    whole = experiment.whole.macs
    pruned = experiment.trial(config, macs=whole // times)
    controls = {"random": experiment.trial(control_of(config, "random", {}), macs=pruned.last.macs),
                "scratch": experiment.scratch(pruned.final, epochs_of(config, pruned))}
    found.dense.append(100 * experiment.test_accuracy(experiment.baseline))
    found.pruned.append(100 * experiment.test_accuracy(pruned.final))
    found.fewer.append(whole / pruned.last.macs)
    for name, trial in controls.items():
        found.controls.setdefault(name, []).append(100 * experiment.test_accuracy(trial.final))


def epochs_of(config: RunConfig, pruned: Trial) -> int:
    """All that trained a network: its baseline, its retraining and its fine-tune."""
    return (config.baseline.epochs + pruned.last.number * config.retrain.epochs
            + config.finetune.epochs)


def records(found: Mapping[int, Accuracies]) -> Iterator[Record]:
    """The rows: near the dense network at ten times fewer, and no worse than controls at fifty."""
    ten, fifty = found[10], found[50]
    behind = paired(ten.dense, ten.pruned)
    yield Record(11, f"behind dense at {min(ten.fewer):.1f}x fewer MACs", "<=", BEHIND, behind.mean,
                 "points", f"mean paired difference {behind.mean:.2f}, standard error "
                 f"{behind.error:.2f}; {_told(ten)}", "see the controls: what any network of this "
                 "size reaches")
    yield Record(11, f"accuracy at {min(fifty.fewer):.1f}x fewer MACs", ">=", LEAST,
                 mean(fifty.pruned), "%", _told(fifty),
                 "see the controls: what any network of this size reaches")
    for name in CONTROLS:
        ahead = paired(fifty.pruned, fifty.controls[name])
        yield Record(
            11, f"ahead of {name} at {min(fifty.fewer):.1f}x, plus one standard error", ">=", 0.0,
            ahead.mean + ahead.error if ahead.pairs > 1 else ahead.mean, "points",
            f"mean paired difference {ahead.mean:+.2f}, standard error {ahead.error:.2f}; one by "
            f"one {_each(p - c for p, c in zip(fifty.pruned, fifty.controls[name], strict=True))}",
            "these widths are worth as much with other weights")


def _told(found: Accuracies) -> str:
    rows = {"dense": found.dense, "pruned": found.pruned, **found.controls}
    return ("test accuracy in %, mean and standard deviation: " + ", ".join(
        f"{name} {_spread(values)}" for name, values in rows.items())
        + f"; {len(found.dense)} replicates, each with a baseline of its own, digits; from scratch "
        "for as many epochs in all")


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f} +- {spread(values):.2f}"


def _each(values: Iterator[float]) -> str:
    return " ".join(f"{value:+.2f}" for value in values)


if __name__ == "__main__":
    alone(measure)
