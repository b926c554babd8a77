"""Trained networks by name, wherever they are kept; the whole ones and the pruned.

baseline:CONFIG           a configuration's baseline, trained if it is not in the store
study:STUDY[:WHICH]       of a finished study: champion (if WHICH is not given), baseline, the
                          number of a trial, or the name of a control
run:ID[:MILESTONE]        the model that a run keeps in MLflow; or one of its milestones.json
                          (unpruned, 25, 50, best, final), as long as the store has its stage
file:PATH                 of `harness export --format state`, or `harness.save_pruned`
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from harness.checkpoint import Parameters, load_pruned, read_checkpoint, rebuilt
from harness.config import RunConfig, run_from_text
from harness.data import Data
from harness.engine.pruner import ignoring
from harness.errors import ConfigError, StudyError, unknown
from harness.experiment import Experiment, stages
from harness.graphs import traced
from harness.loading import network
from harness.sweep.champion import outcome_of
from harness.sweep.ledger import ordinal_of
from harness.sweep.place import Place
from harness.sweep.run_files import milestones, plans
from harness.sweep.storage import told
from harness.tracking import Tracker
from harness.trajectories import Stage

KINDS = ("baseline", "study", "run", "file")


@dataclass(frozen=True)
class Reference:
    """A network's name, taken apart."""

    kind: str
    name: str
    which: str = ""

    def __str__(self) -> str:
        return ":".join(part for part in (self.kind, self.name, self.which) if part)

    @property
    def short(self) -> str:
        """As a person calls it."""
        which = f"trial {self.which}" if self.which.isdecimal() else self.which or "champion"
        return {"baseline": f"baseline of {self.name}",
                "run": f"run {self.name[:8]} {self.which}".strip(),
                "file": Path(self.name).stem, "study": f"{which} of {self.name}"}[self.kind]


def references(texts: list[str]) -> list[Reference]:
    """Raises ConfigError with all that are none."""
    found, wrong = [], []
    for text in texts:
        kind, _, rest = text.partition(":")
        name, _, which = rest.partition(":") if kind in ("study", "run") else (rest, "", "")
        if kind not in KINDS or not name:
            wrong.append(f"'{text}': {unknown('kind of network', kind, KINDS)}")
        elif kind == "study" and which == "champion":
            found.append(Reference(kind, name))
        else:
            found.append(Reference(kind, name, which))
    if wrong:
        raise ConfigError("\n".join([
            *wrong, "A network is baseline:CONFIG, study:STUDY, study:STUDY:7 (a trial), "
                    "study:STUDY:baseline, study:STUDY:random (a control), run:ID, run:ID:50 (a "
                    "milestone) or file:PATH."]))
    return found


@dataclass(frozen=True)
class Fetched:
    """A trained network, in eval mode, and what it kept: {tensor: {dimension: original indices}}.
    """

    module: nn.Module
    parameters: Parameters


@dataclass
class Shelf:
    """Where networks are looked for. read_config: a configuration by its name."""

    home: Path
    tracker: Tracker
    read_config: Callable[[str], RunConfig]
    place: Place

    def config(self, ref: Reference) -> RunConfig:
        """The run that made the network. Raises HarnessError if it cannot be told."""
        if ref.kind == "baseline":
            return self.read_config(ref.name)
        if ref.kind == "run":
            return run_from_text(self.tracker.read_text(ref.name, "config.yaml"))
        file = Path(ref.name)
        if ref.kind == "study":
            outcome = outcome_of(ref.name, self.home)
            file = self.home / "studies" / outcome.study_id / "baseline.safetensors"
        metadata = read_checkpoint(file).metadata
        if "config" not in metadata:
            raise ConfigError(f"{file} does not say of which configuration it is: name it with "
                              "--data.")
        return run_from_text(str(metadata["config"]))

    def network(self, ref: Reference, config: RunConfig, data: Data) -> Fetched:
        """The trained network, for pictures of this data set.

        Raises HarnessError with the reason if it is not to be had.
        """
        if ref.kind == "baseline":
            experiment = Experiment(config, stages(self.home))
            return _of_stage(experiment, experiment.baseline)
        if ref.kind == "run":
            return self._milestone(ref, config) if ref.which else self._of_run(ref, config, data)
        if ref.kind == "file":
            return _of_file(Path(ref.name), config, data)
        return self._of_study(ref, config, data)

    def _milestone(self, ref: Reference, config: RunConfig) -> Fetched:
        known = milestones(self.tracker, ref.name)
        if ref.which not in known:
            raise StudyError(f"the run {ref.name} has no such network: "
                             f"{unknown('milestone', ref.which, known)}")
        return self._in_store(ref, config, known[ref.which]["stage"])

    def _in_store(self, ref: Reference, config: RunConfig, key: str) -> Fetched:
        experiment = Experiment(config, stages(self.home))
        stage = experiment.stage(key)
        if stage is None:
            raise StudyError(f"the stage of {ref} is no longer in the store of {self.home}; run "
                             "its settings again (harness run) to have it back.")
        return _of_stage(experiment, stage)

    def _of_run(self, ref: Reference, config: RunConfig, data: Data) -> Fetched:
        tensors, tags = self.tracker.read_model(ref.name, "pruned")
        known = plans(self.tracker, ref.name)
        whole = network(config, data)
        graph = ignoring(traced(whole, data.val.inputs[:8].contiguous(), stages(self.home)),
                         config.prune.ignore, whole)
        step = tags.get("step") or max(known, key=int)
        if step not in known:
            raise StudyError(f"the run {ref.name} has no plan of its step {step[:40]}.")
        plan = graph.plan(known[step]["kept"])
        return Fetched(rebuilt(whole, plan.parameters, tensors).eval(), plan.parameters)

    def _of_study(self, ref: Reference, config: RunConfig, data: Data) -> Fetched:
        outcome = outcome_of(ref.name, self.home)
        if ref.which in ("", "baseline"):
            file = self.home / "studies" / outcome.study_id / f"{ref.which or 'champion'}"
            return _of_file(file.with_suffix(".safetensors"), config, data)
        known = {row.name: row.stage for row in outcome.rows if row.role == "control"}
        if ref.which.isdecimal():
            with told(self.place.url):
                results = self.place.ledger(outcome.study_id).results()
            known |= {str(ordinal_of(trial)): result.last.key for trial, result in results}
        if ref.which not in known:
            raise StudyError(f"{outcome.study_id} has no such network: "
                             f"{unknown('trial or control', ref.which, known)}")
        return self._in_store(ref, config, known[ref.which])


def _of_file(file: Path, config: RunConfig, data: Data) -> Fetched:
    module = load_pruned(network(config, data), file).eval()
    return Fetched(module, read_checkpoint(file).parameters)


def _of_stage(experiment: Experiment, stage: Stage) -> Fetched:
    return Fetched(experiment.model(stage), stage.plan.parameters)
