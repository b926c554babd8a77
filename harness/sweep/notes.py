"""What a run, or a trial, tells a person on its page: what was tried, and what came out. Markdown,
for MLflow's description and for Optuna's dashboard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.console import NOTHING, count, percent
from harness.engine.cost import FLOPS_PER_MAC
from harness.experiment import Experiment
from harness.settings import AGNOSTIC, SCRATCH
from harness.sweep.results import AGAIN, Final, Result

NOTE = "mlflow.note.content"  # the tag that MLflow shows as a run's description
GAP = "&emsp;"
MOST_STEPS = 24  # of a walk; of a longer one the first and the last are shown

# Control -> what it does other than the champion; all others are criteria.
CONTROLS = {AGAIN: "the champion's settings again, on a new baseline",
            SCRATCH: "the champion's widths with new weights, trained as long as both trainings",
            AGNOSTIC: "the champion's way, but ranked and trained on all classes",
            "uniform": "the same share of every layer instead of ranking all together"}
_BROKEN = {"flops_over_budget": "FLOPs", "latency_over_budget": "latency",
           "params_over_limit": "parameters", "accuracy_under_limit": "accuracy"}


@dataclass(frozen=True)
class Whole:
    """The network that a walk began with. accuracy: on validation, in [0, 1]."""

    accuracy: float
    macs: int
    params: int
    filters: int

    @classmethod
    def of(cls, experiment: Experiment) -> "Whole":
        """The baseline."""
        cost, stage = experiment.whole, experiment.baseline
        return cls(stage.accuracy, cost.macs, cost.params, cost.filters)

    @classmethod
    def begun_with(cls, result: Result) -> "Whole | None":
        """As the walk itself has it: its step 0; None of what did not begin whole."""
        first = next((point for point in result.curve if point.step == 0), None)
        if first is None:
            return None
        return cls(first.accuracy, first.macs, first.params, first.filters)


def tried(settings: Mapping[str, Any], how: str = "") -> str:
    """What a run is about to try. settings: by their short names."""
    words = ", ".join(f"`{name}` {value}" for name, value in settings.items())
    return f"**Tried:** {', with '.join(part for part in (how, words) if part)}."


def walked(head: str, result: Result, whole: Whole, *, measure: str,
           excess: Mapping[str, float] | None = None, champion: Final | None = None,
           test_accuracy: float | None = None) -> str:
    """What a trial, or a control, tried and found.

    head: of `tried`. measure: what accuracy is, in words. excess: of what was asked for, see
    `Question.excess`. champion: the network of this trial that is the study's champion;
    test_accuracy: its own.
    """
    last = champion or result.last
    parts = [head, f"**Came out:** {_outcome(last, whole)}{_fits(excess)}"]
    if champion is not None:
        parts.append("**The champion of its study**, chosen on validation; the test split was read "
                     f"after the choice: {percent(test_accuracy)}.")
    parts += [_compared(last, whole, measure), f"**Step by step,** {measure} on validation:",
              _steps(result, whole), f"It ended because: {_why(result.reason)}.",
              f"Accuracy is {measure}; FLOPs are 2 x MACs of one picture."]
    return "\n\n".join(parts)


def failed(head: str, reason: str) -> str:
    """What a trial tried that found nothing."""
    return f"{head}\n\n**Failed:** {reason}"


def baseline(experiment: Experiment, replicate: int = 0) -> str:
    """What all trials begin with."""
    config, whole = experiment.config, experiment.whole
    data = experiment.data
    which = f"the new baseline of replicate {replicate}" if replicate else "the whole network"
    head = (f"**Trained:** {which}: `{config.model.name}` on `{data.name}`, "
            f"{len(experiment.trained.epochs)} epochs.")
    found = (f"**Came out:** {percent(experiment.baseline.accuracy)} on validation "
             f"({len(data.val)} examples).")
    table = markdown(["", "all trials begin with"], [
        [f"{data.measure} (validation)", percent(experiment.baseline.accuracy)],
        ["FLOPs per picture", count(FLOPS_PER_MAC * whole.macs)],
        ["parameters", count(whole.params)], ["filters", str(whole.filters)],
        ["layers that are never cut", str(len(experiment.frozen))]])
    why = [f"- `{name}`: {reason}" for name, reason in experiment.frozen.items()]
    return "\n\n".join([head, found, table,
                        *(["**Never cut:**", "\n".join(why)] if why else []),
                        f"Accuracy is {data.measure}; FLOPs are 2 x MACs of one picture."])


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; numbers stand right, columns apart: MLflow's pages set them without a gap."""
    cells = [[_cell(value) for value in row] for row in rows]
    sides = ["--:" if n and all(_is_number(row[n]) for row in cells) else "---"
             for n in range(len(columns))]
    head, *body = ("| " + f"{GAP} | ".join(line) + " |" for line in [
        [_cell(name) for name in columns], *cells])
    return "\n".join([head, "| " + " | ".join(sides) + " |", *body])


def _cell(value: object) -> str:
    """A bar would end it, so it is written as its code; a number stays with its unit."""
    text = NOTHING if value is None else str(value)
    text = text.replace(" %", "\N{NO-BREAK SPACE}%")
    return text.replace("|", "&#124;").replace("\n", " ").replace("_", "\\_") or " "


def _is_number(cell: str) -> bool:
    return cell in ("", " ", NOTHING) or cell.lstrip("+-")[:1].isdigit()


def _outcome(last: Final, whole: Whole) -> str:
    return (f"{percent(last.accuracy)} on validation with {percent(last.macs / whole.macs)} of the "
            f"FLOPs; the baseline has {percent(whole.accuracy)} "
            f"({100 * (last.accuracy - whole.accuracy):+.2f} points).")


def _fits(excess: Mapping[str, float] | None) -> str:
    """Whether it may be chosen; nothing where nothing was asked of it."""
    if not excess:
        return ""
    broken = [f"{_BROKEN.get(name, name)} by {100 * amount:.2f} points"
              for name, amount in excess.items() if amount > 0]
    return f" Over the limit of {', '.join(broken)}." if broken else " Within the limits asked for."


def _compared(last: Final, whole: Whole, measure: str) -> str:
    # The two were measured in turns when the network was made: times of other days say nothing.
    times = [] if not (last.latency_share and last.latency_ms) else [
        ["time of one picture", f"{last.latency_ms / last.latency_share:.2f} ms",
         f"{last.latency_ms:.2f} ms", f"{1 / last.latency_share:.1f} x as fast"]]
    return markdown(["", "baseline", "this network", "left"], [
        [f"{measure} (validation)", percent(whole.accuracy), percent(last.accuracy),
         f"{100 * (last.accuracy - whole.accuracy):+.2f} points"],
        ["FLOPs per picture", count(FLOPS_PER_MAC * whole.macs), count(FLOPS_PER_MAC * last.macs),
         _left(last.macs, whole.macs)],
        ["parameters", count(whole.params), count(last.params), _left(last.params, whole.params)],
        ["filters", str(whole.filters), str(last.filters), _left(last.filters, whole.filters)],
        *times])


def _left(new: int, old: int) -> str:
    return percent(new / old) if old else NOTHING


def _steps(result: Result, whole: Whole) -> str:
    points = list(result.curve)
    half = MOST_STEPS // 2
    shown = points if len(points) <= MOST_STEPS else [*points[:half], None, *points[-half:]]
    rows = [["..."] * 5 if p is None else
            [str(p.step), str(p.filters), percent(p.macs / whole.macs),
             percent(p.accuracy_cut) if p.step else NOTHING, percent(p.accuracy)] for p in shown]
    rows += [[f"{final.step}, fine-tuned", str(final.filters), percent(final.macs / whole.macs),
              NOTHING, percent(final.accuracy)] for final in result.finals
             if final.key not in {p.stage for p in points}]
    return markdown(["step", "filters", "FLOPs", "right after the cut", "retrained"], rows)


def _why(reason: str) -> str:
    """Without the list of layers: the run's tag and its ledger have every one."""
    return reason.partition(": ")[0].rstrip(".")
