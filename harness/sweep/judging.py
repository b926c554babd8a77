"""Networks that are there already, judged anew: on other classes, on the test split, class by
class. Nothing is trained, and nothing is chosen by it."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.analysis.costs import Sheet
from harness.checkpoint import load_pruned
from harness.config import RunConfig, Study
from harness.console import percent
from harness.data import Data
from harness.engine.cost import Cost
from harness.errors import StoreError, StudyError
from harness.evaluate import Report, report
from harness.experiment import Experiment, stages
from harness.loading import network
from harness.sweep.controls import controls_of
from harness.sweep.ledger import ordinal_of
from harness.sweep.place import Place
from harness.sweep.results import Final
from harness.sweep.runs import named
from harness.trajectories import Stage

SIDE_BY_SIDE = 6


@dataclass(frozen=True)
class Judged:
    """One network. split -> its report; settings: what the study tried for it."""

    name: str
    replicate: int
    settings: dict[str, Any]
    cost: Cost
    reports: dict[str, Report]


def judge_run(config: RunConfig, home: Path, classes: Sequence[str], *, with_test: bool,
              pruned: Path | None = None) -> list[Judged]:
    """The baseline of a run, and a pruned network of it from a file.

    Raises StudyError if the baseline was not trained here; ModelError for another file.
    """
    experiment = Experiment(config, stages(home))
    whole = experiment.found()
    if whole is None:
        raise StudyError(f"the baseline of {config.name} with these settings was not trained in "
                         f"{home}. Train it first: harness baseline {config.name}")
    judged = [_judged("baseline", 0, {}, experiment, whole, classes, with_test)]
    if pruned is not None:
        model = load_pruned(network(config, experiment.data.to("cpu")), pruned)
        reports = dict(_reports(experiment.place(model).eval(), experiment.data, classes,
                                with_test))
        judged.append(Judged(pruned.name, 0, {}, experiment.cost_of(model), reports))
    return judged


def judge_study(study: Study, place: Place, classes: Sequence[str], *, with_test: bool,
                ) -> list[Judged]:
    """The baseline of a study, the end of every trial, and every control; all replicates.

    Raises StudyError if it was not begun here, or its baseline is no longer in the store.
    """
    ledger = place.ledger(place.begun(study))
    experiment = Experiment(study.base, stages(place.home))
    whole = experiment.found()
    if whole is None:
        raise StudyError(f"the baseline of {study.config.name} is not in {place.home / 'stages'}.")
    judged = [_judged("baseline", 0, {}, experiment, whole, classes, with_test)]
    ends: list[tuple[str, int, dict[str, Any], Final]] = [
        (f"trial {ordinal_of(trial)}", 0, dict(trial.params), result.last)
        for trial, result in ledger.results()]
    ends += [(f"control {c.name}", c.replicate, {}, c.result.last)
             for c in controls_of(ledger) if c.result]
    for name, replicate, settings, final in ends:
        base = study.base.model_copy(update={"replicate": study.base.replicate + replicate})
        stage = experiment.stage(final.key)
        if stage is None:
            raise StoreError(f"{name} of {study.config.name} is no longer in the store: its stage "
                             f"{final.key} is not in {place.home / 'stages'}. Run the study again.")
        judged.append(_judged(name, base.replicate, named(settings), experiment, stage, classes,
                              with_test))
    return judged


def tables(title: str, judged: Sequence[Judged], classes: Sequence[str]) -> list[Sheet]:
    """All networks by split; and class by class, where they are few enough to stand side by side.
    """
    whole = judged[0].cost.macs
    keys = list(dict.fromkeys(key for each in judged for key in each.settings))
    rows = [[each.name, str(each.replicate), *(str(each.settings.get(key, "-")) for key in keys),
             split, percent(found.top1), percent(found.top5), percent(found.mean_iou),
             f"{found.loss:.4f}", percent(each.cost.macs / whole),
             f"{each.cost.flops / 1e9:.4f}"]
            for each in judged for split, found in each.reports.items()]
    of = f"the classes {', '.join(classes)}" if classes else "all classes"
    notes = [f"judged by {of}; nothing was trained. GOps: 2 x MACs / 1e9 of one picture."]
    first = Sheet(title, ["network", "replicate", *keys, "split", "top-1", "top-5", "mean IoU",
                          "loss", "FLOPs", "GOps per picture"], rows, notes)
    if len(judged) > SIDE_BY_SIDE:
        return [first]
    word = "recall" if judged[0].reports["val"].mean_iou is None else "IoU"
    per_class = [[label, *(percent(each.reports["val"].by_class[label]) for each in judged)]
                 for label in judged[0].reports["val"].by_class]
    return [first, Sheet(f"{word} by class, on validation",
                         ["class", *(each.name for each in judged)], per_class)]


def write_csv(judged: Sequence[Judged], path: Path) -> Path:
    """Every network, split and measure as one row of a table; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = list(dict.fromkeys(key for each in judged for key in each.settings))
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["network", "replicate", *keys, "split", "measure", "value", "macs"])
        for each in judged:
            head = [each.name, each.replicate, *(each.settings.get(key, "") for key in keys)]
            for split, found in each.reports.items():
                values = found.metrics() | {f"class {k}": v for k, v in found.by_class.items()}
                table.writerows([*head, split, k, v, each.cost.macs] for k, v in values.items())
    return path


def _judged(name: str, replicate: int, settings: dict[str, Any], experiment: Experiment,
            stage: Stage, classes: Sequence[str], with_test: bool) -> Judged:
    reports = dict(_reports(experiment.model(stage), experiment.data, classes, with_test))
    return Judged(name, replicate, settings, experiment.cost(stage.plan), reports)


def _reports(model: Any, data: Data, classes: Sequence[str], with_test: bool,
             ) -> Iterator[tuple[str, Report]]:
    chosen = data.only(classes) if classes else data
    yield "train", report(model, chosen.train, data.labels)
    yield "val", report(model, chosen.val, data.labels)
    if with_test:
        yield "test", report(model, chosen.read_test(), data.labels)
