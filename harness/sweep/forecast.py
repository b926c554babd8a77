"""What a run or a study would do, without doing it: a dry run, which writes nothing anywhere."""

from math import ceil, inf
from pathlib import Path

from harness.analysis.costs import Sheet
from harness.config import RunConfig, Study
from harness.console import count, percent
from harness.experiment import Experiment, stages
from harness.store import NoStore
from harness.sweep.smallest import smallest
from harness.sweep.space import Space

SAME = {"flops": "macs"}  # a share of one is a share of the other


def forecast(asked: RunConfig | Study, home: Path) -> Sheet:
    """Data, network, what may be cut, and for how many epochs at most.

    Raises what the run itself would raise before it trains anything.
    """
    base = asked.base if isinstance(asked, Study) else asked
    experiment = Experiment(base, NoStore())
    rows = [*_of_data(experiment), *_of_network(experiment), _of_baseline(experiment, home)]
    runs = list(smallest(base, asked.config)) if isinstance(asked, Study) else [base]
    least = min(experiment.least_macs(run) for run in runs)
    rows.append(["floors allow", f"{percent(least / experiment.whole.macs)} of the FLOPs at least"
                 if least else "what the way there decides"])
    if isinstance(asked, Study):
        rows += _of_study(asked)
    else:
        rows += _of_run(experiment, base)
    return Sheet(f"{base.name if isinstance(asked, RunConfig) else asked.config.name}: a dry run",
                 ["what", "would be"], rows, ["nothing was trained, and nothing written"])


def _of_data(experiment: Experiment) -> list[list[str]]:
    data = experiment.data
    shape = " x ".join(map(str, data.input_shape))
    rows = [["data", f"{data.name}: {len(data.train)} to train on, {len(data.val)} to choose by; "
                     f"{shape}; {data.num_classes} classes of "
                     f"{'pixels' if data.task == 'pixels' else 'pictures'}"]]
    if experiment.chosen is not data:
        rows.append(["of the chosen classes", f"{len(experiment.chosen.train)} and "
                                              f"{len(experiment.chosen.val)}"])
    return rows


def _of_network(experiment: Experiment) -> list[list[str]]:
    whole, config = experiment.whole, experiment.config
    rows = [["network", f"{config.model.name}: {count(whole.flops)} FLOPs, {count(whole.params)} "
                        f"parameters, {whole.filters} filters"],
            ["device", str(experiment.device)]]
    rows += [["never cut", f"{group} ({why})"] for group, why in experiment.frozen.items()]
    if experiment.new_weights:
        rows.append(["begins anew", experiment.new_weights_told])
    return rows


def _of_baseline(experiment: Experiment, home: Path) -> list[str]:
    key, epochs = experiment.key, experiment.epochs_of(experiment.config.baseline)
    is_there = home.is_dir() and stages(home).get(key) is not None
    return ["baseline", "is in the store" if is_there else f"trained for {epochs:g} epochs"]


def _of_run(experiment: Experiment, config: RunConfig) -> list[list[str]]:
    prune = config.prune
    wanted = (f"{prune.percentage:g} % of {prune.percentage_of}" if not prune.ratios
              else f"shares of {len(prune.ratios)} modules, in one step")
    steps = _steps(experiment, config)
    epochs = (config.adapt.epochs + steps * experiment.epochs_of(config.retrain)
              + experiment.epochs_of(config.finetune))
    return [["pruned", f"{wanted}, by {prune.criterion}"],
            ["steps", f"at most {steps:g}" if steps < inf else "as many as it takes"],
            ["epochs after the baseline", f"at most {epochs:g}" if epochs < inf
             else f"{experiment.epochs_of(config.retrain):g} a step, and "
                  f"{experiment.epochs_of(config.finetune):g} at the end"]]


def _steps(experiment: Experiment, config: RunConfig) -> float:
    """Infinity where it depends on what is cut."""
    prune, filters = config.prune, experiment.whole.filters
    if prune.ratios:
        return 1
    shares = {SAME.get(name, name): amount for name, amount in prune.step.items()}
    share = shares.get(SAME.get(prune.percentage_of, prune.percentage_of), inf)
    if share < 1:  # of what the percentage is of
        return ceil(prune.percentage / 100 / share - 1e-9)
    if not prune.step and prune.percentage_of == "filters":
        return ceil(filters * prune.percentage / 100 / prune.filters_per_step - 1e-9)
    return inf


def _of_study(study: Study) -> list[list[str]]:
    config = study.config
    size = Space.of(config).size if config.kind != "binary_search" else inf
    there = f" of {size:g} that there are" if size < inf else ""
    rows = [["settings", f"{config.trials}{there}, by {config.sampler.name}"
             if config.kind != "binary_search" else "a binary search on the percentage"]]
    if config.controls:
        times = max(1, config.replicates)
        rows.append(["controls", f"{', '.join(config.controls)}; {times} "
                                 f"time{'s' * (times > 1)} each"])
    return rows
