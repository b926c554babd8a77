"""A trial's network with its widths rounded up, beside what it was: `harness export --round-to`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from harness.analysis.costs import Sheet
from harness.config import RunConfig, apply
from harness.console import count, percent
from harness.data import Data
from harness.engine.cost import FLOPS_PER_MAC
from harness.errors import ExportError, StudyError
from harness.evaluate import Latency, latencies
from harness.experiment import Experiment, stages
from harness.sweep.champion import outcome_of
from harness.sweep.lineage import way_back
from harness.sweep.networks import Fetched, Reference, Shelf
from harness.sweep.timed import BATCHES, of_pictures, pictures_of, spread, terms
from harness.trajectories import Stage

BASELINE, AS_IT_IS = "baseline", "as it is"
ROUNDS = 5  # of interleaved runs; told is the median of their medians
JUDGED = BATCHES[-1]  # pictures at a time
Rounds = Sequence[Mapping[str, Latency]]


@dataclass(frozen=True)
class Rounded:
    """to: of what number widths are multiples. is_faster: than the network as it is, at 32 pictures
    at a time, in every round; between two alike chance would say so in 1 of 32 cases.
    network: the one to export, which is the rounded one only if it is faster."""

    to: int
    network: Fetched
    is_faster: bool
    sheet: Sheet


def rounded_network(ref: Reference, shelf: Shelf, config: RunConfig, data: Data, found: Fetched,
                    to: int) -> Rounded:
    """Cut and retrain the trial behind `ref` anew with rounded widths, unless the store has that.

    found: its network as it is. Raises ExportError, before anything is trained, for a network that
    is not a trial's; StudyError if the store has let its stages go.
    """
    outcome = outcome_of(ref.name, shelf.home) if ref.kind == "study" else None
    if outcome is None or found.lineage.get("trial") is None:
        raise ExportError(f"--round-to: {ref} is not a trial of a finished study, so that it is "
                          "not known how it was cut and retrained.")
    number, step = int(found.lineage["trial"]), int(found.lineage["step"])
    settings, result = shelf.trial(outcome.study_id, number)
    experiment = Experiment(config, stages(shelf.home))
    keys = [point.stage for point in result.curve if point.step <= step]
    chain = [stage for key in keys if (stage := experiment.stage(key)) is not None]
    if len(chain) < len(keys):
        raise StudyError(f"stages of {ref} are no longer in the store of {shelf.home}. "
                         f"{way_back(found.lineage.get('run'), shelf.home)}")
    trial = experiment.rounded(apply(config, settings), chain, to)
    wide = Fetched(experiment.model(trial.final).cpu(), trial.last.plan.parameters, {
        **{name: value for name, value in found.lineage.items() if name != "test_accuracy"},
        "stage": trial.final.key, "val_accuracy": trial.final.accuracy, "rounded_to": to})
    name = f"multiples of {to}"
    networks = {BASELINE: experiment.model(experiment.baseline).cpu(),
                AS_IT_IS: found.module.cpu(), name: wide.module}
    rounds = {size: [latencies(networks, pictures_of(data.val.inputs, size), rounds=10)
                     for _ in range(ROUNDS)] for size in BATCHES}
    times = {size: _overall(found) for size, found in rounds.items()}
    wins = sum(found[name].median_ms < found[AS_IT_IS].median_ms for found in rounds[JUDGED])
    is_another = trial.last.plan != chain[-1].plan
    is_faster = is_another and wins == ROUNDS
    macs = {BASELINE: experiment.whole.macs, AS_IT_IS: _macs(experiment, chain[-1]),
            name: trial.last.macs}
    accuracies = {BASELINE: experiment.baseline.accuracy,
                  AS_IT_IS: float(found.lineage["val_accuracy"]), name: trial.final.accuracy}
    sheet = _sheet(ref, data.measure, macs, accuracies, times, [
        f"exported: {name if is_faster else AS_IT_IS}; {trial.reason}" + (
            ": what was cut last came back, and the step was retrained as it had been"
            if is_another else ""),
        f"{name} was faster in {wins} of {ROUNDS} rounds at {of_pictures(JUDGED)}, and had to be "
        f"in all: {spread(times[JUDGED][name])}, {AS_IT_IS} {spread(times[JUDGED][AS_IT_IS])}",
        f"{terms(data.val.inputs)}; median of the medians of {ROUNDS} alternating runs (least and "
        "largest quartile)"])
    return Rounded(to, wide if is_faster else found, is_faster, sheet)


def _macs(experiment: Experiment, stage: Stage) -> int:
    return experiment.cost(stage.plan).macs


def _overall(rounds: Rounds) -> dict[str, Latency]:
    return {name: Latency(median(each[name].median_ms for each in rounds),
                          min(each[name].low_ms for each in rounds),
                          max(each[name].high_ms for each in rounds)) for name in rounds[0]}


def _sheet(ref: Reference, measure: str, macs: Mapping[str, int],
           accuracies: Mapping[str, float], times: Mapping[int, Mapping[str, Latency]],
           notes: Sequence[str]) -> Sheet:
    rows: list[Sequence[object]] = []
    for name in macs:
        ideal = macs[BASELINE] / macs[name]
        row: list[object] = [name, percent(accuracies[name]), count(FLOPS_PER_MAC * macs[name]),
                             f"{ideal:.2f}x"]
        for found in times.values():
            real = found[BASELINE].median_ms / found[name].median_ms
            row += [spread(found[name]), f"{real:.2f}x ({real / ideal:.2f})"]
        rows.append(row)
    return Sheet(f"widths of {ref.short}", [
        "network", f"{measure} (validation)", "FLOPs per picture", "ideal speed-up",
        "latency, 1 picture", "real (of ideal)", "latency, 32 pictures", "real (of ideal)"],
        rows, notes)
