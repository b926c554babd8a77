"""What a study found, in plain facts: kept with the study, printed at its end and whenever it is
asked for again."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.sweep.verdict import Versus


@dataclass(frozen=True)
class Row:
    """One network of the final table.

    role: baseline, champion, front or control. accuracy: on validation, in [0, 1]; test_accuracy:
    read once, for the baseline and the champion alone. share: of the baseline's FLOPs;
    latency_share: of its latency, in studies that ask for it.
    """

    role: str
    name: str
    settings: Mapping[str, Any]
    step: int
    accuracy: float
    share: float
    macs: int
    params: int
    filters: int
    percentage: float
    stage: str
    run_id: str
    test_accuracy: float | None = None
    latency_share: float | None = None


@dataclass(frozen=True)
class LayerKept:
    """A layer that multiplies, in the baseline and in the champion. macs: per example."""

    layer: str
    filters: int
    filters_kept: int
    params: int
    params_kept: int
    macs: int
    macs_kept: int


@dataclass(frozen=True)
class Outcome:
    """A finished study. `weights`: checksum of the champion's weights, for comparing two runs.

    question: what it was asked for, in words. is_exhausted: there are no more settings to try.
    measure: what accuracy is, in words; val_examples: on how many it is measured.
    layers: of the champion; frozen: group -> why it is never cut; environment: versions, machine.
    These are empty of studies that an earlier version ended.
    comparisons: the champion's settings against each control; verdict: a sentence on each.
    hypervolume, curve_area: of all its networks, see `analysis.pareto`. bookkeeping: what writing
    down has cost the agents, see `sweep.bookkeeping.metrics`.
    """

    study: str
    study_id: str
    kind: str
    question: str
    settings_finished: int
    is_exhausted: bool
    replicates: int
    rows: tuple[Row, ...]
    comparisons: tuple[Versus, ...]
    verdict: tuple[str, ...]
    hypervolume: float
    curve_area: float
    epochs_run: int
    epochs_naive: int
    baseline_epochs: int
    saved: float
    saved_with_baselines: float
    seconds: float
    bookkeeping: Mapping[str, float]
    experiment_id: str
    view: str
    model: str
    checkpoint: str
    weights: str
    notes: tuple[str, ...] = ()
    measure: str = "top-1 accuracy"
    val_examples: int = 0
    layers: tuple[LayerKept, ...] = ()
    frozen: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def champion(self) -> Row | None:
        return next((r for r in self.rows if r.role == "champion"), None)

    @property
    def baseline(self) -> Row:
        return next(r for r in self.rows if r.role == "baseline")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Outcome":
        """Raises KeyError, TypeError or ValueError for what is none."""
        if not re.fullmatch(r"\w[\w.-]*", facts["study_id"], re.ASCII):  # it names a folder
            raise ValueError(f"{facts['study_id'][:80]!r} is no id of a study")
        rows = tuple(Row(**row) for row in facts["rows"])
        return cls(**{**facts, "rows": rows, "notes": tuple(facts["notes"]),
                      "layers": tuple(LayerKept(**x) for x in facts.get("layers", ())),
                      "verdict": tuple(facts["verdict"]),
                      "comparisons": tuple(map(Versus.from_json, facts["comparisons"]))})
