"""Trained networks by name, wherever they are kept; the whole ones and the pruned.

baseline:CONFIG           a configuration's baseline, trained if it is not in the store
study:STUDY[:WHICH]       of a finished study: champion (if WHICH is not given), baseline, the
                          number of a trial, or the name of a control
study:STUDY:WHICH:STEP    a trial or a control after one of its steps, retrained, not fine-tuned
run:ID[:MILESTONE]        the model that a run keeps in MLflow; or one of its milestones.json
                          (unpruned, 25, 50, best, final), as long as the store has its stage
run:ID:step-STEP          a run after one of its steps, the same way
model:NAME[@ALIAS | /N]   of MLflow's registry, by alias (champion if none is given) or version
file:PATH                 of `harness export --format state`, or `harness.save_pruned`
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from harness.checkpoint import Parameters, load_pruned, read_checkpoint, rebuilt
from harness.config import RunConfig, run_from_text
from harness.data import Data
from harness.engine.pruner import ignoring
from harness.errors import ConfigError, StudyError, unknown
from harness.experiment import Experiment, stages
from harness.graphs import traced
from harness.loading import network
from harness.sweep import lineage as lineages
from harness.sweep.champion import outcome_of
from harness.sweep.ledger import ordinal_of
from harness.sweep.outcome import Outcome
from harness.sweep.place import Place
from harness.sweep.results import Result
from harness.sweep.run_files import milestones, plans
from harness.sweep.runs import named
from harness.sweep.storage import told
from harness.tracking import Registered, Tracker
from harness.trajectories import Stage

KINDS = ("baseline", "study", "run", "model", "file")
FORMS = ("A network is baseline:CONFIG, study:STUDY, study:STUDY:7 (a trial), study:STUDY:7:3 (it "
         "after step 3), study:STUDY:baseline, study:STUDY:random (a control), run:ID, run:ID:50 "
         "(a milestone), run:ID:step-3, model:NAME@champion, model:NAME/2 (a version) or "
         "file:PATH.")


@dataclass(frozen=True)
class Reference:
    """A network's name, taken apart. which: of a model its alias, as @champion, or version, as /2.
    """

    kind: str
    name: str
    which: str = ""
    step: int | None = None

    def __str__(self) -> str:
        if self.kind == "model":
            return f"model:{self.name}{self.which}"
        step = "" if self.step is None else f"{self.step}"
        if self.kind == "run" and step:
            step = f"step-{step}"
        return ":".join(part for part in (self.kind, self.name, self.which, step) if part)

    @property
    def is_champion(self) -> bool:
        """Of a finished study."""
        return self.kind == "study" and not self.which

    @property
    def short(self) -> str:
        """As a person calls it."""
        after = "" if self.step is None else f"step {self.step}"
        which = f"trial {self.which}" if self.which.isdecimal() else self.which or "champion"
        return {"baseline": f"baseline of {self.name}",
                "run": " ".join(x for x in ("run", self.name[:8], self.which, after) if x),
                "file": Path(self.name).stem, "model": f"{self.name}{self.which}",
                "study": f"{which}{after and f' after {after}'} of {self.name}"}[self.kind]


def references(texts: list[str]) -> list[Reference]:
    """Raises ConfigError with all that are none."""
    found, wrong = [], []
    for text in texts:
        try:
            found.append(_reference(text))
        except ConfigError as error:
            wrong.append(f"'{text}': {error}")
    if wrong:
        raise ConfigError("\n".join([*wrong, FORMS]))
    return found


def _reference(text: str) -> Reference:
    kind, _, rest = text.partition(":")
    if kind not in KINDS or not rest:
        raise ConfigError(unknown("kind of network", kind, KINDS) if kind not in KINDS
                          else f"which {kind}?")
    if kind in ("baseline", "file"):
        return Reference(kind, rest)
    if kind == "model":
        return _of_registry(rest)
    name, which, *more = [*rest.split(":"), ""][:max(2, 1 + rest.count(":"))]
    if not name or len(more) > (kind == "study"):
        raise ConfigError(f"which {kind}?" if not name else "it has too many parts.")
    if kind == "run":
        step = re.fullmatch(r"step-(\d+)", which)
        return Reference(kind, name, "", int(step[1])) if step else Reference(kind, name, which)
    if which == "champion":
        which = ""
    if not more:
        return Reference(kind, name, which)
    if which in ("", "baseline"):
        raise ConfigError("trials and controls have steps: give the number of its trial.")
    if not more[0].isdecimal():
        raise ConfigError(f"the step '{more[0]}' must be a whole number, from 0.")
    return Reference(kind, name, which, int(more[0]))


def _of_registry(rest: str) -> Reference:
    found = re.fullmatch(r"([^@/:]+)(@[\w.-]+|/\d+)?", rest)
    if found is None:
        raise ConfigError("after the model's name comes @ALIAS or /VERSION, such as /2.")
    return Reference("model", found[1], found[2] or "@champion")


@dataclass(frozen=True)
class Fetched:
    """A trained network, in eval mode, and what it kept: {tensor: {dimension: original indices}}.

    lineage: where it comes from, as far as that is known; see `harness.export.record`.
    """

    module: nn.Module
    parameters: Parameters
    lineage: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Shelf:
    """Where networks are looked for. read_config: a configuration by its name; open_tracker: for
    those that only MLflow has, opened when the first is asked for.
    """

    home: Path
    open_tracker: Callable[[], Tracker]
    read_config: Callable[[str], RunConfig]
    place: Place

    @cached_property
    def tracker(self) -> Tracker:
        return self.open_tracker()

    def config(self, ref: Reference) -> RunConfig:
        """The run that made the network. Raises HarnessError if it cannot be told."""
        if ref.kind == "baseline":
            return self.read_config(ref.name)
        if ref.kind == "run":
            return run_from_text(self.tracker.read_text(ref.name, "config.yaml"))
        if ref.kind == "model":
            return run_from_text(self.tracker.read_text(self._version(ref).run_id, "config.yaml"))
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
        if ref.kind == "file":
            return _of_file(Path(ref.name), config, data)
        if ref.kind == "study":
            return self._of_study(ref, config, data)
        if ref.kind == "model":
            version = self._version(ref)
            return self._of_run(version.run_id, config, data, version)
        if ref.step is not None:
            return self._step_of_run(ref, ref.name, config)
        return (self._milestone(ref, config) if ref.which
                else self._of_run(ref.name, config, data))

    def trial(self, study_id: str, ordinal: int) -> tuple[Mapping[str, Any], Result]:
        """(what a trial varied, what it found). Raises StudyError."""
        with told(self.place.url):
            found = self.place.ledger(study_id).results()
        for trial, result in found:
            if ordinal_of(trial) == ordinal:
                return dict(trial.params), result
        raise StudyError(f"{study_id} has no trial {ordinal} in {self.place.url}.")

    def _version(self, ref: Reference) -> Registered:
        return self.tracker.registered(ref.name, ref.which)

    def _milestone(self, ref: Reference, config: RunConfig) -> Fetched:
        known = milestones(self.tracker, ref.name)
        if ref.which not in known:
            raise StudyError(f"the run {ref.name} has no such network: "
                             f"{unknown('milestone', ref.which, known)}")
        found = known[ref.which]
        return self._in_store(ref, config, found["stage"], {
            **lineages.of_run(self.tracker, ref.name), "step": found["step"]})

    def _step_of_run(self, ref: Reference, run_id: str, config: RunConfig) -> Fetched:
        known = plans(self.tracker, run_id)
        if str(ref.step) not in known:
            raise StudyError(f"{ref}: {_no_step(ref, len(known))}")
        return self._in_store(ref, config, known[str(ref.step)]["stage"],
                              {**lineages.of_run(self.tracker, run_id), "step": ref.step})

    def _in_store(self, ref: Reference, config: RunConfig, key: str, lineage: Mapping[str, Any],
                  ) -> Fetched:
        experiment = Experiment(config, stages(self.home))
        stage = experiment.stage(key)
        if stage is None:
            # A control has the FLOPs of its champion, which no configuration of a run says.
            run_id = None if "control" in lineage else lineage.get("run")
            raise StudyError(f"the stage of {ref} is no longer in the store of {self.home}. "
                             f"{lineages.way_back(run_id, self.home)}")
        return _of_stage(experiment, stage, lineage)

    def _of_run(self, run_id: str, config: RunConfig, data: Data, version: Registered | None = None,
                ) -> Fetched:
        tensors, tags = self.tracker.read_model(run_id, "pruned", version.uri if version else "")
        known = plans(self.tracker, run_id)
        step = tags.get("step") or max(known, key=int)
        if step not in known:
            raise StudyError(f"the run {run_id} has no plan of its step {step[:40]}.")
        whole = network(config, data)
        graph = ignoring(traced(whole, data.val.inputs[:8].contiguous(), stages(self.home)),
                         config.prune.ignore, whole)
        plan = graph.plan(known[step]["kept"])
        lineage = {**lineages.of_run(self.tracker, run_id), "step": int(step),
                   "stage": tags.get("stage")}
        if version:
            lineage["version"] = f"{version.name}/{version.number}"
        return Fetched(rebuilt(whole, plan.parameters, tensors).eval(), plan.parameters, lineage)

    def _of_study(self, ref: Reference, config: RunConfig, data: Data) -> Fetched:
        outcome = outcome_of(ref.name, self.home)
        lineage: dict[str, Any] = {"study": outcome.study_id}
        if ref.which in ("", "baseline"):
            file = self.home / "studies" / outcome.study_id / f"{ref.which or 'champion'}"
            found = _of_file(file.with_suffix(".safetensors"), config, data)
            return Fetched(found.module, found.parameters,
                           lineage | lineages.of_row(outcome, ref.which or "champion"))
        controls = {row.name: row for row in outcome.rows if row.role == "control"}
        if ref.which in controls:
            row = controls[ref.which]
            lineage |= {"control": row.name}
            if ref.step is not None:
                return self._step_of_run(ref, row.run_id, config)
            return self._in_store(ref, config, row.stage,
                                  lineage | {"run": row.run_id, "step": row.step})
        return self._of_trial(ref, config, outcome, lineage, controls)

    def _of_trial(self, ref: Reference, config: RunConfig, outcome: Outcome,
                  lineage: Mapping[str, Any], controls: Mapping[str, object]) -> Fetched:
        with told(self.place.url):
            found = self.place.ledger(outcome.study_id).results()
        trials = {str(ordinal_of(trial)): (trial, result) for trial, result in found}
        if ref.which not in trials:
            raise StudyError(f"{outcome.study_id} has no such network: "
                             f"{unknown('trial or control', ref.which, [*trials, *controls])}")
        trial, result = trials[ref.which]
        key, step = ((result.last.key, result.last.step) if ref.step is None
                     else (_stage_of_step(ref, result), ref.step))
        return self._in_store(ref, config, key, {
            **lineage, "trial": int(ref.which), "step": step, "settings": named(trial.params),
            "run": trial.user_attrs.get("run_id")})


def _stage_of_step(ref: Reference, result: Result) -> str:
    """Of a trial; '' in those of earlier versions, which the store does not have."""
    stages_of = {point.step: point.stage for point in result.curve}
    if ref.step not in stages_of:
        raise StudyError(f"{ref}: {_no_step(ref, len(stages_of))}")
    return stages_of[ref.step]


def _no_step(ref: Reference, count: int) -> str:
    return f"there is no step {ref.step}; it has steps 0 to {count - 1}."


def _of_file(file: Path, config: RunConfig, data: Data) -> Fetched:
    module = load_pruned(network(config, data), file).eval()
    checkpoint = read_checkpoint(file)
    said = checkpoint.metadata
    return Fetched(module, checkpoint.parameters,
                   {name: said[name] for name in lineages.KEPT if name in said})


def _of_stage(experiment: Experiment, stage: Stage, lineage: Mapping[str, Any] | None = None,
              ) -> Fetched:
    return Fetched(experiment.model(stage), stage.plan.parameters,
                   {**(lineage or {}), "stage": stage.key, "val_accuracy": stage.accuracy})
