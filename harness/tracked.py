"""One configuration's experiment with a run of MLflow's beside it, for verbs that are no study."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.config import RunConfig, fingerprint, flat, short, to_yaml
from harness.console import Screen, percent
from harness.experiment import Experiment, stages
from harness.journal import ending
from harness.runtime import facts, memory_let_go
from harness.tracking import Tracker
from harness.train import SOLO, Team


def identity_of(config: RunConfig) -> str:
    """A run is its name and the fingerprint of all that changes its results."""
    return f"{config.name}-{fingerprint(config)}"


@dataclass(frozen=True)
class Tracked:
    """An experiment whose baseline is trained, and the run that it is written into."""

    tracker: Tracker
    run_id: str
    experiment: Experiment


@contextmanager
def tracked(config: RunConfig, role: str, home: Path, open_tracker: Callable[[], Tracker],
            screen: Screen, team: Team = SOLO) -> Iterator[Tracked]:
    """While entered, the run is open; it ends as `journal.ending` says. role: 'run', 'sparse', ...

    The caller has checked the configuration: from here on a mistake leaves a FAILED run.
    """
    tracker, identity = open_tracker(), identity_of(config)
    name = identity if role == "run" else f"{role} {identity}"
    run_id = tracker.open_run(name=name, role=role, study=identity,
                              params={short(path): value for path, value in flat(config).items()})
    with ending(tracker, run_id):
        tracker.log_text(run_id, to_yaml(config), "config.yaml")
        screen.study(identity, 0, 1)
        experiment = Experiment(config, stages(home, say=screen.message), screen, team)
        tracker.set_tags(run_id, {**facts(experiment.device), "measure": experiment.data.measure})
        with memory_let_go():
            screen.baseline(f"accuracy {percent(experiment.baseline.accuracy)}")
        yield Tracked(tracker, run_id, experiment)
