"""One trajectory by itself: the run that studies vary, tracked like a trial."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.checking import check_pruning
from harness.config import RunConfig
from harness.console import Screen, TrialLine, count, percent
from harness.engine.ledger import Ledger
from harness.experiment import Experiment
from harness.journal import Journal
from harness.runtime import memory_let_go
from harness.store import NoStore
from harness.sweep.pictures import FOLDER, Pruned, of_run
from harness.sweep.results import result_of
from harness.tracked import identity_of, tracked
from harness.tracking import Tracker
from harness.train import SOLO, Team


@dataclass(frozen=True)
class Single:
    """The steps of one trajectory as a table, why it ended, and the last step's ledger."""

    reason: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    ledger: Ledger | None


def follow(config: RunConfig, team: Team) -> None:
    """The part in `run_one` of a process that is not the team's first: it trains, and tells nobody.
    """
    experiment = Experiment(config, NoStore(), team=team)
    _ = experiment.baseline
    experiment.trial(config)
    team.part()


def run_one(config: RunConfig, home: Path, open_tracker: Callable[[], Tracker], screen: Screen,
            team: Team = SOLO) -> Single:
    """Baseline, trajectory, final fine-tune; the test split is read for the two ends.

    team: who trains together; the others `follow`.
    Raises ConfigError, before anything is opened, for what `check_pruning` refuses.
    """
    check_pruning(config)
    start = time.perf_counter()
    with tracked(config, "run", home, open_tracker, screen, team) as run:
        tracker, run_id, experiment = run.tracker, run.run_id, run.experiment
        screen.trial(0, {}, config.prune.percentage)
        journal = Journal(tracker, run_id, experiment.whole)
        with memory_let_go():
            trial = experiment.trial(config, on_step=journal.step)
        team.part()
        journal.layers(trial.steps)
        journal.removals(trial.steps)
        journal.plans(trial.steps)
        journal.ledgers(trial.steps)
        journal.milestones(trial.steps, trial.final)
        journal.gops(experiment.gops(trial.final), trial.final)
        journal.epochs(trial.final)
        tests = {"baseline": experiment.test_accuracy(experiment.baseline),
                 "pruned": experiment.test_accuracy(trial.final)}
        journal.final(trial.final, trial.last.cost, test_accuracy=tests["pruned"])
        tracker.log_model(run_id, experiment.model(trial.final), experiment.data.val.inputs[:2],
                          name="pruned", metadata=experiment.record(trial.last.plan, {
                              "run": run_id, "step": trial.last.number, "stage": trial.final.key,
                              "val_accuracy": trial.final.accuracy,
                              "test_accuracy": tests["pruned"]}))
        tracker.set_tags(run_id, {"stop_reason": trial.reason[:4000]})
        result = result_of(trial, time.perf_counter() - start)
        drawn = []
        if config.pictures:
            album = of_run(experiment, result, Pruned("pruned", trial.final,
                                                      [step.plan for step in trial.steps]))
            folder = home / FOLDER / identity_of(config)
            album.keep(folder, tracker, run_id)
            drawn = [*album.told, f"pictures: {folder}"]
    share = trial.last.macs / experiment.whole.macs
    screen.trial_done(TrialLine(0, "trial", {}, "finished" if trial.reached else "stopped",
                                trial.final.accuracy, share, result.reused, len(result.epochs),
                                result.seconds, None if trial.reached else trial.reason))
    rows = [[str(s.number), f"{s.percentage:.1f} %", percent(s.accuracy_cut), percent(s.accuracy),
             percent(s.macs / experiment.whole.macs), count(s.params), str(s.filters),
             "yes" if s.stage.reused else "no"] for s in trial.steps]
    rows.append(["final", f"{trial.last.percentage:.1f} %", "-", percent(trial.final.accuracy),
                 percent(share), count(trial.last.params), str(trial.last.filters),
                 "yes" if trial.final.reused else "no"])
    notes = [f"accuracy is {experiment.data.measure}, on validation",
             f"test accuracy, read once: baseline {percent(tests['baseline'])}, "
             f"pruned {percent(tests['pruned'])}",
             *(f"never cut: {g} ({why})" for g, why in experiment.frozen.items()), *drawn]
    return Single(trial.reason, ["step", "removed", "accuracy cut", "accuracy", "FLOPs",
                                 "parameters", "filters", "reused"], rows, notes,
                  trial.last.ledger)
