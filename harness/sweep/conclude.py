"""The end of a study: controls, the front, the champion, the test split read once, the registry."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from harness.analysis.pareto import curve_area, front, hypervolume
from harness.checkpoint import save_pruned
from harness.comparison_view import build
from harness.config import Study, short, to_yaml
from harness.engine.cost import Cost
from harness.errors import StoreError, TrackingError
from harness.journal import Journal
from harness.runtime import facts
from harness.store import write_whole
from harness.sweep import study_notes
from harness.sweep.agent import Agent
from harness.sweep.claims import holding
from harness.sweep.controls import Control, Controls
from harness.sweep.crowning import crown, stand_beside
from harness.sweep.ledger import Ledger, ordinal_of
from harness.sweep.lineage import of_trial
from harness.sweep.notes import NOTE
from harness.sweep.outcome import LayerKept, Outcome, Row
from harness.sweep.pictures import FOLDER, of_study
from harness.sweep.registry import Standing, register_champion
from harness.sweep.report import RUN_FILE, STUDY_FILE
from harness.sweep.report import keep as keep_report
from harness.sweep.results import AGAIN, Final, Result, effort_of
from harness.sweep.runs import named
from harness.sweep.space import Space
from harness.sweep.summary import Summary, summary_of
from harness.sweep.verdict import Versus, compared, sentence
from harness.trajectories import Stage


@dataclass(frozen=True)
class Found:
    """A network of a trial: where it came from."""

    ordinal: int
    settings: Mapping[str, Any]
    run_id: str
    final: Final

    def lineage(self, study_id: str) -> dict[str, Any]:
        return of_trial(study_id, self.ordinal, self.run_id, self.settings, self.final)


def conclude(agent: Agent) -> Outcome:
    """Everything after the last trial. Running it again changes nothing and costs little.

    Controls are shared out among the agents; one of them does the rest.
    """
    results = agent.ledger.results()
    by_ordinal = {ordinal_of(t): Found(ordinal_of(t), t.params, t.user_attrs["run_id"], r.last)
                  for t, r in results}
    best = agent.question.best((ordinal_of(t), r) for t, r in results)
    champion = None
    if best is not None:
        champion = replace(by_ordinal[best[0]], final=best[1])
    controls = _controls(agent, champion)
    with holding(agent.claims, "conclusion"):
        outcome = finished(agent.ledger, agent.study)
        if outcome is None:
            outcome = _outcome(agent, results, by_ordinal, champion, controls)
            _report(agent, outcome)
            agent.ledger.set("outcome", outcome.as_json())  # last: now the study is finished
        agent.runs.reap()
        return outcome


def finished(ledger: Ledger, study: Study) -> Outcome | None:
    """What the study found, if it has found all that it is asked for."""
    try:
        outcome = Outcome.from_json(ledger.get("outcome", {}))
    except (KeyError, TypeError, ValueError):  # none, or of an earlier version: drawn again
        return None
    has_all = outcome.is_exhausted or outcome.settings_finished >= study.config.trials
    return outcome if has_all and outcome.replicates >= study.config.replicates else None


def _outcome(agent: Agent, results: list[tuple[FrozenTrial, Result]], by_ordinal: dict[int, Found],
             champion: Found | None, controls: list[Control]) -> Outcome:
    rows = [_baseline_row(agent)]
    checkpoint = weights = ""
    notes = _notes(agent)
    if champion is not None:
        stage = _stage(agent, champion)
        checkpoint, weights = _keep(agent, champion, stage)
        rows.append(_champion_row(agent, champion, stage))
    members = _front(by_ordinal.values(), results, agent.question.price)
    model = _log_models(agent, members, champion)
    rows += [_row(agent, "front", f) for f in members if champion is None or f != champion]
    rows += [_control_row(agent, control) for control in controls if control.result]
    notes += [f"control {c.name} failed: {c.reason}" for c in controls if not c.result]
    walked = [r for _, r in results] + [c.result for c in controls if c.result]
    baseline = agent.experiment.baseline
    replicates = agent.study.config.replicates if champion else 0
    effort = effort_of(walked, len(agent.experiment.trained.epochs), 1 + replicates,
                       agent.ledger.failed())
    whole = agent.experiment.whole.macs
    reached = [(f.macs / whole, f.accuracy) for _, r in results for f in r.finals]
    reached.append((1.0, baseline.accuracy))
    comparisons = compared(controls, champion.final, whole) if champion else ()
    notes += _draw(agent, results, controls, champion)
    outcome = Outcome(
        study=agent.study.config.name, study_id=agent.study_id,
        kind=agent.study.config.kind, question=agent.question.text,
        settings_finished=len(results), is_exhausted=agent.is_exhausted,
        replicates=agent.study.config.replicates, rows=tuple(rows), comparisons=comparisons,
        verdict=_verdict(agent, champion, comparisons), hypervolume=hypervolume(reached),
        curve_area=curve_area(reached), epochs_run=effort.run, epochs_naive=effort.naive,
        baseline_epochs=effort.baseline, saved=effort.saved,
        saved_with_baselines=effort.saved_with_baselines,
        seconds=sum(r.seconds for r in walked), bookkeeping={},  # what was told first stays: below
        experiment_id=agent.tracker.experiment_id, view=_view(agent), model=model,
        checkpoint=checkpoint, weights=weights, notes=tuple(notes),
        measure=agent.experiment.data.measure, val_examples=len(agent.experiment.chosen.val),
        layers=_layers(agent, champion), frozen=dict(agent.experiment.frozen),
        environment=facts(agent.experiment.device))
    summary = summary_of(agent, outcome)
    outcome = replace(outcome, bookkeeping=summary.bookkeeping)
    _write(agent, outcome, summary)
    stand_beside(agent, outcome)
    return outcome


def _controls(agent: Agent, champion: Found | None) -> list[Control]:
    """The champion's settings with other criteria, down to the champion's FLOPs."""
    if champion is None:
        return []
    return Controls(agent, dict(champion.settings), champion.final,
                    lambda: _stage(agent, champion)).all()


def _draw(agent: Agent, results: list[tuple[FrozenTrial, Result]], controls: list[Control],
          champion: Found | None) -> list[str]:
    """The study's pictures. Returns what could not be drawn, and why."""
    if not agent.study.base.pictures:
        return []
    with agent.watch.on("pictures"):
        album = of_study(agent.experiment, agent.question, results, controls, agent.ledger.study,
                         (champion.ordinal, champion.final) if champion else None)
        album.keep(agent.home / "studies" / agent.study_id / FOLDER, agent.tracker, agent.run_id)
    return album.told


def _layers(agent: Agent, champion: Found | None) -> tuple[LayerKept, ...]:
    """Those that multiply: norms and activations follow them."""
    if champion is None:
        return ()
    whole = agent.experiment.whole
    kept = {x.layer: x for x in agent.experiment.cost(_stage(agent, champion).plan).layers}
    return tuple(LayerKept(x.layer, x.filters, kept[x.layer].filters, x.params,
                           kept[x.layer].params, x.macs, kept[x.layer].macs)
                 for x in whole.layers if x.macs and x.layer in kept)


def _verdict(agent: Agent, champion: Found | None, found: Iterable[Versus]) -> tuple[str, ...]:
    if champion is None:
        return ()
    criterion = champion.settings.get("prune.criterion", agent.study.base.prune.criterion)
    measure = agent.experiment.data.measure
    return tuple(sentence(str(criterion), versus, measure) for versus in found
                 if versus.name != AGAIN)


def _front(trials: Any, results: list[tuple[Any, Result]],
           price: Callable[[Final], float]) -> list[Found]:
    by_ordinal = {f.ordinal: f for f in trials}
    every = []
    for trial, result in results:
        base = by_ordinal[ordinal_of(trial)]
        every += [Found(base.ordinal, base.settings, base.run_id, final) for final in result.finals]
    return front(every, accuracy=lambda f: f.final.accuracy, cost=lambda f: price(f.final))


def _stage(agent: Agent, found: Found) -> Stage:
    """The network's stage; walked again if the store had to let it go."""
    stage = agent.experiment.stage(found.final.key)
    if stage is None:
        trial = agent.rewalked(dict(found.settings))
        stage = trial.finals[found.final.step]
    return stage


def _keep(agent: Agent, champion: Found, stage: Stage) -> tuple[str, str]:
    """Champion and baseline as files of their own: the store may drop its stages, not these."""
    folder = agent.home / "studies" / agent.study_id
    folder.mkdir(parents=True, exist_ok=True)
    experiment = agent.experiment
    whole = experiment.baseline
    save_pruned(experiment.model(whole), whole.plan, folder / "baseline.safetensors",
                metadata=experiment.record(whole.plan, {
                    "study": agent.study_id, "role": "baseline", "stage": whole.key,
                    "run": str(agent.ledger.get("baseline_run")), "val_accuracy": whole.accuracy}))
    path = folder / "champion.safetensors"
    save_pruned(experiment.model(stage), stage.plan, path, metadata=experiment.record(
        stage.plan, {**champion.lineage(agent.study_id), "role": "champion"}))
    return str(path), checksum(stage)


def checksum(stage: Stage) -> str:
    """Hash of a stage's weights, bit by bit, and of what it kept."""
    digest = hashlib.sha256()
    for name, tensor in sorted(stage.tensors.items()):
        digest.update(name.encode() + str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _log_models(agent: Agent, members: list[Found], champion: Found | None) -> str:
    """The front as models that load without our code; the champion registered, see `registry`.

    Returns: the champion's URI, '' without one.
    """
    logged: dict[str, str] = agent.ledger.get("models", {})
    wanted = list(members)
    if champion is not None and champion not in wanted:
        wanted.append(champion)
    for found in wanted:
        if found.final.key not in logged:
            stage = _stage(agent, found)
            uri = agent.tracker.log_model(
                found.run_id, agent.experiment.model(stage),
                agent.experiment.data.val.inputs[:2], name="pruned",
                metrics={"val_accuracy_of_model": found.final.accuracy,
                         "flops_share_of_model": found.final.macs / agent.experiment.whole.macs,
                         "params_of_model": float(found.final.params),
                         "macs_of_model": float(found.final.macs)},
                tags={"stage": found.final.key, "step": str(found.final.step)},
                metadata=agent.experiment.record(stage.plan, found.lineage(agent.study_id)))
            logged = {**logged, found.final.key: uri}
            agent.ledger.set("models", logged)
    if champion is None:
        return ""
    uri = logged[champion.final.key]
    chosen = agent.experiment.chosen
    standing = Standing.of(agent.question, champion.final, study=agent.study_id,
                           trial=champion.ordinal, data=chosen.fingerprint, measure=chosen.measure)
    register_champion(agent.tracker, uri, agent.study.config.name, standing, (
        f"Of {agent.study_id}, {agent.question.text}: "
        f"{champion.final.accuracy:.2%} on validation at {standing.share:.1%} of the FLOPs, "
        f"trial {champion.ordinal}, step {champion.final.step}."))
    return uri


def _test_accuracy(agent: Agent, stage: Stage) -> float:
    """Read once for a network, then remembered."""
    known: dict[str, float] = agent.ledger.get("test_accuracy", {})
    if stage.key not in known:
        known = {**known, stage.key: agent.experiment.test_accuracy(stage)}
        agent.ledger.set("test_accuracy", known)
    return known[stage.key]


def _baseline_row(agent: Agent) -> Row:
    experiment, stage = agent.experiment, agent.experiment.baseline
    whole = experiment.whole
    test = _test_accuracy(agent, stage)
    run_id = str(agent.ledger.get("baseline_run"))
    journal = Journal(agent.tracker, run_id, whole)
    journal.summary({"final_test_accuracy": test}, int(stage.facts["made_ms"]))
    return Row("baseline", "baseline", {}, 0, stage.accuracy, 1.0, whole.macs, whole.params,
               whole.filters, 0.0, stage.key, run_id, test,
               1.0 if agent.question.is_about_latency else None)


def _champion_row(agent: Agent, champion: Found, stage: Stage) -> Row:
    test = _test_accuracy(agent, stage)
    journal = Journal(agent.tracker, champion.run_id, agent.experiment.whole)
    journal.summary({"final_test_accuracy": test}, int(stage.facts["made_ms"]))
    crown(agent, champion.run_id, champion.final, test)
    return _row(agent, "champion", champion, test)


def _row(agent: Agent, role: str, found: Found, test: float | None = None) -> Row:
    return _final_row(agent, role, f"trial {found.ordinal}", found.settings, found.final,
                      found.run_id, test)


def _control_row(agent: Agent, control: Control) -> Row:
    assert control.result is not None
    which = {"replicate": control.replicate} if control.replicate else {}
    return _final_row(agent, "control", control.name, which, control.result.last, control.run_id,
                      None)


def _final_row(agent: Agent, role: str, name: str, settings: Mapping[str, Any], final: Final,
               run_id: str, test: float | None) -> Row:
    whole: Cost = agent.experiment.whole
    return Row(role, name, named(settings), final.step, final.accuracy, final.macs / whole.macs,
               final.macs, final.params, final.filters, final.percentage, final.key, run_id, test,
               final.latency_share if agent.question.is_about_latency else None)


def _notes(agent: Agent) -> list[str]:
    return [f"trial {ordinal_of(t)} failed: {t.user_attrs['reason']}"
            for t in agent.ledger.originals() if "reason" in t.user_attrs]


def _view(agent: Agent) -> str:
    searched = [short(path) for path in Space.of(agent.study.config).searched]
    tried = {name: {named(t.params).get(name) for t in agent.ledger.originals()}
             for name in searched}
    view = build(agent.study_id, kind=agent.study.config.kind, settings=searched,
                 varied=[name for name in searched if _varies(tried[name])],
                 measure=agent.experiment.data.measure)
    return agent.tracker.save_view(view.key, view.value)


def _varies(values: set[Any]) -> bool:
    """Whether a chart can have it as an axis: more than one number."""
    return len(values) > 1 and all(isinstance(value, int | float) for value in values)


def _write(agent: Agent, outcome: Outcome, summary: Summary) -> None:
    """Into the study run, the study's book, and a file beside the checkpoints."""
    rows = [asdict(r) for r in outcome.rows]
    table = {k: [str(r[k]) if k == "settings" else r[k] for r in rows] for k in rows[0]}
    agent.tracker.log_table(agent.run_id, table, "result.json")
    journal = Journal(agent.tracker, agent.run_id, agent.experiment.whole)
    journal.latest(summary.metrics, summary.moment_ms)
    agent.tracker.set_tags(agent.run_id, {NOTE: study_notes.study(outcome),
                                          "question": outcome.question,
                                          "verdict": "\n".join(outcome.verdict)[:4000],
                                          "view": outcome.view, "champion.weights": outcome.weights,
                                          "champion.model": outcome.model})
    folder = Path(agent.home) / "studies" / agent.study_id
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / STUDY_FILE, to_yaml(agent.study.config).encode())
    write_whole(folder / RUN_FILE, to_yaml(agent.study.base).encode())
    write_whole(folder / "outcome.json", json.dumps(outcome.as_json(), indent=1).encode())


def _report(agent: Agent, outcome: Outcome) -> None:
    """A mistake in the report must not cost the study that it is of."""
    with agent.watch.on("pictures"):
        try:
            keep_report(outcome, agent.ledger, agent.home, agent.tracker)
        except (StoreError, TrackingError):
            raise
        except Exception as error:
            agent.screen.message(f"the report was not written: {type(error).__name__}: {error}; "
                                 f"harness report {agent.study_id} tries again")
