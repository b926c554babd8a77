"""Sensitivity of one configuration's trained network: measured, drawn, kept, tracked.

In the home, under sensitivity/: NAME.json, NAME.csv, NAME_lines.png (zeros), NAME_heat_map.png
(channels), and with a budget NAME_flops50.yaml, a configuration with the suggested `prune.ratios`.
The same files are artifacts of an MLflow run of the role `sensitivity`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.analysis.costs import Sheet
from harness.analysis.sensitivity import (
    KINDS,
    RATIOS,
    Suggestion,
    as_rows,
    check_flops,
    checked,
    plain,
    save,
    tables,
)
from harness.analysis.sensitivity_plots import heat_map, lines
from harness.checking import check_pruning
from harness.config import RunConfig, apply, to_yaml
from harness.console import Screen, percent
from harness.store import write_whole
from harness.tracked import tracked
from harness.tracking import Tracker


@dataclass(frozen=True)
class SensitivityRun:
    """What came out: tables, and the files that were written."""

    sheets: tuple[Sheet, ...]
    files: tuple[Path, ...]


def run_sensitivity(config: RunConfig, home: Path, open_tracker: Callable[[], Tracker],
                    screen: Screen, *, ratios: Sequence[float] = RATIOS,
                    kinds: Sequence[str] = KINDS, rule: str = "count",
                    flops: float | None = None) -> SensitivityRun:
    """Measure on validation; the test split is not read, and the network stays as it is.

    flops: a share of the FLOPs; with it, a plan that leaves no more, from the measured curves.
    Raises ConfigError, before anything is opened, for what is asked for wrongly.
    """
    check_pruning(config)
    checked(ratios, kinds, rule)
    check_flops(flops, kinds)
    with tracked(config, "sensitivity", home, open_tracker, screen) as run:
        tracker, run_id, experiment = run.tracker, run.run_id, run.experiment
        screen.step(0, "sensitivity", 0.0)
        found, plan = experiment.sensitivity(ratios, kinds=kinds, rule=rule, flops=flops)
        reused = sum(curve.reused for curve in found.curves)
        screen.message(f"{len(found.curves)} curves, {reused} of them found in the store")
        folder = home / "sensitivity"
        files = list(save(found, folder, config.name))
        tracker.log_json(run_id, plain(found), "sensitivity.json")
        tracker.log_text(run_id, as_rows(found), "sensitivity.csv")
        for kind, name, draw in (("unstructured", "lines", lines),
                                 ("structured", "heat_map", heat_map)):
            if found.of(kind):
                picture = draw(found)
                files.append(folder / f"{config.name}_{name}.png")
                picture.savefig(files[-1])
                tracker.log_figure(run_id, picture, f"sensitivity_{name}.png")
        sheets = tables(found)
        if plan is not None and flops is not None:
            text = to_yaml(planned(config, plan, flops))
            files.append(folder / f"{planned(config, plan, flops).name}.yaml")
            write_whole(files[-1], text.encode())
            tracker.log_text(run_id, text, "suggested.yaml")
            tracker.log_json(run_id, asdict(plan), "suggested.json")
            sheets.append(_suggested(plan, flops, files[-1]))
    return SensitivityRun(tuple(sheets), tuple(files))


def planned(config: RunConfig, plan: Suggestion, flops: float) -> RunConfig:
    """The configuration with the suggested ratios in place of a percentage."""
    return apply(config, {"name": f"{config.name}_flops{100 * flops:g}",
                          "prune.ratios": dict(plan.ratios)})


def _suggested(plan: Suggestion, flops: float, file: Path) -> Sheet:
    table = ", ".join(f"{name}: {ratio:g}" for name, ratio in plan.ratios.items())
    return Sheet(
        f"suggested for {percent(flops)} of the FLOPs: {percent(plan.share)} are left",
        ("layer", "share of its channels to remove"),
        tuple((name, f"{ratio:.3f}") for name, ratio in plan.ratios.items()),
        (f"each of them alone costs at most {plan.drop:.2f} points by its curve; together they "
         "cost more, and retraining gives back: try it.",
         f"harness run {file}", f'or: --set "prune.ratios={{{table}}}"'))
