"""Runs side by side: what came out, and which settings differ."""

from collections.abc import Callable, Mapping, Sequence

from harness import page
from harness.analysis.costs import Sheet
from harness.console import count, percent
from harness.tracking import Written

# Metric -> title, and how it is shown; {} is what accuracy is in these runs.
MEASURES: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "final_val_accuracy": ("{} (validation)", percent),
    "final_test_accuracy": ("{} (test)", percent),
    "final_flops": ("FLOPs per picture", count),
    "final_flops_reduction": ("FLOPs removed", percent),
    "final_params": ("parameters", count),
    "final_filters": ("filters", count),
    "final_size_mb": ("size in memory, MB", lambda value: f"{value:.2f}"),
    "final_latency_ms": ("latency of one picture, ms", lambda value: f"{value:.2f}"),
}


def side_by_side(runs: Sequence[Written]) -> Sheet:
    """One column a run; measures that no run has are left out."""
    rows = [["study", *(run.study for run in runs)], ["status", *(run.status for run in runs)]]
    told = {run.measure for run in runs}
    measure = next(iter(told)) if len(told) == 1 else ""
    if not measure and any(told):
        rows.append(["accuracy is", *(run.measure or "-" for run in runs)])
    for metric, (title, show) in MEASURES.items():
        found = [run.metrics.get(metric) for run in runs]
        if any(value is not None for value in found):
            rows.append([title.format(measure or "accuracy"), *(
                "-" if value is None else str(show(value)) for value in found)])
    keys = sorted({key for run in runs for key in run.params})
    for key in keys:
        values = [run.params.get(key, "-") for run in runs]
        if len(set(values)) > 1:
            rows.append([key, *values])
    notes = ["settings are those in which the runs differ; a run that FAILED has the metrics of as "
             "far as it came"]
    return Sheet("runs side by side", ["", *(f"{run.name} ({run.run_id[:8]})" for run in runs)],
                 rows, notes)


def page_of(sheet: Sheet) -> str:
    """The comparison as an HTML page that opens from disk."""
    return page.page(sheet.title, [page.text(note, "small") for note in sheet.notes],
                     [("Results and settings", [page.table(sheet.columns, sheet.rows)])])
