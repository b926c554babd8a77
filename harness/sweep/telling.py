"""What a study found, as a person tells it: sentences and tables, for the terminal, MLflow's page
of the study, and the report."""

import math
from collections.abc import Mapping
from typing import Any

from harness.analysis.costs import Sheet
from harness.console import count, percent
from harness.sweep.outcome import Outcome, Row
from harness.sweep.results import AGAIN

CHOSEN_WITH_LUCK = (
    "The champion was chosen for its accuracy, and luck with it: compared are its settings run "
    "again, each time on a new baseline that the controls share.")


def answer(outcome: Outcome) -> str:
    """Which network was found, in sentences."""
    best, whole = outcome.champion, outcome.baseline
    if best is None:
        return "No network was found that could be chosen."
    return (f"{best.name}, step {best.step}: accuracy {percent(best.accuracy)} on validation "
            f"({percent(best.test_accuracy)} on the test split) with {percent(best.share)} "
            f"of the FLOPs; the baseline has {percent(whole.accuracy)} "
            f"({percent(whole.test_accuracy)}). Settings: {settings_of(best.settings)}.")


def networks(outcome: Outcome, *, with_controls: bool = False) -> Sheet:
    """The final table, a network a row."""
    networks = shown(outcome, with_controls)
    timed = any(row.latency_share is not None for row in networks)
    rows = [[row.role, row.name, percent(row.accuracy), percent(row.test_accuracy),
             percent(row.share), *([percent(row.latency_share)] if timed else []),
             count(row.params), str(row.filters), settings_of(row.settings)] for row in networks]
    return Sheet(outcome.study_id, ["", "network", "accuracy", "test", "FLOPs",
                                    *(["latency"] if timed else []), "parameters", "filters",
                                    "settings"], rows, [
        f"accuracy is {outcome.measure}, on validation; the test split was read for baseline and "
        "champion alone. FLOPs are of the baseline's.",
        *(["latency is of the baseline's too: of one picture, the two measured in turns, when the "
           "network was made"] if timed else []),
        f"front: hypervolume {outcome.hypervolume:.4f}, area under the accuracy-FLOPs curve from "
        f"1 % to all FLOPs {outcome.curve_area:.4f} (1 would be perfect)"])


def shown(outcome: Outcome, with_controls: bool) -> list[Row]:
    """The networks of the final table, in its order."""
    return [row for row in outcome.rows if with_controls or row.role != "control"]


def effort(outcome: Outcome) -> str:
    """What the study trained, and what it saved, in a sentence."""
    return (f"{outcome.settings_finished} settings; {outcome.epochs_run} epochs of retraining and "
            "fine-tuning, a sweep without sharing would have run "
            f"{outcome.epochs_naive} ({outcome.saved:.2f}x; {outcome.saved_with_baselines:.2f}x "
            "with a baseline each).")


def against(outcome: Outcome) -> Sheet | None:
    """The champion's settings against the controls, and what one can say of it."""
    best = outcome.champion
    if best is None or not outcome.comparisons:
        return None
    rows = [["champion", "1", percent(best.accuracy), None, percent(best.share), None]]
    for versus in outcome.comparisons:
        found, is_again = versus.difference, versus.name == AGAIN
        rows.append(["champion, again" if is_again else versus.name, str(found.pairs),
                     percent(versus.mean), _points(versus.spread), percent(versus.share),
                     None if is_again else f"{100 * found.mean:+.2f}{_error(found.error)}"])
    notes = [*outcome.verdict, *([CHOSEN_WITH_LUCK] if outcome.replicates else [])]
    return Sheet(f"{outcome.study_id} against its controls", [
        "", "runs", "accuracy", "spread", "FLOPs", "champion's advantage"], rows, notes)


def settings_of(settings: Mapping[str, Any]) -> str:
    """As one line."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _points(share: float) -> str | None:
    return None if math.isnan(share) else f"{100 * share:.2f}"


def _error(share: float) -> str:
    return "" if math.isnan(share) else f" ± {100 * share:.2f}"
