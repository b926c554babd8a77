"""The champion against controls: other criteria, and its widths newly trained, at its FLOPs.

Without replicates every control runs once, on the study's own baseline. But the champion was chosen
among many for its accuracy, and luck was chosen with it. So with replicates its settings run anew
too, as `again`, each time beside the controls on a baseline that is new; only those are compared.
Controls are shared out among the agents.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from harness.config import RunConfig, apply, control_of
from harness.errors import ClaimLost, HandedBack, HarnessError, described
from harness.experiment import Experiment, Trial
from harness.journal import Journal, ending
from harness.runtime import memory_let_go
from harness.settings import SCRATCH
from harness.sweep.agent import IDLE_S, NO_FAULT, NOT_ITS_OWN, Agent, failed_line
from harness.sweep.claims import Claim
from harness.sweep.ledger import Ledger
from harness.sweep.results import AGAIN, Final, Result, result_of
from harness.sweep.runs import named
from harness.sweep.space import Settings
from harness.trajectories import Stage

Task = tuple[str, int]  # name of a control, number of the replicate


@dataclass(frozen=True)
class Control:
    """One run of a control. result: None if it failed, for `reason`. replicate: 0 is the study's
    own baseline."""

    name: str
    run_id: str
    result: Result | None
    reason: str = ""
    replicate: int = 0

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "run_id": self.run_id, "reason": self.reason,
                "replicate": self.replicate,
                "result": self.result.as_json() if self.result else None}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Control":
        result = Result.from_json(facts["result"]) if facts["result"] else None
        return cls(**{**facts, "result": result})


def controls_of(ledger: Ledger) -> list[Control]:
    """All that have run in a study."""
    return [Control.from_json(facts) for key, facts in ledger.study.user_attrs.items()
            if key.startswith("control-") and isinstance(facts, dict)]


@dataclass
class Controls:
    """What is compared with a champion: its settings, and the network that they led to."""

    agent: Agent
    settings: Settings
    champion: Final
    stage: Callable[[], Stage]  # the champion's
    _failed: dict[Task, Control] = field(default_factory=dict)
    _experiments: dict[int, Experiment] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.agent.study.config
        numbers = range(1, config.replicates + 1) or range(1)
        names = [*([AGAIN] if config.replicates else []), *config.controls]
        self.tasks: list[Task] = [(name, number) for name in names for number in numbers]

    def all(self) -> list[Control]:
        """Every control; those that other agents walk are waited for."""
        while True:
            self.agent.obey()
            done = [self._done(task) for task in self.tasks]
            if all(done):
                return [control for control in done if control]
            time.sleep(IDLE_S)

    def _done(self, task: Task) -> Control | None:
        """Found done, or walked; None if it has to wait for another agent."""
        if task in self._failed:  # a longer study tries it again, this one does not
            return self._failed[task]
        found = self._known(task)
        if found is not None or not self._is_ready(task):
            return found
        claim = self.agent.claims.take(self._key(task))
        if claim is None:
            return None
        try:
            return self._known(task) or self._walked(task, claim)
        except (HandedBack, ClaimLost):
            return None
        finally:
            claim.release()

    def _is_ready(self, task: Task) -> bool:
        """A network trained from scratch has its twin's widths, so the twin comes first."""
        name, number = task
        twin = (AGAIN, number)
        return name != SCRATCH or not number or twin in self._failed or bool(self._known(twin))

    def _known(self, task: Task) -> Control | None:
        facts = self.agent.ledger.get(self._key(task))
        return Control.from_json(facts) if facts else None

    def _key(self, task: Task) -> str:
        name, number = task
        text = f"{name}/{self.champion.macs}/{sorted(self.settings.items())}"
        if name == SCRATCH and not number:
            text += f"/{self.champion.key}"
        if number:
            text += f"/{number}"
        return f"control-{name}-{sha256(text.encode()).hexdigest()[:16]}"

    def _walked(self, task: Task, claim: Claim) -> Control:
        name, number = task
        agent, start = self.agent, time.perf_counter()
        config = self._config(task)
        place = len(agent.ledger.trials()) + self.tasks.index(task)
        shown = {"criterion": name, **({"replicate": number} if number else {})}
        agent.screen.trial(place, {**named(self.settings), **shown}, 100.0, role="control")
        run_id = agent.runs.control(self._key(task), name, config, self.settings, number)
        try:
            with ending(agent.tracker, run_id):
                experiment = self._experiment(number)
                trial = (self._from_scratch(experiment, config, number, run_id)
                         if name == SCRATCH else
                         agent.walk(run_id, config, claim, macs=self.champion.macs,
                                    experiment=experiment))
        except (*NO_FAULT, *NOT_ITS_OWN, ClaimLost):
            raise
        except Exception as error:  # the trials are none the worse for it
            agent.screen.trial_done(failed_line(place, "control", shown, described(error)))
            self._failed[task] = Control(name, run_id, None, described(error), number)
            return self._failed[task]
        result = result_of(trial, time.perf_counter() - start)
        control = Control(name, run_id, result, "", number)
        agent.ledger.set(self._key(task), control.as_json())
        agent.screen.trial_done(agent.line(place, "control", {**self.settings, **shown}, result))
        return control

    def _config(self, task: Task) -> RunConfig:
        name, number = task
        if name in (AGAIN, SCRATCH):
            return apply(self._base(number), self.settings)
        return control_of(self._base(number), name, self.settings)

    def _base(self, number: int) -> RunConfig:
        base = self.agent.study.base
        return base.model_copy(update={"replicate": base.replicate + number})

    def _experiment(self, number: int) -> Experiment:
        """With the replicate's own baseline, which is written down once."""
        if not number:
            return self.agent.experiment
        if number not in self._experiments:
            experiment = self.agent.experiment_of(self._base(number))
            self.agent.runs.baseline(experiment, number)
            self._experiments[number] = experiment
        return self._experiments[number]

    def _from_scratch(self, experiment: Experiment, config: RunConfig, number: int, run_id: str,
                      ) -> Trial:
        """The twin's widths, trained for as many epochs as baseline and twin were together."""
        twin, stage = self.champion, None
        if number:
            known = self._known((AGAIN, number))
            if known is None or known.result is None:
                raise HarnessError("the champion's settings failed on this replicate's baseline")
            twin = known.result.last
            stage = experiment.stage(twin.key) or experiment.trial(
                apply(self._base(number), self.settings), macs=self.champion.macs).final
        epochs = (experiment.epochs_of(config.baseline)
                  + twin.step * experiment.epochs_of(config.retrain)
                  + experiment.epochs_of(config.finetune))
        with memory_let_go():
            trial = experiment.scratch(stage or self.stage(), round(epochs))
        journal = Journal(self.agent.tracker, run_id, experiment.whole)
        for step in trial.steps:
            journal.step(step)
        journal.gops(experiment.gops(trial.final), trial.final)
        self.agent.runs.walked(run_id, journal, trial, experiment)
        return trial
