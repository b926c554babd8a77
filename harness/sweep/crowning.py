"""The champion in MLflow's pages: its run says so, it stands beside its controls, and the page of
its registered model compares it with the champions of other studies."""

from harness.console import count, percent
from harness.journal import Journal
from harness.sweep import notes, study_notes
from harness.sweep.agent import Agent
from harness.sweep.ledger import ordinal_of
from harness.sweep.outcome import Outcome, Row
from harness.sweep.registry import ALIAS
from harness.sweep.results import Final
from harness.sweep.runs import named

# Of the baseline, the champion and the controls alone, so that a chart shows them and no others.
COMPARED = "compared_val_accuracy"


def crown(agent: Agent, run_id: str, final: Final, test_accuracy: float) -> None:
    """Tell the champion's run that it is; should more trials have found a better one, tell the run
    that was the champion before."""
    before = agent.ledger.get("champion_run", run_id)
    measure, whole = agent.experiment.data.measure, notes.Whole.of(agent.experiment)
    for trial, result in agent.ledger.results():
        mine, name = trial.user_attrs["run_id"], f"trial {ordinal_of(trial)}"
        if mine not in (before, run_id):
            continue
        is_champion = mine == run_id
        agent.tracker.set_tags(mine, {
            "champion": "yes" if is_champion else "no",
            **({"champion.step": str(final.step)} if is_champion else {}),
            "mlflow.runName": f"{name}, champion" if is_champion else name,
            notes.NOTE: notes.walked(
                notes.tried(named(trial.params)), result, whole, measure=measure,
                excess=agent.question.excess(final if is_champion else result.last),
                champion=final if is_champion else None, test_accuracy=test_accuracy)})
    agent.ledger.set("champion_run", run_id)


def stand_beside(agent: Agent, outcome: Outcome) -> None:
    """Write what is compared with the champion under a name of its own, and for models' pages."""
    for row in outcome.rows:
        if row.role in ("baseline", "champion", "control"):
            journal = Journal(agent.tracker, row.run_id, agent.experiment.whole)
            journal.summary({COMPARED: row.accuracy}, 0)
    if outcome.champion is not None:
        _describe(agent, outcome, outcome.champion)


def _describe(agent: Agent, outcome: Outcome, best: Row) -> None:
    """What the list of a model's versions compares; and that of all models, by whichever version
    the alias points at. Names beside those of `registry.Standing`, which are for computing.
    """
    found = f"{percent(best.accuracy)} at {percent(best.share)} of the FLOPs"
    shown = {"found": f"{found} (baseline {percent(outcome.baseline.accuracy)})",
             "test accuracy": percent(best.test_accuracy), "FLOPs": percent(best.share),
             "baseline": percent(outcome.baseline.accuracy), "parameters": count(best.params)}
    version = agent.tracker.register(outcome.model, outcome.study, tags=shown)
    held = agent.tracker.aliased(outcome.study, ALIAS)
    if held is not None and held.number == version:
        agent.tracker.describe_model(
            outcome.study, description=study_notes.champion(outcome),
            tags={**shown, "study": outcome.study_id, "trial": best.name, "kind": outcome.kind,
                  "accuracy": percent(best.accuracy)})
