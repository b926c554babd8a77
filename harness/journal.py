"""What a run writes down: the same names in every study, one batch a step.

Per step (step = pruning iteration): val_accuracy, val_accuracy_cut, val_loss, percentage, macs,
flops, flops_reduction (share of the baseline's, in [0, 1]), params, filters, size_mb, latency_ms.
Per epoch (step = epochs of this run so far): train_loss, train_accuracy, val_loss_epoch,
val_accuracy_epoch, val_top5_epoch (of more than five classes), lr. Summaries: final_*. The test
split has no curve: it is read once.
A point carries the time at which its stage was made, so writing it again changes nothing; where a
stage had to be made again, the point that was written first stays.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from traceback import format_exception

from harness.analysis.plots import layer_widths
from harness.analysis.removal import Removed, removed
from harness.engine.cost import Cost
from harness.errors import (
    ClaimLost,
    HandedBack,
    HarnessError,
    StoreError,
    TrackingError,
    described,
)
from harness.tracking import Point, Tracker
from harness.trajectories import Stage, Step


@dataclass
class Journal:
    """One run of the tracker, and the whole network's cost that everything is compared with."""

    tracker: Tracker
    run_id: str
    whole: Cost
    _epochs: int = 0
    _told: set[str] = field(default_factory=set)
    _written: dict[str, set[int]] = field(default_factory=dict)

    def step(self, step: Step) -> None:
        """Everything that one pruning step learned, in one batch."""
        facts = step.stage.facts
        metrics = {"val_accuracy": step.accuracy, "val_accuracy_cut": step.accuracy_cut,
                   "val_loss": float(facts["loss"]), "percentage": step.percentage,
                   "latency_ms": float(facts["latency_ms"]), **self.counted(step.cost)}
        made = int(facts["made_ms"])
        points = [Point(key, value, step.number, made) for key, value in metrics.items()]
        if step.number or facts.get("is_prepared"):  # else step 0 is the baseline
            points += self._rows(step.stage)
        self._told.add(step.stage.key)
        self._write(points)

    def final(self, stage: Stage, cost: Cost, *, test_accuracy: float | None = None) -> None:
        """The run's result, as metrics without a step."""
        counted = self.counted(cost)
        metrics = {"final_val_accuracy": stage.accuracy,
                   "final_flops_factor": self.whole.macs / cost.macs,  # times fewer
                   "final_latency_ms": float(stage.facts["latency_ms"]),
                   **{f"final_{key}": counted[key] for key in counted}}
        if test_accuracy is not None:
            metrics["final_test_accuracy"] = test_accuracy
        self.summary(metrics, int(stage.facts["made_ms"]))

    def epochs(self, stage: Stage) -> None:
        """The epochs of the baseline, or of the final fine-tune; nothing if they were told."""
        if stage.key not in self._told:
            self._write(self._rows(stage))

    def summary(self, metrics: Mapping[str, float], made_ms: int) -> None:
        self._write([Point(k, v, 0, made_ms) for k, v in metrics.items()])

    def latest(self, metrics: Mapping[str, float], moment_ms: int) -> None:
        """Summaries that may change: MLflow shows those of the latest moment."""
        self.tracker.log_points(self.run_id,
                                [Point(k, v, 0, moment_ms) for k, v in metrics.items()])

    def _write(self, points: Sequence[Point]) -> None:
        for key in {point.key for point in points} - self._written.keys():
            self._written[key] = self.tracker.steps(self.run_id, key)
        new = [point for point in points if point.step not in self._written[point.key]]
        if new:
            self.tracker.log_points(self.run_id, new)
        for point in new:
            self._written[point.key].add(point.step)

    def layers(self, steps: Sequence[Step]) -> None:
        """Widths of every layer at every step: as one table, and as pictures to step through."""
        rows = [(s.number, layer.layer, layer.filters, layer.params, layer.macs)
                for s in steps for layer in s.cost.layers if layer.filters]
        names = ("step", "layer", "filters", "params", "macs")
        self.tracker.log_table(self.run_id, dict(zip(names, map(list, zip(*rows)))), "layers.json")
        whole = self.widths(steps[0].cost)
        for step in steps[1:]:
            picture = layer_widths(whole, self.widths(step.cost))
            self.tracker.log_image(self.run_id, picture, key="layer_widths", step=step.number)
        last = layer_widths(whole, self.widths(steps[-1].cost))
        self.tracker.log_image(self.run_id, last, key="final_layer_widths", step=0)

    def removals(self, steps: Sequence[Step]) -> None:
        """Parameters that have gone, of every layer and block at every step: number and percent."""
        rows = [(s.number, *row) for s in steps for row in removed(self.whole, s.cost)]
        names = ("step", *Removed._fields)
        self.tracker.log_table(self.run_id, dict(zip(names, map(list, zip(*rows)))), "removed.json")

    def plans(self, steps: Sequence[Step]) -> None:
        """The exact channels that every step kept, by group, and that are gone by then, by layer:
        original numbers; with the exact shares that are removed."""
        plans = {str(s.number): {"percentage": s.percentage, "removed": self.removed(s.cost),
                                 "stage": s.stage.key,
                                 "pruned": {n: [*gone] for n, gone in s.pruned.items()},
                                 **{what: s.stage.facts.get(what) for what in
                                    ("certificate", "folding", "recalibration")},
                                 "kept": s.plan.as_json()} for s in steps}
        self.tracker.log_json(self.run_id, plans, "plan.json")

    def ledgers(self, steps: Sequence[Step]) -> None:
        """Of every step: asked against reached, scores, floors, what stayed whole and why."""
        told = {str(s.number): s.ledger.as_json() for s in steps if s.ledger}
        self.tracker.log_json(self.run_id, told, "ledger.json")

    def removed(self, cost: Cost) -> dict[str, float]:
        """Percent of the baseline's that are gone, exactly."""
        pairs = {"filters": (cost.filters, self.whole.filters),
                 "params": (cost.params, self.whole.params), "flops": (cost.macs, self.whole.macs)}
        return {what: 100 * (1 - left / all_) if all_ else 0.0
                for what, (left, all_) in pairs.items()}

    def gops(self, record: Mapping[str, float], stage: Stage) -> None:
        """Counted work and memory, as metrics and as gops.json."""
        self.summary(record, int(stage.facts["made_ms"]))
        self.tracker.log_json(self.run_id, dict(record), "gops.json")

    def milestones(self, steps: Sequence[Step], final: Stage) -> None:
        """The networks on the way that one may want to load, see `milestones_of`."""
        self.tracker.log_json(self.run_id, milestones_of(steps, final), "milestones.json")

    def counted(self, cost: Cost) -> dict[str, float]:
        return {"macs": cost.macs, "flops": cost.flops, "params": cost.params,
                "filters": cost.filters, "size_mb": cost.size_mb,
                "flops_reduction": 1 - cost.macs / self.whole.macs}

    @staticmethod
    def widths(cost: Cost) -> dict[str, int]:
        """Layer -> convolution output channels."""
        return {layer.layer: layer.filters for layer in cost.layers if layer.filters}

    def _rows(self, stage: Stage) -> list[Point]:
        made = int(stage.facts["made_ms"])
        points = []
        for row in stage.epochs:
            values = {"train_loss": row.train_loss, "train_accuracy": row.train_accuracy,
                      "val_loss_epoch": row.val_loss, "val_accuracy_epoch": row.val_accuracy,
                      "val_top5_epoch": row.val_top5, "lr": row.lr}
            points += [Point(k, v, self._epochs, made) for k, v in values.items()
                       if not math.isnan(v)]
            self._epochs += 1
        return points


MILESTONES = (25, 50)  # percent of the FLOPs removed


def milestones_of(steps: Sequence[Step], final: Stage) -> dict[str, dict[str, object]]:
    """Name -> where the network lies: `stage` is its key in the store of the home.

    unpruned: before the first cut; 25 and 50: the first with at least so many percent of the FLOPs
    removed, retrained; best: of the pruned ones, fine-tuned or not, the most accurate on
    validation (of equals the smallest); final: the last one, fine-tuned. What was not reached is
    not there.
    """
    whole = steps[0].macs
    pruned = [(s.accuracy, -s.macs, s.number, s.stage) for s in steps if s.number]
    pruned.append((final.accuracy, -steps[-1].macs, steps[-1].number, final))
    found = {"unpruned": (steps[0].number, steps[0].stage)}
    for percent in MILESTONES:
        reached = [s for s in steps if 1 - s.macs / whole >= percent / 100]
        if reached:
            found[str(percent)] = (reached[0].number, reached[0].stage)
    *_, number, stage = max(pruned, key=lambda each: each[:2])
    found |= {"best": (number, stage), "final": (steps[-1].number, final)}
    by_number = {s.number: s for s in steps}
    return {name: {"step": n, "stage": stage.key, "val_accuracy": stage.accuracy,
                   "flops_removed_percent": 100 * (1 - by_number[n].macs / whole),
                   "filters_removed_percent": by_number[n].percentage}
            for name, (n, stage) in found.items()}


@contextmanager
def ending(tracker: Tracker, run_id: str, unless: Callable[[], bool] = lambda: False,
           ) -> Iterator[None]:
    """End a run as what became of it, so that none stays RUNNING: FINISHED, or FAILED with the
    reason, and where that is not ours with its traceback; KILLED if it is no fault of its own, for
    then it goes on another time.

    unless: others are at work on it, and will end it. Nor is a run ended that another agent has.
    """
    try:
        yield
    except ClaimLost:
        raise
    except BaseException as error:
        cut_short = isinstance(error, KeyboardInterrupt | StoreError | TrackingError | HandedBack)
        with suppress(TrackingError):  # what is raised already matters more
            if not unless():
                if not cut_short:
                    tracker.set_tags(run_id, {"reason": described(error)[:4000]})
                    if not isinstance(error, HarnessError):
                        tracker.log_text(run_id, "".join(format_exception(error)), "traceback.txt")
                tracker.end_run(run_id, "KILLED" if cut_short else "FAILED")
        raise
    tracker.end_run(run_id, "FINISHED")
