"""What a study tells a person on its page in MLflow, in its registered model's, and in Optuna's
dashboard. Markdown."""

from harness.console import count, percent
from harness.engine.cost import FLOPS_PER_MAC
from harness.sweep import telling
from harness.sweep.notes import markdown
from harness.sweep.outcome import Outcome


def study(outcome: Outcome) -> str:
    """What a finished study asked and found, and how to have it again."""
    # Of replicates the comparison has the means; the report lists every one.
    sheet = telling.networks(outcome, with_controls=not outcome.replicates)
    versus = telling.against(outcome)
    parts = [f"**Asked for:** {outcome.question}.", f"**Found:** {telling.answer(outcome)}"]
    if outcome.verdict:
        parts += ["**How sure is that?**", "\n".join(f"- {text}" for text in outcome.verdict)]
    parts += ["**Networks**", markdown(sheet.columns, sheet.rows)]
    if versus is not None:
        parts += ["**The champion against its controls**", markdown(versus.columns, versus.rows)]
    parts += [telling.effort(outcome), "**Have it again:** save study.yaml and config.yaml of this "
              f"run's artifacts, then `python -m harness study {outcome.study}.study.yaml --config "
              f"{outcome.study}.config.yaml` (under these names). The whole report is the artifact "
              "report.html."]
    if outcome.weights:
        parts.append(f"Weights of the champion: sha256 `{outcome.weights}`.")
    parts.append(f"Accuracy is {outcome.measure}, on validation.")
    return "\n\n".join(parts)


def champion(outcome: Outcome) -> str:
    """What the page of a registered model says of it: the latest study that chose it."""
    best = outcome.champion
    if best is None:
        return ""
    return "\n\n".join([
        f"The champion of the studies named {outcome.study}; the latest is {outcome.study_id}.",
        f"**Asked for:** {outcome.question}.", f"**Found:** {telling.answer(outcome)}",
        markdown(["", "baseline", "champion"], [
            [f"{outcome.measure} (validation)", percent(outcome.baseline.accuracy),
             percent(best.accuracy)],
            [f"{outcome.measure} (test)", percent(outcome.baseline.test_accuracy),
             percent(best.test_accuracy)],
            ["FLOPs per picture", count(FLOPS_PER_MAC * outcome.baseline.macs),
             count(FLOPS_PER_MAC * best.macs)],
            ["parameters", count(outcome.baseline.params), count(best.params)]]),
        *outcome.verdict])
