"""The runs of a study in MLflow: which there are, how each is opened again, how each ends."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness import tracking
from harness.config import RunConfig, Study, flat, short, to_yaml
from harness.errors import StudyError
from harness.experiment import Experiment, Trial
from harness.journal import Journal, ending
from harness.runtime import facts
from harness.sweep import notes
from harness.sweep.claims import Claim, Claims, holding
from harness.sweep.ledger import Ledger, ordinal_of
from harness.sweep.results import result_of
from harness.sweep.space import Settings
from harness.tracking import Ending, Tracker

# Facts of the study: its run has been ended, or is at work again; what accuracy is, in words.
ENDED, MEASURE = "run_ended", "measure"


@dataclass
class Runs:
    """One study's runs. Opening one that is there goes on with it."""

    study: Study
    study_id: str
    ledger: Ledger
    claims: Claims
    tracker: Tracker
    _tried: dict[str, str] = field(default_factory=dict)  # run -> how its note begins

    @contextmanager
    def opened(self, agent: str) -> Iterator[str]:
        """The study's run, RUNNING while any agent works on it; ended by the last to leave."""
        with holding(self.claims, agent) as claim:
            with holding(self.claims, "study-run"):
                self.ledger.set(ENDED, False)
                self.run_id = self._open_study_run()
                if launcher := tracking.launcher():
                    tracking.link_launcher(self.tracker, launcher, self.run_id)
            with ending(self.tracker, self.run_id, unless=lambda: self._leaves_others(claim)):
                self.reap()
                yield self.run_id
            self.ledger.set(ENDED, True)

    def _leaves_others(self, claim: Claim) -> bool:
        """Leave; of two that leave at once, one is the last."""
        with holding(self.claims, "study-run"):
            claim.release()
            return any(name.startswith("agent-") for name in self.claims.holders())

    def _open_study_run(self) -> str:
        config = self.study.config
        run_id = self.ledger.get("run_id")
        if run_id and self.tracker.status(run_id) == "MISSING" and self.ledger.results():
            raise StudyError(
                f"{self.study_id} was begun with another MLflow store, or its run there was "
                "deleted. Set MLFLOW_TRACKING_URI to that store (by default it is mlflow.db in the "
                "folder where it was begun), or begin anew with another --home.")
        run_id = self._open("study", run_id, name=self.study_id, role="study", tags={}, params={
            "kind": config.kind, "sampler": config.sampler.name,
            **{f"budget_{of}": share for of, share in config.budget
               if config.kind == "budget" and share is not None}})
        self.ledger.set("run_id", run_id)
        self.tracker.log_text(run_id, to_yaml(config), "study.yaml")
        self.tracker.log_text(run_id, to_yaml(self.study.base), "config.yaml")
        return run_id

    def _open(self, key: str, run_id: str | None, *, name: str, role: str,
              params: Mapping[str, object], tags: Mapping[str, str]) -> str:
        """Make a run of this study, or go on with the one that MLflow has.

        key: what it is for, once in a study: a process may die after MLflow has made a run and
        before its id is noted.
        """
        if not run_id or self.tracker.status(run_id) == "MISSING":
            run_id = self.tracker.find_run(self.study_id, key)
        again = {"reason": ""} if run_id else {}  # it may have failed an earlier time
        return self.tracker.open_run(
            name=name, role=role, study=self.study_id, run_id=run_id, params=params,
            parent=None if role == "study" else self.run_id,
            tags={"key": key, "fingerprint": self.study_id.rpartition("-")[2],
                  "profile": self.study.profile or "default", **again, **tags})

    def _params(self, config: RunConfig, settings: Settings) -> dict[str, object]:
        """Every setting that matters under its path, the searched ones under short names too."""
        every = {**flat(config), **named(settings), "criterion": config.prune.criterion}
        return {path: value for path, value in every.items() if path not in config.without_effect}

    def reap(self) -> None:
        """End the runs of the study whose agents were killed: KILLED, should they go on another
        time, else as the study's book says."""
        for run_id, key in self.tracker.running(self.study_id).items():
            if run_id == self.run_id:
                continue
            claim = self.claims.take(f"{key}-run" if key.startswith("baseline") else key)
            if claim is None:
                continue  # somebody is at work on it
            try:
                if self.tracker.status(run_id) == "RUNNING":
                    self.tracker.end_run(run_id, self._ending_of(key, run_id))
            finally:
                claim.release()

    def _ending_of(self, key: str, run_id: str) -> Ending:
        """How the run ended that somebody left RUNNING after it was over."""
        for trial in self.ledger.trials():
            if trial.user_attrs.get("run_id") == run_id and trial.state.is_finished():
                return _ending(trial)
        control = self.ledger.get(key)
        if isinstance(control, dict) and control.get("run_id") == run_id:
            return "FINISHED" if control["result"] else "FAILED"
        return "KILLED"

    def baseline(self, experiment: Experiment, replicate: int = 0) -> None:
        """Write a baseline's run, once for all processes. replicate: 0 is the study's own."""
        key = f"baseline-{replicate}" if replicate else "baseline"
        with holding(self.claims, f"{key}-run"):
            noted = "baseline_run" if not replicate else f"{key}/run"
            run_id = self.ledger.get(noted)
            if run_id and self.tracker.status(run_id) == "FINISHED":
                return
            run_id = self._open(key, run_id, name=_again("baseline", replicate), role="baseline",
                                params=self._params(experiment.config, {}),
                                tags=facts(experiment.device))
            self.ledger.set(noted, run_id)
            with ending(self.tracker, run_id):
                self._write_baseline(run_id, experiment, replicate)

    def _write_baseline(self, run_id: str, experiment: Experiment, replicate: int) -> None:
        self.ledger.set(MEASURE, experiment.data.measure)
        journal = Journal(self.tracker, run_id, experiment.whole)
        journal.epochs(experiment.trained)
        journal.final(experiment.baseline, experiment.whole)
        self.tracker.log_data(run_id, name=experiment.data.name,
                              digest=experiment.data.fingerprint[:16], context="training")
        self.tracker.log_json(run_id, dict(experiment.frozen), "frozen.json")
        told = {"measure": experiment.data.measure}
        if experiment.new_weights:
            told["weights.new"] = experiment.new_weights_told
        self.tracker.set_tags(run_id, {**told, notes.NOTE: notes.baseline(experiment, replicate)})
        self.tracker.set_tags(self.run_id, facts(experiment.device))

    def trial(self, trial: optuna.Trial, config: RunConfig) -> str:
        """The run of a trial, which keeps it over all tries."""
        number, tried = ordinal_of(trial), notes.tried(named(trial.params))
        run_id = self._open(
            f"trial-{number}", trial.user_attrs.get("run_id"), name=f"trial {number}", role="trial",
            tags={"ordinal": str(number), notes.NOTE: tried},
            params=self._params(config, trial.params))
        self._tried[run_id] = tried
        self.ledger.note_run(trial, run_id)
        self.tracker.log_text(run_id, to_yaml(config), "config.yaml")
        return run_id

    def control(self, key: str, name: str, config: RunConfig, settings: Settings,
                replicate: int = 0) -> str:
        """The run of a control; key: what the study's book knows it by."""
        tried = notes.tried(named(settings), notes.CONTROLS.get(name, f"ranking by {name} instead"))
        run_id = self._open(key, self.ledger.get(f"{key}/run"), role="control",
                            name=_again(f"control {name}", replicate),
                            params=self._params(config, settings),
                            tags={"criterion": name, "settings": str(named(settings)),
                                  "replicate": str(replicate), notes.NOTE: tried})
        self._tried[run_id] = tried
        self.ledger.set(f"{key}/run", run_id)
        self.tracker.log_text(run_id, to_yaml(config), "config.yaml")
        return run_id

    def walked(self, run_id: str, journal: Journal, trial: Trial, experiment: Experiment,
               excess: Mapping[str, float] | None = None) -> None:
        """Everything that is known once a walk is over. excess: see `Question.excess`."""
        journal.layers(trial.steps)
        journal.removals(trial.steps)
        journal.plans(trial.steps)
        journal.ledgers(trial.steps)
        journal.milestones(trial.steps, trial.final)
        journal.epochs(trial.final)
        journal.final(trial.final, trial.last.cost)
        self.tracker.set_tags(run_id, {
            "stop_reason": trial.reason[:4000],
            "stages.reused": str(sum(s.reused for s in trial.stages)),
            "stages.all": str(len(trial.stages)), "final.stage": trial.final.key,
            "measure": experiment.data.measure,
            notes.NOTE: notes.walked(self._tried[run_id], result_of(trial, 0.0),
                                     notes.Whole.of(experiment), excess=excess,
                                     measure=experiment.data.measure)})

    def settle(self, trial: FrozenTrial) -> None:
        """End the run of a trial that another agent has ended, should we have opened it since."""
        run_id = trial.user_attrs.get("run_id")
        if run_id and trial.state.is_finished():
            self.tracker.end_run(run_id, _ending(trial))

    def failed(self, trial: optuna.Trial, reason: str) -> None:
        """End a trial's run, if it has one; also one that was made and not noted."""
        number = ordinal_of(trial)
        run_id = (trial.user_attrs.get("run_id")
                  or self.tracker.find_run(self.study_id, f"trial-{number}"))
        if run_id:
            told = notes.failed(notes.tried(named(trial.params)), reason)
            self.tracker.set_tags(run_id, {"reason": reason[:4000], notes.NOTE: told})
            self.tracker.end_run(run_id, "FAILED")


def _ending(trial: FrozenTrial) -> Ending:
    return "FINISHED" if trial.state == TrialState.COMPLETE else "FAILED"


def named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under the short names that tables and charts use."""
    return {short(path): value for path, value in settings.items()}


def _again(name: str, replicate: int) -> str:
    return f"{name}, replicate {replicate}" if replicate else name
